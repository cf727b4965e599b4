"""One connection that publishes a stream of ours at another server, as an encoder does.

Owns the conversation, and the reader of the log.  Called by :mod:`relay.net.forwarding`, which decides when there is
one.

The log is read as any reader reads it: when there is something, and only as far as the transport takes it.  A target
that is slow holds one piece of the log and what Twisted's transport has; when it is far behind, it goes on at the
newest join point, and one that takes nothing for long is given up.  Nobody else notices either.

Unlike a viewer, who is sent the log's own bytes, a target has its own message stream id and chunk size, and times that
begin at 0: each message is encoded anew.
"""

from __future__ import annotations

from typing import Any

import attrs
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.errors import LogError
from relay.log.cursor import CursorState
from relay.log.headers import HeadersInForce
from relay.log.points import LogStart
from relay.log.reader import MessageReader
from relay.net.ingest import is_metadata
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.sockets import in_flight, viewer_timeout_ms
from relay.net.streams import LiveStream
from relay.net.target_clock import TargetClock
from relay.net.urls import RtmpUrl
from relay.net.viewer import beginning_of
from relay.rtmp import amf0
from relay.rtmp.events import ConnectRejected, Event, PublishStarted, StatusReceived
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType

SET_DATA_FRAME = amf0.encode("@setDataFrame")
"""Before the metadata of an encoder (Adobe's data message convention); without it platforms ignore them."""

PROPERTIES = {"type": "nonprivate", "flashVer": "FMLE/3.0 (compatible; relay-live)"}
"""What encoders say; some platforms take nobody else."""

ENDED = "ended"  # the outcome of a connection whose broadcast is over


class ForwardOwner:
    """What the connection tells (:class:`relay.net.forwarding.Forward`)."""

    def began(self) -> None:
        """The target takes the stream."""

    def refused(self, why: str) -> None:
        """The target says no."""

    def ended(self, outcome: str, why: str) -> None:
        """The connection is gone; ``why`` is for people."""


def words_for(reason: Failure) -> str:
    """Why a connection was lost."""
    error = reason.value
    if reason.check(ConnectionDone):
        return "closed by the target"
    if reason.check(ConnectionLost):
        return "reset by the target, or out of reach"
    if isinstance(error, VerificationError):
        return "the target's certificate is not for its name"
    if isinstance(error, SSL.Error):
        said = [str(each[-1]) for each in error.args[0]] if error.args and isinstance(error.args[0], list) else []
        return f"TLS: {', '.join(said) or 'failed'}"
    return reason.getErrorMessage()


