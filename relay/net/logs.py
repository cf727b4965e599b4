"""Where a node keeps its logs: in memory or in a store on disk.

Owns the choice behind one interface (:class:`relay.net.replication.LogMaker`) and the numbering of epochs.  Called by
the tiers.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import getrandbits

from twisted.logger import Logger

from relay.limits import Limits
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.position import Position
from relay.log.segment import MemorySource
from relay.log.store import Store
from relay.names import StreamName


def new_epoch(after: int = 0) -> int:
    """A number for a new life of a log: later ones are larger, and no two nodes choose the same.

    Wall-clock milliseconds and 10 random bits, which stays below 2**53 (exact in AMF0) until the year 2248.
    """
    return max((time.time_ns() // 1_000_000 << 10) | getrandbits(10), after + 1)


class MemoryLogs:
    """Logs in memfds: an aggregator's, and those of a node without ``--store``."""

    def __init__(self, options: LogOptions, limits: Limits) -> None:
        self._options = options
        self._limits = limits

    def names(self) -> list[StreamName]:
        """Nothing outlives the process."""
        return []

    def recover(self, name: StreamName) -> StreamLog | None:
        """Nothing outlives the process."""
        return None

    def new_life(self, name: StreamName, old: StreamLog, after_ms: int = 0) -> StreamLog:
        """A new epoch after ``old``, whose end can't be vouched for; its timeline goes on, after ``after_ms``."""
        log = self.make(name, new_epoch(old.epoch), LogStart(time_ms=max(old.end_time_ms, after_ms)), old)
        old.finish(log)
        return log

    def make(self, name: StreamName, epoch: int, start: LogStart, predecessor: StreamLog | None) -> StreamLog:
        """An empty log."""
        return StreamLog(epoch, MemorySource(), start, self._options, self._limits)

    def forget(self, name: StreamName) -> None:
        """Closing the log was all."""

    def expire(self, idle_seconds: float) -> int:
        """Nothing to remove."""
        return 0

    def close(self) -> None:
        """Nothing to unlock."""


class StoredLogs:
    """Logs in a store on disk.

    Args:
        store: of the node.
        is_writer: does this node write the logs (an origin)?  Then what its machine may have lost means a new epoch.
    """

    log = Logger()

    def __init__(self, store: Store, options: LogOptions, limits: Limits, is_writer: bool = False) -> None:
        self._store = store
        self._options = options
        self._limits = limits
        self._is_writer = is_writer

    def names(self) -> list[StreamName]:
        """The streams that are stored."""
        return [StreamName.parse(name) for name in self._store.names()]

    def recover(self, name: StreamName) -> StreamLog | None:
        """The stored log's newest epoch, or, at a writer whose machine went down, a new epoch after it."""
        recovery = self._store.stream(name).recover(self._options, self._limits)
        for what in ("torn_bytes", "damaged_bytes", "unverified_bytes", "rebuilt_indexes"):
            if getattr(recovery, what):
                self.log.warn("{name}: {what}: {count}", name=str(name), what=what, count=getattr(recovery, what))
        newest = recovery.logs[-1] if recovery.logs else None
        if newest is None or recovery.is_intact or not self._is_writer:
            return newest
        return self.new_life(name, newest)

    def new_life(self, name: StreamName, old: StreamLog, after_ms: int = 0) -> StreamLog:
        """A new epoch after ``old``, whose end can't be vouched for; its timeline goes on, after ``after_ms``."""
        epoch = new_epoch(old.epoch)
        self.log.warn(
            "{stream}: epoch {old} may have lost bytes; {new} begins",
            event="epoch",
            stream=str(name),
            old=old.epoch,
            new=epoch,
        )
        log = self.make(name, epoch, LogStart(time_ms=max(old.end_time_ms, after_ms)), old)
        old.finish(log)
        return log

    def make(self, name: StreamName, epoch: int, start: LogStart, predecessor: StreamLog | None) -> StreamLog:
        """An empty log, noted in the stream's lineage."""
        before = None if predecessor is None else Position(predecessor.epoch, predecessor.end)
        source = self._store.stream(name).source(epoch, before, start.time_ms)
        return StreamLog(epoch, source, start, self._options, self._limits)

    def forget(self, name: StreamName) -> None:
        """Remove what is stored."""
        self._store.stream(name).close()
        self._store.remove(name)

    def expire(self, idle_seconds: float) -> int:
        """Remove streams that nobody has open and that were not written for so long; how many."""
        return self._store.expire(time.time(), idle_seconds)

    def close(self) -> None:
        """Unlock the store; the logs must be closed."""
        self._store.close()


def boot_id() -> str:
    """Changes when the machine was down: what a page cache held is then gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
