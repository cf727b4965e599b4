"""Viewers leave an aggregator that drains: all of them, a few at a time, and only if somebody else takes them."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.net.backends import Backend, BackendPool, BackendState
from relay.net.departing import ASK_AGAIN_SECONDS, MOVED_SECONDS, MOVING_AT_ONCE, Departures

UP, DOWN, DRAINING = BackendState.UP, BackendState.DOWN, BackendState.DRAINING


class Viewer:
    """Moves when it is asked, if it can now."""

    def __init__(self, backend: Backend[None], *, can_move: bool = True) -> None:
        self.backend: Backend[None] | None = backend
        self.has_arrived = True  # as soon as it moves
        self.can_move = can_move
        self.asked = 0
        backend.viewers += 1

    @property
    def is_moving(self) -> bool:
        return self.backend is None and not self.has_arrived

    def move_on(self, backend: Backend[None]) -> bool:
        self.asked += 1
        if self.backend is backend and self.can_move:
            self.backend = None
            backend.viewers -= 1
        return self.can_move


class DepartureTests(SynchronousTestCase):
    """Two backends; the viewers are at "one"."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pool = BackendPool([Backend("one", None), Backend("two", None)], self.clock.seconds)
        self.one, self.two = self.pool.backends.values()
        self.viewers: list[Viewer] = []
        self.departures = self.make()

    def make(self, pin: str | None = None) -> Departures:
        return Departures(
            self.clock, self.pool, lambda backend: [each for each in self.viewers if each.backend is backend], pin
        )

    def tearDown(self) -> None:
        self.departures.close()
        self.departures.close()
        self.assertEqual([], self.clock.getDelayedCalls())

    def come(self, count: int, *, can_move: bool = True) -> list[Viewer]:
        came = [Viewer(self.one, can_move=can_move) for _ in range(count)]
        self.viewers += came
        return came

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    def test_everybody_leaves(self) -> None:
        self.come(100)
        self.pool.set_state("one", DRAINING, "it is stopped")
        self.pass_time(1)
        self.assertEqual((0, 100), (self.one.viewers, self.departures.moved))

    def test_crowd_leaves_a_few_at_a_time(self) -> None:
        """The next one leaves when one has arrived; the others are served until it is their turn."""
        viewers = self.come(100)
        for viewer in viewers:
            viewer.has_arrived = False
        self.pool.set_state("one", DRAINING)
        self.pass_time(MOVED_SECONDS / 2)
        self.assertEqual(MOVING_AT_ONCE, self.departures.moved)
        for viewer in viewers[:3]:
            viewer.has_arrived = True
        self.pass_time(MOVED_SECONDS / 4)
        self.assertEqual(MOVING_AT_ONCE + 3, self.departures.moved)

    def test_silent_stream_holds_up_nobody(self) -> None:
        """Its viewers are given up waiting for after a while."""
        for viewer in self.come(3 * MOVING_AT_ONCE):
            viewer.has_arrived = False
        self.pool.set_state("one", DRAINING)
        self.pass_time(3 * MOVED_SECONDS)
        self.assertEqual(0, self.one.viewers)

    def test_nobody_leaves_a_backend_that_does_not_drain(self) -> None:
        (viewer,) = self.come(1)
        self.pool.set_state("one", BackendState.DEGRADED)
        self.pool.set_state("one", DOWN)
        self.pass_time(1)
        self.assertEqual(0, viewer.asked)

    def test_viewers_stay_while_nobody_else_takes_them(self) -> None:
        """They leave when somebody does."""
        (viewer,) = self.come(1)
        self.pool.set_state("two", DOWN)
        self.pool.set_state("one", DRAINING)
        self.pass_time(5)
        self.assertEqual(0, viewer.asked)
        self.pool.set_state("two", UP)
        self.clock.advance(0)
        self.assertIsNone(viewer.backend)

    def test_viewer_who_can_t_go_now_is_asked_again(self) -> None:
        """It was between two runs of its stream, say."""
        (viewer,) = self.come(1, can_move=False)
        self.pool.set_state("one", DRAINING)
        self.pass_time(3 * ASK_AGAIN_SECONDS)
        self.assertTrue(2 <= viewer.asked <= 4, viewer.asked)
        viewer.can_move = True
        self.pass_time(ASK_AGAIN_SECONDS + 0.02)
        self.assertIsNone(viewer.backend)

    def test_viewer_who_was_on_his_way_here_leaves_too(self) -> None:
        """His dial began before, and ends after."""
        self.pool.set_state("one", DRAINING)
        self.pass_time(0.1)
        self.come(1)
        self.pass_time(ASK_AGAIN_SECONDS + 0.02)
        self.assertEqual(0, self.one.viewers)

    def test_draining_that_is_called_off_moves_nobody_more(self) -> None:
        for viewer in self.come(100):
            viewer.has_arrived = False
        self.pool.set_state("one", DRAINING)
        self.clock.advance(0)
        moved = self.departures.moved
        self.pool.set_state("one", UP)
        self.pass_time(3)
        self.assertEqual(moved, self.departures.moved)

    def test_viewers_who_are_pinned_to_it_stay(self) -> None:
        self.departures.close()
        self.departures = self.make("one")
        (viewer,) = self.come(1)
        self.pool.set_state("one", DRAINING)
        self.pass_time(2)
        self.assertEqual(0, viewer.asked)
