"""Which backend a viewer gets: the health rule, the policies, suspicion after failed connects."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError
from relay.net.backends import (
    LAST_RETRY_SECONDS,
    SERVING,
    Backend,
    BackendPool,
    BackendState,
    Policy,
    ReturnRule,
)

UP, DEGRADED, DOWN, DRAINING = BackendState.UP, BackendState.DEGRADED, BackendState.DOWN, BackendState.DRAINING


def make_pool(*names, policy=Policy.ANY, clock=None):
    return BackendPool([Backend(name, None) for name in names], (clock or Clock()).seconds, policy)


def picks(pool, count=12, **arguments):
    picked = (pool.pick("192.0.2.7", **arguments) for _ in range(count))
    return Counter(backend.name if backend is not None else None for backend in picked)


class HealthTests(SynchronousTestCase):
    def setUp(self):
        self.pool = make_pool("one", "two", "three")

    def test_all_normal_are_picked_in_turn(self):
        """Round robin is the default."""
        self.assertEqual({"one": 4, "two": 4, "three": 4}, picks(self.pool))

    def test_degraded_one_gets_nobody_while_another_is_normal(self):
        """As when B1 fails: new viewers go to aggregator 2 alone."""
        self.pool.set_state("one", DEGRADED, "b1 is lost")
        self.pool.set_state("two", DOWN)
        self.assertEqual({"three": 12}, picks(self.pool))

    def test_mended_one_serves_again(self):
        """As when B1 is mended."""
        self.pool.set_state("one", DEGRADED, "b1 is lost")
        self.pool.set_state("one", UP)
        self.assertEqual(4, picks(self.pool)["one"])

    def test_degraded_ones_serve_when_none_is_normal(self):
        """Most streams are better than none."""
        self.pool.set_state("one", DEGRADED)
        self.pool.set_state("two", DEGRADED)
        self.pool.set_state("three", DOWN)
        self.assertEqual({"one": 6, "two": 6}, picks(self.pool))

    def test_down_and_draining_ones_get_nobody(self):
        """Then the viewer is held."""
        self.pool.set_state("one", DOWN)
        self.pool.set_state("two", DRAINING)
        self.pool.set_state("three", DRAINING)
        self.assertEqual({None: 12}, picks(self.pool))
        self.assertFalse(self.pool.has_usable())

    def test_pinned_viewer_gets_that_one_or_none(self):
        """Degraded too; never another."""
        self.pool.set_state("one", DEGRADED)
        self.assertEqual({"one": 12}, picks(self.pool, pin="one"))
        self.pool.set_state("one", DRAINING)
        self.assertEqual({None: 12}, picks(self.pool, pin="one"))
        self.assertEqual({None: 12}, picks(self.pool, pin="nobody"))

    def test_one_that_was_just_tried_is_left_out(self):
        """The rest of the rule holds for the others."""
        self.assertEqual({"two": 6, "three": 6}, picks(self.pool, without=[self.pool.backends["one"]]))

    def test_two_of_one_name_are_refused(self):
        """They could not be told apart."""
        with self.assertRaises(ConfigError):
            make_pool("one", "one")

    def test_change_is_told_to_the_observers_once(self):
        """The same state again is no change."""
        calls = []
        observer = lambda: calls.append(1)  # noqa: E731
        self.pool.add_observer(observer)
        self.pool.set_state("one", DOWN, "silent")
        self.pool.set_state("one", DOWN, "silent")
        self.pool.set_state("one", UP)
        self.pool.remove_observer(observer)
        self.pool.set_state("one", DOWN)
        self.assertEqual(2, len(calls))


class PolicyTests(SynchronousTestCase):
    def test_least_viewers_goes_to_the_emptiest(self):
        """Equals take turns."""
        pool = make_pool("one", "two", "three", policy=Policy.LEAST_VIEWERS)
        pool.backends["one"].viewers = 1
        self.assertEqual({"two": 6, "three": 6}, picks(pool))

    def test_source_hash_spreads_addresses_evenly(self):
        """Within a third of the mean for 3,000 addresses on three backends."""
        pool = make_pool("one", "two", "three", policy=Policy.SOURCE_HASH)
        counts = Counter(pool.pick(f"10.0.{n >> 8}.{n & 255}").name for n in range(3000))
        for name, count in counts.items():
            self.assertTrue(667 < count < 1333, f"{name}: {count}")


class SuspicionTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.clock.advance(1000)
        self.pool = make_pool("one", "two", clock=self.clock)
        self.one = self.pool.backends["one"]

    def fail(self):
        return self.pool.note_failure(self.one, self.clock.seconds())

    def test_failed_connect_leaves_the_backend_out_for_a_time_that_doubles(self):
        """0.1 s, 0.2 s ... 5 s."""
        delays = []
        for _ in range(8):
            self.fail()
            delays.append(round(self.one.retry_at - self.clock.seconds(), 3))
            self.assertEqual({"two": 12}, picks(self.pool))
            self.clock.advance(delays[-1] + 0.001)
        self.assertEqual([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], delays)

    def test_one_viewer_alone_tries_a_suspect(self):
        """Until he knows, or it is clear that he never will."""
        self.fail()
        self.clock.advance(0.2)
        self.assertEqual({"one": 1, "two": 11}, picks(self.pool))
        self.clock.advance(LAST_RETRY_SECONDS)
        self.assertEqual({"one": 1, "two": 11}, picks(self.pool))

    def test_connects_that_fail_together_count_once(self):
        """A thousand viewers dialing a machine that dies are one failure."""
        began = self.clock.seconds()
        self.clock.advance(2)
        self.assertEqual([True, False, False], [self.pool.note_failure(self.one, began) for _ in range(3)])
        self.assertEqual(1, self.one.connect_failures)

    def test_success_clears_the_suspicion_and_is_told(self):
        """Those who are held can come."""
        calls = []
        self.pool.add_observer(lambda: calls.append(1))
        self.fail()
        self.assertFalse(self.pool.has_proven("one"))
        self.pool.note_success(self.one)
        self.pool.note_success(self.one)
        self.assertEqual(([1], True), (calls, self.pool.has_proven("one")))

    def test_new_state_from_outside_clears_the_suspicion(self):
        """The control connection knows better than an old failure."""
        self.fail()
        self.pool.set_state("one", DOWN)
        self.pool.set_state("one", UP)
        self.assertEqual({"one": 6, "two": 6}, picks(self.pool))

    def test_next_retry_is_that_of_the_first_suspect_that_may_come(self):
        """A backend that is down is not waited for."""
        self.assertIsNone(self.pool.next_retry())
        self.fail()
        self.assertEqual(self.one.retry_at, self.pool.next_retry())
        self.pool.set_state("one", DOWN)
        self.assertIsNone(self.pool.next_retry())


RULE = ReturnRule(rise_seconds=1.0, slow_start_seconds=10.0)


class ReturnTests(SynchronousTestCase):
    """One of two was lost, and is back."""

    def setUp(self):
        self.clock = Clock()

    def make(self, policy=Policy.ANY):
        pool = BackendPool([Backend(name, None) for name in ("one", "two")], self.clock.seconds, policy, RULE)
        self.clock.advance(100)
        pool.set_state("one", DOWN)
        self.clock.advance(5)
        pool.set_state("one", UP)
        return pool

    def test_one_that_is_back_gets_nobody_until_it_has_been_well_for_a_while(self):
        pool = self.make()
        self.assertEqual({"two": 12}, picks(pool))
        self.clock.advance(0.9)
        self.assertEqual({"two": 12}, picks(pool))
        self.assertAlmostEqual(0.1, pool.rises_in(pool.backends["one"]))
        self.clock.advance(0.2)
        self.assertEqual(0.0, pool.rises_in(pool.backends["one"]))
        self.assertIn("one", picks(pool))

    def test_it_is_used_at_once_if_there_is_no_other(self):
        """A degraded other one is an other."""
        pool = self.make()
        pool.set_state("two", DEGRADED)
        self.assertEqual({"two": 12}, picks(pool))
        pool.set_state("two", DOWN)
        self.assertEqual({"one": 12}, picks(pool))

    def test_its_turns_grow_with_its_share(self):
        pool = self.make()
        for seconds, share in ((1.0, 0.1), (4.0, 0.4), (5.0, 0.9), (10.0, 1.0)):
            self.clock.advance(seconds)
            self.assertLess(abs(110 * share / (1 + share) - picks(pool, 110)["one"]), 1.5)

    def test_turns_are_mixed(self):
        """Not ten for the one and then ten for the other."""
        pool = self.make()
        self.clock.advance(6.0)
        names = [pool.pick("192.0.2.7").name for _ in range(30)]
        self.assertEqual(10, names.count("one"))
        self.assertNotIn(["one", "one"], [names[at : at + 2] for at in range(29)])

    def test_empty_one_is_filled_to_its_share_by_least_viewers(self):
        """It would get everybody at once otherwise, being the emptiest."""
        pool = self.make(Policy.LEAST_VIEWERS)
        pool.backends["two"].viewers = 1000
        for seconds, share in ((1.0, 0.1), (3.0, 0.3)):
            self.clock.advance(seconds)
            for _ in range(500):
                pool.pick("192.0.2.7").viewers += 1
            self.assertLess(abs(pool.backends["one"].viewers - share * pool.backends["two"].viewers), 2)

    def test_address_that_has_gone_over_to_it_stays(self):
        """By source-hash, those that it will have in the end come to it one after the other."""
        pool = self.make(Policy.SOURCE_HASH)
        addresses = [f"10.0.{number >> 8}.{number & 255}" for number in range(1000)]
        self.clock.advance(1.0)
        before: set[str] = set()
        sizes = []
        for _ in range(6):
            now = {address for address in addresses if pool.pick(address).name == "one"}
            self.assertLessEqual(before, now)
            before = now
            sizes.append(len(now))
            self.clock.advance(2.0)
        self.assertEqual(sorted(sizes), sizes)
        self.assertTrue(sizes[0] < 150 and 430 < sizes[-1] < 570, sizes)


class MemberTests(SynchronousTestCase):
    """Backends that come and go."""

    def setUp(self):
        self.clock = Clock()
        rule = ReturnRule(rise_seconds=1.0, slow_start_seconds=10.0)
        self.pool = BackendPool([Backend("one", None)], self.clock.seconds, rule=rule)

    def add(self):
        self.pool.add(Backend("two", None, DOWN))
        self.pool.set_state("two", UP)

    def test_one_that_is_added_gets_its_share_slowly(self):
        """A crowd must not meet it in its first second."""
        self.clock.advance(60)
        self.add()
        self.assertEqual({"one": 12}, picks(self.pool))
        self.clock.advance(2)
        self.assertIn(picks(self.pool, 100)["two"], range(1, 30))
        self.clock.advance(10)
        self.assertEqual(50, picks(self.pool, 100)["two"])

    def test_one_that_is_added_at_the_beginning_is_like_the_others(self):
        """The name server's first answer."""
        self.add()
        self.assertEqual({"one": 6, "two": 6}, picks(self.pool))

    def test_one_that_is_removed_gets_nobody(self):
        self.add()
        self.pool.remove("two")
        self.assertEqual({"one": 12}, picks(self.pool))

    def test_names_differ(self):
        self.assertRaises(ConfigError, self.pool.add, Backend("one", None))


