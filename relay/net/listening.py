"""Listening: a service that knows its port, and ports whose transports can follow a log.

Owns the listening socket of a node.  Called by the tiers.

Twisted's own ``strports.service`` raises when it can't listen, which is wanted, but does not tell which port it got,
which tests and clusters need.  And the class of the transports that a port makes is an attribute of the port: that is
the seam through which :class:`relay.net.following.FollowingTransport` comes in, whatever endpoint string made the
port.
"""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure

from relay.net.following import FollowingTransport

BACKLOG = 4096  # connections; the kernel takes less if net.core.somaxconn says so


class ListeningService(Service):
    """Listens while it runs.

    Raises (from ``privilegedStartService``): what the endpoint raised, ``CannotListenError`` above all, so that a
    node that can't listen does not start.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> None:
        self._endpoint = endpoint
        self._factory = factory
        self._port: IListeningPort | None = None
        self._waiting: list[Deferred[IListeningPort]] = []

    def privilegedStartService(self) -> None:
        failures: list[Failure] = []
        listening = self._endpoint.listen(self._factory)
        listening.addCallbacks(self._listening, failures.append)
        if failures:
            failures[0].raiseException()

    def startService(self) -> None:
        if self._port is None:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        port, self._port = self._port, None
        return (None if port is None else port.stopListening()) or succeed(None)

    def when_listening(self) -> Deferred[IListeningPort]:
        """Fires with the port; at once if it is there."""
        if self._port is not None:
            return succeed(self._port)
        waiting: Deferred[IListeningPort] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _listening(self, port: IListeningPort) -> None:
        if isinstance(port, tcp.Port) and port.transport is tcp.Server:  # not a UNIX port, which has its own class
            port.transport = FollowingTransport
        if isinstance(port, tcp.Port):
            port.socket.listen(BACKLOG)  # Twisted's 50 overflow when the viewers of a dead server all come at once
        self._port = port
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(port)