@implementer(IPushProducer)
class ForwardConnection(RtmpClientProtocol):
    """A reader of ``stream`` as the hub knows readers, and an encoder as the target knows them.

    Args:
        stream: what to read.
        url: where to publish it; its stream part is a secret.
        owner: told what happens.
    """

    log = Logger()
    transport: Any
    properties = PROPERTIES
    is_copy = True  # not somebody who watches

    def __init__(self, settings: ClientSettings, stream: LiveStream, url: RtmpUrl, owner: ForwardOwner) -> None:
        super().__init__(settings, url.app, url.tc_url)
        self.sent_bytes = 0
        self.skips = 0
        self._stream = stream
        self._key = url.stream
        self._owner = owner
        self._message_stream_id = 0
        self._reader: MessageReader | None = None
        self._clock = TargetClock(0)
        self._is_paused = False
        self._progressed_at = 0.0
        self._in_flight = 0  # at the last look
        self._lost_by = ""  # what the connection failed by, if it was not by our decision
        self._force: IDelayedCall | None = None

    # the conversation

    def created(self, message_stream_id: int) -> None:
        self._message_stream_id = message_stream_id
        self.session.publish(message_stream_id, self._key)

    def rejected(self, event: ConnectRejected) -> None:
        self._owner.refused(event.description[:200] or "connect was refused")
        self.give_up("refused")

    def received(self, event: Event) -> None:
        if isinstance(event, PublishStarted):
            self.is_ready()
            self._begin()
        elif isinstance(event, StatusReceived) and event.level == "error":
            self._owner.refused(f"{event.code}: {event.description[:200]}" if event.description else event.code)
            self.give_up(event.code)

    def user_timeout_ms(self) -> int:
        """A target is as far away, and may take as long, as a viewer."""
        return viewer_timeout_ms(self.settings.limits)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._outcome:
            self._lost_by = words_for(reason)
        super().connectionLost(reason)

    def over(self, outcome: str) -> None:
        self._stop_reading()
        if self._force is not None and self._force.active():
            self._force.cancel()
        self._owner.ended(outcome, self._lost_by or outcome.replace("_", " "))

    def finish(self) -> None:
        """The broadcast is over: say so, and close when it is said."""
        self._stop_reading()
        if self.transport is not None:
            self.session.unpublish(self._message_stream_id, self._key)
            self.flush()
            self._outcome = self._outcome or ENDED
            self.transport.loseConnection()
            if self._force is None:
                force = self.transport.abortConnection
                self._force = self.settings.clock.callLater(self.settings.limits.close_seconds, force)

    # the reader, as the hub sees it

    @property
    def behind_ms(self) -> int:
        """Media time that is in the log and not sent."""
        if self._reader is None or not self._clock.has_begun:
            return 0
        return max(0, self._reader.log.end_time_ms - self._clock.time_ms)

    def pump(self) -> bool:
        """Something was appended (called by the wake-up).  False if the target takes nothing now."""
        if self._is_paused or self._reader is None:
            return False
        try:
            self._send()
        except (LogError, OSError) as error:
            self.log.warn("{stream}: can't be read for forwarding: {error}", stream=str(self._stream.name), error=error)
            self.give_up("unreadable")
        return True

    def fall_in(self, cohorts: Any) -> bool:
        """It is sent other bytes than anybody else."""
        return False

    def is_known_to_read(self) -> bool:
        """It is woken like everybody."""
        return True

    def check(self, now: float, skip_seconds: float, close_seconds: float) -> None:
        """Once a second: is it too slow?"""
        before, self._in_flight = self._in_flight, in_flight(self.transport)
        if not self._is_paused or self._in_flight != before:
            self._progressed_at = now
        elif now - self._progressed_at > close_seconds:
            self.give_up("stalled")
        if self._reader is not None and self.behind_ms > skip_seconds * 1000:
            self._skip(self._reader)

    def dismiss(self) -> None:
        """The stream is forgotten here."""
        self.finish()

    # reading and sending

    def _begin(self) -> None:
        join = self._stream.log.newest_join_point()
        if join is None or self.transport is None:
            self.give_up("nothing_to_send")
            return
        self._reader = MessageReader(self._stream.log, join)
        self._clock = TargetClock(join.time_ms)
        self._progressed_at = self.settings.clock.seconds()
        self._owner.began()
        self.transport.registerProducer(self, True)
        self._say(join.headers, join)
        self._stream.add_viewer(self)
        self.pump()

    def _say(self, headers: HeadersInForce, join: LogStart) -> None:
        for message in headers.messages(join.timestamp):
            self._encode(message)

    def _send(self) -> None:
        while not self._is_paused and self._reader is not None:
            messages = self._reader.read()
            for message in messages:
                self._encode(message)
            if messages:
                self._flush_counted()
            elif not self._go_on(self._reader):
                return

    def _flush_counted(self) -> None:
        data = self.session.data_to_send()
        self.sent_bytes += len(data)
        if data and self.transport is not None:
            self.transport.write(data)

    def _encode(self, message: MediaMessage) -> None:
        info = describe(message.message_type, message.payload)
        if message.message_type not in (MessageType.AUDIO, MessageType.VIDEO) or info.is_sequence_header:
            timestamp: int | None = self._clock.of_other(message.timestamp)
        else:
            timestamp = self._clock.of_frame(message.timestamp)
        if timestamp is None:
            return
        payload = SET_DATA_FRAME + message.payload if is_metadata(message) else message.payload
        sent = attrs.evolve(message, timestamp=timestamp, payload=payload)
        self.session.send_media(self._message_stream_id, sent)

    def _go_on(self, reader: MessageReader) -> bool:
        """Nothing to read here: may there be elsewhere?"""
        if reader.state is CursorState.AT_END:
            return False
        if reader.state is CursorState.GAP and self._skip(reader):
            return True
        successor = reader.log.successor
        if successor is not None:
            start = beginning_of(successor)
            reader.move_to(successor, start)
            self._clock.cross()
            self._say(start.headers, start)
            return True
        if reader.state is CursorState.ENDED:
            self.finish()
        return False

    def _skip(self, reader: MessageReader) -> bool:
        """Go on at the newest join point, if it lies ahead."""
        join = reader.log.newest_join_point()
        if join is None or join.offset <= reader.offset:
            return False
        self.skips += 1
        reader.move_to(reader.log, join)
        self._say(join.headers, join)
        return True

    def _stop_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._stream.sent_before += self.sent_bytes
            self._stream.remove_viewer(self)
            reader.close()
            if self.transport is not None:
                self.transport.unregisterProducer()

    # Twisted's side of the transport

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._progressed_at = self.settings.clock.seconds()  # it may be paused again before anybody looks
        self._is_paused = False
        self.pump()

    def stopProducing(self) -> None:
        """The connection is lost: ``over`` says so, too."""
