"""Every follower is woken in time, and thousands of them not all at once."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.net.wakeup import EAGER, FULL, LEAST_INTERVAL, LONG_TICK, PER_SLICE, SLICES, Wakeup

BOUND = 0.1
MERGED = round(FULL * LEAST_INTERVAL / BOUND)  # followers from which wake-ups are merged
MS = 0.001


class Follower:
    """Notes when it is woken."""

    def __init__(self, clock: Clock, then=None, reads: bool = False) -> None:
        self.times: list[float] = []
        self.is_congested = False
        self.falls_in = False
        self.reads = reads
        self._clock = clock
        self._then = then

    def pump(self) -> bool:
        self.times.append(self._clock.seconds())
        if self._then is not None:
            self._then(self)
        return not self.is_congested

    def is_known_to_read(self) -> bool:
        return self.reads

    def fall_in(self, cohorts) -> bool:
        return self.falls_in


class Source:
    """Notes when it is asked for what it has, and when it is told to go on by itself; has something each time, if told
    so."""

    def __init__(self, clock: Clock) -> None:
        self.drawn: list[float] = []
        self.watched = 0
        self.wakeup: Wakeup | None = None
        self.has_more = False
        self._clock = clock

    def draw(self) -> None:
        self.drawn.append(self._clock.seconds())
        if self.has_more and self.wakeup is not None:
            self.wakeup.notify()

    def watch(self) -> None:
        self.watched += 1


def advance(clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds / MS)):
        clock.advance(MS)


class WakeupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.source = Source(self.clock)
        self.wakeup = self.source.wakeup = Wakeup(self.clock, BOUND, self.source)

    def add(self, count: int, then=None, reads: bool = False) -> list[Follower]:
        followers = [Follower(self.clock, then, reads) for _ in range(count)]
        for follower in followers:
            self.wakeup.add(follower)
        return followers

    def test_few_followers_are_woken_at_once_by_each_flush(self) -> None:
        """While few watch, no lag is added: up to EAGER, and no timer is ever set."""
        followers = self.add(EAGER)
        for _ in range(3):
            self.wakeup.notify()
        self.assertEqual({3}, {len(follower.times) for follower in followers})
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_many_followers_are_each_woken_within_the_bound(self) -> None:
        followers = self.add(FULL) + self.add(FULL, reads=True)
        self.assertEqual(BOUND, self.wakeup.interval)
        self.wakeup.notify()
        advance(self.clock, BOUND + MS)
        self.assertEqual({1}, {len(follower.times) for follower in followers})

    def test_followers_are_woken_within_the_bound_at_every_moment_of_a_steady_flow(self) -> None:
        """Also one that was woken just before the flush."""
        followers = self.add(FULL)
        for _ in range(100):
            self.wakeup.notify()
            advance(self.clock, 0.01)
        for follower in followers:
            gaps = [b - a for a, b in zip([0.0, *follower.times], follower.times, strict=False)]
            self.assertLessEqual(max(gaps), BOUND + 2 * MS)

    def test_wake_ups_are_merged(self) -> None:
        """A hundred flushes within an interval cost each of many followers one wake-up."""
        followers = self.add(FULL)
        for _ in range(100):
            self.wakeup.notify()
        advance(self.clock, 3 * BOUND)
        self.assertEqual({1}, {len(follower.times) for follower in followers})

    def test_wake_ups_are_spread_over_the_interval(self) -> None:
        """No tick is a burst: PER_SLICE at a time, while there are no more ticks than SLICES."""
        for count in (FULL, PER_SLICE * SLICES):
            self.wakeup.close()
            followers = self.add(count)
            self.wakeup.notify()
            begun = self.clock.seconds()
            advance(self.clock, BOUND + MS)
            per_tick = Counter(round(follower.times[0] - begun, 4) for follower in followers)
            self.assertEqual(count // PER_SLICE, len(per_tick))
            self.assertEqual({PER_SLICE}, set(per_tick.values()))

    def test_few_followers_are_dealt_into_two_slices(self) -> None:
        """From where wake-ups are merged on, and again when some have left."""
        for count in (MERGED, PER_SLICE, 2 * PER_SLICE):
            self.wakeup.close()
            followers = self.add(count)
            self.wakeup.notify()
            advance(self.clock, BOUND + MS)
            self.assertEqual(2, len({follower.times[0] for follower in followers}))

    def test_interval_grows_with_the_number_of_followers(self) -> None:
        """Whether they are known to read, or not yet."""
        for reads in (True, False):
            self.wakeup = Wakeup(self.clock, BOUND, self.source)
            intervals = []
            for _ in range(4):
                self.add(FULL // 4, reads=reads)
                intervals.append(round(self.wakeup.newcomers_interval, 6))
            self.assertEqual([0.025, 0.05, 0.075, 0.1], intervals)
            self.assertEqual(0.1 if reads else 0, self.wakeup.interval)

    def test_newcomers_add_no_lag_to_the_few_that_are_known_to_read(self) -> None:
        """A crowd that has just come may never read: until it does, readers are woken at once, by each flush."""
        readers, crowd = self.add(EAGER, reads=True), self.add(FULL)
        for _ in range(3):
            self.wakeup.notify()
        self.assertEqual({3}, {len(follower.times) for follower in readers})
        self.assertEqual({0}, {len(follower.times) for follower in crowd})
        advance(self.clock, BOUND + MS)
        self.assertEqual({1}, {len(follower.times) for follower in crowd})

    def test_newcomers_that_turn_out_to_read_count_from_then_on(self) -> None:
        followers = self.add(FULL)
        for follower in followers:
            follower.reads = True
        self.wakeup.notify()
        self.assertEqual(0, self.wakeup.interval)
        advance(self.clock, BOUND + MS)
        self.assertEqual(BOUND, self.wakeup.interval)
        self.assertEqual({1}, {len(follower.times) for follower in followers})
        self.assertEqual(FULL, len(self.wakeup))

    def test_congested_followers_add_no_lag_to_the_others(self) -> None:
        """Once they are known to be, those that flow are woken at once, by each flush, until the others flow again."""
        crowd, readers = self.add(FULL, reads=True), self.add(EAGER, reads=True)
        for follower in crowd:
            follower.is_congested = True
        self.wakeup.notify()
        advance(self.clock, BOUND + MS)
        self.assertEqual(0, self.wakeup.interval)
        self.wakeup.notify()
        self.assertEqual({self.clock.seconds()}, {follower.times[-1] for follower in readers})
        for follower in crowd:
            follower.is_congested = False
        self.wakeup.notify()
        self.assertEqual(BOUND, self.wakeup.interval)

    def test_congested_follower_that_left_no_longer_counts(self) -> None:
        """Nor does one that leaves in its own pump."""
        crowd = self.add(FULL, then=self.wakeup.remove)
        for follower in crowd:
            follower.is_congested = True
        self.wakeup.notify()
        advance(self.clock, BOUND + MS)
        self.add(FULL)
        self.assertEqual(BOUND, self.wakeup.newcomers_interval)

    def test_bound_of_zero_wakes_at_once_however_many_there_are(self) -> None:
        self.wakeup = Wakeup(self.clock, 0, self.source)
        followers = self.add(3 * FULL)
        self.wakeup.notify()
        self.assertEqual({1}, {len(follower.times) for follower in followers})

    def test_follower_that_left_is_not_woken(self) -> None:
        followers = self.add(FULL)
        self.wakeup.notify()
        for follower in followers[::2]:
            self.wakeup.remove(follower)
        advance(self.clock, 2 * BOUND)
        self.assertEqual({0}, {len(follower.times) for follower in followers[::2]})
        self.assertEqual({1}, {len(follower.times) for follower in followers[1::2]})

    def test_removing_a_stranger_is_harmless(self) -> None:
        self.wakeup.remove(Follower(self.clock))
        self.assertEqual(0, len(self.wakeup))

    def test_followers_that_leave_while_they_are_woken(self) -> None:
        """A reader that ends in its own pump does not disturb the others: few, and many."""
        for count in (EAGER, FULL):
            followers = self.add(count, then=self.wakeup.remove)
            self.wakeup.notify()
            advance(self.clock, 2 * BOUND)
            self.assertTrue(all(follower.times for follower in followers))
            self.assertEqual(0, len(self.wakeup))

    def test_followers_that_join_while_others_are_woken(self) -> None:
        """Each newcomer, too, is woken within the bound of the next notify."""
        newcomers = []

        def bring(_) -> None:
            newcomer = Follower(self.clock)
            newcomers.append(newcomer)
            self.wakeup.add(newcomer)

        self.add(EAGER, then=bring)
        self.wakeup.notify()
        first = list(newcomers)
        self.assertEqual(EAGER, len(first))
        self.wakeup.notify()
        advance(self.clock, BOUND + MS)
        self.assertTrue(all(newcomer.times for newcomer in first))

    def test_nobody_is_forgotten_when_the_number_of_slices_changes_before_a_tick(self) -> None:
        """Followers that wait for their tick are dealt anew, and still woken in time."""
        followers = self.add(FULL)
        self.wakeup.notify()
        for follower in followers[EAGER // 2 :]:
            self.wakeup.remove(follower)
        advance(self.clock, BOUND + MS)
        self.assertTrue(all(follower.times for follower in followers[: EAGER // 2]))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_interval_that_would_merge_nothing_adds_no_lag(self) -> None:
        """Each flush wakes all, as if they were few."""
        followers = self.add(MERGED - 1)
        for _ in range(3):
            self.wakeup.notify()
        self.assertEqual({3}, {len(follower.times) for follower in followers})
        self.assertFalse(self.wakeup.is_patient)

    def test_source_is_asked_for_what_it_has_before_each_tick(self) -> None:
        """So it may let bytes wait as long as wake-ups do: and is told when they don't any more."""
        followers = self.add(FULL, reads=True)
        self.wakeup.notify()
        self.assertTrue(self.wakeup.is_patient)
        told = self.source.watched
        advance(self.clock, BOUND / 2)
        self.assertEqual(told, self.source.watched)
        advance(self.clock, BOUND / 2 + MS)
        self.assertFalse(self.wakeup.is_patient)
        self.assertEqual(told + 1, self.source.watched)
        self.assertEqual(sorted({follower.times[0] for follower in followers}), self.source.drawn)

    def test_source_that_always_has_more_is_asked_at_an_even_pace(self) -> None:
        """What is drawn at a tick may have come since the one before: so each follower is woken once an interval, and
        no slice's turn slips."""
        self.source.has_more = True
        followers = self.add(FULL, reads=True)
        self.wakeup.notify()
        advance(self.clock, 10 * BOUND)
        for follower in followers:
            gaps = [b - a for a, b in zip(follower.times, follower.times[1:], strict=False)]
            self.assertGreaterEqual(len(gaps), 8)
            self.assertLessEqual(max(gaps), BOUND + 2 * MS)
            self.assertGreaterEqual(min(gaps), BOUND - 5 * MS)
        told = self.source.watched
        self.source.has_more = False
        advance(self.clock, 2 * BOUND)
        self.assertEqual((told + 1, []), (self.source.watched, self.clock.getDelayedCalls()))

    def test_source_does_not_wait_for_the_few_that_are_woken_at_once(self) -> None:
        """Nor does it because of a crowd that has just come."""
        self.add(EAGER, reads=True)
        self.wakeup.notify()
        self.assertFalse(self.wakeup.is_patient)
        self.add(FULL)
        self.wakeup.notify()
        self.assertFalse(self.wakeup.is_patient)

    def test_source_is_told_when_the_crowd_leaves(self) -> None:
        """Wake-ups are not merged any more then."""
        crowd = self.add(FULL, reads=True)
        self.wakeup.notify()
        told = self.source.watched
        for follower in crowd[EAGER // 2 :]:
            self.wakeup.remove(follower)
        self.assertFalse(self.wakeup.is_patient)
        self.assertGreater(self.source.watched, told)

    def test_follower_that_raises_costs_the_others_one_tick(self) -> None:
        """The ticks go on, and the source is not left to wait for ever."""
        self.add(FULL - 1, reads=True)
        self.add(1, lambda follower: 1 // 0, reads=True)
        self.wakeup.notify()
        faults = 0
        for _ in range(round(2 * BOUND / MS)):
            try:
                self.clock.advance(MS)
            except ZeroDivisionError:
                faults += 1
        self.assertEqual((1, False, []), (faults, self.wakeup.is_patient, self.clock.getDelayedCalls()))

    def test_long_intervals_have_more_ticks(self) -> None:
        """What the source lets wait, it lets wait for one of them."""
        self.wakeup = Wakeup(self.clock, 1.0, self.source)
        followers = self.add(FULL)
        self.wakeup.notify()
        advance(self.clock, 1.0)
        self.assertEqual(math.ceil(1.0 / LONG_TICK), len({follower.times[0] for follower in followers}))

    def test_those_in_step_are_not_alone(self) -> None:
        """Nobody need look whether they are too slow."""
        slow, quick = self.add(2, reads=True)
        newcomer = Follower(self.clock)
        self.wakeup.add(newcomer)
        quick.falls_in = True
        self.assertEqual([slow, quick, newcomer], self.wakeup.alone())
        self.wakeup.notify()
        self.assertEqual([slow, newcomer], self.wakeup.alone())

    def test_crowd_that_leaves_while_the_source_is_asked(self) -> None:
        """What it has may end the stream."""
        crowd = self.add(FULL, reads=True)
        self.wakeup.notify()

        def leave() -> None:
            for follower in crowd:
                self.wakeup.remove(follower)

        self.source.draw = leave
        advance(self.clock, BOUND)
        self.assertEqual((0, []), (len(self.wakeup), self.clock.getDelayedCalls()))

    def test_close_stops_the_clock(self) -> None:
        self.add(FULL)
        self.wakeup.notify()
        self.wakeup.close()
        self.assertEqual(([], 0), (self.clock.getDelayedCalls(), len(self.wakeup)))


def become_reader(follower: Follower) -> None:
    follower.reads = follower.reads or len(follower.times) > 2


@given(st.lists(st.tuples(st.sampled_from(("join", "leave", "notify", "wait")), st.integers(1, 400)), max_size=30))
def test_whoever_was_there_at_a_notify_is_woken_within_the_bound(steps) -> None:
    """The invariant, whatever joins and leaves in between."""
    clock = Clock()
    wakeup = Wakeup(clock, BOUND, Source(clock))
    present: list[Follower] = []
    owed: dict[Follower, float] = {}
    for step, amount in [*steps, ("wait", 400)]:
        if step == "join":
            newcomers = [Follower(clock, become_reader, reads=number % 3 == 0) for number in range(amount)]
            present += newcomers
            for newcomer in newcomers:
                wakeup.add(newcomer)
        elif step == "leave":
            for follower in present[-amount:]:
                wakeup.remove(follower)
                owed.pop(follower, None)
            del present[-amount:]
        elif step == "notify":
            for follower in present:
                owed.setdefault(follower, clock.seconds())
            wakeup.notify()
        for _ in range(amount if step == "wait" else 0):
            clock.advance(MS)
        for follower in [follower for follower in owed if follower.times and follower.times[-1] >= owed[follower]]:
            assert follower.times[-1] - owed.pop(follower) <= BOUND + 2 * MS
        late = [since for since in owed.values() if clock.seconds() - since > BOUND + 2 * MS]
        assert not late
    wakeup.close()


class HoldingSource:
    """Messages that come one by one, wait while they may, and are announced when they are taken in."""

    def __init__(self, clock: Clock) -> None:
        self.wakeup = Wakeup(clock, BOUND, self)
        self.came: list[float] = []
        self.taken = 0
        self._is_held = False
        self._clock = clock

    def come(self) -> None:
        self.came.append(self._clock.seconds())
        if not self._is_held:
            self._take()

    def draw(self) -> None:
        self._take()

    def watch(self) -> None:
        if self._is_held:
            self._is_held = False
            self._clock.callLater(0, self._take)

    def _take(self) -> None:
        if self.taken < len(self.came):
            self.taken = len(self.came)
            self.wakeup.notify()
            self._is_held = self.wakeup.is_patient


class Reader(Follower):
    """Notes how long what it is woken for took to reach it."""

    def __init__(self, clock: Clock, source: HoldingSource, reads: bool) -> None:
        super().__init__(clock, become_reader, reads)
        self.source = source
        self.seen = source.taken
        self.longest = 0.0

    def pump(self) -> bool:
        if not self.is_congested and self.seen < self.source.taken:
            self.longest = max(self.longest, self._clock.seconds() - self.source.came[self.seen])
        self.seen = self.source.taken
        return super().pump()


@given(
    st.lists(st.tuples(st.sampled_from(("join", "leave", "come", "wait", "congest")), st.integers(1, 300)), max_size=40)
)
def test_whatever_comes_reaches_everybody_within_the_bound(steps) -> None:
    """Also what waits at the source: nothing is forgotten there, whatever happens in between."""
    clock = Clock()
    source = HoldingSource(clock)
    present: list[Reader] = []
    for step, amount in [*steps, ("come", 1), ("wait", 300)]:
        if step == "join":
            newcomers = [Reader(clock, source, reads=number % 3 == 0) for number in range(amount)]
            present += newcomers
            for newcomer in newcomers:
                source.wakeup.add(newcomer)
        elif step == "leave":
            for reader in present[-amount:]:
                source.wakeup.remove(reader)
            del present[-amount:]
        elif step == "congest":
            for reader in present:
                reader.is_congested = not reader.is_congested
        elif step == "come":
            for _ in range(min(amount, 20)):
                source.come()
                clock.pump([MS] * (amount % 7))
        else:
            clock.pump([MS] * amount)
        assert all(reader.longest <= BOUND + 3 * MS for reader in present)
    assert source.taken == len(source.came)
    assert all(reader.seen == source.taken for reader in present)
    source.wakeup.close()
