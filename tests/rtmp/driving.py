"""Sessions with an owner: one that says yes to everything, and a client and a server joined in memory."""

from __future__ import annotations

from collections.abc import Iterable

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.rtmp.client import ClientSession
from relay.rtmp.events import ConnectRequested, Event, PlayRequested, PublishRequested
from relay.rtmp.server import ServerSession
from tests import wire


class YesServer:
    """A server session whose owner accepts whatever is asked.  Keeps what happened."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.session = ServerSession(limits, wire.NONCE)
        self.events: list[Event] = []
        self.error: RemoteProtocolError | None = None
        self.sent = bytearray()

    def feed(self, data: bytes, now: float = 0.0) -> list[Event]:
        if self.error is not None:
            return []
        try:
            events = self.session.receive_data(data, now)
        except RemoteProtocolError as error:
            self.error = error.with_traceback(None)
            events = self.session.undelivered
        self.events += events
        for event in events:
            self._answer(event)
        self.sent += self.session.data_to_send()
        return events

    def _answer(self, event: Event) -> None:
        if isinstance(event, ConnectRequested):
            self.session.accept_connect(event)
        elif isinstance(event, PublishRequested):
            self.session.accept_publish(event)
        elif isinstance(event, PlayRequested):
            self.session.accept_play(event)

    def outcome(self) -> tuple[list[Event], str]:
        return self.events, repr(self.error)


def steps(data: bytes) -> list[bytes]:
    """Cut where a client waits for our answer: behind publish and play."""
    server = YesServer()
    places = [0]
    for at in range(len(data)):
        if any(isinstance(event, PublishRequested | PlayRequested) for event in server.feed(data[at : at + 1])):
            places.append(at + 1)
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


def run_pieces(pieces: Iterable[bytes], limits: Limits = DEFAULT_LIMITS) -> YesServer:
    server = YesServer(limits)
    for piece in pieces:
        server.feed(piece)
    return server


class Pair:
    """A client and a server session with a perfect wire between them."""

    def __init__(self, digest: bool = False, limits: Limits = DEFAULT_LIMITS) -> None:
        self.client = ClientSession(limits, wire.NONCE[::-1], digest=digest)
        self.server = ServerSession(limits, wire.NONCE)

    def pump(self, now: float = 0.0) -> tuple[list[Event], list[Event]]:
        """Carry bytes until both are quiet; what the client and what the server was told."""
        told_client: list[Event] = []
        told_server: list[Event] = []
        while True:
            up, down = self.client.data_to_send(), self.server.data_to_send()
            if not up and not down:
                return told_client, told_server
            told_server += self.server.receive_data(up, now)
            told_client += self.client.receive_data(down, now)

    def connected(self, app: str = "live") -> Pair:
        """With connect accepted and message stream 1 created."""
        self.pump()
        self.client.connect(app, f"rtmp://127.0.0.1/{app}")
        _, (request,) = self.pump()
        assert isinstance(request, ConnectRequested)
        self.server.accept_connect(request)
        self.pump()
        self.client.create_stream()
        self.pump()
        return self

    def publishing(self, stream_key: str = "demo") -> Pair:
        self.connected()
        self.client.publish(1, stream_key)
        _, (request,) = self.pump()
        assert isinstance(request, PublishRequested)
        self.server.accept_publish(request)
        self.pump()
        return self

    def playing(self, stream: str = "demo") -> Pair:
        self.connected()
        self.client.play(1, stream)
        _, (request,) = self.pump()
        assert isinstance(request, PlayRequested)
        self.server.accept_play(request)
        self.pump()
        return self
