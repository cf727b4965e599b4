"""A directory held open, and files in it: no path is ever walked twice, no link followed.

Owns the flags.  What the files are is :mod:`relay.log.store`'s.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

_NO_LINKS = os.O_NOFOLLOW | os.O_CLOEXEC
FILE_MODE = 0o640
"""Read by the operator's group, not by the world: streams may be private."""
DIRECTORY_MODE = 0o750


class Directory:
    """An open directory.  After :meth:`close` every call raises ``OSError``, so that a reused descriptor is not hit."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def at(cls, path: str) -> Directory:
        """The directory at an operator's path, made if need be.

        Raises:
            OSError: it can't be made or opened.
        """
        os.makedirs(path, DIRECTORY_MODE, exist_ok=True)
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    @classmethod
    def nowhere(cls) -> Directory:
        """One that was never there: as if closed."""
        return cls(-1)

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            OSError: closed.
        """
        if self._fd < 0:
            raise OSError(errno.EBADF, "the store directory is not open")
        return self._fd

    def close(self) -> None:
        """Let go.  May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def subdirectory(self, name: str, *, is_made: bool = True) -> Directory:
        """A directory in this one.

        Raises:
            OSError: it is something else, or (unless ``is_made``) not there.
        """
        if is_made:
            with suppress(FileExistsError):
                os.mkdir(name, DIRECTORY_MODE, dir_fd=self.fd)
        return Directory(os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINKS, dir_fd=self.fd))

    def create(self, name: str) -> int:
        """A new file, open for reading and writing.

        Raises:
            OSError: it can't be made, or is there already.
        """
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS, FILE_MODE, dir_fd=self.fd)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """An existing file (or, with ``O_CREAT``, any).

        Raises:
            OSError: it can't be opened, or is a link.
        """
        return os.open(name, flags | _NO_LINKS, FILE_MODE, dir_fd=self.fd)

    def read(self, name: str, limit: int) -> bytes:
        """A small file's bytes; at most ``limit``.

        Raises:
            OSError: it can't be read.
        """
        fd = self.open(name)
        try:
            pieces: list[bytes] = []
            while limit > 0 and (piece := os.read(fd, min(limit, 1 << 20))):
                pieces.append(piece)
                limit -= len(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)

    def write_atomically(self, name: str, data: bytes) -> None:
        """Replace a small file so that a killed process leaves the old or the new one.

        Not synced to the disk: the live path waits for none, and after the machine was down its stores are verified.

        Raises:
            OSError: the old one is still there.
        """
        temporary = f"{name}.tmp"
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file; nothing if it is gone.

        Raises:
            OSError: it can't be removed.
        """
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def names(self) -> list[str]:
        """All names in it, sorted.

        Raises:
            OSError: it can't be read.
        """
        return sorted(os.listdir(self.fd))

    def stat(self, name: str) -> os.stat_result:
        """A file's status; a link's own.

        Raises:
            OSError: it is not there.
        """
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory.

        Raises:
            OSError: it is not empty, or can't be removed.
        """
        os.rmdir(name, dir_fd=self.fd)
