"""A member that lives and is useless is left for the other; the preferred one is read again when it has caught up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from relay.net.catalogue import CatalogueEntry
from relay.net.failover import Upstream
from relay.net.reading import Reading
from relay.net.replication import ReadMode
from relay.net.standby import Standby
from relay.net.timings import BEHIND_SECONDS, DEAD_SECONDS, DEFAULT_TIMINGS, RETURN_SECONDS
from relay.testing import publish
from relay.tiers.views import MediaNodeView
from tests.log.model import gops
from tests.net.driving import CopyingNode, make_node
from tests.net.test_gathering import HEADERS, NAME, PairTestCase


def said(events) -> list[str]:
    """The sentences that were logged of the stream."""
    return [words for words in map(formatEvent, events) if words.startswith(f"{NAME}: ") and "epoch" not in words]


class StandbyTestCase(PairTestCase):
    def cut_reading(self, endpoint, node, is_cut=True) -> None:
        """What ``node`` reads at ``endpoint`` does not come; its control connection is well."""
        for link in endpoint.links:
            protocol = link.client.protocol
            if isinstance(protocol, Reading) and protocol._replica in node.gatherer.replicas.values():
                link.is_cut = is_cut

    def feed_until(self, source: str, limit: float = 30.0) -> float:
        begun = self.network.reactor.seconds()
        while self.source != source and self.network.reactor.seconds() < begun + limit:
            self.feed(0.4)
        self.assertEqual(source, self.source)
        return self.network.reactor.seconds() - begun


class BehindTests(StandbyTestCase):
    def test_member_that_lives_and_gets_nothing_is_left_without_losing_a_byte(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.cut_reading(self.at_origin, self.a1)
        with capturedLogs() as events:
            seconds = self.feed_until("a2")
        self.assertLess(seconds, BEHIND_SECONDS + 1)
        self.feed(1)
        self.assertEqual({"behind": 1}, self.agg.counts.failovers)
        (words,) = said(events)
        self.assertRegex(words, "live/demo: reading from a2 now: a1 is behind .nothing has come for 1.[5-9] s")
        self.assert_copied()
        self.assert_watched(player, since)

    def test_member_that_is_read_and_becomes_the_preferred_one_makes_all_normal(self) -> None:
        self.feed()
        self.cut_reading(self.at_origin, self.a1)
        self.feed_until("a2")
        self.assertEqual(["pair: a1 is behind (streams: 1)"], self.pair.why_not_normal())
        self.pair.arrange(["a2", "a1"])
        self.assertEqual([], self.pair.why_not_normal())

    def test_connection_that_hangs_alone_is_left(self) -> None:
        """The member is well and has everything; what we read from it does not come."""
        self.feed()
        self.cut_reading(self.at_a1, self.agg)
        self.assertLess(self.feed_until("a2"), BEHIND_SECONDS + 1)
        self.feed(1)
        self.assert_copied()

    def test_new_connection_that_hangs_is_left(self) -> None:
        """It is accepted, and then nothing: long before the handshake's deadline the other is asked."""
        self.feed()
        for link in self.at_a1.open_links:
            if isinstance(link.client.protocol, Reading):
                link.kill_server()
        self.cut_reading(self.at_a1, self.agg)
        self.feed(1)
        self.feed_until("a2")
        self.assert_copied()

    def test_nobody_moves_when_the_origin_stalls(self) -> None:
        self.feed()
        self.advance(30)
        self.assertEqual(("a1", {}), (self.source, self.agg.counts.failovers))

    def test_nobody_moves_when_both_are_behind(self) -> None:
        self.feed()
        self.cut_reading(self.at_origin, self.a1)
        self.cut_reading(self.at_origin, self.a2)
        self.feed(10)
        self.assertEqual(("a1", {}), (self.source, self.agg.counts.failovers))

    def test_backup_that_is_behind_changes_nothing(self) -> None:
        self.feed()
        self.cut_reading(self.at_origin, self.a2)
        self.feed(10)
        self.assertEqual(("a1", {}), (self.source, self.agg.counts.failovers))

    def test_how_far_members_are_behind_is_shown(self) -> None:
        self.feed()
        self.cut_reading(self.at_origin, self.a2)
        self.feed(4)
        leads = [self.pair.lead_ms(link) for link in self.pair.links]
        self.assertEqual((True, True), (leads[0][1] < 500, leads[1][1] > 3000))


class Copy:
    """What a standby needs of a copy, standing still in epoch 2."""

    name, epoch, end, time_ms = NAME, 2, 1000, 0

    def __init__(self, current) -> None:
        self.current = current
        self.turned: list[str] = []

    def has_left(self, epoch: int) -> bool:
        return False

    def turn_to(self, upstream, cause: str, detail: str) -> bool:
        self.turned.append(upstream.name)
        return True


class EpochTests(SynchronousTestCase):
    def test_preferred_member_that_is_left_in_an_earlier_epoch_is_not_returned_to(self) -> None:
        """It lives, and has what was before; viewers would go back in time.  A later epoch is where all go."""
        for epoch, turned in ((1, []), (2, ["a1"]), (3, ["a1"])):
            clock = Clock()
            entry = CatalogueEntry(name=NAME, epoch=epoch, start=0, end=1000, time_ms=0, is_live=True)
            members = [
                (Upstream(name=name, endpoint=None), SimpleNamespace(catalogue=catalogue))
                for name, catalogue in (("a1", {NAME: entry}), ("a2", {}))
            ]
            copy = Copy(members[1][0])
            standby = Standby(copy, members, DEFAULT_TIMINGS, clock)
            for _ in range(round(RETURN_SECONDS) + 2):
                standby.check()
                clock.advance(1)
            self.assertEqual(turned, copy.turned[:1], epoch)


