"""The pace at which sessions move when an aggregator dies: thousands at once must not arrive in one burst.

Owns the queue.  Called by :mod:`relay.net.viewer_connection`.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from twisted.internet.interfaces import IDelayedCall, IReactorTime

MOVES_AT_ONCE = 100  # dials between two looks at the sockets: 20 ms, for which those who do not move wait
MOVE_SECONDS = 0.0025  # a turn of the reactor: those who stay are served, connections that are made are joined


class MoveQueue:
    """Calls ``begin`` functions, a few at a time, the furthest behind first."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, begin: Callable[[], None], position: int = 0) -> None:
        """Call ``begin`` when its turn comes: before those at a higher position, and after its equals."""
        heappush(self._waiting, (position, next(self._numbers), begin))
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
                heappop(self._waiting)[2]()
        if self._waiting and self._call is None:
            self._call = self._clock.callLater(MOVE_SECONDS, self._run)
