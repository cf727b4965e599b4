"""The listening sockets of a process that can hand them over, and that may have got them from another.

Owns which sockets there are and how each was asked for.  Called by endpoints, in the place of the reactor, by
:mod:`relay.net.giving` and :mod:`relay.net.taking`.

With ``shared`` several processes listen on one port, each with a socket of its own (``SO_REUSEPORT``): the kernel deals
the connections out by a hash of their addresses.  A process that ends takes those with it that wait in its queue, and
the others get its share; one that hangs keeps its share waiting.  (HAProxy and nginx do it so, too.)

An endpoint, whatever string made it, ends in one of the reactor's ``listen`` calls.  Here such a call is answered with
the socket that the process before us had for the same address, if it had one: so a TLS endpoint gets its certificate
from the new command line and its socket from the old process.  A socket that two processes have is never shut down, by
either: that would end it for both.  Connections that wait in its queue are whoever accepts them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.protocols import tls

from relay.net.handover import close_all
from relay.net.sockets import family_of


@attrs.define
class _Inherited:
    asked: str
    descriptor: int


class Ports:
    """All ports of a process.

    ``is_open`` is false while another process accepts: ours are then there, and rest.
    """

    def __init__(self, reactor: Any) -> None:
        self.is_open = True
        self._reactor = reactor
        self._ports: list[tuple[str | None, Any]] = []
        self._inherited: list[_Inherited] = []

    # what the process does with them

    def inherit(self, asked: list[str], descriptors: list[int]) -> None:
        """These are another's, and it still accepts: ours are not opened before :meth:`open`."""
        self.is_open = False
        self._inherited = [_Inherited(*pair) for pair in zip(asked, descriptors, strict=True)]

    def unclaimed(self) -> list[str]:
        """Nobody here has asked for these: their sockets are closed."""
        asked = [inherited.asked for inherited in self._inherited]
        close_all(inherited.descriptor for inherited in self._inherited)
        self._inherited.clear()
        return asked

    def open(self) -> None:
        """Accept."""
        self.is_open = True
        for _, port in self._ports:
            if port.connected:
                port.startReading()

    def rest(self) -> None:
        """Accept nobody for now: they wait in the kernel's queue."""
        self.is_open = False
        for _, port in self._ports:
            if port.connected:
                port.stopReading()

    def handles(self) -> tuple[list[str], list[int]]:
        """How each was asked for, and its descriptor.  (One that came from systemd will come from there again.)"""
        ours = [(asked, port.fileno()) for asked, port in self._ports if asked is not None and port.connected]
        return [asked for asked, _ in ours], [descriptor for _, descriptor in ours]

    def forsake(self) -> None:
        """Another process has them now: close our descriptors, and nothing else."""
        for _, port in self._ports:
            if port.connected:
                port.stopReading()
                port.connected = False  # so that nobody shuts it down, or removes the path of a UNIX socket
                port.socket.close()
        self._ports.clear()

    @property
    def shared(self) -> SharedPorts:
        """For endpoints whose port others may listen on, too."""
        return SharedPorts(self)

    # what endpoints call (the reactor's interfaces)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "", *, is_shared: bool = False
    ) -> Any:
        def listen() -> Any:
            if is_shared:
                return _listen_shared(self._reactor, port, factory, backlog, interface)
            return self._reactor.listenTCP(port, factory, backlog, interface)

        return self._listen(_address(interface, port), factory, listen)

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        return self.listenTCP(port, tls.TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        asked = f"unix {address}"
        return self._listen(asked, factory, lambda: self._reactor.listenUNIX(address, factory, backlog, mode, wantPID))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory) -> Any:
        return self._keep(None, self._reactor.adoptStreamPort(fileDescriptor, addressFamily, factory))

    def _listen(self, asked: str, factory: IProtocolFactory, listen: Callable[[], IListeningPort]) -> Any:
        inherited = next((one for one in self._inherited if one.asked == asked), None)
        if inherited is None:
            return self._keep(asked, listen())
        self._inherited.remove(inherited)
        try:
            family = family_of(inherited.descriptor)
            return self._keep(asked, self._reactor.adoptStreamPort(inherited.descriptor, family, factory))
        finally:
            close_all([inherited.descriptor])

    def _keep(self, asked: str | None, port: Any) -> Any:
        if not self.is_open:
            port.stopReading()
        self._ports.append((asked, port))
        return port


class SharedPorts:
    """Listens like :class:`Ports`, on ports that other processes of the same user may share."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> Any:
        return self._ports.listenTCP(port, factory, backlog, interface, is_shared=True)

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        return self.listenTCP(port, tls.TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)


def _listen_shared(reactor: Any, port: int, factory: IProtocolFactory, backlog: int, interface: str) -> Any:
    """As ``reactor.listenTCP``.

    Raises:
        CannotListenError: the port is taken by somebody who does not share it, or can't be had.
    """
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listening.bind((interface, port))
            listening.listen(backlog)
        except OSError as error:
            raise CannotListenError(interface, port, error) from None
        return reactor.adoptStreamPort(listening.fileno(), family, factory)


def _address(interface: str, port: int) -> str:
    return f"tcp {'' if interface == '0.0.0.0' else interface} {port}"