class PinTests(SynchronousTestCase):
    def setUp(self):
        backends = [Backend(name, None) for name in ("one", "two")]
        self.pool = BackendPool(backends, Clock().seconds, falls_back=True)

    def test_pinned_one_is_used_while_it_serves(self):
        self.pool.set_state("one", DEGRADED)
        self.assertEqual({"one": 12}, picks(self.pool, pin="one"))

    def test_others_are_used_when_it_serves_nobody(self):
        """By the health rule, and until it serves again."""
        for state in (DOWN, DRAINING):
            self.pool.set_state("one", state)
            self.assertEqual({"two": 12}, picks(self.pool, pin="one"))
            self.assertTrue(self.pool.has_usable("one"))
        self.pool.set_state("one", UP)
        self.assertEqual({"one": 12}, picks(self.pool, pin="one"))

    def test_others_are_used_when_it_was_just_tried_in_vain(self):
        one = self.pool.backends["one"]
        self.assertEqual({"two": 12}, picks(self.pool, pin="one", without=[one]))
        self.pool.note_failure(one, 0.0)
        self.assertTrue(self.pool.has_proven("one"))

    def test_nobody_is_used_when_none_serves(self):
        for name in ("one", "two"):
            self.pool.set_state(name, DOWN)
        self.assertEqual({None: 12}, picks(self.pool, pin="one"))
        self.assertFalse(self.pool.has_usable("one"))


