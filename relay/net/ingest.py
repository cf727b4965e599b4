"""Who writes a stream at the node where it begins: one publisher at a time, by rule.

Owns the choice among publishers and the stream's clock; the connection is the protocol's, the bytes are the log's.
Called by the RTMP server protocol (an encoder publishes) and by pulls (we play from a plain RTMP server).

    publisher        first                    second, while the first is live
    refuse           active                   refused (NetStream.Publish.BadName)
    standby          active                   kept warm: its headers are remembered, its media dropped; promoted at a
                                              keyframe when the first leaves or falls silent
    replace          active                   active at its first keyframe; the first is sent away

A publisher that has been silent for longer than the take-over time never blocks another, whatever the policy: it is
the half dead connection of the encoder that comes back.

A newly active publisher's first bytes in the log are its headers and a keyframe (inter frames before it are dropped),
stamped so that the stream's clock goes on (:class:`relay.log.timeline.Timeline`).  The log, its epoch and its readers
stay.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from relay.errors import RelayError
from relay.limits import Limits
from relay.log.headers import HeadersInForce
from relay.log.timeline import Timeline
from relay.net.streams import Hub, LiveStream
from relay.rtmp.amf0 import first_string
from relay.rtmp.media import MediaInfo, describe
from relay.rtmp.messages import MediaMessage, MessageType


def is_metadata(message: MediaMessage) -> bool:
    """Is this onMetaData?  Other data messages (cue points, captions) have a time of their own."""
    found = first_string(message.payload) if message.message_type == MessageType.DATA_AMF0 else None
    return found is not None and found[0] == "onMetaData"


class SecondPublisher(Enum):
    """What happens to the second publisher of a live name."""

    REFUSE = "refuse"
    STANDBY = "standby"
    REPLACE = "replace"


class PublishRefused(RelayError):
    """With the status code that tells the encoder why."""

    def __init__(self, code: str, description: str) -> None:
        self.code = code
        super().__init__(description)


class Publisher(Protocol):
    """What the ingest needs of a connection that publishes."""

    def sent_away(self, description: str, outcome: str = "replaced") -> None:
        """Another publisher has taken the name: close.  ``outcome`` is what it counts as."""

    def describe(self) -> str:
        """Who it is, for people."""


class Publication:
    """One publisher's claim on one stream."""

    def __init__(self, ingest: Ingest, publisher: Publisher) -> None:
        self.publisher = publisher
        self.headers = HeadersInForce()
        self.heard_at = ingest.clock.seconds()
        self.has_video = False
        self._ingest = ingest

    def receive(self, message: MediaMessage) -> None:
        """One message came.  ``flush`` follows when all of a read were given."""
        self.heard_at = self._ingest.clock.seconds()
        self._ingest.receive(self, message)

    def flush(self) -> None:
        """Everything of this read was received."""
        self._ingest.stream.flush_soon()

    def end(self) -> None:
        """The publisher is gone, or has ended its publication."""
        self._ingest.leave(self)


