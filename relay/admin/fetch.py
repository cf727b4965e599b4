"""One HTTP GET, one connection: how a cluster's parent reads a node's API.

Owns the client's side of that conversation, bounded in time and bytes.  Called by
:mod:`relay.admin.polling`.  (Twisted's Agent would log each connection and read bodies of any length.)
"""

from __future__ import annotations

from typing import Any

import h11
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from relay.errors import LimitExceeded, RemoteProtocolError

ANSWER_BYTES = 4 << 20
"""1,000 streams (``Limits.streams``) at 300 bytes each are a tenth of it."""


def fetch(
    reactor: Any, endpoint: IStreamClientEndpoint, path: str, seconds: float, limit: int = ANSWER_BYTES
) -> Deferred[bytes]:
    """The body of a 200 answer.  Cancel it to give up.

    Fails with: what the endpoint fails with; ``RemoteProtocolError`` (another status, bad HTTP, an end in the middle);
    ``LimitExceeded`` (a body over ``limit`` bytes); ``twisted.internet.defer.TimeoutError`` after ``seconds``.
    """
    protocol = _GetProtocol(path, limit)
    factory = _GetFactory(protocol)

    async def converse() -> bytes:
        try:
            await endpoint.connect(factory)
            return await protocol.body
        except ConnectingCancelledError as error:  # endpoints have a word of their own, which addTimeout doesn't know
            raise CancelledError from error
        finally:
            protocol.abort()

    return Deferred.fromCoroutine(converse()).addTimeout(seconds, reactor)


class _GetFactory(Factory):
    noisy = False

    def __init__(self, protocol: _GetProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> _GetProtocol:
        return self._protocol


class _GetProtocol(Protocol):
    """Asks when connected; ``body`` fires once."""

    def __init__(self, path: str, limit: int) -> None:
        self.body: Deferred[bytes] = Deferred()
        self._path = path
        self._limit = limit
        self._http = h11.Connection(h11.CLIENT)
        self._content = bytearray()

    def abort(self) -> None:
        """Let the connection go, whatever it is at."""
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionMade(self) -> None:
        headers = [("Host", "relay"), ("Connection", "close"), ("Accept", "application/json")]
        request = h11.Request(method="GET", target=self._path, headers=headers)
        self._write(request)
        self._write(h11.EndOfMessage())

    def dataReceived(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._read()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.transport = None
        if not self.body.called:
            self._http.receive_data(b"")
            self._read()

    def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data and self.transport is not None:
            self.transport.write(data)

    def _read(self) -> None:
        try:
            while not self.body.called and (event := self._http.next_event()) is not h11.NEED_DATA:
                self._handle(event)
        except h11.RemoteProtocolError as error:
            self._fail(RemoteProtocolError(str(error)))

    def _handle(self, event: object) -> None:
        if isinstance(event, h11.Response) and event.status_code != 200:
            self._fail(RemoteProtocolError(f"status {event.status_code}"))
        elif isinstance(event, h11.Data):
            self._content += event.data
            if len(self._content) > self._limit:
                self._fail(LimitExceeded("answer bytes", self._limit))
        elif isinstance(event, h11.EndOfMessage):
            self.body.callback(bytes(self._content))
        elif isinstance(event, h11.ConnectionClosed):
            self._fail(RemoteProtocolError("closed without an answer"))

    def _fail(self, error: Exception) -> None:
        if not self.body.called:
            self.body.errback(error)
