"""One byte form of a log: a row of segments that cursors read.

Owns where bytes are found, and the FLV form of messages.  When to append, roll and drop is :mod:`relay.log.log`'s.

The row may have holes (a replica that had to skip, a store that failed for a while); a reader that comes to one is told
so by its cursor.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

from relay.errors import PositionUnavailable
from relay.flv.tags import tag_head, tag_tail
from relay.log.cursor import Cursor
from relay.log.points import LogStart
from relay.log.segment import MESSAGE_BYTES, MemorySource, Segment
from relay.log.state import LogState
from relay.rtmp.messages import MediaMessage


class RenditionOwner(Protocol):
    """The log, as its renditions see it."""

    is_finished: bool
    """Will no more bytes come?"""

    def rendition_left(self, rendition: Rendition) -> None:
        """The last cursor has left it."""


class Rendition:
    """Bytes ``start`` to ``end``, holes aside.  ``end`` moves only after a write (I5)."""

    def __init__(self, log: RenditionOwner, start: int) -> None:
        self.log = log
        self.segments: list[Segment] = []
        self.end = start
        self.cursors = 0
        self.is_abandoned = False
        """Given up: its cursors find a gap and must open another."""
        self._starts: list[int] = []

    @property
    def start(self) -> int:
        """The first byte that is still here."""
        return self.segments[0].start if self.segments else self.end

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(segment.size for segment in self.segments)

    def add(self, segment: Segment) -> None:
        """A new last segment."""
        self.segments.append(segment)
        self._starts.append(segment.start)

    def insert_before(self, segments: list[Segment]) -> None:
        """Older segments, oldest first."""
        self.segments[:0] = segments
        self._starts[:0] = [segment.start for segment in segments]

    def remove_last(self) -> Segment:
        """Take out the last segment."""
        self._starts.pop()
        return self.segments.pop()

    def remove_first(self) -> Segment:
        """Take out the first segment."""
        del self._starts[0]
        return self.segments.pop(0)

    def find(self, offset: int) -> Segment | None:
        """The segment that has the byte at ``offset``."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0 or self.segments[at].end <= offset:
            return None
        return self.segments[at]

    def run_start(self, offset: int) -> int:
        """The first byte from which everything up to ``offset`` is here, without a hole; ``offset`` if none is."""
        first = offset
        for at in range(bisect_left(self._starts, offset) - 1, -1, -1):
            segment = self.segments[at]
            if segment.end < first:
                break
            first = segment.start
        return first

    def cursor(self, offset: int) -> Cursor:
        """A cursor at ``offset``, which may be the end.

        Raises:
            PositionUnavailable: the byte is not here.
        """
        cursor = Cursor(self, offset)
        try:
            cursor.move_to(offset)
        except PositionUnavailable:
            cursor.close()
            raise
        return cursor

    def cursor_left(self) -> None:
        """Called by a cursor that closes or goes to another rendition."""
        self.cursors -= 1
        if not self.cursors:
            self.log.rendition_left(self)

    def boundary_at_or_after(self, offset: int) -> int:
        """The next place where a message begins, or the end.

        Raises:
            PositionUnavailable: the byte is not here.
        """
        if offset == self.end:
            return offset
        segment = self.find(offset)
        if segment is None:
            raise PositionUnavailable(f"offset {offset} is not in {self.start}..{self.end}, or in a hole of it")
        boundaries, _ = segment.message_index()
        at = bisect_left(boundaries, offset)
        return boundaries[at] if at < len(boundaries) else segment.end

    def offset_at_time(self, time_ms: int) -> int:
        """Where the first message of ``time_ms`` or later begins; the end when there is none yet.

        A reader's lag is found by comparing its offset with one such offset, not by looking at its messages.
        """
        at = bisect_left(self.segments, time_ms, key=_latest)
        if at == len(self.segments):
            return self.end
        boundaries, times = self.segments[at].message_index()
        found = bisect_left(times, time_ms)
        return boundaries[found] if found < len(boundaries) else self.segments[at].end

    def abandon(self) -> None:
        """Give every byte up for good; cursors may finish the segment they are in, then find a gap."""
        self.is_abandoned = True
        while self.segments:
            self.remove_first().retire()


