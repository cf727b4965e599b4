"""How a backend that was lost comes back: rise, flapping, slow start."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.net.returning import (
    AT_ONCE,
    FIRST_SHARE,
    FLAPPING_SECONDS,
    MAX_RISE_SECONDS,
    SERVING,
    BackendState,
    ReturnRule,
    Standing,
    rank,
)

UP, DEGRADED, PARTIAL = BackendState.UP, BackendState.DEGRADED, BackendState.PARTIAL
DOWN, DRAINING = BackendState.DOWN, BackendState.DRAINING
RULE = ReturnRule(rise_seconds=1.0, slow_start_seconds=10.0)
STARTED = 100.0  # long after the balancer's start
RISING_UP = len(SERVING) + rank(UP)


class StandingTestCase(SynchronousTestCase):
    """A backend that has been up since the balancer's start."""

    def setUp(self) -> None:
        self.standing = Standing(RULE, UP, 0.0)

    def fall(self, at: float, for_seconds: float = 0.5) -> float:
        """It is lost, and well again; returns when."""
        self.standing.told(DOWN, at)
        self.standing.told(UP, at + for_seconds)
        return at + for_seconds


class RiseTests(StandingTestCase):
    def test_turn_for_the_worse_counts_at_once(self) -> None:
        for state in (DEGRADED, PARTIAL):
            self.standing.told(state, STARTED)
            self.assertEqual(rank(state), self.standing.order(STARTED))

    def test_turn_for_the_better_counts_when_it_has_lasted(self) -> None:
        """Until then it comes after all that count."""
        back = self.fall(STARTED)
        self.assertEqual(RISING_UP, self.standing.order(back + 0.999))
        self.assertEqual(rank(UP), self.standing.order(back + 1))

    def test_degraded_one_counts_as_that_while_it_rises(self) -> None:
        self.standing.told(DEGRADED, STARTED)
        self.standing.told(UP, STARTED + 1)
        self.assertEqual(rank(DEGRADED), self.standing.order(STARTED + 1.9))
        self.assertEqual(rank(UP), self.standing.order(STARTED + 2))

    def test_each_change_on_the_way_up_begins_the_rise_again(self) -> None:
        """As when an aggregator restarts, and finds its distributors one after the other."""
        self.standing.told(DOWN, STARTED)
        for seconds, state in enumerate((PARTIAL, DEGRADED, UP)):
            self.standing.told(state, STARTED + 0.6 * seconds)
        self.assertEqual(RISING_UP, self.standing.order(STARTED + 2.1))
        self.assertEqual(rank(UP), self.standing.order(STARTED + 2.2))

    def test_one_that_was_drained_counts_at_once(self) -> None:
        """It has not failed.  Its share grows all the same."""
        self.standing.told(DRAINING, STARTED)
        self.standing.told(UP, STARTED + 60)
        self.assertEqual((rank(UP), 0), (self.standing.order(STARTED + 60), self.standing.falls))
        self.assertEqual(FIRST_SHARE, self.standing.share(STARTED + 60))

    def test_one_that_was_drained_and_restarted_rises(self) -> None:
        self.standing.told(DRAINING, STARTED)
        back = self.fall(STARTED + 1)
        self.assertEqual(RISING_UP, self.standing.order(back))
        self.assertEqual(0, self.standing.falls)

    def test_none_comes_back_while_the_balancer_starts(self) -> None:
        """All are found within its first seconds, in some order."""
        standing = Standing(RULE, DOWN, 0.0)
        for seconds, state in enumerate((PARTIAL, UP, DEGRADED, UP)):
            standing.told(state, float(seconds))
            self.assertEqual((rank(state), 1.0), (standing.order(seconds), standing.share(seconds)))
        self.assertEqual(0, standing.falls)

    def test_without_a_rule_everything_counts_at_once(self) -> None:
        standing = Standing(AT_ONCE, UP, 0.0)
        standing.told(DOWN, STARTED)
        standing.told(UP, STARTED)
        self.assertEqual((rank(UP), 1.0), (standing.order(STARTED), standing.share(STARTED)))


class FlappingTests(StandingTestCase):
    def test_each_fall_doubles_the_rise_up_to_a_bound(self) -> None:
        """One that falls every ten seconds is soon left alone."""
        rises = []
        for number in range(8):
            back = self.fall(STARTED + 10 * number)
            assert self.standing.rises_at is not None
            rises.append(self.standing.rises_at - back)
        self.assertEqual([1, 2, 4, 8, 16, 30, 30, 30], rises)
        self.assertEqual(MAX_RISE_SECONDS, max(rises))

    def test_flapping_one_never_counts_until_it_is_well_for_longer(self) -> None:
        at = STARTED
        for _ in range(4):
            at = self.fall(at, 0.5) + 2.0  # 1, 2, 4, 8 s to rise, and it falls after 2
        counted = 0
        for _ in range(50):
            counted += self.standing.order(at) == rank(UP)
            at = self.fall(at, 0.5) + 2.0
        self.assertEqual(0, counted)
        self.assertEqual(rank(UP), self.standing.order(at - 2.0 + MAX_RISE_SECONDS))

    def test_falls_are_forgotten(self) -> None:
        for number in range(5):
            self.fall(STARTED + number)
        back = self.fall(STARTED + 4 + FLAPPING_SECONDS + 1)
        self.assertEqual(back + 1, self.standing.rises_at)


class SlowStartTests(StandingTestCase):
    def test_share_grows_from_a_tenth_to_all(self) -> None:
        risen = self.fall(STARTED) + 1
        shares = [round(self.standing.share(risen + seconds), 3) for seconds in (0, 0.5, 1, 2, 5, 9.5, 10, 1000)]
        self.assertEqual([0.1, 0.1, 0.1, 0.2, 0.5, 0.95, 1, 1], shares)

    def test_one_that_never_fell_has_all(self) -> None:
        self.assertEqual(1.0, self.standing.share(STARTED))

    def test_one_that_falls_on_its_way_begins_again(self) -> None:
        risen = self.fall(STARTED) + 1
        again = self.fall(risen + 8) + 2
        self.assertEqual((rank(UP), 0.1), (self.standing.order(again), self.standing.share(again)))


steps = st.lists(st.tuples(st.sampled_from(BackendState), st.floats(0, 40, allow_nan=False)), min_size=1, max_size=30)


@given(steps=steps)
@settings(deadline=None)
def test_it_never_counts_as_better_than_it_said_for_its_rise_time(steps):
    """Against the plain statement of the rule: the worst of what it said within the last second, or worse."""
    standing, now = Standing(RULE, UP, -1000.0), 0.0
    said = [(-1000.0, UP)]
    for state, pause in steps:
        was_drained = said[-1][1] is DRAINING
        standing.told(state, now)
        said.append((now, state))
        order = standing.order(now)
        if not was_drained and rank(state) < len(SERVING):
            recent = [each for at, each in said if at > now - RULE.rise_seconds]
            before = next(each for at, each in reversed(said) if at <= now - RULE.rise_seconds)
            if DRAINING not in (before, *recent):
                assert order >= max(map(rank, (before, *recent))) or order == rank(state)
                assert order >= rank(state)
        assert 0 < standing.share(now) <= 1
        now += pause
    standing.told(UP, now)
    assert standing.order(now + MAX_RISE_SECONDS) == rank(UP)
    assert standing.share(now + MAX_RISE_SECONDS + RULE.slow_start_seconds) == 1.0
