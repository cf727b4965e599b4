"""The live log of one epoch of one stream: appended to by one writer, read through cursors by everybody else.

Owns positions, join points, the headers in force, rolling, retention, and what happens when storage fails.  Segments
come from a source (memory, or :mod:`relay.log.store`).  Called by publishers' and replicas' glue in ``relay.net``; it
knows no clock: media time is the only time here.

Theory.  ``append`` only remembers; ``flush`` writes all that was remembered with one writev and then moves the end
(I5), so that a burst of messages costs one system call.  Work per message is constant and none of it is per reader.

Rolling: at the first join point after ``segment_bytes`` or ``segment_ms``; at any message at twice ``segment_bytes``,
for streams whose join points are far apart.

Retention drops whole segments from the front: all that is older than ``keep_ms`` (but never the newest join point, or
nobody could join), and all over ``keep_bytes``, whatever it holds.  What is remembered of each message counts there as
well: of tiny messages it is more than their bytes.  A segment that a reader is in stays open until the reader leaves.

A disk that fails is :mod:`relay.log.storage`'s; then at most ``memory_bytes`` are held.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import attrs

from relay.errors import LogDiverged, LogError, PositionUnavailable
from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.headers import HeadersInForce
from relay.log.materialise import known_before, pieces
from relay.log.options import DEFAULT_OPTIONS, LogOptions
from relay.log.points import ORIGIN_START, JoinPoint, LogStart
from relay.log.record import encode, record_header
from relay.log.rendition import FlvRendition, Rendition
from relay.log.scan import messages_between, read_between
from relay.log.segment import Segment, SegmentSource
from relay.log.state import LogState
from relay.log.storage import Storage, index_bytes
from relay.rtmp.messages import MediaMessage

COPY_BACK_MS = 3000
"""Of media.  Twice what a node may be behind its neighbour, by default (:mod:`relay.net.timings`)."""

COPY_BACK_BYTES = 16 << 20
"""At the most."""


@attrs.define
class _Batch:
    """Messages on their way into the active segment."""

    before: LogState
    """The log's state before its first message."""
    messages: list[MediaMessage] = attrs.field(factory=list)
    buffers: list[bytes] = attrs.field(factory=list)
    boundaries: list[int] = attrs.field(factory=list)
    times: list[int] = attrs.field(factory=list)
    points: list[JoinPoint] = attrs.field(factory=list)


def _filling(active: Segment, batch: _Batch, offset: int) -> int:
    """How full the segment is at ``offset``, in bytes of its messages, or of what is remembered of them if more."""
    return max(offset - active.start, active.known_bytes + index_bytes(len(batch.messages), len(batch.points)))


