"""A node's store: which streams are on disk, and that nobody else writes them.

Owns the layout, the lock, and the removal of old streams.  What is in a stream's directory is
:mod:`relay.log.stored`'s.  Called by the origin and the distributors.

::

    DIRECTORY/lock                                    held as long as a node runs; says which process
    DIRECTORY/<hash of the name>/meta                 the name, the boot id and the lineage
    DIRECTORY/<hash of the name>/<epoch>-<offset>.log, .index

A stream's name is never a path: its directory is called after a hash, and the name is in ``meta``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import suppress

from relay.errors import ConfigError, StoreDamaged
from relay.log.directory import Directory
from relay.log.lineage import MAX_META_BYTES, META, decode_meta
from relay.log.stored import StreamStore


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
            fd = self._open_lock()
        except OSError as error:
            raise ConfigError(f"store {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise ConfigError(f"store {self.path}: in use by another node (process {owner or 'unknown'})") from error
        except OSError as error:
            os.close(fd)
            raise ConfigError(f"store {self.path}: {error.strerror}") from error
        with suppress(OSError):
            # On a full disk nobody learns our process id; the lock holds all the same.
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return fd

    def _open_lock(self) -> int:
        try:
            return self._directory.open("lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # The disk became read-only: what is there is still ours to lock, and streams go on in memory.
            return self._directory.open("lock")

    def stream(self, name: object) -> StreamStore:
        """A stream's store, made if need be; the same one until it is closed.

        Where the disk refuses a directory, nothing of the stream is stored: its logs go on in memory.
        """
        text = str(name)
        known = self._streams.get(text)
        if known is None:
            try:
                directory = self._directory.subdirectory(directory_name(text))
            except OSError:
                directory = Directory.nowhere()
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
