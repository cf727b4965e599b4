"""One reader of one stream: joins, follows, is interrupted, skips, crosses epochs, ends.

Owns the reader's cursor and what is sent that is not the log's next byte.  Knows nothing of commands or HTTP: what it
says at each jump comes from a :class:`Form`.  Called by the server protocols and, once a second, by the hub.

Theory.  What a reader is sent is log bytes, except at these moments, and each is at a message boundary:

    landing     it jumps to a join point (it joins; it is too far behind; its next byte is not here)
    crossing    the log ended and another epoch goes on: from that one's first byte
    interject   somebody else has bytes for the same connection (a reply to a command, a ping)
    ending      the broadcast is over

So every one of them is: halt the cursor at a boundary, write, let it run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import PositionUnavailable
from relay.flv.tags import FILE_HEADER, tag
from relay.log.cursor import Cursor, CursorState
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.record import encode
from relay.log.rendition import Rendition
from relay.net.cohort import Cohorts
from relay.net.following import FollowingTransport, following
from relay.net.sessions import BalancerLost, ResumePoint, SessionFeed
from relay.rtmp.messages import MEDIA_MESSAGE_STREAM_ID, MediaMessage, MessageType
from relay.rtmp.server import end_of_play

if TYPE_CHECKING:
    from relay.net.streams import LiveStream

# What the buffers of both ends hold for a peer that reads nothing: 180 kB on Linux with tcp_notsent_lowat as we set it.
# One that has taken more is being read.
BUFFERED_BYTES = 512 << 10


class Form(Protocol):
    """One byte form of a stream, and what to say in it at a jump."""

    name: str
    """As in :data:`relay.net.sessions.RENDITIONS`."""
    may_skip: bool
    """May a reader that is behind be moved forward?"""
    is_kept_at_end: bool
    """Does the reader stay when the broadcast is over?"""

    def rendition(self, log: StreamLog, start: LogStart) -> Rendition:
        """The bytes to read, present from ``start`` on."""

    def offset_of(self, start: LogStart) -> int:
        """The place in this form."""

    def landing(self, log: StreamLog, join: LogStart) -> bytes:
        """What to say before the bytes from ``join`` on."""

    def crossing(self, log: StreamLog, start: LogStart) -> bytes:
        """What to say before the first byte of ``log``, the next epoch."""

    def ending(self) -> bytes:
        """What to say when the broadcast is over."""


class MediaForm:
    """What the forms for viewers have in common: the headers in force before the media."""

    may_skip = True
    is_kept_at_end = False

    def __init__(self) -> None:
        self._metadata: bytes | None = None

    def headers(self, join: LogStart) -> Iterator[MediaMessage]:
        """The headers in force, stamped with the join point's time; metadata first, with 0, and only if it is new.

        ffmpeg takes metadata with any other time for a subtitle track.
        """
        for message in join.headers.messages(join.timestamp):
            if message.message_type != MessageType.DATA_AMF0:
                yield message
            elif message.payload != self._metadata:
                stamp = 0 if self._metadata is None else join.timestamp
                self._metadata = message.payload
                yield MediaMessage(message.message_type, stamp, message.payload)


class RtmpForm(MediaForm):
    """The log's own bytes, for an RTMP viewer."""

    name = "rtmp"

    def rendition(self, log: StreamLog, start: LogStart) -> Rendition:
        return log.rtmp

    def offset_of(self, start: LogStart) -> int:
        return start.offset

    def landing(self, log: StreamLog, join: LogStart) -> bytes:
        return b"".join(encode(message) for message in self.headers(join))

    def crossing(self, log: StreamLog, start: LogStart) -> bytes:
        """An origin's log begins with its headers; a copy's may begin after them."""
        return self.landing(log, start)

    def ending(self) -> bytes:
        return end_of_play(MEDIA_MESSAGE_STREAM_ID)


