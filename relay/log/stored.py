"""One stream's directory in a store: which epochs are on disk, and how they come back after a restart.

Owns the lineage and the recovery as a whole.  A segment's files are :mod:`relay.log.files`'s, what a crash left of one
epoch :mod:`relay.log.recovery`'s.  Made by :class:`relay.log.store.Store`.

A disk that fails is never raised to who publishes or watches: streams then go on in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import attrs

from relay.errors import StoreDamaged
from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.directory import Directory
from relay.log.files import FileSource, parse_segment_name, segment_name
from relay.log.lineage import MAX_LINEAGE, MAX_META_BYTES, META, Epoch, decode_meta, encode_meta
from relay.log.log import StreamLog
from relay.log.options import DEFAULT_OPTIONS, LogOptions
from relay.log.points import LogStart
from relay.log.position import Position
from relay.log.recovery import RecoveredEpoch, recover_epoch


@attrs.frozen
class Extent:
    """Bytes ``start`` to ``end`` of an epoch are on disk."""

    epoch: int
    start: int
    end: int


@attrs.frozen(kw_only=True)
class Recovery:
    """What a stream's store had when the node came up."""

    logs: list[StreamLog]
    """Oldest epoch first, each finished with the next as its successor but the last, which takes messages."""
    lineage: list[Epoch]
    is_boot_changed: bool
    """Has the machine been down since the store was last written?"""
    is_lineage_lost: bool
    """Was ``meta`` unreadable?"""
    torn_bytes: int
    """Of a last message that was not whole: nobody had seen them."""
    damaged_bytes: int
    """Found to be wrong or missing, and all after them in their epoch."""
    unverified_bytes: int
    """Given up because, after the machine was down, nothing can vouch for them."""
    rebuilt_indexes: int
    failed_epochs: int
    """Left alone because the disk can't be read or written."""

    @property
    def is_intact(self) -> bool:
        """Is every byte that a reader may have been given still here?  If not, an origin must begin a new epoch."""
        return not (self.is_boot_changed or self.is_lineage_lost or self.damaged_bytes or self.failed_epochs)


