"""Append-only runs of a rendition's bytes, in a file or in a memfd, behind one interface.

Owns file descriptors and who may still need them.  A segment is written by its log and read by cursors, which hand its
``fd`` to ``sendfile`` themselves.  Names, directories and index files are :mod:`relay.log.store`'s.

Theory.  ``end`` moves only after the write (I5), and a write that fails leaves no trace: what got into the file is cut
off again.  Retention may *retire* a segment while readers are inside: its name goes at once, its descriptor when the
last reader leaves.  A *sealed* segment gets no more bytes; a file's descriptor is then open only while it has readers,
so that a long store does not use up the process's descriptors.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Sequence
from typing import Protocol

from relay.log.points import JoinPoint, LogStart

_MAX_BUFFERS = 1024
"""Buffers in one writev (IOV_MAX of Linux)."""

MESSAGE_BYTES = 16
"""Of memory for each message, besides its own: where it begins and when it is, 8 each."""


def write_all(fd: int, buffers: Sequence[bytes], at: int) -> int:
    """Write every buffer from file offset ``at`` on; in one system call nearly always.  The number of bytes.

    Raises:
        OSError: some may have been written.
    """
    if len(buffers) <= _MAX_BUFFERS:
        written = os.pwritev(fd, buffers, at)
        if written == sum(map(len, buffers)):
            return written
    begun = at
    left = list(buffers)
    while left:
        written = os.pwritev(fd, left[:_MAX_BUFFERS], at)
        if not written and any(left[:_MAX_BUFFERS]):
            raise OSError(errno.EIO, "nothing was written")
        at += written
        done = 0
        while done < len(left) and written >= len(left[done]):
            written -= len(left[done])
            done += 1
        del left[:done]
        if written:
            left[0] = left[0][written:]
    return at - begun


class Segment:
    """Bytes ``start`` to ``end`` of a rendition are bytes 0 to ``end - start`` of ``fd``."""

    __slots__ = (
        "_is_retired",
        "_is_sealed",
        "boundaries",
        "end",
        "fd",
        "first",
        "known_bytes",
        "latest_ms",
        "readers",
        "start",
        "times",
    )

    is_stored = False
    """Does it outlive the process?"""

    def __init__(self, fd: int, start: int, first: LogStart) -> None:
        self.fd = fd
        self.start = start
        self.end = start
        self.readers = 0
        self.first = first
        """The log's state at ``start``."""
        self.boundaries = array("Q")
        """Where each message begins."""
        self.times = array("q")
        """The latest media time up to and with each message: never going down."""
        self.latest_ms = first.time_ms
        """The last of ``times``."""
        self.known_bytes = 0
        """Memory for what is known of its messages; counted by :class:`relay.log.storage.Storage`."""
        self._is_sealed = False
        self._is_retired = False

    @property
    def size(self) -> int:
        """Bytes held."""
        return self.end - self.start

    @property
    def is_sealed(self) -> bool:
        """Will it get no more bytes?"""
        return self._is_sealed

    def append(self, buffers: Sequence[bytes]) -> int:
        """Write all of the buffers at the end, then let readers see them.  The number of bytes.

        Raises:
            OSError: none was written.
        """
        at = self.end - self.start
        try:
            written = write_all(self.fd, buffers, at)
        except OSError:
            self._cut(at)
            raise
        self.end += written
        return written

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self.fd, size)
        except OSError:
            # The next append overwrites what is left there; recovery cuts it as a torn tail.
            return

    def note(self, boundaries: Sequence[int], times: Sequence[int]) -> None:
        """Remember where the messages just appended begin."""
        self.boundaries.extend(boundaries)
        self.times.extend(times)
        self.latest_ms = times[-1]

    def message_index(self) -> tuple[array[int], array[int]]:
        """``(boundaries, times)`` of all its messages."""
        return self.boundaries, self.times

    def is_mark_due(self, point: JoinPoint) -> bool:
        """Should this join point be marked?  Only stored segments have an index to mark it in."""
        return False

    def mark(self, point: JoinPoint) -> None:
        """Write a join point at ``end`` into the index."""

    def pread(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset`` on; for a holder of the segment, like reading ``fd`` itself."""
        return os.pread(self.fd, min(count, self.end - offset), offset - self.start)

    def acquire(self) -> None:
        """A reader comes in.

        Raises:
            OSError: the segment's file can't be opened any more.
        """
        if self.fd < 0:
            self.fd = self._reopen()
        self.readers += 1

    def release(self) -> None:
        """A reader leaves."""
        self.readers -= 1
        if not self.readers:
            self._close_if_idle()

    def seal(self, state: LogStart) -> None:
        """No more bytes come; ``state`` is the log's at ``end``."""
        self._is_sealed = True
        self._close_if_idle()

    def retire(self) -> None:
        """Give the bytes up: at once, or when the last reader has left.

        Raises:
            OSError: the file can't be removed (it is given up all the same).
        """
        self._is_sealed = self._is_retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_retired and not self.readers:
            self.close_fd()

    def close_fd(self) -> None:
        """Close the descriptor now, whoever reads."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _reopen(self) -> int:
        raise OSError(f"segment {self.start} is closed")


class MemorySegment(Segment):
    """A segment in a memfd: gone with the process."""

    __slots__ = ()

    def __init__(self, start: int, first: LogStart) -> None:
        super().__init__(os.memfd_create(f"log-{start}", os.MFD_CLOEXEC), start, first)


class NoSegment(Segment):
    """Stands in where there are no bytes yet, so that a cursor always has a segment; it is empty and never open."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(-1, offset, LogStart(offset))

    def acquire(self) -> None:
        """Nothing to hold."""

    def release(self) -> None:
        """Nothing to let go."""


class SegmentSource(Protocol):
    """Where a log gets its segments."""

    is_stored: bool

    def open(self, start: LogStart) -> Segment:
        """A new, empty segment that begins at ``start.offset``.

        Raises:
            OSError: it can't be made.
        """


class MemorySource:
    """Segments in memory: for aggregators, FLV renditions and logs whose store has failed."""

    is_stored = False

    def open(self, start: LogStart) -> Segment:
        """A memfd."""
        return MemorySegment(start.offset, start)
