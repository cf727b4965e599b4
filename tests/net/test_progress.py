"""A member that lives and brings nothing is left; nobody is left for another's fault; nobody swings to and fro."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.net.progress import MAX_RETURN_SECONDS, BehindWatch, Place, ReturnWait

BOUND = 1.5
REPORT = 0.25


def moves(ours, best, seconds: float, watch: BehindWatch | None = None) -> list[float]:
    """Seconds at which the member is left; ``ours`` and ``best`` are positions in ms of media, by the time."""
    watch = watch or BehindWatch(BOUND)
    left = []
    for step in range(1, round(seconds / REPORT) + 1):
        now = step * REPORT
        places = [Place(int(place(now)), int(place(now))) for place in (ours, best)]
        if watch.why_behind(now, *places):
            left.append(now)
            watch.moved(now)
    return left


def live(now: float) -> float:
    return 1000 * now


class BehindTests(SynchronousTestCase):
    def test_member_from_which_nothing_comes_is_left_after_the_bound(self) -> None:
        (first, *_) = moves(lambda now: min(live(now), 4000), live, 8)
        self.assertLessEqual(4 + BOUND, first)
        self.assertLessEqual(first, 4 + BOUND + 2 * REPORT)

    def test_member_that_brings_too_little_is_left(self) -> None:
        """Half of what the stream has: 3 s after it began, it is 1.5 s behind."""
        (first, *_) = moves(lambda now: live(now) / 2, live, 8)
        self.assertLessEqual(first, 3 + BOUND + 2 * REPORT)

    def test_member_that_stays_far_behind_is_left(self) -> None:
        self.assertTrue(moves(lambda now: live(now) - 3000, live, 4))

    def test_member_that_is_a_little_behind_is_not(self) -> None:
        self.assertEqual([], moves(lambda now: live(now) - 1200, live, 60))

    def test_copy_that_catches_up_is_let_alone(self) -> None:
        self.assertEqual([], moves(lambda now: min(live(now), 2 * live(now) - 60_000), live, 90))

    def test_member_is_not_left_when_everything_stalls(self) -> None:
        stalled = 7000
        self.assertEqual([], moves(lambda now: min(live(now), stalled), lambda now: min(live(now), stalled), 60))

    def test_member_is_not_left_for_another_that_is_behind_it(self) -> None:
        self.assertEqual([], moves(lambda now: min(live(now), 4000), lambda now: 3000, 60))

    def test_jump_of_the_timeline_is_no_fault(self) -> None:
        """A publisher came back after an hour; the other member has it one report earlier."""

        def jump(at: float):
            return lambda now: live(now) + 3_600_000 * (now >= at)

        self.assertEqual([], moves(jump(10.25), jump(10.0), 30))

    def test_media_without_time_is_judged_by_its_bytes(self) -> None:
        watch = BehindWatch(BOUND)
        words = [watch.why_behind(step * REPORT, Place(100, 0), Place(200, 0)) for step in range(8)]
        self.assertEqual(("", "nothing has come for 1.5 s"), (words[0], words[6]))

    def test_copy_that_no_member_brings_moves_less_and_less_often(self) -> None:
        left = moves(lambda now: 0, live, 60)
        waits = [second - first for first, second in itertools.pairwise(left)]
        self.assertEqual(sorted(waits), waits)
        self.assertLessEqual(len(left), 6)

    def test_move_after_a_calm_time_takes_no_longer(self) -> None:
        watch = BehindWatch(BOUND)
        watch.moved(0.0)
        watch.moved(1.0)
        watch.why_behind(100.0, Place(0, 0), Place(1, 0))
        self.assertTrue(watch.why_behind(100.0 + BOUND, Place(0, 0), Place(1, 0)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.05, 3), st.integers(0, 5000), st.integers(-20_000, 20_000)), max_size=40))
def test_nobody_is_left_while_nobody_is_ahead(steps) -> None:
    watch, now, end = BehindWatch(BOUND), 0.0, 0
    for seconds, grown, time_ms in steps:
        now, end = now + seconds, end + grown
        assert not watch.why_behind(now, Place(end, time_ms), Place(end, 0))
        assert not watch.why_behind(now, Place(end, time_ms), None)


class ReturnTests(SynchronousTestCase):
    def first_due(self, wait: ReturnWait, since: float) -> float:
        now = since
        while not wait.is_due(now, is_well=True):
            now += 1
        return now

    def test_it_must_be_well_for_the_whole_time(self) -> None:
        wait = ReturnWait(5.0)
        wait.failed(0.0)
        self.assertEqual([False] * 5, [wait.is_due(now, is_well=True) for now in range(5)])
        self.assertFalse(wait.is_due(5, is_well=False))
        self.assertEqual(11, self.first_due(wait, 6))

    def test_return_that_fails_soon_doubles_the_next_up_to_a_bound(self) -> None:
        wait, now, waits = ReturnWait(5.0), 0.0, []
        for _ in range(6):
            wait.failed(now)
            due = self.first_due(wait, now)
            waits.append(due - now)
            wait.returned(due)
            now = due + 2
        self.assertEqual([5, 10, 20, 40, MAX_RETURN_SECONDS, MAX_RETURN_SECONDS], waits)

    def test_failure_after_a_calm_time_is_a_first_one(self) -> None:
        wait = ReturnWait(5.0)
        for now in (0.0, 12.0):
            wait.failed(now)
            wait.returned(self.first_due(wait, now))
        wait.failed(500.0)
        self.assertEqual(5.0, wait.seconds)

    def test_zero_returns_at_once(self) -> None:
        wait = ReturnWait(0.0)
        wait.failed(1.0)
        self.assertTrue(wait.is_due(1.0, is_well=True))
