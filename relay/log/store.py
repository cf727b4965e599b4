"""A node's store: which streams are on disk, in which epochs, and that nobody else writes them.

Owns the layout, the lock, the lineage of epochs and the removal of old streams.  A segment's files are
:mod:`relay.log.files`'s, what a crash left :mod:`relay.log.recovery`'s.  Called by the origin and the distributors.

::

    DIRECTORY/lock                                    held as long as a node runs; says which process
    DIRECTORY/<hash of the name>/meta                 the name, the boot id and the lineage
    DIRECTORY/<hash of the name>/<epoch>-<offset>.log, .index

A stream's name is never a path: its directory is called after a hash, and the name is in ``meta``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import attrs

from relay.errors import ConfigError, PositionUnavailable, StoreDamaged
from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.directory import Directory
from relay.log.files import FileSource, parse_segment_name, segment_name
from relay.log.index import decode_line, encode_line
from relay.log.log import StreamLog
from relay.log.options import DEFAULT_OPTIONS, LogOptions
from relay.log.points import LogStart
from relay.log.position import Position
from relay.log.recovery import RecoveredEpoch, recover_epoch

META = "meta"
MAX_META_BYTES = 64 << 10
"""Bytes; ours has a few dozen for each epoch."""

MAX_LINEAGE = 16
"""Epochs remembered without any bytes.  A viewer's buffer spans one change of epoch, hardly two."""


@attrs.frozen
class Epoch:
    """One life of a log: which one it is, and where the one before ended."""

    epoch: int
    predecessor: Position | None = None
    time_ms: int = 0
    """Media time of its first byte."""


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

    @property
    def is_intact(self) -> bool:
        """Is every byte that a reader may have been given still here?  If not, an origin must begin a new epoch."""
        return not (self.is_boot_changed or self.is_lineage_lost or self.damaged_bytes)


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
        self._read_meta()

    @property
    def lineage(self) -> list[Epoch]:
        """The epochs that are known, oldest first."""
        return list(self._lineage)

    def source(self, epoch: int, predecessor: Position | None = None, time_ms: int = 0) -> FileSource:
        """Where a log of ``epoch`` gets its segments; a new epoch is noted in the lineage first.

        Raises:
            OSError: it can't be noted.
        """
        if all(known.epoch != epoch for known in self._lineage):
            self._lineage.append(Epoch(epoch, predecessor, time_ms))
            self._write_meta()
        return FileSource(self._directory, epoch)

    def recover(self, options: LogOptions = DEFAULT_OPTIONS, limits: Limits = DEFAULT_LIMITS) -> Recovery:
        """Read what is here and make logs of it.  To be called before anything is written.

        Raises:
            OSError: the directory can't be read or written.
        """
        is_boot_changed = self._stored_boot_id is not None and self._stored_boot_id != self._boot_id
        starts = self._segment_starts()
        self._adopt(sorted(set(starts) - {known.epoch for known in self._lineage}))
        is_lineage_lost = self._is_lineage_lost
        found: list[tuple[Epoch, RecoveredEpoch]] = []
        for known in self._lineage:
            if known.epoch in starts:
                origin = LogStart(time_ms=known.time_ms)
                verified = is_boot_changed or is_lineage_lost
                found.append(
                    (known, recover_epoch(self._directory, known.epoch, starts[known.epoch], origin, verified))
                )
        self._remove_strays()
        self._write_meta()
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
        )

    def _log(self, known: Epoch, recovered: RecoveredEpoch, options: LogOptions, limits: Limits) -> StreamLog:
        assert recovered.end is not None
        log = StreamLog(known.epoch, FileSource(self._directory, known.epoch), recovered.end, options, limits)
        log.adopt(recovered.segments, recovered.join_points)
        return log

    def _segment_starts(self) -> dict[int, list[int]]:
        """Where each segment begins, by epoch; ascending."""
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
        """Which bytes of which epochs are on disk, oldest first: what a catalogue tells.

        Raises:
            OSError: the directory can't be read.
        """
        found: list[Extent] = []
        order = {known.epoch: at for at, known in enumerate(self._lineage)}
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
        with suppress(FileNotFoundError):
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

    def _write_meta(self) -> None:
        kept = self._segment_starts()
        at = max(0, len(self._lineage) - MAX_LINEAGE)
        self._lineage = [known for known in self._lineage[:at] if known.epoch in kept] + self._lineage[at:]
        self._directory.write_atomically(META, encode_meta(self._boot_id, self.name, self._lineage))
        self._stored_boot_id = self._boot_id
        self._is_lineage_lost = False


def encode_meta(boot_id: str, name: str, lineage: list[Epoch]) -> bytes:
    """The one line of ``meta``."""
    epochs = [
        {"epoch": known.epoch, "predecessor": str(known.predecessor or ""), "time_ms": known.time_ms}
        for known in lineage
    ]
    return encode_line({"version": 1, "name": name, "boot_id": boot_id, "epochs": epochs})


