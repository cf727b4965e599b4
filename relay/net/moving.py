"""The pace at which sessions move when an aggregator dies: thousands at once must not arrive in one burst.

Owns the queue.  Called by :mod:`relay.net.balancing`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

MOVES_AT_ONCE = 100  # a hundred dials every 10 ms are no burst (tried with 1,000 sessions of one dead aggregator)
MOVE_SECONDS = 0.01


class MoveQueue:
    """Calls ``begin`` functions in order, a hundred at a time; the first hundred at once."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, begin: Callable[[], None]) -> None:
        """Call ``begin`` when its turn comes."""
        self._waiting.append(begin)
        if self._call is None:
            self._call = self._clock.callLater(0, self._run)

    def close(self) -> None:
        """Forget all."""
        self._waiting.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _run(self) -> None:
        self._call = None
        for _ in range(min(MOVES_AT_ONCE, len(self._waiting))):
            if self._waiting:
                self._waiting.popleft()()
        if self._waiting and self._call is None:
            self._call = self._clock.callLater(MOVE_SECONDS, self._run)
