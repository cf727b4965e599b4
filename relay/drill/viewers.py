"""Who watches during a drill: players over RTMP and HTTP-FLV that never reconnect by themselves.

Owns their connections; what they see is judged by :mod:`relay.drill.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.drill.judge import Findings, Judge
from relay.errors import RelayError, RemoteProtocolError
from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.rtmp.events import Event, MediaReceived, StatusReceived, StreamEnded
from relay.rtmp.messages import MediaMessage

JOIN_SECONDS = 20.0  # for the first frame
LOOK_SECONDS = 0.02


class NobodyServed(RelayError):
    """A viewer could not watch."""


class _RtmpPlayer(RtmpClientProtocol):
    """Plays one stream over RTMP."""

    def __init__(self, viewer: Viewer, settings: ClientSettings) -> None:
        super().__init__(settings, viewer.stream.app, f"rtmp://{viewer.host}:{viewer.port}/{viewer.stream.app}")
        self._viewer = viewer
        self._messages: list[MediaMessage] = []

    def created(self, message_stream_id: int) -> None:
        self.session.play(message_stream_id, self._viewer.stream.name)

    def received(self, event: Event) -> None:
        if isinstance(event, MediaReceived):
            self._messages.append(event.message)
        elif isinstance(event, StreamEnded):
            self.give_up("the stream ended")
        elif isinstance(event, StatusReceived) and event.level == "error":
            self.give_up(event.code)

    def read_done(self) -> None:
        messages, self._messages = self._messages, []
        if messages:
            self.is_ready()
            self._viewer.got(messages)

    def over(self, outcome: str) -> None:
        self._viewer.ended(outcome)


class _FlvPlayer(Protocol):
    """Plays one stream over HTTP-FLV."""

    transport: Any

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._head: bytes | None = b""
        self._reader = TagReader(DEFAULT_LIMITS)
        self._outcome = ""

    def connectionMade(self) -> None:
        request = f"GET /{self._viewer.stream}.flv HTTP/1.0\r\nHost: {self._viewer.host}\r\n\r\n"
        self.transport.write(request.encode())

    def dataReceived(self, data: bytes) -> None:
        if self._head is not None:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            self._head = None
            status = head.partition(b"\r\n")[0].decode("latin-1")
            if " 200 " not in status:
                self._give_up(status)
                return
        try:
            messages = self._reader.feed(data)
        except RemoteProtocolError as error:
            self._give_up(str(error))
            return
        if messages:
            self._viewer.got(messages)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._viewer.ended(self._outcome or "closed")

    def _give_up(self, why: str) -> None:
        self._outcome = why
        self.transport.abortConnection()


class Viewer:
    """One connection.

    Args:
        protocol: "rtmp" or "flv".
        told: called with this viewer when it is cut.
    """

    def __init__(
        self, reactor: Any, host: str, port: int, stream: StreamName, protocol: str, told: Callable[[Viewer], None]
    ) -> None:
        self.host, self.port, self.stream, self.protocol = host, port, stream, protocol
        self.judge = Judge()
        self.outcome: str | None = None
        self.ended_at = 0.0
        self._reactor = reactor
        self._told = told
        self._player: Any = None
        self._is_leaving = False

    def connect(self) -> Deferred[Any]:
        """Fires when it is connected."""
        if self.protocol == "rtmp":
            self._player = _RtmpPlayer(self, ClientSettings(limits=DEFAULT_LIMITS, clock=self._reactor))
        else:
            self._player = _FlvPlayer(self)
        factory = Factory.forProtocol(lambda: self._player)
        factory.noisy = False
        return HostnameEndpoint(self._reactor, self.host, self.port).connect(factory)

    @property
    def is_waiting(self) -> bool:
        """Is it connected, and has had no frame yet?"""
        is_connected = self._player is not None and self._player.transport is not None and self.outcome is None
        return is_connected and not self.judge.has_begun

    def leave(self) -> None:
        """Of its own will."""
        self._is_leaving = True
        if self._player is not None and self._player.transport is not None:
            self._player.transport.abortConnection()

    def got(self, messages: Sequence[MediaMessage]) -> None:
        self.judge.receive(messages, self._reactor.seconds())

    def ended(self, outcome: str) -> None:
        self.outcome = outcome
        self.ended_at = self._reactor.seconds()
        if not self._is_leaving:
            self._told(self)


class Audience:
    """All viewers: as many of each protocol for each stream.

    Args:
        on_cut: called with each viewer that is cut.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        streams: Sequence[StreamName],
        size: int,
        on_cut: Callable[[Viewer], None] = lambda viewer: None,
    ) -> None:
        self.viewers: list[Viewer] = []
        self.cuts: list[Viewer] = []
        self._reactor = reactor
        self._host, self._port = host, port
        self._seats = [(stream, protocol) for _ in range(size) for stream in streams for protocol in ("rtmp", "flv")]
        self._on_cut = on_cut

    async def fill(self) -> None:
        """Let a viewer take every empty seat, and wait until all watch.

        Raises:
            NobodyServed: one gets nothing.
        """
        taken = [(viewer.stream, viewer.protocol) for viewer in self.viewers]
        seats = list(self._seats)
        for seat in taken:
            seats.remove(seat)
        newcomers = [self._make(stream, protocol) for stream, protocol in seats]
        self.viewers += newcomers
        for success, result in await DeferredList([viewer.connect() for viewer in newcomers], consumeErrors=True):
            if not success:
                raise NobodyServed(f"a viewer can't connect: {result.getErrorMessage()}")
        deadline = self._reactor.seconds() + JOIN_SECONDS
        while not all(viewer.judge.has_begun for viewer in self.viewers):
            late = next((viewer for viewer in newcomers if viewer.outcome is not None), None)
            if late is not None or self._reactor.seconds() > deadline:
                raise NobodyServed(f"a viewer had no frame: {late.outcome if late else f'{JOIN_SECONDS:g} s are over'}")
            await deferLater(self._reactor, LOOK_SECONDS)

    async def until_served(self, seconds: float) -> float | None:
        """Try to watch, again and again; the seconds until somebody had a frame, or ``None``."""
        began = self._reactor.seconds()
        deadline = began + seconds
        stream, protocol = self._seats[0]
        while self._reactor.seconds() < deadline:
            viewer = Viewer(self._reactor, self._host, self._port, stream, protocol, lambda _: None)
            try:
                await viewer.connect().addTimeout(1.0, self._reactor)
            except Exception as error:  # endpoints fail in many ways; each means: not yet
                self.log.debug("not served yet: {error!r}", error=error)
            while viewer.is_waiting and self._reactor.seconds() < deadline:
                await deferLater(self._reactor, LOOK_SECONDS)
            viewer.leave()
            if viewer.judge.has_begun:
                return float(self._reactor.seconds() - began)
            await deferLater(self._reactor, LOOK_SECONDS)
        return None

    def has_come_since(self, then: float) -> bool:
        """Has everyone who watches got more of every track after that time?"""
        return all(viewer.judge.has_come_since(then) for viewer in self.viewers)

    def empty(self) -> None:
        """All leave."""
        viewers, self.viewers = self.viewers, []
        for viewer in viewers:
            viewer.leave()

    def take(self) -> tuple[int, Findings]:
        """How many were cut, and what all saw, since the last call."""
        now = self._reactor.seconds()
        found = Findings()
        for viewer in self.viewers:
            found.add(viewer.judge.take(now))
        for viewer in self.cuts:
            found.add(viewer.judge.take(viewer.ended_at))
        cuts, self.cuts = self.cuts, []
        return len(cuts), found

    def _make(self, stream: StreamName, protocol: str) -> Viewer:
        return Viewer(self._reactor, self._host, self._port, stream, protocol, self._cut)

    def _cut(self, viewer: Viewer) -> None:
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            self.cuts.append(viewer)
            self._on_cut(viewer)
