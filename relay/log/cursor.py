"""A reader's place in a rendition.  Thousands exist at once, and nothing in the log is done per cursor.

Owns the place and the hold on one segment.  The bytes are moved by who has the cursor: a transport reads
``cursor.segment.fd``, ``.start`` and ``.end``, ``cursor.offset`` and ``cursor.stop``, calls ``sendfile``, adds to
``cursor.offset``; when the offset reaches the segment's end, or the stop, it calls :meth:`Cursor.advance`.
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import TYPE_CHECKING

from relay.errors import PositionUnavailable
from relay.log.segment import NoSegment, Segment

if TYPE_CHECKING:
    from relay.log.rendition import Rendition


class CursorState(Enum):
    """What a reader can do next."""

    READY = "ready"  # bytes are there, in cursor.segment at cursor.offset
    AT_END = "at end"  # everything was read: wait for the next flush
    AT_STOP = "at stop"  # cursor.stop is reached
    GAP = "gap"  # the next byte is not here: a hole, or dropped by retention.  Go to a join point
    ENDED = "ended"  # everything was read and no more comes; the log's successor, if any, goes on


class Cursor:
    """Byte ``offset`` of ``rendition`` is next; ``segment`` is held open until the cursor moves or closes."""

    __slots__ = ("offset", "rendition", "segment", "stop")

    def __init__(self, rendition: Rendition, offset: int) -> None:
        self.rendition = rendition
        self.offset = offset
        self.stop: int | None = None
        """A message boundary to halt at, or None."""
        self.segment: Segment = NoSegment(offset)
        rendition.cursors += 1

    def advance(self) -> CursorState:
        """Move on to where the next byte is; to be called when the segment's end or the stop is reached."""
        stop = self.stop
        if stop is not None and self.offset >= stop:
            return CursorState.AT_STOP
        if self.offset < self.segment.end:
            return CursorState.READY
        rendition = self.rendition
        if rendition.is_abandoned or self.segment is _CLOSED:
            return CursorState.GAP
        if self.offset == rendition.end:
            return CursorState.ENDED if rendition.log.is_finished else CursorState.AT_END
        segment = rendition.find(self.offset)
        if segment is None or not self._hold(segment):
            return CursorState.GAP
        return CursorState.READY

    def _hold(self, segment: Segment) -> bool:
        try:
            segment.acquire()
        except OSError:
            return False
        self.segment.release()
        self.segment = segment
        return True

    def read(self, limit: int) -> bytes:
        """Take up to ``limit`` bytes; empty when :meth:`advance` has to be called.

        Raises:
            OSError: the segment can't be read.
        """
        end = self.segment.end if self.stop is None else min(self.segment.end, self.stop)
        count = min(limit, end - self.offset)
        if count <= 0:
            return b""
        data = os.pread(self.segment.fd, count, self.offset - self.segment.start)
        if not data:
            raise OSError(errno.EIO, "a segment is shorter than what was written to it")
        self.offset += len(data)
        return data

    def move_to(self, offset: int, rendition: Rendition | None = None) -> None:
        """Go to another place, in another rendition perhaps; the stop is forgotten.

        Raises:
            PositionUnavailable: it is not there; the cursor stays where it was.
        """
        target = self.rendition if rendition is None else rendition
        segment = target.find(offset)
        if segment is None and (offset != target.end or target.is_abandoned):
            raise PositionUnavailable(f"offset {offset} is not in {target.start}..{target.end}, or in a hole of it")
        if not self._hold(NoSegment(offset) if segment is None else segment):
            raise PositionUnavailable(f"the segment of offset {offset} can't be opened")
        self.offset = offset
        self.stop = None
        if target is not self.rendition:
            left, self.rendition = self.rendition, target
            target.cursors += 1
            left.cursor_left()

    def rest(self) -> None:
        """Hold no segment: another cursor keeps the place for this one, until :meth:`resume`."""
        self.segment.release()
        self.segment = _RESTING

    def resume(self, leader: Cursor, offset: int) -> None:
        """Go on at ``offset``, in the segment that ``leader`` holds."""
        self._hold(leader.segment)
        self.offset = offset

    @property
    def is_closed(self) -> bool:
        """Was :meth:`close` called?"""
        return self.segment is _CLOSED

    def close(self) -> None:
        """Let go of the segment, and be counted out.  May be called again."""
        if self.segment is _CLOSED:
            return
        self.segment.release()
        self.segment = _CLOSED
        self.rendition.cursor_left()


_RESTING = NoSegment(0)
"""Stands in for the segment of a cursor that rests."""

_CLOSED = NoSegment(0)
"""Stands in for the segment of a closed cursor: it has no bytes."""