class OtherEpochTests(StandbyTestCase):
    def test_origin_in_another_epoch_is_not_ahead(self) -> None:
        """Two origins with logs of their own: positions can't be compared, and each is read until it dies."""
        self.feed()
        other, at_other = make_node(self.network, "o2")
        copier, _ = make_node(self.network, "d1", CopyingNode)
        self.nodes = [copier, *self.nodes, other]
        copier.gather([("o1", self.at_origin), ("o2", at_other)])
        stream = other.ingest(NAME).stream
        publish(stream, HEADERS + gops(50))
        self.advance(10)
        self.assertEqual("o1", copier.hub.get(NAME).source)
        self.assert_copied(copier)


class ReturnTests(StandbyTestCase):
    def test_preferred_member_is_returned_to_when_it_has_caught_up_for_a_while(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.cut_reading(self.at_origin, self.a1)
        self.feed_until("a2")
        self.feed(2 * RETURN_SECONDS)
        self.assertEqual("a2", self.source)
        self.assertEqual(["pair: a1 is behind (streams: 1)"], self.pair.why_not_normal())
        self.cut_reading(self.at_origin, self.a1, is_cut=False)
        with capturedLogs() as events:
            seconds = self.feed_until("a1")
        self.assertGreater(seconds, RETURN_SECONDS)
        self.assertEqual(["live/demo: back to a1, well for 5 s"], said(events))
        self.assertEqual({"behind": 1, "return": 1}, self.agg.counts.failovers)
        self.assertEqual([], self.pair.why_not_normal())
        self.assert_copied()
        self.assert_watched(player, since)

    def test_return_that_fails_soon_takes_twice_as_long_the_next_time(self) -> None:
        """A connection to it that hangs each time; the member itself says that all is well."""
        self.feed()
        waits = []
        for _ in range(3):
            self.cut_reading(self.at_a1, self.agg)
            self.feed_until("a2")
            waits.append(self.feed_until("a1", 60) // RETURN_SECONDS)
        self.assertEqual([1, 2, 4], waits)
        self.assert_copied()

    def test_dead_member_is_said_to_be_dead(self) -> None:
        self.feed()
        self.hang(self.at_a1)
        with capturedLogs() as events:
            self.feed_until("a2")
        self.assertEqual(
            [f"live/demo: reading from a2 now: a1 is dead (silent for {1000 * DEAD_SECONDS:.0f} ms)"], said(events)
        )
        self.assertEqual({"dead": 1}, self.agg.counts.failovers)

    def test_nobody_left_is_said_once(self) -> None:
        self.feed()
        self.kill(self.a2, self.at_a2)
        with capturedLogs() as events:
            self.kill(self.a1, self.at_a1)
            self.feed(8)
        self.assertEqual(["live/demo: nobody to read from: the connection to a1 is lost"], said(events))

    def test_same_member_again_is_said_to_be_the_same(self) -> None:
        self.feed()
        self.kill(self.a2, self.at_a2)
        self.kill(self.a1, self.at_a1)
        self.feed(3)
        self.at_a1.is_listening = True
        with capturedLogs() as events:
            self.feed(8)
        self.assertEqual(["live/demo: reading from a1 again; before: the connection to a1 is lost"], said(events))
        self.assert_copied()


class MergeTests(StandbyTestCase):
    options: ClassVar[dict] = {"mode": ReadMode.MERGE}

    def test_nobody_is_left_for_being_behind(self) -> None:
        self.feed()
        self.cut_reading(self.at_origin, self.a1)
        self.feed(10)
        self.assertEqual(("a1+a2", {}), (self.source, self.agg.counts.failovers))
        self.assert_copied()

    def test_death_is_said(self) -> None:
        self.feed()
        with capturedLogs() as events:
            self.kill(self.a1, self.at_a1)
            self.feed(1)
        self.assertEqual(["live/demo: reading from a2 now: the connection to a1 is lost"], said(events))


class ShownTests(StandbyTestCase):
    def shown(self):
        view = MediaNodeView(self.agg, [self.pair], self.agg.counts)
        metrics = {metric.name: metric.values for metric in view.metrics()}
        return [(link.name, link.role, link.streams) for link in view.links()], metrics

    def test_who_is_read_is_shown(self) -> None:
        self.feed()
        links, metrics = self.shown()
        self.assertEqual([("a1", "active", 1), ("a2", "standby", 0)], links)
        self.assertEqual({"a1": 1, "a2": 0}, metrics["upstream_streams"])
        self.kill(self.a1, self.at_a1)
        self.feed()
        links, metrics = self.shown()
        self.assertEqual([("a1", "", 0), ("a2", "active", 1)], links)
        self.assertEqual((1, 0), (metrics["failovers"]["lost"], metrics["failovers"]["dead"]))

    def test_how_far_the_standby_is_behind_is_shown(self) -> None:
        self.feed()
        self.cut_reading(self.at_origin, self.a2)
        self.feed(4)
        _, metrics = self.shown()
        self.assertGreater(metrics["upstream_behind_seconds"]["a2"], 3)
        self.assertLess(metrics["upstream_behind_seconds"]["a1"], 0.5)
