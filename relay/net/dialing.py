"""Dialing an address that needs no resolver, at the price of its system calls.

Owns the way from an endpoint string to a connected transport.  Called by the balancer tier for its aggregators.

A balancer that loses an aggregator dials for thousands of viewers at once.  Twisted's way to do it (a connector, a
client, two wrappers about the protocol, two timers, four registrations with the reactor) costs twice as much as all
else in a move.  For an IP address none of that is needed: a socket, ``connect``, and in a local network the next system
call finds it connected already.  Where it doesn't, the reactor says when.  Any other endpoint string is Twisted's.

A connect to a port of this machine in the ephemeral range, with nobody listening, may meet itself (TCP's simultaneous
open): the kernel gives the socket that very port, and it is connected to itself.  That is a refusal here.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectingCancelledError, getConnectError
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReadWriteDescriptor,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

# tcp:HOST:PORT or tcp:host=HOST:port=PORT, the colons of IPv6 escaped, and nothing more
_LITERAL = re.compile(r"tcp:(?:host=)?((?:[0-9a-fA-F.]|\\:)+):(?:port=)?([0-9]{1,5})\Z")
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)


def dialing_endpoint(reactor: Any, description: str) -> IStreamClientEndpoint:
    """An endpoint from a string, as ``clientFromString``; the quick way where that will do.

    Raises:
        ValueError: it is no endpoint.
    """
    match = _LITERAL.match(description)
    if match is not None:
        host, port = match[1].replace("\\:", ":"), int(match[2])
        try:
            family = socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
        except ValueError:
            pass  # a name, to Twisted
        else:
            if 0 < port < 65536:
                return DialingEndpoint(reactor, family, host, port)
    endpoint: IStreamClientEndpoint = clientFromString(reactor, description)
    return endpoint


@implementer(IStreamClientEndpoint)
class DialingEndpoint:
    """An IP address and a port.  A connect has no timeout but the caller's, which cancels it."""

    def __init__(self, reactor: Any, family: socket.AddressFamily, host: str, port: int) -> None:
        self._reactor = reactor
        self._family = family
        self._address = (host, port)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        dial = _Dial(self._reactor, protocolFactory)
        dial.begin(self._family, self._address)
        return dial.result

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address[0]} port {self._address[1]}>"


class DialedTransport(tcp.Connection):
    """The transport of a connection that we made.  A protocol that pauses it at once costs no registration."""

    _is_paused = False

    def __init__(self, handle: socket.socket, protocol: IProtocol, reactor: Any, peer: Any) -> None:
        super().__init__(handle, protocol, reactor)
        self._peer = peer
        self.logstr = f"{self._getLogPrefix(protocol)},client"
        self.connected = True

    def begin(self) -> None:
        """Tell the protocol, and read."""
        self.protocol.makeConnection(self)
        if self.connected and not self._is_paused:
            self.startReading()

    def pauseProducing(self) -> None:
        self._is_paused = True
        super().pauseProducing()

    def getPeer(self) -> IAddress:
        return _address(self._peer)

    def getHost(self) -> IAddress:
        return _address(self.getHandle().getsockname())


@implementer(IReadWriteDescriptor)
class _Dial:
    """One socket, from its birth until it is connected.  ``result`` fires with the protocol."""

    def __init__(self, reactor: Any, factory: IProtocolFactory) -> None:
        self.result: Deferred[IProtocol] = Deferred(self._cancel)
        self._reactor = reactor
        self._factory = factory
        self._address: Any = None
        self._handle: socket.socket | None = None
        self._is_watched = False

    def begin(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        """Connect; ``result`` has often fired when this returns."""
        self._address = address
        try:
            self._handle = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            code = self._handle.connect_ex(address)
        except OSError as error:  # no descriptor is left
            code = error.errno or errno.EMFILE
        if code in (0, *_UNDER_WAY):
            self._look(is_first=True)
        else:
            self._fail(code)

    def fileno(self) -> int:
        return -1 if self._handle is None else self._handle.fileno()

    def logPrefix(self) -> str:
        return "dialing"

    def doRead(self) -> None:
        """Never asked for."""

    def doWrite(self) -> None:
        """It is connected, or has failed."""
        self._look()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has seen an error or a hang-up; the socket says which."""
        if self._handle is not None:
            self._look()

    def _look(self, is_first: bool = False) -> None:
        assert self._handle is not None
        try:
            peer = self._handle.getpeername()
        except OSError as error:
            code = self._handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code or not is_first:
                self._fail(code or error.errno or errno.ECONNABORTED)
            else:
                self._reactor.addWriter(self)
                self._is_watched = True
            return
        self._connected(peer)

    def _connected(self, peer: Any) -> None:
        assert self._handle is not None
        protocol = None if self._handle.getsockname() == peer else self._factory.buildProtocol(_address(peer))
        if protocol is None:
            self._fail(errno.ECONNREFUSED)
            return
        DialedTransport(self._let_go(), protocol, self._reactor, peer).begin()
        self.result.callback(protocol)

    def _fail(self, code: int) -> None:
        if self._handle is not None:
            self._let_go().close()
        self.result.errback(getConnectError((code, os.strerror(code))))

    def _cancel(self, _: object) -> None:
        self._let_go().close()
        self.result.errback(ConnectingCancelledError(_address(self._address)))

    def _let_go(self) -> socket.socket:
        handle = self._handle
        assert handle is not None
        if self._is_watched:
            self._reactor.removeWriter(self)
        self._handle = None
        return handle


def _address(name: Any) -> IAddress:
    return (IPv4Address if len(name) == 2 else IPv6Address)("TCP", *name[:2])
