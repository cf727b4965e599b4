"""Members of a service by DNS: what counts as an answer, how often is asked, and what an outage changes (nothing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, TimeoutError, fail, succeed
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.trial.unittest import SynchronousTestCase

from relay.net.discovery import LAST_RETRY_SECONDS, MAX_SECONDS, MIN_SECONDS, Found, ServiceWatcher

SERVICE = "_relay._tcp.example.test"


def srv(host: str, port: int = 1935, priority: int = 0, weight: int = 0, ttl: int = 5) -> dns.RRHeader:
    return dns.RRHeader(SERVICE, dns.SRV, ttl=ttl, payload=dns.Record_SRV(priority, weight, port, host, ttl))


def a(host: str, address: str) -> dns.RRHeader:
    return dns.RRHeader(host, dns.A, payload=dns.Record_A(address))


class FixedResolver:
    """Answers as a test says; addresses are in the additional part, or are to be asked for."""

    def __init__(self) -> None:
        self.answer: Any = ([], [], [])
        self.answers: dict[str, Any] = {}  # of a service; "": of any other
        self.addresses: dict[str, list[Any] | Exception] = {}
        self.asked: list[str] = []

    def lookupService(self, name: str) -> Deferred[Any]:
        self.asked.append(name)
        answer = self.answers.get(name, self.answers.get("", self.answer))
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def lookupAddress(self, name: str) -> Deferred[Any]:
        self.asked.append(name)
        return self._say(name)

    def lookupIPV6Address(self, name: str) -> Deferred[Any]:
        self.asked.append(f"{name} AAAA")
        return self._say(f"{name} AAAA")

    def _say(self, what: str) -> Deferred[Any]:
        said = self.addresses.get(what, [])
        return fail(said) if isinstance(said, Exception) else succeed((said, [], []))


class WatcherTests(SynchronousTestCase):
    """A clock, and a resolver that says what it is told to."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.resolver = FixedResolver()
        self.changes: list[str] = []
        self.orders: list[list[str]] = []
        self.refused: set[str] = set()
        self.watcher = ServiceWatcher(SERVICE, self.resolver, self.clock, self.joined, self.left, self.arranged)

    def joined(self, member: Found) -> None:
        self.change(f"+{member.name}")

    def left(self, member: Found) -> None:
        self.change(f"-{member.name}")

    def arranged(self, members: Sequence[Found]) -> None:
        self.orders.append([member.host for member in members])

    def change(self, what: str) -> None:
        if what in self.refused:
            raise ValueError(what)
        self.changes.append(what)

    def members(self, *hosts: str, ttl: int = 5) -> None:
        """So many, each with the address 10.0.0.N."""
        addresses = [a(host, f"10.0.0.{int(host[3:].partition('.')[0])}") for host in hosts]
        self.resolver.answer = ([srv(host, ttl=ttl) for host in hosts], [], addresses)

    def start(self) -> None:
        self.watcher.startService()
        self.addCleanup(self.watcher.stopService)

    def test_members_come_and_go(self) -> None:
        self.members("agg1.test", "agg2.test")
        self.start()
        self.members("agg2.test", "agg3.test")
        self.clock.advance(5)
        one, two, three = (f"agg{number}.test:1935/10.0.0.{number}" for number in (1, 2, 3))
        self.assertEqual([f"+{one}", f"+{two}", f"+{three}", f"-{one}"], self.changes)
        self.assertEqual([two, three], [member.name for member in self.watcher.members])
        self.assertEqual("tcp:host=10.0.0.2:port=1935", self.watcher.members[0].endpoint)

    def test_same_answer_is_no_news(self) -> None:
        """In another order, too, and in other letters."""
        self.members("agg1.test", "agg2.test")
        self.start()
        self.members("agg2.test", "AGG1.test")
        self.clock.pump([5] * 3)
        self.assertEqual((2, 1), (len(self.changes), len(self.orders)))

    def test_it_is_asked_again_when_the_shortest_time_to_live_is_over(self) -> None:
        """Within bounds."""
        for ttl, seconds in ((5, 5), (0, MIN_SECONDS), (86400, MAX_SECONDS)):
            self.setUp()
            self.members("agg1.test", ttl=ttl)
            self.start()
            self.clock.advance(seconds - 0.1)
            self.assertEqual(1, len(self.resolver.asked), ttl)
            self.clock.advance(0.1)
            self.assertEqual(2, len(self.resolver.asked), ttl)

    def test_outage_changes_nothing(self) -> None:
        """Nor does a name that is gone, or an answer without members; it is asked again, less often each time."""
        self.members("agg1.test")
        self.start()
        for answer in (TimeoutError(), DNSNameError(), ([], [], []), ([srv("nowhere.test")], [], [])):
            self.resolver.answer = answer
            self.clock.advance(LAST_RETRY_SECONDS)
        self.assertEqual((1, 4), (len(self.changes), self.watcher.failures))
        self.assertEqual([["agg1.test"]], self.orders)
        self.members("agg1.test", "agg2.test")
        self.clock.advance(LAST_RETRY_SECONDS)
        self.assertEqual(2, len(self.watcher.members))

    def test_outage_is_asked_about_less_often_each_time(self) -> None:
        self.resolver.answer = TimeoutError()
        self.start()
        self.clock.pump([1] * 300)
        self.assertLess(len(self.resolver.asked), 16)
        self.assertGreater(len(self.resolver.asked), 10)

    def test_addresses_that_are_not_there_are_asked_for(self) -> None:
        """IPv6 if there is no other."""
        self.resolver.answer = ([srv("agg1.test"), srv("agg2.test")], [], [])
        self.resolver.addresses["agg1.test"] = [a("agg1.test", "10.0.0.1")]
        payload = dns.Record_AAAA("2001:db8::2")
        self.resolver.addresses["agg2.test AAAA"] = [dns.RRHeader("agg2.test", dns.AAAA, payload=payload)]
        self.start()
        endpoints = [member.endpoint for member in self.watcher.members]
        self.assertEqual(["tcp:host=10.0.0.1:port=1935", "tcp:host=2001\\:db8\\:\\:2:port=1935"], endpoints)

    def test_preferred_is_first(self) -> None:
        """By priority, then weight."""
        records = [
            srv("agg1.test", priority=2),
            srv("agg2.test", priority=1, weight=1),
            srv("agg3.test", priority=1, weight=9),
        ]
        self.resolver.answer = (records, [], [a(f"agg{n}.test", f"10.0.0.{n}") for n in (1, 2, 3)])
        self.start()
        self.assertEqual(["agg3.test", "agg2.test", "agg1.test"], [member.host for member in self.watcher.members])
        self.assertEqual([["agg3.test", "agg2.test", "agg1.test"]], self.orders)

    def test_changed_preference_is_another_order_of_the_same_members(self) -> None:
        """One edit of the zone, with one that comes and one that goes."""
        addresses = [a(f"agg{n}.test", f"10.0.0.{n}") for n in (1, 2, 3)]
        self.resolver.answer = ([srv("agg1.test", weight=10), srv("agg2.test", weight=20)], [], addresses)
        self.start()
        self.resolver.answer = ([srv("agg1.test", weight=5), srv("agg3.test", weight=20)], [], addresses)
        self.clock.advance(5)
        self.assertEqual(["+agg3.test:1935/10.0.0.3", "-agg2.test:1935/10.0.0.2"], self.changes[2:])
        self.resolver.answer = ([srv("agg1.test", weight=30), srv("agg3.test", weight=20)], [], addresses)
        self.clock.advance(5)
        self.assertEqual((4, ["agg1.test", "agg3.test"]), (len(self.changes), self.orders[-1]))
        self.assertEqual(0, self.watcher.failures)

    def test_member_that_is_named_twice_is_one_in_its_best_place(self) -> None:
        records = [srv("agg1.test", priority=2), srv("agg2.test", priority=1), srv("agg1.test", priority=0, weight=3)]
        self.resolver.answer = (records, [], [a(f"agg{n}.test", f"10.0.0.{n}") for n in (1, 2)])
        self.start()
        self.assertEqual((2, [["agg1.test", "agg2.test"]]), (len(self.changes), self.orders))

    def test_change_that_fails_holds_up_no_other_and_is_tried_again(self) -> None:
        self.members("agg1.test", "agg2.test")
        self.start()
        one, two, three, four = (f"agg{number}.test:1935/10.0.0.{number}" for number in (1, 2, 3, 4))
        self.refused = {f"-{one}", f"+{three}"}
        self.members("agg3.test", "agg4.test")
        self.clock.advance(5)
        self.assertEqual([f"+{four}", f"-{two}"], self.changes[2:])
        self.assertEqual([one, four], [member.name for member in self.watcher.members])
        self.refused = set()
        self.clock.advance(5)
        self.assertEqual([f"+{three}", f"-{one}"], self.changes[4:])
        self.assertEqual((2, 2), (len(self.flushLoggedErrors(ValueError)), len(self.watcher.members)))
        self.assertEqual(3, len(self.resolver.asked))

    def test_one_question_at_a_time_whatever_fails(self) -> None:
        self.members("agg1.test")
        self.refused = {"+agg1.test:1935/10.0.0.1"}
        self.start()
        self.clock.pump([5] * 4)
        self.assertEqual((5, 1), (len(self.resolver.asked), len(self.clock.getDelayedCalls())))
        self.watcher.stopService()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(5, len(self.flushLoggedErrors(ValueError)))

    def test_member_stays_when_its_address_can_t_be_looked_up(self) -> None:
        """One of several, with an IPv6 address that it was not known by; it is counted."""
        self.resolver.answer = ([srv("agg1.test"), srv("agg2.test"), srv("agg3.test")], [], [])
        payload = dns.Record_AAAA("2001:db8::2")
        for host in ("agg1", "agg2"):
            self.resolver.addresses[f"{host}.test"] = [a(f"{host}.test", f"10.0.0.{host[3:]}")]
        for host in ("agg2", "agg3"):
            self.resolver.addresses[f"{host}.test AAAA"] = [dns.RRHeader(f"{host}.test", dns.AAAA, payload=payload)]
        self.start()
        before = list(self.watcher.members)
        self.resolver.addresses.update({"agg2.test": TimeoutError(), "agg3.test AAAA": TimeoutError()})
        self.clock.advance(5)
        self.assertEqual((before, 3, 2), (self.watcher.members, len(self.changes), self.watcher.failures))

    def test_member_without_an_address_leaves(self) -> None:
        """An answer says so: an empty one, or that there is no such name.  It had no address of the kind that fails."""
        self.resolver.answer = ([srv(f"agg{n}.test") for n in (1, 2, 3)], [], [])
        self.resolver.addresses = {f"agg{n}.test": [a(f"agg{n}.test", f"10.0.0.{n}")] for n in (1, 2, 3)}
        self.start()
        self.resolver.addresses.update({"agg1.test": [], "agg2.test": DNSNameError(), "agg2.test AAAA": DNSNameError()})
        self.resolver.addresses["agg1.test AAAA"] = TimeoutError()
        self.clock.advance(5)
        self.assertEqual((["agg3.test"], 1), ([each.host for each in self.watcher.members], self.watcher.failures))

    def test_address_that_can_t_be_looked_up_is_kept_of_the_same_port_alone(self) -> None:
        self.resolver.answer = ([srv("agg1.test")], [], [])
        self.resolver.addresses["agg1.test"] = [a("agg1.test", "10.0.0.1")]
        self.start()
        self.resolver.addresses["agg1.test"] = TimeoutError()
        self.resolver.answer = ([srv("agg1.test", port=1936), srv("agg2.test")], [], [a("agg2.test", "10.0.0.2")])
        self.clock.advance(5)
        self.assertEqual(["agg2.test"], [member.host for member in self.watcher.members])

    def test_changed_address_is_another_member(self) -> None:
        self.members("agg1.test")
        self.start()
        self.resolver.answer = ([srv("agg1.test")], [], [a("agg1.test", "10.0.0.9")])
        self.clock.advance(5)
        self.assertEqual(["+agg1.test:1935/10.0.0.9", "-agg1.test:1935/10.0.0.1"], self.changes[1:])

    def test_nothing_is_asked_after_the_end(self) -> None:
        """Not even when the answer was on its way."""
        self.resolver.answer = Deferred()
        self.start()
        self.watcher.stopService()
        self.assertEqual(([], 0), (self.clock.getDelayedCalls(), self.watcher.failures))