def _cost(segment: Segment) -> int:
    """Memory for its bytes and its index."""
    return segment.size + MESSAGE_BYTES * len(segment.boundaries)


def _latest(segment: Segment) -> int:
    return segment.latest_ms


class FlvRendition(Rendition):
    """The log as FLV tags, in memory; no file header, so that offset 0 is the first tag's.

    It begins at a place where the log's state is known, and each of its segments knows the log's place in ``first``.
    """

    def __init__(self, log: RenditionOwner, start: LogStart, segment_bytes: int) -> None:
        super().__init__(log, start.flv_offset)
        self._source = MemorySource()
        self._segment_bytes = segment_bytes
        self._active: Segment | None = None

    def append(self, before: LogState, messages: Sequence[MediaMessage], times: Sequence[int]) -> None:
        """Add messages that follow each other; ``before`` is the log's state before the first.

        Raises:
            OSError: memory is out; nothing was added.
        """
        if self._active is None or _cost(self._active) >= self._segment_bytes:
            self._roll(before.here())
        assert self._active is not None
        self.end += write_tags(self._active, messages, times)

    def _roll(self, start: LogStart) -> None:
        segment = _open_flv(self._source, start)
        if self._active is not None:
            self._active.seal(start)
        self._active = segment
        self.add(segment)

    def skip_to(self, start: LogStart) -> None:
        """Leave a hole up to ``start``."""
        if self._active is not None:
            self._active.seal(start)
        self._active = None
        self.end = start.flv_offset

    def extend_back(self, pieces: Sequence[tuple[LogStart, Sequence[MediaMessage], Sequence[int]]]) -> None:
        """Put older messages before the first; a piece is a run of them with the log's state before it.

        Raises:
            OSError: memory is out; nothing was added.
        """
        made: list[Segment] = []
        try:
            for start, messages, times in pieces:
                segment = _open_flv(self._source, start)
                made.append(segment)
                write_tags(segment, messages, times)
                segment.seal(start)
        except OSError:
            for segment in made:
                segment.retire()
            raise
        self.insert_before(made)

    def drop_before(self, flv_offset: int) -> None:
        """Drop the segments that end at or before ``flv_offset``."""
        while self.segments and self.segments[0] is not self._active and self.segments[0].end <= flv_offset:
            self.remove_first().retire()

    def keep_bytes(self, limit: int) -> None:
        """Drop the oldest segments while they and their indexes are more than ``limit``; never the one written to."""
        held = sum(map(_cost, self.segments)) if len(self.segments) > 1 else 0
        while held > limit and self.segments[0] is not self._active:
            held -= _cost(self.segments[0])
            self.remove_first().retire()

    def abandon(self) -> None:
        """As :meth:`Rendition.abandon`."""
        self._active = None
        super().abandon()


def _open_flv(source: MemorySource, start: LogStart) -> Segment:
    segment = source.open(start)
    segment.start = segment.end = start.flv_offset
    return segment


def write_tags(segment: Segment, messages: Sequence[MediaMessage], times: Sequence[int]) -> int:
    """Append each message as an FLV tag; the number of bytes.

    Raises:
        OSError: none was written.
    """
    buffers: list[bytes] = []
    boundaries: list[int] = []
    at = segment.end
    for message in messages:
        payload = message.payload
        head, tail = (
            tag_head(message.message_type, message.timestamp & 0xFFFFFFFF, len(payload)),
            tag_tail(len(payload)),
        )
        buffers += (head, payload, tail)
        boundaries.append(at)
        at += len(head) + len(payload) + len(tail)
    written = segment.append(buffers)
    segment.note(boundaries, times)
    return written
