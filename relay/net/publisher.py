"""Publishing an FLV file in a loop: the built-in test stream, and an example of our RTMP client as an encoder.

Owns the file's rhythm.  Called by the cluster (``live/demo``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.failover import FailoverFactory, Upstream
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.rtmp.events import Event, PublishStarted, StatusReceived
from relay.rtmp.messages import MediaMessage, MessageType

LOOK_AHEAD_MS = 5  # tags due within this time go out together: one timer for a video and an audio frame


class FlvLoop:
    """The messages of a clip, for ever, with timestamps that go on over the seam.

    The clip lasts until its last message plus the usual distance between two video messages.
    """

    def __init__(self, flv: bytes) -> None:
        reader = TagReader(DEFAULT_LIMITS)
        self._messages = reader.feed(flv)
        media = [message for message in self._messages if message.message_type != MessageType.DATA_AMF0]
        video = sorted({message.timestamp for message in media if message.message_type == MessageType.VIDEO})
        step = min((b - a for a, b in pairwise(video)), default=20)
        self.duration_ms = max(message.timestamp for message in media) + step
        self._index = 0
        self._base_ms = 0

    def peek_ms(self) -> int:
        """When the next message is due, ms from the start of the first loop."""
        return self._base_ms + self._messages[self._index].timestamp

    def take(self) -> MediaMessage:
        """The next message."""
        message = self._messages[self._index]
        due = self.peek_ms()
        self._index += 1
        if self._index == len(self._messages):
            self._index = 0
            self._base_ms += self.duration_ms
        return MediaMessage(message.message_type, due & 0xFFFFFFFF, message.payload)


class _PublishingProtocol(RtmpClientProtocol):
    """One connection that publishes."""

    def __init__(self, settings: ClientSettings, owner: PublisherService, upstream: Upstream) -> None:
        super().__init__(settings, owner.stream.app, f"rtmp://{upstream.name}/{owner.stream.app}")
        self._owner = owner
        self._loop = FlvLoop(owner.flv)
        self._started_at = 0.0
        self._message_stream_id = 0
        self._timer: IDelayedCall | None = None

    def created(self, message_stream_id: int) -> None:
        self._message_stream_id = message_stream_id
        self.session.publish(message_stream_id, self._owner.stream.name)

    def received(self, event: Event) -> None:
        if isinstance(event, PublishStarted):
            self.is_ready()
            self._owner.factory.media_arrived()
            self._started_at = self.settings.clock.seconds()
            self._send_due()
        elif isinstance(event, StatusReceived) and event.level == "error":
            self.log.warn("publish refused: {why}", why=event.description[:200])
            self.give_up(event.code)

    def over(self, outcome: str) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._owner.factory.lost(outcome)

    def _send_due(self) -> None:
        clock = self.settings.clock
        now_ms = (clock.seconds() - self._started_at) * 1000
        while self._loop.peek_ms() <= now_ms + LOOK_AHEAD_MS:
            self.session.send_media(self._message_stream_id, self._loop.take())
        self.flush()
        self._timer = clock.callLater(max(0.0, (self._loop.peek_ms() - now_ms) / 1000), self._send_due)


class PublisherService(Service):
    """Publishes a clip while it runs, to the first of some origins that takes it."""

    log = Logger()

    def __init__(
        self,
        endpoints: Sequence[tuple[str, IStreamClientEndpoint]],
        name: StreamName,
        flv: bytes,
        settings: ClientSettings,
    ) -> None:
        self.stream = name
        self.flv = flv
        upstreams = [Upstream(name=origin, endpoint=endpoint) for origin, endpoint in endpoints]
        self.factory = FailoverFactory(
            upstreams, lambda upstream: _PublishingProtocol(settings, self, upstream), settings.clock
        )

    def startService(self) -> None:
        super().startService()
        self.factory.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return self.factory.stop()
