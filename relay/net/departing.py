"""Viewers who leave an aggregator that drains, though it still serves them.

Owns who is asked, at which pace, and when again.  Does not own the move, which is that after a death
(:meth:`relay.net.viewer_connection.ViewerConnection.move_on`).  Called by :mod:`relay.net.balancing`.

Theory.  After a death everybody waits, and the only question is who is helped first.  Here nobody waits until it is his
turn: the aggregator serves on.  So no more than ``MOVING_AT_ONCE`` are on their way at a time, and the next one leaves
when one of them has its first byte from the other aggregator.  The pause of each is then that of a few dozen moves,
whether he is one of a hundred or of ten thousand, and the pace is what both machines can do.

Those who can't go now are asked again: when the pool tells something, and every half second, because a viewer who was
on his way here when the draining began, or whose position was not known, says nothing later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relay.net.backends import Backend, BackendPool, BackendState

ASK_AGAIN_SECONDS = 0.5  # one look at each viewer, while an aggregator drains
MOVING_AT_ONCE = 16  # a move costs both machines 1 to 2 ms together, so a pause of 30 ms when all 16 are moved
LOOK_SECONDS = 0.005  # between two looks at those who are on their way
MOVED_SECONDS = 0.25  # by then a viewer counts as moved: a stream may be silent, or his own link full


class Departing(Protocol):
    """A viewer."""

    @property
    def backend(self) -> Backend[Any] | None:
        """Who serves it now."""

    @property
    def is_moving(self) -> bool:
        """Has it left a backend, and no byte from the next one yet?"""

    def move_on(self, backend: Backend[Any]) -> bool:
        """Go elsewhere if this is your backend, and it is known where to go on; if it is not, false."""


class Departures:
    """Those who are to leave backends that drain.  A backend that begins to drain is a change of the pool's.

    Args:
        clock, pool: of the balancer.
        viewers_of: who is at a backend now.
        pin: the backend they all want, if any.
    """

    def __init__(
        self,
        clock: IReactorTime,
        pool: BackendPool[Any],
        viewers_of: Callable[[Backend[Any]], Iterable[Departing]],
        pin: str | None = None,
    ) -> None:
        self.moved = 0
        self._clock = clock
        self._pool = pool
        self._viewers_of = viewers_of
        self._pin = pin
        self._waiting: deque[tuple[Departing, Backend[Any]]] = deque()
        self._moving: list[tuple[Departing, float]] = []
        self._again: IDelayedCall | None = None
        self._is_closed = False
        pool.add_observer(self.ask)

    def ask(self) -> None:
        """Ask everybody who is still at a backend that drains."""
        if self._waiting:
            return  # all of them are being asked
        for backend in self._pool.backends.values():
            if backend.state is BackendState.DRAINING:
                self._waiting.extend((viewer, backend) for viewer in self._viewers_of(backend))
        self._go_on()

    def close(self) -> None:
        """Nobody is asked any more."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.remove_observer(self.ask)
            self._call_again(None)

    def _look(self) -> None:
        self._again = None
        if self._waiting:
            self._go_on()
        else:
            self.ask()

    def _go_on(self) -> None:
        """Let as many leave as have arrived elsewhere."""
        now = self._clock.seconds()
        self._moving = [(viewer, until) for viewer, until in self._moving if viewer.is_moving and now < until]
        while self._waiting and len(self._moving) < MOVING_AT_ONCE:
            self._move(*self._waiting.popleft())
        is_draining = any(each.state is BackendState.DRAINING for each in self._pool.backends.values())
        if self._waiting:
            self._call_again(LOOK_SECONDS)
        else:
            self._call_again(ASK_AGAIN_SECONDS if is_draining else None)

    def _move(self, viewer: Departing, backend: Backend[Any]) -> None:
        """It is this viewer's turn, if things are still as they were."""
        is_wanted = backend.state is BackendState.DRAINING and self._pool.has_usable(self._pin)
        if is_wanted and viewer.backend is backend:
            viewer.move_on(backend)
            if viewer.backend is not backend:
                self.moved += 1
                self._moving.append((viewer, self._clock.seconds() + MOVED_SECONDS))

    def _call_again(self, seconds: float | None) -> None:
        if self._again is not None and self._again.active():
            self._again.cancel()
        self._again = None if seconds is None else self._clock.callLater(seconds, self._look)
