"""Our own RTMP clients for tests with real sockets: one publishes a clip in its rhythm, one views, one copies.

Owns what they send and what they keep of what they receive.  Built on the package's client session, so foreign clients
(PyAV, ffmpeg, GStreamer, rtmpdump) must be tested besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IDelayedCall

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.log.record import record_size
from relay.names import StreamName
from relay.net.identity import NodeIdentity
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.rtmp.events import Event, MediaReceived, PlayStarted, PublishStarted, StatusReceived, StreamEnded
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType
from tests.cluster import HOST, Node, until

CLIPS = Path(__file__).parent / "samples"
MASK = 0xFFFFFFFF


def read_clip(name: str) -> list[MediaMessage]:
    """The messages of one of our clips."""
    return TagReader(DEFAULT_LIMITS).feed((CLIPS / name).read_bytes())


def frames(messages: Iterable[MediaMessage]) -> list[MediaMessage]:
    """Audio and video without the headers."""
    return [
        message
        for message in messages
        if message.message_type != MessageType.DATA_AMF0
        and not describe(message.message_type, message.payload).is_sequence_header
    ]


def payloads(messages: Iterable[MediaMessage], kind: MessageType) -> list[bytes]:
    """What the frames of one kind carry, in order."""
    return [message.payload for message in frames(messages) if message.message_type == kind]


def looped(clip: list[MediaMessage], start_ms: int = 0) -> Iterator[MediaMessage]:
    """A clip for ever: its frames with timestamps that grow over the seam; its headers in the first turn only."""
    times = sorted({message.timestamp for message in frames(clip)})
    duration_ms = times[-1] + max(b - a for a, b in pairwise(times))
    for turn in count():
        for message in clip if turn == 0 else frames(clip):
            timestamp = (start_ms + turn * duration_ms + message.timestamp) & MASK
            yield MediaMessage(message.message_type, timestamp, message.payload)


def is_run(part: list[MediaMessage], whole: list[MediaMessage]) -> bool:
    """Is ``part`` a contiguous run of ``whole``, with the very timestamps?"""
    if not part:
        return True
    return any(whole[at : at + len(part)] == part for at, message in enumerate(whole) if message == part[0])


def elapsed_ms(first: int, last: int) -> int:
    """Milliseconds from one 32-bit timestamp to another; negative if it lies before."""
    step = (last - first) & MASK
    return step - (1 << 32) if step >= 1 << 31 else step


class Client(RtmpClientProtocol):
    """What the three have in common."""

    def __init__(self, node: Node, stream: str, identity: NodeIdentity | None = None) -> None:
        self.stream = StreamName.parse(stream)
        self.node = node
        self.outcome: str | None = None
        settings = ClientSettings(limits=DEFAULT_LIMITS, clock=reactor, identity=identity)
        super().__init__(settings, self.stream.app, f"rtmp://{HOST}:{node.port}/{self.stream.app}")

    async def connect(self) -> None:
        """Connect; the conversation goes on by itself."""
        await connectProtocol(TCP4ClientEndpoint(reactor, HOST, self.node.port), self)

    async def close(self) -> None:
        """End the connection."""
        self.give_up("closed")
        await until(lambda: self.outcome is not None, "the connection is closed")

    def over(self, outcome: str) -> None:
        self.outcome = outcome


class Publisher(Client):
    """Publishes messages when they are due, until closed.  ``sent`` is what it has sent."""

    def __init__(self, node: Node, stream: str, messages: Iterable[MediaMessage]) -> None:
        super().__init__(node, stream)
        self.sent: list[MediaMessage] = []
        self._messages = iter(messages)
        self._next: MediaMessage | None = next(self._messages, None)
        self._first_ms = 0 if self._next is None else self._next.timestamp
        self._began = 0.0
        self._message_stream_id = 0
        self._timer: IDelayedCall | None = None

    def created(self, message_stream_id: int) -> None:
        self._message_stream_id = message_stream_id
        self.session.publish(message_stream_id, self.stream.name)

    def received(self, event: Event) -> None:
        if isinstance(event, PublishStarted):
            self.is_ready()
            self._began = reactor.seconds()
            self._send_due()
        elif isinstance(event, StatusReceived) and event.level == "error":
            self.give_up(event.code)

    def over(self, outcome: str) -> None:
        super().over(outcome)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _send_due(self) -> None:
        now_ms = (reactor.seconds() - self._began) * 1000
        while self._next is not None and elapsed_ms(self._first_ms, self._next.timestamp) <= now_ms:
            self.session.send_media(self._message_stream_id, self._next)
            self.sent.append(self._next)
            self._next = next(self._messages, None)
        self.flush()
        self._timer = reactor.callLater(0.01, self._send_due)


class Watcher(Client):
    """Plays, and keeps every message.  ``has_ended`` when the server says that the broadcast is over."""

    def __init__(self, node: Node, stream: str, query: str = "", identity: NodeIdentity | None = None) -> None:
        super().__init__(node, stream, identity)
        self.messages: list[MediaMessage] = []
        self.raw = bytearray()
        self.info: dict[str, Any] | None = None
        self.positions: list[dict[str, Any]] = []
        self.has_ended = False
        self.longest_pause = 0.0
        """Seconds between two reads, since the first message."""
        self._query = query

    def dataReceived(self, data: bytes) -> None:
        self.raw += data
        if self.messages:
            self.longest_pause = max(self.longest_pause, reactor.seconds() - self.heard_at)
        super().dataReceived(data)

    def created(self, message_stream_id: int) -> None:
        self.session.play(message_stream_id, self.stream.name + self._query)
        self.is_ready()

    def received(self, event: Event) -> None:
        if isinstance(event, MediaReceived):
            self.messages.append(event.message)
        elif isinstance(event, PlayStarted):
            self.info = event.info
        elif isinstance(event, StreamEnded):
            self.has_ended = True
        elif isinstance(event, StatusReceived):
            if event.code == "Relay.Position":
                self.positions.append(event.info)
            elif event.level == "error":
                self.give_up(event.code)

    async def when(self, is_so: Any, what: str, seconds: float = 20.0) -> None:
        """Wait for what it has received.

        Raises:
            AssertionError: too late, or the connection is over.
        """
        await until(lambda: self.outcome is not None or is_so(self), what, seconds)
        if not is_so(self):
            raise AssertionError(f"the viewer was cut ({self.outcome}) before: {what}")

    async def has_frames(self, wanted: int, seconds: float = 20.0) -> None:
        """Wait for so many more audio and video messages."""
        wanted += len(self.messages)
        await self.when(lambda watcher: len(watcher.messages) >= wanted, f"{wanted} messages came", seconds)

    @property
    def tail(self) -> bytes:
        """The bytes of the log, as they came, if nothing else came between: as many as the messages fill in a log."""
        size = sum(record_size(message) for message in self.messages)
        return bytes(self.raw[len(self.raw) - size :])


def watch(
    case: Any, node: Node, stream: str, query: str = "", identity: NodeIdentity | None = None
) -> Deferred[Watcher]:
    """Connect a :class:`Watcher` that is closed with the test."""
    watcher = Watcher(node, stream, query, identity)
    return _connect(case, watcher)


def publish(case: Any, node: Node, stream: str, messages: Iterable[MediaMessage]) -> Deferred[Publisher]:
    """Connect a :class:`Publisher` that is closed with the test."""
    return _connect(case, Publisher(node, stream, messages))


def _connect(case: Any, client: Any) -> Deferred[Any]:
    async def connect() -> Any:
        await client.connect()
        case.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    return Deferred.fromCoroutine(connect())