class StreamStore:
    """One stream's directory."""

    def __init__(self, directory: Directory, name: str, boot_id: str, when_closed: Callable[[], None]) -> None:
        self.name = name
        self._directory = directory
        self._boot_id = boot_id
        self._when_closed = when_closed
        self._lineage: list[Epoch] = []
        self._stored_boot_id: str | None = None
        self._is_lineage_lost = False
        self._is_meta_current = False
        with suppress(OSError):
            self._read_meta()

    @property
    def lineage(self) -> list[Epoch]:
        """The epochs that are known, oldest first."""
        return list(self._lineage)

    def source(self, epoch: int, predecessor: Position | None = None, time_ms: int = 0) -> FileSource:
        """Where a log of ``epoch`` gets its segments.

        A new epoch is noted in the lineage now or, if the disk refuses, before its first segment.
        """
        if all(known.epoch != epoch for known in self._lineage):
            self._lineage.append(Epoch(epoch, predecessor, time_ms))
            self._is_meta_current = False
            with suppress(OSError):
                self._note_lineage()
        return FileSource(self._directory, epoch, self._note_lineage)

    def recover(self, options: LogOptions = DEFAULT_OPTIONS, limits: Limits = DEFAULT_LIMITS) -> Recovery:
        """Read what is here and make logs of it.  To be called before anything is written.

        A disk that can't be read or written is told in ``failed_epochs``, never raised: the stream goes on without it.
        """
        is_boot_changed = self._stored_boot_id is not None and self._stored_boot_id != self._boot_id
        failed = 0
        try:
            starts = self._segment_starts()
        except OSError:
            starts = {}
            failed = max(1, len(self._lineage))
        self._adopt(sorted(set(starts) - {known.epoch for known in self._lineage}))
        is_lineage_lost = self._is_lineage_lost
        found: list[tuple[Epoch, RecoveredEpoch]] = []
        for known in self._lineage:
            if known.epoch not in starts:
                continue
            origin, is_verified = LogStart(time_ms=known.time_ms), is_boot_changed or is_lineage_lost
            try:
                recovered = recover_epoch(self._directory, known.epoch, starts[known.epoch], origin, is_verified)
            except OSError:
                failed += 1
            else:
                found.append((known, recovered))
        self._is_meta_current = False
        with suppress(OSError):
            self._remove_strays()
            self._note_lineage()
        logs = [self._log(known, recovered, options, limits) for known, recovered in found if recovered.segments]
        for log, successor in pairwise(logs):
            log.finish(successor)
        return Recovery(
            logs=logs,
            lineage=self.lineage,
            is_boot_changed=is_boot_changed,
            is_lineage_lost=is_lineage_lost,
            torn_bytes=sum(recovered.torn_bytes for _, recovered in found),
            damaged_bytes=sum(recovered.damaged_bytes for _, recovered in found),
            unverified_bytes=sum(recovered.unverified_bytes for _, recovered in found),
            rebuilt_indexes=sum(recovered.rebuilt_indexes for _, recovered in found),
            failed_epochs=failed,
        )

    def _log(self, known: Epoch, recovered: RecoveredEpoch, options: LogOptions, limits: Limits) -> StreamLog:
        assert recovered.end is not None
        log = StreamLog(known.epoch, self.source(known.epoch), recovered.end, options, limits)
        log.adopt(recovered.segments, recovered.join_points)
        return log

    def _segment_starts(self) -> dict[int, list[int]]:
        """Where each segment begins, by epoch; ascending.

        Raises:
            OSError: the directory can't be read.
        """
        starts: dict[int, list[int]] = {}
        for name in self._directory.names():
            parsed = parse_segment_name(name)
            if parsed is not None:
                starts.setdefault(parsed[0], []).append(parsed[1])
        for found in starts.values():
            found.sort()
        return starts

    def _adopt(self, unknown: list[int]) -> None:
        """Take epochs into the lineage that only their segments tell of; the highest counts as the newest."""
        if unknown:
            self._is_lineage_lost = True
            self._lineage = [Epoch(epoch) for epoch in unknown] + self._lineage

    def _remove_strays(self) -> None:
        """Index files without a segment, and files that were being written."""
        names = set(self._directory.names())
        for name in names:
            is_lone = name.endswith(".index") and f"{name.removesuffix('.index')}.log" not in names
            if is_lone or name.endswith(".tmp"):
                self._directory.unlink(name)

    def extents(self) -> list[Extent]:
        """Which bytes of which epochs are on disk, oldest first: what a catalogue tells.  None if it can't be read."""
        found: list[Extent] = []
        order = {known.epoch: at for at, known in enumerate(self._lineage)}
        starts: dict[int, list[int]] = {}
        with suppress(OSError):
            starts = self._segment_starts()
        for epoch in sorted(starts, key=lambda epoch: (order.get(epoch, -1), epoch)):
            for start in starts[epoch]:
                end = start + self._segment_size(epoch, start)
                last = found[-1] if found else None
                if last is not None and last.epoch == epoch and last.end == start:
                    found[-1] = Extent(epoch, last.start, end)
                elif end > start:
                    found.append(Extent(epoch, start, end))
        return found

    def _segment_size(self, epoch: int, start: int) -> int:
        with suppress(OSError):
            return self._directory.stat(segment_name(epoch, start)).st_size
        return 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the log on disk."""
        return sum(extent.end - extent.start for extent in self.extents())

    def close(self) -> None:
        """Let go of the directory; close the logs first."""
        self._directory.close()
        self._when_closed()

    # meta

    def _read_meta(self) -> None:
        try:
            data = self._directory.read(META, MAX_META_BYTES)
        except FileNotFoundError:
            self._is_lineage_lost = bool(self._segment_starts())
            return
        try:
            self._stored_boot_id, name, self._lineage = decode_meta(data)
            if name != self.name:
                raise StoreDamaged(f"the directory of {self.name} says that it is {name}'s")
        except StoreDamaged:
            self._is_lineage_lost, self._lineage = True, []

    def _note_lineage(self) -> None:
        """Write ``meta`` if it is not what it should be.

        Raises:
            OSError: it can't be written.
        """
        if self._is_meta_current:
            return
        kept = self._segment_starts()
        at = max(0, len(self._lineage) - MAX_LINEAGE)
        self._lineage = [known for known in self._lineage[:at] if known.epoch in kept] + self._lineage[at:]
        self._directory.write_atomically(META, encode_meta(self._boot_id, self.name, self._lineage))
        self._stored_boot_id = self._boot_id
        self._is_lineage_lost = False
        self._is_meta_current = True
