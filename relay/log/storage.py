"""Where a log's own bytes go: the row of its segments, and what happens when a disk refuses them.

Owns the active segment, the bytes held, and the fall back to memory.  When to roll and what to drop is
:mod:`relay.log.log`'s.

Theory.  Storage that fails never stops the stream (it is live; the disk is a convenience).  The oldest half of what is
stored is dropped and the write tried once more; after that the log goes on in memory.  At each roll the source is tried
again, and nothing is dropped for it: what is stored by then is worth more than a full disk's next try.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.rendition import Rendition
from relay.log.segment import MESSAGE_BYTES, MemorySource, Segment, SegmentSource
from relay.log.state import LogState

JOIN_POINT_BYTES = 176
"""Of memory for each join point: the record (72), its numbers (3 times 32), its place in the list (8)."""


def index_bytes(messages: int, join_points: int) -> int:
    """Memory for what is known of so many messages."""
    return MESSAGE_BYTES * messages + JOIN_POINT_BYTES * join_points


class Storage:
    """The segments of one log.  ``active`` is the last one, as long as it takes bytes."""

    def __init__(self, source: SegmentSource, rendition: Rendition, make_room: Callable[[], None]) -> None:
        self.active: Segment | None = None
        self.held = 0
        """Bytes in all segments."""
        self.known = 0
        """Bytes of memory for what is known of their messages; more than ``held`` where messages are tiny."""
        self.is_storing = source.is_stored
        """Did the last bytes go where they outlive the process?"""
        self.errors = 0
        self._source = source
        self._rendition = rendition
        self._make_room = make_room
        """Gives up what is older than this log's oldest byte."""

    def adopt(self, segments: Sequence[Segment]) -> None:
        """Begin with segments that a store still has."""
        for segment in segments:
            self._rendition.add(segment)
            self.held += segment.size

    def write(self, buffers: Sequence[bytes], before: LogState) -> Segment:
        """Write at the end of the active segment, or of one in memory; ``before`` is the log's state there.

        Raises:
            OSError: not even memory is left; nothing was written.
        """
        active = self.active
        assert active is not None
        try:
            written = active.append(buffers)
        except OSError:
            if not active.is_stored:
                raise
            self.errors += 1
            active, written = self._write_elsewhere(active, buffers, before)
        self.held += written
        self.is_storing = active.is_stored
        return active

    def note(self, active: Segment, boundaries: Sequence[int], times: Sequence[int], join_points: int) -> None:
        """Remember where the messages just written begin, and that so many of them are join points."""
        active.note(boundaries, times)
        size = index_bytes(len(boundaries), join_points)
        active.known_bytes += size
        self.known += size

    def _write_elsewhere(self, active: Segment, buffers: Sequence[bytes], before: LogState) -> tuple[Segment, int]:
        if self.is_storing:
            self._drop_half(active)
            try:
                return active, active.append(buffers)
            except OSError:
                self.errors += 1
        memory = MemorySource().open(before.here())
        if active.size:
            self.seal(before.here())
        else:
            self._rendition.remove_last()
            self.guard(active.retire)
        self.active = memory
        self._rendition.add(memory)
        return memory, memory.append(buffers)

    def _drop_half(self, active: Segment) -> None:
        """Drop the oldest half of what is stored, rounded up; what is older than this log first."""
        self._make_room()
        stored = sum(segment.is_stored and segment is not active for segment in self._rendition.segments)
        for _ in range((stored + 1) // 2):
            self.drop_first()

    def roll(self, start: LogStart) -> Segment:
        """Seal the active segment and go on in a new one, whose first byte is ``start``'s.

        Raises:
            OSError: not even memory is left; there is no active segment now.
        """
        self.seal(start)
        try:
            segment = self._source.open(start)
        except OSError:
            if not self._source.is_stored:
                raise
            self.errors += 1
            self.is_storing = False
            segment = MemorySource().open(start)
        self.active = segment
        self._rendition.add(segment)
        return segment

    def seal(self, state: LogStart) -> None:
        """The active segment, if there is one, gets no more bytes."""
        active, self.active = self.active, None
        if active is not None:
            self.guard(lambda: active.seal(state))

    def drop_first(self) -> None:
        """Give the oldest segment up."""
        segment = self._rendition.remove_first()
        self.held -= segment.size
        self.known -= segment.known_bytes
        self.guard(segment.retire)

    def drop_all(self) -> None:
        """Give every segment up."""
        self.active = None
        while self._rendition.segments:
            self.drop_first()

    def close(self) -> None:
        """Let go of everything; what is stored stays."""
        for segment in self._rendition.segments:
            if not segment.is_stored:
                segment.retire()

    @property
    def cost(self) -> int:
        """What counts towards ``keep_bytes``."""
        return self.held + self.known

    def is_over(self, options: LogOptions) -> bool:
        """Is more held than may be, in all or in memory that stands in for a disk?"""
        if self.cost > options.keep_bytes:
            return True
        if not self.errors or not self._source.is_stored:
            return False
        in_memory = sum(
            segment.size + segment.known_bytes for segment in self._rendition.segments if not segment.is_stored
        )
        return in_memory > options.memory_bytes

    def guard(self, action: Callable[[], None]) -> None:
        """Do what a failing disk may refuse without harm to the stream; count it."""
        try:
            action()
        except OSError:
            self.errors += 1