class FlvForm(MediaForm):
    """The FLV rendition, made when its first reader comes.

    Args:
        has_begun: has the reader had the file header?  (It has, if its session was resumed.)
    """

    name = "flv"

    def __init__(self, has_begun: bool = False) -> None:
        super().__init__()
        self._has_begun = has_begun

    def rendition(self, log: StreamLog, start: LogStart) -> Rendition:
        return log.open_flv(start.flv_offset)

    def offset_of(self, start: LogStart) -> int:
        return start.flv_offset

    def landing(self, log: StreamLog, join: LogStart) -> bytes:
        head = b"" if self._has_begun else FILE_HEADER
        self._has_begun = True
        return head + b"".join(tag(message) for message in self.headers(join))

    def crossing(self, log: StreamLog, start: LogStart) -> bytes:
        return self.landing(log, start)

    def ending(self) -> bytes:
        return b""


def beginning_of(log: StreamLog) -> LogStart:
    """The state at the first byte that a log still has."""
    segments = log.rtmp.segments
    return segments[0].first if segments else log.end_point()


class Viewer:
    """Sends one stream to one transport in one form.

    Invariant: between two calls of the form's ``landing`` / ``crossing`` / an interjection, what the transport is
    sent is one unbroken run of the rendition, and each run starts and ends at a message boundary.

    Args:
        stream: what to read.
        transport: where to; nobody else may write to it from the start on, but by ``interject``.
        form: RTMP, FLV or replication.
        on_end: called once with the outcome when the viewer is over by its own account ("ended", "evicted_slow",
            "stream_gone", "fault"); the owner then closes the transport.  Not called after ``stop``.
        now: clock seconds.
        feed: what tells the balancer which bytes these are, so that it can resume the session elsewhere.

    With a feed, each jump is asked for first: the cursor is held where it is (``_is_asking``) until the balancer has
    answered (``_is_granted``); when it runs again, a checkpoint says where.
    """

    log_source = Logger()

    def __init__(
        self,
        stream: LiveStream,
        transport: ITransport,
        form: Form,
        on_end: Callable[[str], None],
        now: float,
        feed: SessionFeed | None = None,
    ) -> None:
        self.stream = stream
        self.transport = transport
        self.skips = 0
        self._form = form
        self._on_end = on_end
        self._follower = following(transport)
        self._log: StreamLog = stream.log
        self._cursor: Cursor | None = None
        self._pending: list[bytes] = []
        self._feed = feed if isinstance(transport, FollowingTransport) else None
        self._is_asking = False
        self._is_granted = False
        self._run_start = 0  # the cursor's offset where the present run of the rendition began
        self._run_bytes = 0  # of the runs before
        self._is_skipping = False
        self._ended_at = -1  # the offset at which the end of the broadcast was said; another may end further on
        self._checked_offset = -1
        self._progressed_at = now

    @property
    def log(self) -> StreamLog:
        """The epoch it reads now."""
        return self._log

    @property
    def is_copy(self) -> bool:
        """Is this a neighbour's copy, and not somebody who watches?"""
        return self._form.is_kept_at_end

    @property
    def offset(self) -> int:
        """Its place in the rendition; -1 before the start and after the end."""
        if self._cursor is None:
            return -1
        return self._follower.read_offset if self._follower.is_in_step else self._cursor.offset

    @property
    def sent_bytes(self) -> int:
        """Of the rendition."""
        return self._run_bytes + (0 if self._cursor is None else self.offset - self._run_start)

    @property
    def behind_bytes(self) -> int:
        """Of the rendition, from its place to the end."""
        return 0 if self._cursor is None else max(0, self._cursor.rendition.end - self.offset)

    @property
    def form_name(self) -> str:
        """Which rendition it is sent."""
        return self._form.name

    def join(self, join: LogStart) -> None:
        """Start at a join point of the stream's present log."""
        self._write(self._form.landing(self._log, join))
        self._follow(join, is_news=True)

    def start_at(self, log: StreamLog, start: LogStart) -> None:
        """Start at a position, without a word: whoever asked for it knows what follows."""
        self._log = log
        if self._feed is not None:
            self._feed.resumed()
        self._follow(start)

    def pump(self) -> bool:
        """Send what there is (called by the wake-up).  False if it is congested and so did not even try.

        A fault here costs this reader alone: whoever wrote to the log, and the other readers, go on.
        """
        try:
            return self._follower.pump()
        except Exception:
            self.log_source.failure("sending {stream}", stream=str(self.stream.name))
            self._finish("fault")
            return False

    def fall_in(self, cohorts: Cohorts[Any]) -> bool:
        """Be sent what others are sent, if it stands where they do.  (Asked by the wake-up.)"""
        is_in_step = self._follower.fall_in(cohorts, self)
        if is_in_step:
            self._checked_offset = -1  # when it has fallen out, it has not stood still since it was last looked at
        return is_in_step

    def is_known_to_read(self) -> bool:
        """Has it taken more than buffers hold?  (Asked by the wake-up.)"""
        run = 0 if self._cursor is None else self._cursor.offset - self._run_start
        return self._run_bytes + run > BUFFERED_BYTES

    def is_between_messages(self) -> bool:
        """Has the transport been given whole messages only?"""
        cursor = self._cursor
        if cursor is None:
            return True
        self._follower.fall_out()
        try:
            return cursor.rendition.boundary_at_or_after(cursor.offset) == cursor.offset
        except PositionUnavailable:
            return False

    def interject(self, data: bytes) -> None:
        """Send ``data`` at the next message boundary."""
        if self._cursor is None:
            self._write(data)
            return
        self._pending.append(data)
        self._follower.fall_out()
        self._halt()
        self._follower.pump()

    def check(self, now: float, skip_seconds: float, close_seconds: float) -> None:
        """Once a second, unless it is in step: is this reader too slow?

        A fault costs this reader alone, as in :meth:`pump`.
        """
        try:
            self._check(now, skip_seconds, close_seconds)
        except Exception:
            self.log_source.failure("looking at a reader of {stream}", stream=str(self.stream.name))
            self._finish("fault")

    def _check(self, now: float, skip_seconds: float, close_seconds: float) -> None:
        cursor = self._cursor
        if cursor is None:
            return
        if cursor.offset != self._checked_offset or not self._follower.is_congested():
            self._checked_offset = cursor.offset
            self._progressed_at = now
        elif now - self._progressed_at > close_seconds:
            self._finish("evicted_slow")
            return
        if self._form.may_skip and not self._is_skipping and self._is_behind(cursor, skip_seconds):
            self._is_skipping = True
            self._halt()

    def dismiss(self) -> None:
        """The stream is forgotten here."""
        self._finish("stream_gone")

    def stop(self) -> None:
        """Stop sending; the transport stays open."""
        if self._cursor is not None:
            self.stream.sent_before += self.sent_bytes
            self._follower.unfollow()
            self.stream.remove_viewer(self)
            self._cursor.close()
            self._cursor = None

    def _follow(self, start: LogStart, is_news: bool = False) -> None:
        self._cursor = self._form.rendition(self._log, start).cursor(self._form.offset_of(start))
        self._run_start = self._cursor.offset
        self.stream.add_viewer(self)
        if is_news:
            self._checkpoint()
        self._follower.follow(self._cursor, self._blocked)

    def _write(self, data: bytes) -> None:
        if data:
            self.transport.write(data)

    def _is_behind(self, cursor: Cursor, seconds: float) -> bool:
        """Is there more than this much media between the reader and the log's end?"""
        return cursor.offset < cursor.rendition.offset_at_time(self._log.end_time_ms - int(seconds * 1000))

    def _halt(self) -> None:
        """Stop at the next message boundary; a hole stops the reader by itself."""
        cursor = self._cursor
        assert cursor is not None
        if cursor.stop is None:
            with suppress(PositionUnavailable):
                cursor.stop = cursor.rendition.boundary_at_or_after(cursor.offset)

    def _blocked(self, state: CursorState) -> bool:
        if self._feed is None:
            return self._jump(state)
        if not self._is_granted and not self._ask():
            return False
        while self._jump(state):
            assert self._cursor is not None
            state = self._cursor.advance()
            if state is CursorState.READY or state is CursorState.AT_END:
                self._is_granted = False
                self._checkpoint()
                return True
        return False

    def _ask(self) -> bool:
        """May other bytes than the rendition's follow?  False: not yet; the answer goes on."""
        cursor = self._cursor
        assert cursor is not None
        assert self._feed is not None
        if self._is_asking:
            return False
        answer = self._feed.suspend(self._sent())
        if answer is None:
            self._is_granted = True
            return True
        self._is_asking = True
        cursor.stop = cursor.offset  # nothing leaves until then
        answer.addCallbacks(self._grant, self._deny)
        return False

    def _grant(self, _: object) -> None:
        self._is_asking = False
        self._is_granted = True
        if self._cursor is not None:
            self.pump()

    def _deny(self, failure: Failure) -> None:
        """The balancer can't be asked.  It has given up the session here, or will, and resumes it elsewhere."""
        failure.trap(BalancerLost)
        if self._cursor is not None:
            self._finish("balancer_lost")

    def _checkpoint(self) -> None:
        if self._feed is not None and self._cursor is not None:
            point = ResumePoint(self._form.name, self.stream.name, self._log.epoch, self._cursor.offset)
            self._feed.checkpoint(self._sent(), point)

    def _sent(self) -> int:
        """Bytes of the connection so far, those included that the kernel has yet to take from us."""
        assert isinstance(self.transport, FollowingTransport)
        run = 0 if self._cursor is None else self._cursor.offset - self._run_start
        return self.transport.written_bytes + self._run_bytes + run

    def _jump(self, state: CursorState) -> bool:
        """Say what has to be said where the cursor stands, and move it; False if it still can't go on."""
        if state is CursorState.AT_STOP:
            return self._halted()
        if state is CursorState.GAP:
            self._say_pending()
            return self._land() or (self._log.is_finished and self._cross())
        return self._cross()

    def _halted(self) -> bool:
        assert self._cursor is not None
        self._cursor.stop = None
        self._say_pending()
        if self._is_skipping:
            self._is_skipping = False
            self._land()
        return self._cursor is not None

    def _say_pending(self) -> None:
        pending, self._pending = self._pending, []
        self._write(b"".join(pending))

    def _land(self) -> bool:
        """Go on at the newest join point, if it lies ahead."""
        cursor = self._cursor
        join = self._log.newest_join_point()
        if cursor is None or join is None or self._form.offset_of(join) <= cursor.offset:
            return False
        self.skips += 1
        self.stream.skips += 1
        self._write(self._form.landing(self._log, join))
        self._move(join)
        return True

    def _cross(self) -> bool:
        """The log is finished: go on in the next epoch, or end."""
        successor = self._log.successor
        if successor is not None:
            start = beginning_of(successor)
            self._log = successor
            self._write(self._form.crossing(successor, start))
            self._move(start)
            return True
        if self.offset != self._ended_at:
            self._ended_at = self.offset
            self._write(self._form.ending())
            if not self._form.is_kept_at_end:
                self._finish("ended")
        return False

    def _move(self, start: LogStart) -> None:
        """Put the cursor at another place of the (possibly new) log."""
        assert self._cursor is not None
        self._run_bytes += self._cursor.offset - self._run_start
        self._cursor.move_to(self._form.offset_of(start), self._form.rendition(self._log, start))
        self._run_start = self._cursor.offset
        self._ended_at = -1
        self._is_skipping = False  # a hole may have come before the boundary that it waited for

    def _finish(self, outcome: str) -> None:
        self.stop()
        self._on_end(outcome)