names = st.lists(st.text("abcdefgh0123", min_size=1, max_size=6), min_size=2, max_size=8, unique=True)
addresses = st.lists(st.ip_addresses().map(str), min_size=1, max_size=30)


@given(names=names, addresses=addresses, data=st.data())
@settings(deadline=None)
def test_source_hash_moves_only_the_viewers_of_a_lost_backend(names, addresses, data):
    """The others keep theirs, whatever the order of the configuration; when it is back, all is as before."""
    pool = make_pool(*names, policy=Policy.SOURCE_HASH)
    before = {address: pool.pick(address).name for address in addresses}
    lost = data.draw(st.sampled_from(names))
    pool.set_state(lost, DOWN)
    for address, name in before.items():
        after = pool.pick(address).name
        assert after != lost
        assert name in (lost, after)
    pool.set_state(lost, UP)
    assert before == {address: pool.pick(address).name for address in addresses}
    shuffled = make_pool(*data.draw(st.permutations(names)), policy=Policy.SOURCE_HASH)
    assert before == {address: shuffled.pick(address).name for address in addresses}


@given(states=st.lists(st.sampled_from(BackendState), min_size=1, max_size=6), policy=st.sampled_from(Policy))
@settings(deadline=None)
def test_pick_follows_the_health_rule_in_every_state(states, policy):
    """A normal one if there is one, else a degraded one, else one that has lost a pair, else none."""
    pool = make_pool(*(str(n) for n in range(len(states))), policy=policy)
    for name, state in enumerate(states):
        pool.set_state(str(name), state)
    picked = pool.pick("192.0.2.7")
    best = next((state for state in SERVING if state in states), None)
    assert best == (picked.state if picked is not None else None)
