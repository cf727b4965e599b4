"""Viewers who leave an aggregator that drains, though it still serves them.

Owns who is asked, at which pace, and when again.  Does not own the move, which is that after a death
(:meth:`relay.net.viewer_connection.ViewerConnection.move_on`).  Called by :mod:`relay.net.balancing`.

Each viewer keeps his aggregator until it is his turn, so thousands of departures cost each of them no more than one
does.  Those who can't go now are asked again: when another aggregator may have become usable, and every half second,
because a viewer who was on his way here when the draining began, or whose position was not known, says nothing later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relay.net.backends import Backend, BackendPool, BackendState
from relay.net.moving import MoveQueue

ASK_AGAIN_SECONDS = 0.5  # one look at each viewer, while an aggregator drains


class Departing(Protocol):
    """A viewer."""

    @property
    def backend(self) -> Backend[Any] | None:
        """Who serves it now."""

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
        self._queue = MoveQueue(clock)
        self._again: IDelayedCall | None = None
        self._is_closed = False
        pool.add_observer(self.ask)

    def ask(self) -> None:
        """Ask everybody who is still at a backend that drains."""
        self._stop_asking()
        draining = [each for each in self._pool.backends.values() if each.state is BackendState.DRAINING]
        if not draining:
            return
        self._again = self._clock.callLater(ASK_AGAIN_SECONDS, self.ask)
        if len(self._queue) or not self._pool.has_usable(self._pin):
            return
        for backend in draining:
            for viewer in self._viewers_of(backend):
                self._queue.add(partial(self._move, viewer, backend))

    def close(self) -> None:
        """Nobody is asked any more."""
        if not self._is_closed:
            self._is_closed = True
            self._stop_asking()
            self._queue.close()
            self._pool.remove_observer(self.ask)

    def _move(self, viewer: Departing, backend: Backend[Any]) -> None:
        """It is this viewer's turn, if things are still as they were."""
        is_wanted = backend.state is BackendState.DRAINING and self._pool.has_usable(self._pin)
        if is_wanted and viewer.backend is backend:
            viewer.move_on(backend)
            self.moved += viewer.backend is not backend

    def _stop_asking(self) -> None:
        if self._again is not None and self._again.active():
            self._again.cancel()
        self._again = None
