"""Kernel pipes for :mod:`relay.net.splice`: kept open, lent, taken back clean.

Owns the descriptors of every pipe of a balancer.  A wake-up uses the one that is at hand, and leaves it there if it is
empty again, which it nearly always is; one with bytes in it is lent.  So a process whose viewers all keep up uses one
pipe; each stuck viewer keeps one.  Idle ones are bounded, so that a burst of stuck viewers does not hold
descriptors for ever.  A pipe that still has bytes in it is closed, so no viewer can ever be sent another's.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

Pipe = tuple[int, int]  # read end, write end

PIPE_BYTES = 256 << 10  # for bulk; an idle pipe of any size costs the kernel a few kB, one with bytes in it the bytes
KEPT_PIPES = 64  # idle ones; a wake-up needs one, the rest spares system calls when some viewers are slow


class PipePool:
    """Lends pipes, last returned first lent: its pages are the warm ones.

    ``idle``: empty ones; the last is at hand.
    """

    def __init__(self, kept: int = KEPT_PIPES) -> None:
        self._kept = kept
        self.idle: list[Pipe] = []
        self.lent = 0

    @property
    def open_pipes(self) -> int:
        """All pipes that exist, two descriptors each."""
        return self.lent + len(self.idle)

    def take(self) -> Pipe:
        """An empty pipe.

        Raises:
            OSError: no idle one, and the system gives no more descriptors.
        """
        pipe = self.at_hand()
        self.idle.pop()
        self.lent += 1
        return pipe

    def at_hand(self) -> Pipe:
        """The empty pipe that :meth:`take` would give; whoever leaves bytes in it takes it.

        Raises:
            OSError: as with :meth:`take`.
        """
        if not self.idle:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            with suppress(OSError):  # past pipe-user-pages-soft it stays as it is
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self.idle.append(pipe)
        return self.idle[-1]

    def adopt(self, pipe: Pipe) -> None:
        """One that another process has lent, with what is in it, is ours now."""
        self.lent += 1

    def give(self, pipe: Pipe) -> None:
        """Back, empty."""
        self.lent -= 1
        if len(self.idle) < self._kept:
            self.idle.append(pipe)
        else:
            _close(pipe)

    def drop(self, pipe: Pipe) -> None:
        """Back, not empty."""
        self.lent -= 1
        _close(pipe)

    def close(self) -> None:
        """Close the idle ones.  Those that are lent are closed as they come back."""
        self._kept = 0
        while self.idle:
            _close(self.idle.pop())


def _close(pipe: Pipe) -> None:
    os.close(pipe[0])
    os.close(pipe[1])