class Ingest:
    """The writer's side of one stream.

    Args:
        stream: whose log is written.
        hub: told when the stream is live and when not.
        policy: see the module.
        takeover_seconds: silence after which a publisher no longer holds the name.
        end_seconds: how long after the last publisher left the broadcast is over and readers are told so.
    """

    log = Logger()

    def __init__(
        self,
        stream: LiveStream,
        hub: Hub,
        timeline: Timeline,
        *,
        policy: SecondPublisher,
        takeover_seconds: float,
        end_seconds: float,
    ) -> None:
        self.stream = stream
        self.clock: IReactorTime = hub.clock
        self.limits: Limits = hub.limits
        self.messages_dropped = 0
        self._hub = hub
        self._timeline = timeline
        self._policy = policy
        self._takeover_seconds = takeover_seconds
        self._end_seconds = end_seconds
        self._active: Publication | None = None
        self._standby: list[Publication] = []
        self._awaits_keyframe = False
        self._ending: IDelayedCall | None = None

    def dismiss(self) -> bool:
        """Send the publisher away, and who stands by; false if there is none."""
        publications = [*self._standby, *([] if self._active is None else [self._active])]
        for publication in publications:
            publication.publisher.sent_away("an operator has ended this", "kicked")
        return bool(publications)

    @property
    def publisher(self) -> Publisher | None:
        """Who writes now."""
        return None if self._active is None else self._active.publisher

    def admit(self, publisher: Publisher) -> Publication:
        """Let a publisher in, or not.

        Raises:
            PublishRefused: the name is taken.
        """
        publication = Publication(self, publisher)
        if self._active is None:
            self._activate(publication)
        elif self._is_silent(self._active):
            self._take_over(publication, "the former publisher has been silent")
        elif self._policy is SecondPublisher.REFUSE or len(self._standby) >= 1:
            raise PublishRefused("NetStream.Publish.BadName", f"{self.stream.name} is being published already")
        else:
            self._standby.append(publication)
            self.log.info(
                "{stream}: {who} stands by", event="publish", stream=str(self.stream.name), who=publisher.describe()
            )
        return publication

    def receive(self, publication: Publication, message: MediaMessage) -> None:
        """Write the active publisher's message; remember the headers of one that stands by."""
        info = describe(message.message_type, message.payload)
        publication.headers = publication.headers.updated(message, info, self.limits)
        is_video = message.message_type == MessageType.VIDEO
        publication.has_video |= is_video
        if publication is not self._active:
            if not self._may_promote(publication, message.message_type, info):
                return
            self._take_over(publication, "promoted")
            self._write_headers(publication, message.timestamp)
        if self._awaits_keyframe and is_video and not info.is_sequence_header:
            if not info.is_keyframe:
                self.messages_dropped += 1
                return
            self._awaits_keyframe = False
        self._write(message, info.is_sequence_header)

    def leave(self, publication: Publication) -> None:
        """A publisher is gone."""
        if publication in self._standby:
            self._standby.remove(publication)
        elif publication is self._active:
            self._active = None
            self.stream.flush()
            self.log.info(
                "{stream}: {who} left",
                event="unpublish",
                stream=str(self.stream.name),
                who=publication.publisher.describe(),
            )
            self._hub.set_live(self.stream, False, "")
        else:
            return  # it was sent away before
        if not self._standby:
            self.await_publisher()

    def await_publisher(self) -> None:
        """Nobody publishes, now or since before a restart: unless somebody comes in time, the broadcast is over."""
        if self._active is None and self._ending is None:
            self._ending = self.clock.callLater(self._end_seconds, self._end)

    def begin_log(self, timeline: Timeline) -> None:
        """The stream's log is a new one: it begins with the publisher's headers, and a keyframe."""
        self._timeline = timeline
        if self._active is not None:
            self._awaits_keyframe = True
            self._write_headers(self._active, 0)

    def close(self) -> None:
        """Stop the clock."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _is_silent(self, publication: Publication) -> bool:
        return self.clock.seconds() - publication.heard_at > self._takeover_seconds

    def _may_promote(self, publication: Publication, message_type: int, info: MediaInfo) -> bool:
        """May this message of one that stands by be its first in the log?  A keyframe, or sound if that is all."""
        if publication not in self._standby:
            return False  # it was sent away; its last bytes are still coming in
        if self._policy is SecondPublisher.STANDBY and self._active is not None and not self._is_silent(self._active):
            return False
        if publication.has_video:
            return info.is_keyframe and message_type == MessageType.VIDEO
        return message_type == MessageType.AUDIO and not info.is_sequence_header

    def _take_over(self, publication: Publication, why: str) -> None:
        former = self._active
        if publication in self._standby:
            self._standby.remove(publication)
        self._activate(publication)
        if former is not None:
            self.log.info(
                "{stream}: {who} takes over from {former}: {why}",
                event="publish",
                stream=str(self.stream.name),
                who=publication.publisher.describe(),
                former=former.publisher.describe(),
                why=why,
            )
            former.publisher.sent_away(f"{self.stream.name} is published by another encoder now")

    def _activate(self, publication: Publication) -> None:
        self.close()
        self._active = publication
        self._awaits_keyframe = True
        self._timeline.new_publisher(self._now_ms())
        self.stream.log.reopen()
        self._hub.set_live(self.stream, True, publication.publisher.describe())

    def _write_headers(self, publication: Publication, timestamp: int) -> None:
        for header in publication.headers.messages(timestamp):
            self._write(header, True)

    def _write(self, message: MediaMessage, is_sequence_header: bool) -> None:
        time_ms = self._timeline.rebase(
            message.message_type,
            message.timestamp,
            self._now_ms(),
            is_header=is_sequence_header or is_metadata(message),
        )
        self.stream.log.append(MediaMessage(message.message_type, time_ms & 0xFFFFFFFF, message.payload))

    def _now_ms(self) -> int:
        return int(self.clock.seconds() * 1000)

    def _end(self) -> None:
        self._ending = None
        self.log.info("{stream}: the broadcast is over", event="end", stream=str(self.stream.name))
        self.stream.end()
