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
        self.addresses: dict[str, list[Any]] = {}
        self.asked: list[str] = []

    def lookupService(self, name: str) -> Deferred[Any]:
        self.asked.append(name)
        if isinstance(self.answer, Deferred):
            return self.answer
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)

    def lookupAddress(self, name: str) -> Deferred[Any]:
        self.asked.append(name)
        return succeed((self.addresses.get(name, []), [], []))

    def lookupIPV6Address(self, name: str) -> Deferred[Any]:
        self.asked.append(f"{name} AAAA")
        return succeed((self.addresses.get(f"{name} AAAA", []), [], []))


class WatcherTests(SynchronousTestCase):
    """A clock, and a resolver that says what it is told to."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.resolver = FixedResolver()
        self.changes: list[tuple[list[str], list[str]]] = []
        self.watcher = ServiceWatcher(SERVICE, self.resolver, self.clock, self.changed)

    def changed(self, *news: Sequence[Found]) -> None:
        added, removed = ([member.name for member in members] for members in news)
        self.changes.append((added, removed))

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
        self.assertEqual([([one, two], []), ([three], [one])], self.changes)
        self.assertEqual([two, three], [member.name for member in self.watcher.members])
        self.assertEqual("tcp:host=10.0.0.2:port=1935", self.watcher.members[0].endpoint)

    def test_same_answer_is_no_news(self) -> None:
        """In another order, too."""
        self.members("agg1.test", "agg2.test")
        self.start()
        self.members("agg2.test", "agg1.test")
        self.clock.pump([5] * 3)
        self.assertEqual(1, len(self.changes))

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

    def test_changed_address_is_another_member(self) -> None:
        self.members("agg1.test")
        self.start()
        self.resolver.answer = ([srv("agg1.test")], [], [a("agg1.test", "10.0.0.9")])
        self.clock.advance(5)
        self.assertEqual((["agg1.test:1935/10.0.0.9"], ["agg1.test:1935/10.0.0.1"]), self.changes[-1])

    def test_nothing_is_asked_after_the_end(self) -> None:
        """Not even when the answer was on its way."""
        self.resolver.answer = Deferred()
        self.start()
        self.watcher.stopService()
        self.assertEqual(([], 0), (self.clock.getDelayedCalls(), self.watcher.failures))


@given(st.lists(st.sets(st.integers(1, 8)), max_size=12))
def test_what_was_told_adds_up_to_what_is_known(zones: list[set[int]]) -> None:
    """Whatever the zone does: those who have come less those who have gone are the members."""
    clock, resolver = Clock(), FixedResolver()
    known: set[Found] = set()

    def changed(added: Any, removed: Any) -> None:
        assert not known & set(added) and set(removed) <= known
        known.update(added)
        known.difference_update(removed)

    watcher = ServiceWatcher(SERVICE, resolver, clock, changed)
    watcher.startService()
    for zone in zones:
        addresses = [a(f"agg{n}.test", f"10.0.0.{n}") for n in zone]
        resolver.answer = ([srv(f"agg{n}.test", ttl=1) for n in zone], [], addresses)
        clock.advance(LAST_RETRY_SECONDS)
        assert known == set(watcher.members)
        if zone:
            assert {f"agg{n}.test" for n in zone} == {member.host for member in known}
    watcher.stopService()
