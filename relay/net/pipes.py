"""Kernel pipes for :mod:`relay.net.splice`: kept open, lent, taken back clean.

Owns the descriptors of every pipe of a balancer.  A pipe is lent while bytes are in it, so a process whose viewers all
keep up uses one; each stuck viewer keeps one.  Idle ones are bounded, so that a burst of stuck viewers does not hold
descriptors for ever.  A pipe that still has bytes in it is closed, so no viewer can ever be sent another's.
"""

from __future__ import annotations

import os

Pipe = tuple[int, int]  # read end, write end

KEPT_PIPES = 64  # idle ones; a wake-up needs one, the rest spares system calls when some viewers are slow


class PipePool:
    """Lends pipes, last returned first lent: its pages are the warm ones."""

    def __init__(self, kept: int = KEPT_PIPES) -> None:
        self._kept = kept
        self._idle: list[Pipe] = []
        self.lent = 0

    @property
    def open_pipes(self) -> int:
        """All pipes that exist, two descriptors each."""
        return self.lent + len(self._idle)

    def take(self) -> Pipe:
        """An empty pipe.

        Raises:
            OSError: no idle one, and the system gives no more descriptors.
        """
        pipe = self._idle.pop() if self._idle else os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.lent += 1
        return pipe

    def adopt(self, pipe: Pipe) -> None:
        """One that another process has lent, with what is in it, is ours now."""
        self.lent += 1

    def give(self, pipe: Pipe) -> None:
        """Back, empty."""
        self.lent -= 1
        if len(self._idle) < self._kept:
            self._idle.append(pipe)
        else:
            _close(pipe)

    def drop(self, pipe: Pipe) -> None:
        """Back, not empty."""
        self.lent -= 1
        _close(pipe)

    def close(self) -> None:
        """Close the idle ones.  Those that are lent are closed as they come back."""
        self._kept = 0
        while self._idle:
            _close(self._idle.pop())


def _close(pipe: Pipe) -> None:
    os.close(pipe[0])
    os.close(pipe[1])