def decode_meta(data: bytes) -> tuple[str, str, list[Epoch]]:
    """``(boot_id, name, lineage)``.

    Raises:
        StoreDamaged: it is not what :func:`encode_meta` makes.
    """
    values = decode_line(data)
    if values is None or values.get("version") != 1:
        raise StoreDamaged("meta is damaged, or of another version")
    try:
        lineage = [
            Epoch(
                int(known["epoch"]),
                Position.parse(known["predecessor"]) if known["predecessor"] else None,
                int(known["time_ms"]),
            )
            for known in values["epochs"]
        ]
        return str(values["boot_id"]), str(values["name"]), lineage
    except (KeyError, TypeError, ValueError, PositionUnavailable) as error:
        raise StoreDamaged(f"meta lacks something: {error!r}") from error


class Store:
    """A node's directory, locked against every other node."""

    def __init__(self, directory: str, boot_id: str) -> None:
        """Open and lock it.

        Args:
            directory: made if need be.
            boot_id: changes when the machine was down (``/proc/sys/kernel/random/boot_id``).

        Raises:
            ConfigError: it can't be used, or another node uses it.
        """
        self.path = directory
        self._boot_id = boot_id
        self._streams: dict[str, StreamStore] = {}
        try:
            self._directory = Directory.at(directory)
        except OSError as error:
            raise ConfigError(f"store {directory}: {error.strerror}") from error
        try:
            self._lock_fd = self._lock()
        except ConfigError:
            self._directory.close()
            raise

    def _lock(self) -> int:
        try:
            fd = self._directory.open("lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ConfigError(f"store {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise ConfigError(f"store {self.path}: in use by another node (process {owner or 'unknown'})") from error
        except OSError as error:
            os.close(fd)
            raise ConfigError(f"store {self.path}: {error.strerror}") from error
        return fd

    def stream(self, name: object) -> StreamStore:
        """A stream's store, made if need be; the same one until it is closed.

        Raises:
            OSError: its directory can't be made or opened.
        """
        text = str(name)
        known = self._streams.get(text)
        if known is None:
            directory = self._directory.subdirectory(directory_name(text))
            known = StreamStore(directory, text, self._boot_id, lambda: self._forget(text))
            self._streams[text] = known
        return known

    def _forget(self, name: str) -> None:
        self._streams.pop(name, None)

    def names(self) -> list[str]:
        """The streams on disk, sorted.

        Raises:
            OSError: the store can't be read.
        """
        found = {self._name_in(name) for name in self._stream_directories()}
        return sorted({name for name in found if name is not None} | set(self._streams))

    def _stream_directories(self) -> list[str]:
        return [name for name in self._directory.names() if len(name) == _HASH_DIGITS]

    def _name_in(self, directory_name: str) -> str | None:
        try:
            directory = self._directory.subdirectory(directory_name, is_made=False)
        except OSError:
            return None
        try:
            return decode_meta(directory.read(META, MAX_META_BYTES))[1]
        except (OSError, StoreDamaged):
            return None
        finally:
            directory.close()

    def remove(self, name: object) -> None:
        """Remove all of a stream.  It must not be open.

        Raises:
            OSError: something can't be removed.
        """
        if str(name) in self._streams:
            raise OSError(f"stream {name} is open")
        self._remove_directory(directory_name(str(name)))

    def _remove_directory(self, name: str) -> None:
        try:
            directory = self._directory.subdirectory(name, is_made=False)
        except FileNotFoundError:
            return
        try:
            for file in directory.names():
                directory.unlink(file)
        finally:
            directory.close()
        self._directory.remove_directory(name)

    def expire(self, now_wall: float, idle_seconds: float) -> int:
        """Remove the streams that are not open and were not written for so long; how many.

        Args:
            now_wall: seconds since 1970, as files' times are.
            idle_seconds: how long a stream is kept after its last byte.

        Raises:
            OSError: something can't be read or removed.
        """
        opened = {directory_name(name) for name in self._streams}
        removed = 0
        for name in self._stream_directories():
            if name not in opened and now_wall - self._last_written(name) > idle_seconds:
                self._remove_directory(name)
                removed += 1
        return removed

    def _last_written(self, name: str) -> float:
        directory = self._directory.subdirectory(name, is_made=False)
        try:
            return max((directory.stat(file).st_mtime for file in [".", *directory.names()]), default=0.0)
        finally:
            directory.close()

    def close(self) -> None:
        """Unlock; close the streams' logs first."""
        for stream in list(self._streams.values()):
            stream.close()
        self._directory.close()
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


_HASH_DIGITS = 32


def directory_name(name: str) -> str:
    """What a stream's directory is called: the first 128 bits of SHA-256 of its name, in hex."""
    return hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS]