@given(st.lists(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), max_size=8), max_size=12))
def test_what_was_told_adds_up_to_what_is_known(zones: list[list[tuple[int, int]]]) -> None:
    """Whatever the zone does: those who have come less those who have gone are the members, in the order told last."""
    clock, resolver = Clock(), FixedResolver()
    known: list[str] = []
    orders: list[list[str]] = [[]]

    watcher = ServiceWatcher(
        SERVICE,
        resolver,
        clock,
        lambda member: known.append(member.name),
        lambda member: known.remove(member.name),
        lambda members: orders.append([member.name for member in members]),
    )
    watcher.startService()
    for zone in zones:
        addresses = [a(f"agg{n}.test", f"10.0.0.{n}") for n, _ in zone]
        resolver.answer = ([srv(f"agg{n}.test", ttl=1, weight=weight) for n, weight in zone], [], addresses)
        clock.advance(LAST_RETRY_SECONDS)
        members = [member.name for member in watcher.members]
        assert (sorted(known), orders[-1]) == (sorted(members), members)
        if zone:
            weights: dict[int, int] = {}
            for n, weight in zone:
                weights[n] = max(weight, weights.get(n, 0))
            best = sorted(weights, key=lambda n: (-weights[n], n))
            assert [f"agg{n}.test" for n in best] == [member.host for member in watcher.members]
        assert len(clock.getDelayedCalls()) == 1
    watcher.stopService()
    assert not clock.getDelayedCalls()