class StreamLog:
    """Bytes ``start`` to ``end`` of epoch ``epoch``.  A byte at a position never changes (I1)."""

    def __init__(
        self,
        epoch: int,
        source: SegmentSource,
        start: LogStart = ORIGIN_START,
        options: LogOptions = DEFAULT_OPTIONS,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.epoch = epoch
        self.options = options
        self.join_points: list[JoinPoint] = []
        """Oldest first."""
        self.rtmp = Rendition(self, start.offset)
        self.flv: FlvRendition | None = None
        self.is_finished = False
        self.successor: StreamLog | None = None
        """The next epoch's log, where readers go on when this one has ended."""
        self.predecessor: StreamLog | None = None
        """The epoch before; discarded when this log has what retention asks for."""
        self.missing_bytes = 0
        """Bytes skipped over by :meth:`skip_to`."""
        self._storage = Storage(source, self.rtmp, self._discard_predecessor)
        self._limits = limits
        self._segment_bytes = min(options.segment_bytes, max(1, options.keep_bytes // 4))
        self._state = LogState(start, limits)
        self._pending: list[MediaMessage] = []
        self._run_start = start.offset

    def adopt(self, segments: Sequence[Segment], join_points: Sequence[JoinPoint]) -> None:
        """Begin with what a store still has up to where this log starts; new messages get segments of their own."""
        self._storage.adopt(segments)
        self.join_points = list(join_points)
        self._run_start = self.rtmp.run_start(self.end)

    # places

    @property
    def start(self) -> int:
        """The first byte that is still here."""
        return self.rtmp.start

    @property
    def end(self) -> int:
        """The next byte to be written; what readers can have ends here."""
        return self.rtmp.end

    @property
    def flv_end(self) -> int:
        """The end as an offset of the FLV rendition."""
        return self._state.flv_offset

    @property
    def end_time_ms(self) -> int:
        """The latest media time, unwrapped."""
        return self._state.end_time_ms

    @property
    def headers(self) -> HeadersInForce:
        """The headers in force at the end."""
        return self._state.headers

    @property
    def is_storing(self) -> bool:
        """Did the last bytes go where they outlive the process?"""
        return self._storage.is_storing

    @property
    def storage_errors(self) -> int:
        """How often the disk, or memory for the FLV rendition, refused something."""
        return self._storage.errors

    @property
    def held_bytes(self) -> int:
        """Bytes of the log that are here."""
        return self._storage.held

    def end_point(self) -> LogStart:
        """The state at the end: where a replica of all this goes on."""
        return self._state.here()

    def newest_join_point(self) -> JoinPoint | None:
        """Where a newcomer starts; None: nothing to start from yet."""
        points = self.join_points
        return points[-1] if points and points[-1].offset >= self._run_start else None

    def copy_start(self) -> LogStart:
        """Where a copy that has nothing yet starts: at a join point that is ``COPY_BACK_MS`` old, or at the first byte
        if that is not older.

        Not at the newest: those who turn to the copy when another one dies may not have read as far as that.
        """
        first = max(self._run_start, self.rtmp.start)
        least = max(first, self.end - COPY_BACK_BYTES)
        start: LogStart | None = None
        for point in reversed(self.join_points):
            if point.offset < least:
                break
            start = point
            if point.time_ms <= self.end_time_ms - COPY_BACK_MS:
                return point
        if least > first:
            return start or self.newest_join_point() or self.end_point()
        segment = self.rtmp.find(first)
        return self.end_point() if segment is None else segment.first

    def join_point_at_or_before(self, offset: int) -> JoinPoint | None:
        """The last join point from which ``offset`` can be read up to without a gap."""
        at = bisect_right(self.join_points, offset, key=_offset_of) - 1
        if at < 0 or not self.start <= offset <= self.end:
            return None
        point = self.join_points[at]
        return point if point.offset >= self.rtmp.run_start(offset) else None

    def offset_at_time(self, time_ms: int) -> int:
        """Where the first message of ``time_ms`` or later begins (see :meth:`Rendition.offset_at_time`)."""
        return self.rtmp.offset_at_time(time_ms)

    def boundary_at_or_after(self, offset: int) -> int:
        """The next place where a message begins, or the end.

        Raises:
            PositionUnavailable: the byte is not here.
        """
        return self.rtmp.boundary_at_or_after(offset)

    def start_at(self, offset: int) -> LogStart:
        """The state at any message boundary that is here: what a replica that asks for it is told.

        Raises:
            PositionUnavailable: the byte is not here, or no message begins there.
        """
        if offset == self.end:
            return self._state.here()
        segment = self.rtmp.find(offset)
        if segment is None:
            raise PositionUnavailable(f"offset {offset} is not in {self.start}..{self.end}, or in a hole of it")
        point = self.join_point_at_or_before(offset)
        known = segment.first if point is None or point.offset < segment.start else point
        state = LogState(known, self._limits)
        for message in messages_between(segment, known.offset, offset):
            state.take(message)
        if state.offset != offset:
            raise PositionUnavailable(f"no message begins at offset {offset}")
        return state.here()

    def check(self, offset: int, message: MediaMessage) -> int:
        """Compare a message that another node has at ``offset`` with ours there; the offset after it.

        Bytes that are not here any more are not compared.

        Raises:
            LogDiverged: ours are others.
        """
        data = encode(message)
        segment = self.rtmp.find(offset)
        if segment is not None and read_between(segment, offset, min(segment.end, offset + len(data))) != data:
            raise LogDiverged(f"epoch {self.epoch}: the message at {offset} is another than what is stored there")
        return offset + len(data)

    # writing

    def append(self, message: MediaMessage) -> None:
        """Add a message.  Nobody sees it before :meth:`flush`."""
        self._pending.append(message)

    def flush(self) -> int:
        """Write what was appended, then let readers see it.  The number of bytes.

        Raises:
            LogError: the log is finished.
            OSError: not even memory is left; what was not yet written is forgotten.
        """
        if not self._pending:
            return 0
        if self.is_finished:
            raise LogError(f"epoch {self.epoch} is finished; its log takes no more messages")
        messages, self._pending = self._pending, []
        before = self.end
        batch = _Batch(self._state.copy())
        for message in messages:
            batch = self._take(message, batch)
        self._write(batch)
        self._retain()
        return self.end - before

    def _take(self, message: MediaMessage, batch: _Batch) -> _Batch:
        """Put a message into the batch; what had to be written first is.  The batch that has it."""
        state = self._state
        offset = state.offset
        active = self._storage.active
        if active is None or _filling(active, batch, offset) >= 2 * self._segment_bytes:
            batch = self._commit(batch)
            active = self._roll(state.here())
        point = state.take(message)
        if point is not None:
            batch = self._meet(point, active, batch)
            batch.points.append(point)
        batch.messages.append(message)
        batch.buffers += (record_header(message), message.payload)
        batch.boundaries.append(offset)
        batch.times.append(state.end_time_ms)
        return batch

    def _meet(self, point: JoinPoint, active: Segment, batch: _Batch) -> _Batch:
        """Roll or mark at a join point, where that is due, once all before it is written."""
        held = point.offset - active.start
        is_old = point.time_ms - active.first.time_ms >= self.options.segment_ms
        is_full = is_old or _filling(active, batch, point.offset) >= self._segment_bytes
        if held and is_full:
            batch = self._commit(batch, point)
            self._roll(point)
        elif active.is_mark_due(point):
            batch = self._commit(batch, point)
            self._storage.guard(lambda: active.mark(point))
        return batch

    def _commit(self, batch: _Batch, following: LogStart | None = None) -> _Batch:
        """Write a batch; a new one that begins at ``following``, or where the log's state now is."""
        self._write(batch)
        return _Batch(self._state.copy() if following is None else self._state_at(following))

    def _write(self, batch: _Batch) -> None:
        if not batch.messages:
            return
        try:
            active = self._storage.write(batch.buffers, batch.before)
        except OSError:
            self._state = batch.before
            raise
        self._publish(batch, active)

    def _publish(self, batch: _Batch, active: Segment) -> None:
        """Let readers see a batch that is written."""
        self._storage.note(active, batch.boundaries, batch.times, len(batch.points))
        self.rtmp.end = active.end
        self.join_points += batch.points
        if self.flv is not None:
            try:
                self.flv.append(batch.before, batch.messages, batch.times)
            except OSError:
                # Out of memory or descriptors: its readers find a gap and open it anew.
                self._storage.errors += 1
                self.discard_flv()

    def _roll(self, start: LogStart) -> Segment:
        try:
            return self._storage.roll(start)
        except OSError:
            self._state = self._state_at(start)
            raise

    def _state_at(self, start: LogStart) -> LogState:
        """The state at a place from which the log goes on."""
        state = LogState(start, self._limits)
        if self.rtmp.segments:
            state.end_time_ms = max(self.rtmp.segments[-1].latest_ms, start.time_ms)
        return state

    # retention

    def _retain(self) -> None:
        """Drop what is too old or too much; a few comparisons when there is nothing to drop."""
        segments = self.rtmp.segments
        while len(segments) > 1 and (self._is_too_old(segments[1]) or self._storage.is_over(self.options)):
            self._storage.drop_first()
        self._forget_dropped()
        if self.predecessor is not None and self._has_enough():
            self._discard_predecessor()

    def _is_too_old(self, second: Segment) -> bool:
        """Is all before ``second`` older than what is kept, and not needed to join?"""
        if second.first.time_ms > self.end_time_ms - self.options.keep_ms:
            return False
        newest = self.newest_join_point()
        return newest is None or newest.offset >= second.start

    def _has_enough(self) -> bool:
        """Is there so much of this epoch that retention would have dropped the one before?"""
        assert self.predecessor is not None
        span_ms = self.end_time_ms - self.rtmp.segments[0].first.time_ms
        cost = self._storage.cost + self.predecessor._storage.cost
        return span_ms >= self.options.keep_ms or cost > self.options.keep_bytes

    def _forget_dropped(self) -> None:
        """Drop the join points and FLV tags of segments that are gone, and FLV tags over the bound."""
        start, points = self.start, self.join_points
        if points and points[0].offset < start:
            del points[: bisect_left(points, start, key=_offset_of)]
        if self.flv is not None:
            self.flv.drop_before(self.rtmp.segments[0].first.flv_offset)
            self.flv.keep_bytes(self.options.memory_bytes)

    def _discard_predecessor(self) -> None:
        before, self.predecessor = self.predecessor, None
        if before is not None:
            before.discard()

    # gaps and ends

    def skip_to(self, start: LogStart) -> int:
        """Go on at ``start``, which is not before the end: what lies between is missing here.  The number of bytes.

        Raises:
            PositionUnavailable: ``start`` is before the end.
            OSError: as :meth:`flush`.
        """
        self.flush()
        missing = start.offset - self.end
        if missing < 0:
            raise PositionUnavailable(f"can't go back from offset {self.end} to {start.offset}")
        if missing == 0 and start.flv_offset == self.flv_end:
            return 0
        self._storage.seal(self._state.here())
        self._state = self._state_at(start)
        self.rtmp.end = self._run_start = start.offset
        if self.flv is not None:
            self.flv.skip_to(start)
        if not self.rtmp.segments:
            return 0
        self.missing_bytes += missing
        return missing

    def finish(self, successor: StreamLog | None = None) -> None:
        """No more comes: readers that have read everything are told so, and where to go on.

        Raises:
            OSError: as :meth:`flush`.
        """
        self.flush()
        self._storage.seal(self._state.here())
        self.is_finished = True
        self.successor = successor
        if successor is not None:
            successor.predecessor = self

    def reopen(self) -> None:
        """Take messages again after :meth:`finish`."""
        self.is_finished = False
        self.successor = None

    def close(self) -> None:
        """Write what was appended and let go of everything; what is stored stays.  Its cursors find an end or a gap.

        Raises:
            OSError: as :meth:`flush`; everything is let go of nevertheless.
        """
        if self.is_finished:
            self._pending.clear()
        try:
            self.finish(self.successor)
        finally:
            self.is_finished = True
            self.discard_flv()
            self._storage.close()
            if self.predecessor is not None:
                self.predecessor.close()

    def discard(self) -> None:
        """Give up every byte, stored ones too, of this epoch and those before it.  Readers go on in the successor."""
        self._pending.clear()
        self.is_finished = True
        self.discard_flv()
        self._storage.drop_all()
        self.join_points.clear()
        self._discard_predecessor()

    # FLV

    def open_flv(self, from_flv_offset: int | None = None) -> FlvRendition:
        """The FLV rendition, made if there is none, from the newest join point on or so that it has a given offset.

        It lives until its last cursor closes.

        Raises:
            PositionUnavailable: that offset is not here, or too far back to be held in memory.
            StoreDamaged: a segment does not read back as messages.
            OSError: memory is out, or a segment can't be read.
        """
        flv = self.flv
        if flv is not None and (from_flv_offset is None or flv.start <= from_flv_offset):
            return flv
        if from_flv_offset is None:
            known = self.newest_join_point() or self.end_point()
        else:
            known = self._known_before(from_flv_offset)
        if flv is None:
            flv = FlvRendition(self, self.end_point(), self._segment_bytes)
        until = flv.segments[0].first.offset if flv.segments else self.end
        flv.extend_back(list(pieces(self.rtmp.segments, known, until)))
        self.flv = flv
        return flv

    def discard_flv(self) -> None:
        """Give the FLV rendition up; its cursors, if any, find a gap."""
        flv, self.flv = self.flv, None
        if flv is not None:
            flv.abandon()

    def _known_before(self, flv_offset: int) -> LogStart:
        if flv_offset == self.flv_end:
            return self.end_point()
        known = known_before(self.rtmp.segments, self.join_points, flv_offset)
        if known is None or flv_offset > self.flv_end:
            raise PositionUnavailable(f"FLV offset {flv_offset} is not here; the last is {self.flv_end}")
        if self.flv_end - flv_offset > self.options.memory_bytes:
            raise PositionUnavailable(f"FLV offset {flv_offset} is further back than is held in memory")
        return known

    def rendition_left(self, rendition: Rendition) -> None:
        """Called by a rendition that has no cursor any more."""
        if rendition is self.flv:
            self.discard_flv()


def _offset_of(point: LogStart) -> int:
    return point.offset
