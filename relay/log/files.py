"""Segments in files, each with its index file beside it.

Owns the two files of one segment, and their names: ``<epoch>-<offset>.log`` and ``.index``.  Which streams and epochs
there are is :mod:`relay.log.store`'s; what is left after a crash, :mod:`relay.log.recovery`'s.
"""

from __future__ import annotations

import os
import re
import zlib
from array import array
from collections.abc import Callable, Sequence

from relay.log.directory import Directory
from relay.log.headers import HeadersInForce
from relay.log.index import END, JOIN, MARK_MS, START, Entry, encode_entry
from relay.log.points import JoinPoint, LogStart
from relay.log.scan import messages_between
from relay.log.segment import Segment, write_all
from relay.log.state import LogState

_NAME = re.compile(r"([1-9][0-9]{0,15})-([0-9]{20})\.log\Z", re.ASCII)


def segment_name(epoch: int, start: int) -> str:
    """A segment's file name; names of one epoch sort by offset."""
    return f"{epoch}-{start:020d}.log"


def index_name(name: str) -> str:
    """The name of the index file of a segment file."""
    return f"{name.removesuffix('.log')}.index"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """``(epoch, start)``; None: the file is not a segment."""
    match = _NAME.match(name)
    return None if match is None else (int(match[1]), int(match[2]))


class FileSegment(Segment):
    """A segment in a store.  Once sealed, its file is open only while it has readers."""

    __slots__ = ("_crc", "_directory", "_headers", "_index_at", "_index_fd", "_is_indexed", "_last_mark_ms", "_name")

    is_stored = True

    def __init__(self, directory: Directory, epoch: int, first: LogStart, fd: int = -1) -> None:
        super().__init__(fd, first.offset, first)
        self._directory = directory
        self._name = segment_name(epoch, first.offset)
        self._index_fd = -1
        self._index_at = 0
        self._is_indexed = True
        """Are ``boundaries`` and ``times`` complete?"""
        self._headers = first.headers
        self._crc = 0
        self._last_mark_ms: int | None = None

    @classmethod
    def create(cls, directory: Directory, epoch: int, first: LogStart) -> FileSegment:
        """A new one, with its index begun.

        Raises:
            OSError: nothing is left behind.
        """
        name = segment_name(epoch, first.offset)
        segment = cls(directory, epoch, first, directory.create(name))
        try:
            directory.unlink(index_name(name))
            segment._index_fd = directory.create(index_name(name))
            segment._write_entry(Entry(START, first), None)
            if isinstance(first, JoinPoint):
                segment.mark(first)
        except OSError:
            segment.retire()
            raise
        return segment

    @classmethod
    def recovered(cls, directory: Directory, epoch: int, first: LogStart, end: LogStart) -> FileSegment:
        """One that was there; sealed."""
        segment = cls(directory, epoch, first)
        segment.end = end.offset
        segment.latest_ms = max(first.time_ms, end.time_ms)
        segment._is_sealed = True
        segment._is_indexed = False
        return segment

    def append(self, buffers: Sequence[bytes]) -> int:
        """As :meth:`Segment.append`."""
        written = super().append(buffers)
        if self._index_fd >= 0:
            crc = self._crc
            for buffer in buffers:
                crc = zlib.crc32(buffer, crc)
            self._crc = crc
        return written

    def message_index(self) -> tuple[array[int], array[int]]:
        """As :meth:`Segment.message_index`; a recovered segment is read for it once, when it is first asked.

        Raises:
            OSError: it can't be read.
            StoreDamaged: it does not read back as messages.
        """
        if not self._is_indexed:
            boundaries, times = array("Q"), array("q")
            state = LogState(self.first)
            for message in messages_between(self, self.start, self.end):
                boundaries.append(state.offset)
                state.take(message)
                times.append(state.end_time_ms)
            self.boundaries, self.times = boundaries, times
            self._is_indexed = True
        return self.boundaries, self.times

    def is_mark_due(self, point: JoinPoint) -> bool:
        """Is the last mark long enough ago, in media time?"""
        if self._index_fd < 0:
            return False
        return self._last_mark_ms is None or point.time_ms - self._last_mark_ms >= MARK_MS

    def mark(self, point: JoinPoint) -> None:
        """Write a join point at ``end`` into the index.

        Raises:
            OSError: the segment goes on without an index from here on.
        """
        self._write_entry(Entry(JOIN, point, self._crc), self._headers)
        self._last_mark_ms = point.time_ms

    def _write_entry(self, entry: Entry, headers_before: HeadersInForce | None) -> None:
        if self._index_fd < 0:
            return
        try:
            self._index_at += write_all(self._index_fd, [encode_entry(entry, headers_before)], self._index_at)
        except OSError:
            self._close_index()
            raise
        self._headers = entry.point.headers
        self._crc = 0

    def _close_index(self) -> None:
        fd, self._index_fd = self._index_fd, -1
        if fd >= 0:
            os.close(fd)

    def seal(self, state: LogStart) -> None:
        """As :meth:`Segment.seal`, with the last line of the index.

        Raises:
            OSError: the index can't be written; the segment is sealed nevertheless.
        """
        try:
            self._write_entry(Entry(END, state, self._crc), self._headers)
        finally:
            self._close_index()
            super().seal(state)

    def retire(self) -> None:
        """As :meth:`Segment.retire`; the names go at once.

        Raises:
            OSError: a file can't be removed; it is given up all the same.
        """
        self._close_index()
        super().retire()
        try:
            self._directory.unlink(self._name)
        finally:
            self._directory.unlink(index_name(self._name))

    def _close_if_idle(self) -> None:
        if self._is_sealed and not self.readers:
            self.close_fd()

    def _reopen(self) -> int:
        return self._directory.open(self._name)


class FileSource:
    """Segments of one epoch of one stream, in the stream's directory.

    Args:
        directory: the stream's.
        epoch: whose segments.
        prepare: called before each segment is made; what it raises is as if the segment could not be made.
    """

    is_stored = True

    def __init__(self, directory: Directory, epoch: int, prepare: Callable[[], None] = lambda: None) -> None:
        self._directory = directory
        self._epoch = epoch
        self._prepare = prepare

    def open(self, start: LogStart) -> FileSegment:
        """A new file.

        Raises:
            OSError: it can't be made.
        """
        self._prepare()
        return FileSegment.create(self._directory, self._epoch, start)
