"""What a crash left of one epoch's segments: checked, cut where it can't be vouched for, put together again.

Owns that decision.  Called by :mod:`relay.log.store`, once a stream and process.

Theory.  Two things can have happened.

*The process died.*  The page cache survived, so all that readers were ever given is there (I5).  Index entries are
believed; only what follows the last one is scanned, and a message that is not whole (*torn*) is cut off: nobody has
seen it.

*The machine went down* (``is_verified``).  Any page may be old, zero or garbage.  Each span between two index entries
is compared with its CRC-32.  At the first that differs the epoch is cut, and all after it is *damaged*.  What follows
the last entry has no CRC; it is *unverified* and cut too, since a wrong byte at a position must never be served (I1),
while a missing one can be fetched again.

A segment without a readable index is scanned whole, and its index is made anew; it needs to follow another segment, or
begin the epoch, because the headers in force and the FLV offset are known nowhere else.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import attrs

from relay.log.directory import Directory
from relay.log.files import FileSegment, index_name, segment_name
from relay.log.index import END, JOIN, MARK_MS, MAX_INDEX_BYTES, START, Entry, decode_entries, encode_entries
from relay.log.points import JoinPoint, LogStart
from relay.log.record import NotARecord, parse
from relay.log.segment import Segment
from relay.log.state import LogState
from relay.rtmp.messages import MediaMessage

_NOT_A_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENOENT})
"""What is said of a link or a directory in a segment's place.  Other errors tell of the disk or of us."""

_READ_BYTES = 1 << 20
"""Bytes read at once."""


@attrs.define
class RecoveredEpoch:
    """What is left of an epoch, and what is not."""

    segments: list[Segment] = attrs.field(factory=list)
    join_points: list[JoinPoint] = attrs.field(factory=list)
    end: LogStart | None = None
    """The state at the end of the last segment; None: there is none."""
    torn_bytes: int = 0
    damaged_bytes: int = 0
    unverified_bytes: int = 0
    rebuilt_indexes: int = 0


@attrs.define
class _Found:
    """What one segment file holds that can be vouched for."""

    entries: list[Entry]
    """From the start to where it is cut; the last is an end."""
    points: list[JoinPoint]
    is_damaged: bool = False
    is_changed: bool = False
    """Must the index be written anew?"""

    def add(self, point: JoinPoint, crc: int) -> bool:
        """Take a join point that was scanned; is it also worth an entry?"""
        if self.points and self.points[-1].offset == point.offset:
            return False
        self.points.append(point)
        last = self.entries[-1]
        if last.kind != START and point.time_ms - last.point.time_ms < MARK_MS:
            return False
        self.entries.append(Entry(JOIN, point, crc))
        return True


def recover_epoch(
    directory: Directory, epoch: int, starts: Sequence[int], origin: LogStart | None, is_verified: bool
) -> RecoveredEpoch:
    """Put the segments of an epoch together.

    Args:
        directory: the stream's.
        epoch: whose segments.
        starts: where each begins, ascending.
        origin: the state at the epoch's first byte, if that is known.
        is_verified: compare every CRC: the machine went down.

    Raises:
        OSError: the directory can't be written.
    """
    recovery = _EpochRecovery(directory, epoch, is_verified)
    known = origin
    for at, start in enumerate(starts):
        if recovery.add(start, known):
            recovery.drop_all(starts[at + 1 :])
            break
        known = recovery.result.end
    return recovery.result


