"""Publishing an FLV file, once or in a loop: the built-in test stream, and our RTMP client as an encoder.

Owns the file's rhythm.  Called by the cluster (``live/demo``) and ``examples/publish_file.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger

from relay.errors import RemoteProtocolError
from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.failover import FailoverFactory, Upstream
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.rtmp.events import Event, PublishStarted, StatusReceived
from relay.rtmp.messages import MediaMessage, MessageType

LOOK_AHEAD_MS = 5  # tags due within this time go out together: one timer for a video and an audio frame


class FlvLoop:
    """The messages of a clip, turn after turn, with timestamps that go on over the seam.

    A turn lasts until the last video message plus the usual distance between two (audio, if there is no video).

    Args:
        turns: how often; for ever by default.

    Raises:
        RemoteProtocolError: these bytes are no FLV, or hold no media.
    """

    def __init__(self, flv: bytes, turns: int | None = None) -> None:
        self._messages = TagReader(DEFAULT_LIMITS).feed(flv)
        times = self._times_of(MessageType.VIDEO) or self._times_of(MessageType.AUDIO)
        if not times:
            raise RemoteProtocolError("an FLV file without audio and video")
        self.duration_ms = times[-1] + min((b - a for a, b in pairwise(times)), default=20)
        self._turns_left = turns
        self._index = 0
        self._base_ms = 0

    def _times_of(self, message_type: MessageType) -> list[int]:
        return sorted({message.timestamp for message in self._messages if message.message_type == message_type})

    @property
    def is_over(self) -> bool:
        """Were all turns taken?"""
        return self._turns_left == 0

    def peek_ms(self) -> int:
        """When the next message is due, ms from the start of the first turn."""
        return self._base_ms + self._messages[self._index].timestamp

    def take(self) -> MediaMessage:
        """The next message."""
        message = self._messages[self._index]
        due = self.peek_ms()
        self._index += 1
        if self._index == len(self._messages):
            self._index = 0
            self._base_ms += self.duration_ms
            if self._turns_left is not None:
                self._turns_left -= 1
        return MediaMessage(message.message_type, due & 0xFFFFFFFF, message.payload)


class PublishingProtocol(RtmpClientProtocol):
    """One connection that publishes.  Subclasses override ``accepted_publish`` and send on ``message_stream_id``."""

    def __init__(self, settings: ClientSettings, host: str, stream: StreamName) -> None:
        super().__init__(settings, stream.app, f"rtmp://{host}/{stream.app}")
        self.message_stream_id = 0
        self._name = stream.name

    def accepted_publish(self) -> None:
        """The server takes the stream."""

    def created(self, message_stream_id: int) -> None:
        self.message_stream_id = message_stream_id
        self.session.publish(message_stream_id, self._name)

    def received(self, event: Event) -> None:
        if isinstance(event, PublishStarted):
            self.is_ready()
            self.accepted_publish()
        elif isinstance(event, StatusReceived) and event.level == "error":
            self.log.warn("publish refused: {why}", why=event.description[:200])
            self.give_up(event.code)


class _LoopingProtocol(PublishingProtocol):
    """Publishes the clip of a :class:`PublisherService`."""

    def __init__(self, settings: ClientSettings, owner: PublisherService, upstream: Upstream) -> None:
        super().__init__(settings, upstream.name, owner.stream)
        self._owner = owner
        self._loop = FlvLoop(owner.flv, owner.turns)
        self._started_at = 0.0
        self._timer: IDelayedCall | None = None

    def accepted_publish(self) -> None:
        self._owner.factory.media_arrived()
        self._started_at = self.settings.clock.seconds()
        self._send_due()

    def over(self, outcome: str) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._owner.factory.lost(outcome)

    def _send_due(self) -> None:
        clock = self.settings.clock
        now_ms = (clock.seconds() - self._started_at) * 1000
        while not self._loop.is_over and self._loop.peek_ms() <= now_ms + LOOK_AHEAD_MS:
            self.session.send_media(self.message_stream_id, self._loop.take())
        due_ms = self._loop.peek_ms()
        self.flush()
        call = self._finish if self._loop.is_over else self._send_due
        self._timer = clock.callLater(max(0.0, (due_ms - now_ms) / 1000), call)

    def _finish(self) -> None:
        """The last message is sent, and its time is over."""
        self.session.close_stream(self.message_stream_id)
        self.flush()
        self._owner.finish()
        if self.transport is not None:
            self.transport.loseConnection()


class PublisherService(Service):
    """Publishes a clip while it runs, to the first of some origins that takes it.

    Args:
        endpoints: the origins: (host, where to connect to), the preferred first.
        turns: how often the clip is published; for ever by default.  A connection that is lost begins anew.
    """

    log = Logger()

    def __init__(
        self,
        endpoints: Sequence[tuple[str, IStreamClientEndpoint]],
        name: StreamName,
        flv: bytes,
        settings: ClientSettings,
        turns: int | None = None,
    ) -> None:
        self.stream = name
        self.flv = flv
        self.turns = turns
        self._when_finished: list[Deferred[None]] = []
        upstreams = [Upstream(name=origin, endpoint=endpoint) for origin, endpoint in endpoints]
        self.factory = FailoverFactory(
            upstreams, lambda upstream: _LoopingProtocol(settings, self, upstream), settings.clock
        )

    def startService(self) -> None:
        super().startService()
        self.factory.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return self.factory.stop()

    def when_finished(self) -> Deferred[None]:
        """Fires when all turns are published and the connection is gone."""
        finished: Deferred[None] = Deferred()
        self._when_finished.append(finished)
        return finished

    def finish(self) -> None:
        """All turns are published (called by the protocol)."""
        self.factory.finish().addCallback(lambda _: self._tell_finished())

    def _tell_finished(self) -> None:
        waiting, self._when_finished = self._when_finished, []
        for finished in waiting:
            finished.callback(None)
