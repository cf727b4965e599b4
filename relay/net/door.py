"""The UNIX socket where a successor knocks, and connections that come from elsewhere than a port of ours.

Owns the path.  Who is let in is decided by :mod:`relay.net.giving`.  Called by :mod:`relay.net.succession`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocol, IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.errors import ConfigError


class OneProtocol(Factory):
    """For a socket that is connected already."""

    noisy = False

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> Any:
        return self._protocol


@implementer(IReadDescriptor)
class Door:
    """The UNIX socket at ``path``, for ourselves and root only.

    It is made beside its path and then renamed, as HAProxy does it: so there is always somebody at the path, and what a
    dead process has left is no obstacle.
    """

    def __init__(self, reactor: Any, path: str, make_protocol: Callable[[], IProtocol]) -> None:
        self._reactor = reactor
        self._path = path
        self._make_protocol = make_protocol
        self._socket: socket.socket | None = None
        self._inode: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Make the socket.

        Raises:
            ConfigError: it can't be made.
        """
        beside = f"{self._path}.{os.getpid()}"
        made = socket.socket(socket.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            made.bind(beside)
            os.chmod(beside, 0o600)  # nobody can connect before listen
            made.listen()
            made.setblocking(False)
            found = os.stat(beside)
        except OSError as error:
            made.close()
            raise ConfigError(f"--handover {self._path}: {error.strerror or error}") from None
        self._socket, self._inode = made, (found.st_dev, found.st_ino)

    def open(self) -> None:
        """Show it at its path.

        Raises:
            OSError: it can't be shown there.
        """
        os.rename(f"{self._path}.{os.getpid()}", self._path)
        self._reactor.addReader(self)

    def close(self) -> None:
        """Nobody may come any more.  What is at the path is removed if it is ours."""
        made, self._socket = self._socket, None
        if made is None:
            return
        self._reactor.removeReader(self)
        made.close()
        for path in (self._path, f"{self._path}.{os.getpid()}"):
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(path)

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "handover"

    def doRead(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            connection, _ = self._socket.accept()
            with connection:
                connection.setblocking(False)
                self._reactor.adoptStreamConnection(
                    connection.fileno(), socket.AF_UNIX, OneProtocol(self._make_protocol())
                )

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
