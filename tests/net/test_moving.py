"""Thousands of sessions of a dead aggregator move in order, and not in one burst."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.net.moving import MOVE_SECONDS, MOVES_AT_ONCE, MoveQueue


class MoveQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = MoveQueue(self.clock)
        self.moved: list[tuple[int, float]] = []

    def add(self, count: int) -> None:
        for index in range(len(self.moved), len(self.moved) + count):
            self.queue.add(lambda index=index: self.moved.append((index, self.clock.seconds())))

    def test_the_furthest_behind_moves_first(self) -> None:
        for position in (30, 10, 20, 10):
            self.queue.add(lambda position=position: self.moved.append((position, len(self.moved))), position)
        self.clock.advance(0)
        self.assertEqual([(10, 0), (10, 1), (20, 2), (30, 3)], self.moved)

    def test_first_of_them_move_at_once_and_in_order(self) -> None:
        self.add(MOVES_AT_ONCE)
        self.clock.advance(0)
        self.assertEqual([(index, 0.0) for index in range(MOVES_AT_ONCE)], self.moved)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_five_thousand_move_within_half_a_second_and_never_many_at_a_time(self) -> None:
        self.add(5_000)
        self.clock.advance(0)
        while len(self.queue):
            before = len(self.moved)
            self.clock.advance(MOVE_SECONDS)
            self.assertLessEqual(len(self.moved) - before, MOVES_AT_ONCE)
        self.assertEqual(list(range(5_000)), [index for index, _ in self.moved])
        self.assertLessEqual(self.moved[-1][1], 0.5)

    def test_move_that_adds_another(self) -> None:
        """One whose second aggregator dies, too, is queued again."""
        self.queue.add(lambda: self.add(1))
        self.clock.advance(0)
        self.clock.advance(MOVE_SECONDS)
        self.assertEqual(1, len(self.moved))

    def test_close_forgets_all(self) -> None:
        self.add(500)
        self.clock.advance(0)
        self.queue.close()
        self.clock.advance(1)
        self.assertEqual((MOVES_AT_ONCE, 0, []), (len(self.moved), len(self.queue), self.clock.getDelayedCalls()))

    def test_close_from_within_a_move(self) -> None:
        self.queue.add(self.queue.close)
        self.add(5)
        self.clock.advance(0)
        self.assertEqual(([], []), (self.moved, self.clock.getDelayedCalls()))