class _EpochRecovery:
    """Takes the segments of one epoch in order."""

    def __init__(self, directory: Directory, epoch: int, is_verified: bool) -> None:
        self.result = RecoveredEpoch()
        self._directory = directory
        self._epoch = epoch
        self._is_verified = is_verified

    def add(self, start: int, known: LogStart | None) -> bool:
        """Take the segment at ``start``; ``known`` is the state where the one before ended.  Is the epoch cut in it?"""
        result, name = self.result, segment_name(self._epoch, start)
        if result.end is not None and start < result.end.offset:
            self.drop_all([start])
            return True
        try:
            fd = self._directory.open(name, os.O_RDWR)
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            self.drop_all([start])
            return False
        try:
            entries = self._entries(name, start, known)
            if not entries:
                self.drop_all([start])
                return False
            size = os.fstat(fd).st_size
            found = self._verify(fd, entries, size) if self._is_verified else self._trust(fd, entries, size)
            self._keep(fd, found, size)
        finally:
            os.close(fd)
        return found.is_damaged

    def _entries(self, name: str, start: int, known: LogStart | None) -> list[Entry]:
        """The index's, or one that stands in for its first; none if nothing tells the state at the segment's start."""
        entries: list[Entry] = []
        with suppress(OSError):
            entries = decode_entries(self._directory.read(index_name(name), MAX_INDEX_BYTES))
        if entries and entries[0].point.offset == start:
            return entries
        self.result.rebuilt_indexes += 1
        if known is None or known.offset != start:
            return []
        return [Entry(START, LogStart(known.offset, known.flv_offset, known.time_ms, known.headers))]

    def _verify(self, fd: int, entries: list[Entry], size: int) -> _Found:
        """Keep the spans whose CRC is right."""
        start = entries[0].point.offset
        kept = entries[:1]
        for entry in entries[1:]:
            begin, end = kept[-1].point.offset - start, entry.point.offset - start
            if end > size or _crc(fd, begin, end) != entry.crc:
                self.result.damaged_bytes += max(size, end) - begin
                return _Found(kept, _points(kept), is_damaged=True, is_changed=True)
            kept.append(entry)
        left = size - (kept[-1].point.offset - start)
        self.result.unverified_bytes += left
        return _Found(kept, _points(kept), is_changed=left > 0 or kept[-1].kind != END)

    def _trust(self, fd: int, entries: list[Entry], size: int) -> _Found:
        """Keep the spans of the index, and every whole message after them."""
        start = entries[0].point.offset
        kept = [entry for entry in entries if entry.point.offset - start <= size]
        lost = entries[-1].point.offset - kept[-1].point.offset
        self.result.damaged_bytes += lost
        if not lost and kept[-1].kind == END:
            self.result.torn_bytes += size - (kept[-1].point.offset - start)
            return _Found(kept, _points(kept))
        found = self._scan(fd, kept, size)
        found.is_damaged = found.is_damaged or lost > 0
        return found

    def _scan(self, fd: int, kept: list[Entry], size: int) -> _Found:
        """Go on from the last entry, message by message, as far as there are whole ones."""
        found = _Found(list(kept), _points(kept), is_changed=True)
        base = kept[-1].point
        data = _read(fd, base.offset - kept[0].point.offset, size)
        state = LogState(base)
        marked = 0
        try:
            for message, at in _whole_messages(data):
                point = state.take(message)
                if point is not None and found.add(point, zlib.crc32(data[marked:at])):
                    marked = at
        except NotARecord:
            found.is_damaged = True
        end = state.offset - base.offset
        found.entries.append(Entry(END, state.here(), zlib.crc32(data[marked:end])))
        if found.is_damaged:
            self.result.damaged_bytes += len(data) - end
        else:
            self.result.torn_bytes += len(data) - end
        return found

    def _keep(self, fd: int, found: _Found, size: int) -> None:
        """Cut the file, make its index agree, and add the segment; or drop it when nothing is left."""
        first, end = found.entries[0].point, found.entries[-1].point
        name = segment_name(self._epoch, first.offset)
        if self.result.end is None or end.offset > first.offset:
            self.result.end = end
        if end.offset == first.offset:
            _drop(self._directory, name)
            return
        if end.offset - first.offset < size:
            os.ftruncate(fd, end.offset - first.offset)
        if found.is_changed:
            entries = found.entries if found.entries[-1].kind == END else [*found.entries, Entry(END, end)]
            # A full disk may refuse; the old index then leads the next recovery here again.
            with suppress(OSError):
                self._directory.write_atomically(index_name(name), encode_entries(entries))
        self.result.segments.append(FileSegment.recovered(self._directory, self._epoch, first, end))
        self.result.join_points += [point for point in found.points if point.offset < end.offset]

    def drop_all(self, starts: Sequence[int]) -> None:
        """Remove segments that can't be used."""
        for start in starts:
            self.result.damaged_bytes += _drop(self._directory, segment_name(self._epoch, start))


def _whole_messages(data: bytes) -> Iterator[tuple[MediaMessage, int]]:
    """Each message with where it begins, up to one that is not whole.

    Raises:
        NotARecord: there is something else.
    """
    at = 0
    while at < len(data) and (found := parse(data, at)) is not None:
        yield found[0], at
        at = found[1]


def _points(entries: Sequence[Entry]) -> list[JoinPoint]:
    return [entry.point for entry in entries if isinstance(entry.point, JoinPoint)]


def _crc(fd: int, begin: int, end: int) -> int:
    crc = 0
    while begin < end:
        piece = os.pread(fd, min(end - begin, _READ_BYTES), begin)
        if not piece:
            break
        crc = zlib.crc32(piece, crc)
        begin += len(piece)
    return crc


def _read(fd: int, begin: int, end: int) -> bytes:
    pieces: list[bytes] = []
    while begin < end and (piece := os.pread(fd, min(end - begin, _READ_BYTES), begin)):
        pieces.append(piece)
        begin += len(piece)
    return b"".join(pieces)


def _drop(directory: Directory, name: str) -> int:
    """Remove a segment and its index; the bytes it had."""
    try:
        size = directory.stat(name).st_size
    except OSError:
        size = 0
    directory.unlink(name)
    directory.unlink(index_name(name))
    return size
