"""Two members with the same streams: which is read, when it changes, and what a reader further down sees of that."""

from __future__ import annotations

from typing import ClassVar

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from relay.log.points import LogStart
from relay.names import StreamName
from relay.net.gathering import FORGET_SECONDS, Gatherer
from relay.net.replication import Counts, ReadMode
from relay.net.timings import DEAD_SECONDS, RETURN_SECONDS
from relay.testing import MemoryNetwork, memory_log, publish
from tests.log.model import contents, gops
from tests.net.driving import CopyingNode, Player, connect, log_bytes, make_node, stop_node
from tests.wire import aac_header, avc_header, metadata

NAME, OTHER = StreamName("live", "demo"), StreamName("news", "one")
HEADERS = [metadata(), avc_header(), aac_header()]


class PairTestCase(SynchronousTestCase):
    """origin o1 -> distributors a1, a2 (a pair) -> aggregator agg1, all in memory."""

    options: ClassVar[dict] = {}

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.origin, origin = make_node(self.network, "o1")
        self.a1, self.at_a1 = make_node(self.network, "a1", CopyingNode)
        self.a2, self.at_a2 = make_node(self.network, "a2", CopyingNode)
        self.agg, self.at_agg = make_node(self.network, "agg1", CopyingNode)
        self.at_origin = origin
        self.a1.gather([("o1", origin)])
        self.a2.gather([("o1", origin)])
        self.pair = self.agg.gather([("a1", self.at_a1), ("a2", self.at_a2)], **self.options)
        self.nodes = [self.agg, self.a2, self.a1, self.origin]
        self.sent = []
        self.time_ms = 0
        self.advance(0.2)

    def tearDown(self) -> None:
        for endpoint in (self.at_a1, self.at_a2, self.at_origin):
            for link in endpoint.links:
                link.is_cut = False
        for node in self.nodes:
            stop_node(self.network, node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def advance(self, seconds: float) -> None:
        self.network.advance(seconds, 0.02)

    def feed(self, seconds: float = 1.0) -> None:
        """The encoder's next so many seconds, in time."""
        stream = self.origin.ingest(NAME).stream
        messages = [] if self.sent else list(HEADERS)
        messages += gops(max(1, round(seconds / 0.4)), start=self.time_ms)
        self.time_ms += 400 * max(1, round(seconds / 0.4))
        self.sent += messages
        for message in messages:
            publish(stream, [message])
            if message.message_type == 9:
                self.advance(0.04)

    def kill(self, node, endpoint) -> None:
        endpoint.is_listening = False
        for link in endpoint.open_links:
            link.kill_server()
        self.network.carry()

    def hang(self, endpoint, is_hung=True) -> None:
        """A stopped process: connections stay and say nothing; new ones are accepted by its kernel, and silent."""
        endpoint.is_silent = is_hung
        for link in endpoint.open_links:
            link.is_cut = is_hung

    def watch(self) -> Player:
        return connect(self.network, self.at_agg, Player(play="demo"))

    @property
    def source(self) -> str:
        """Whom the aggregator reads."""
        return self.agg.hub.get(NAME).source

    def assert_copied(self, node=None) -> None:
        """I1: the node has the origin's bytes; nothing is missing, nothing contradicted."""
        node = node or self.agg
        log = node.hub.get(NAME).log
        expected = log_bytes(self.sent)
        self.assertEqual(self.origin.hub.get(NAME).log.epoch, log.epoch)
        self.assertEqual((expected[log.start :], len(expected)), (contents(log.rtmp, log.start), log.end))
        self.assertEqual((0, 0), (node.counts.bytes_missing, node.counts.diverged))

    def assert_watched(self, player: Player, since: int = 0) -> None:
        """The viewer has seen every message once, in order, on one connection."""
        self.assertEqual(self.sent[since:], player.media[3:])
        self.assertEqual([], player.ends)


class FailoverTests(PairTestCase):
    def test_preferred_member_is_read(self) -> None:
        self.feed()
        self.assertEqual("a1", self.source)
        for node in (self.a1, self.a2, self.agg):
            self.assert_copied(node)

    def test_killed_member_costs_no_byte(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.kill(self.a1, self.at_a1)
        self.feed(3)
        self.assertEqual("a2", self.source)
        self.assert_copied()
        self.assert_watched(player, since)

    def test_hung_member_is_left_within_the_dead_time(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.hang(self.at_a1)
        begun = self.network.reactor.seconds()
        while self.source != "a2" and self.network.reactor.seconds() < begun + 5:
            self.feed(0.4)
        self.assertLess(self.network.reactor.seconds() - begun, 2 * DEAD_SECONDS + 0.4)
        self.feed(1)
        self.assert_copied()
        self.assert_watched(player, since)

    def test_mended_member_is_returned_to_after_a_while_without_losing_a_byte(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.kill(self.a1, self.at_a1)
        self.feed(2)
        self.at_a1.is_listening = True
        self.feed(RETURN_SECONDS - 2)
        self.assertEqual("a2", self.source)
        self.feed(6)
        self.assertEqual("a1", self.source)
        self.assert_copied()
        self.assert_watched(player, since)

    def test_member_that_crashes_every_few_seconds_is_not_returned_to(self) -> None:
        self.feed()
        for _ in range(4):
            self.kill(self.a1, self.at_a1)
            self.feed(1)
            self.at_a1.is_listening = True
            self.feed(RETURN_SECONDS - 2)
            self.assertEqual("a2", self.source)
        self.assert_copied()

    def test_both_members_dead_is_down_and_the_viewer_stays(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.kill(self.a1, self.at_a1)
        self.kill(self.a2, self.at_a2)
        self.advance(0.1)
        self.assertTrue(self.pair.is_down())
        self.feed(2)
        self.at_a2.is_listening = True
        self.feed(8)
        self.assertFalse(self.pair.is_down())
        self.assert_copied()
        self.assert_watched(player, since)

    def test_lost_preferred_member_is_said_in_words(self) -> None:
        self.assertEqual([], self.pair.why_not_normal())
        self.kill(self.a1, self.at_a1)
        (why,) = self.pair.why_not_normal()
        self.assertIn("a1 is down", why)
        self.at_a1.is_listening = True
        self.advance(2)
        self.assertEqual([], self.pair.why_not_normal())

    def test_lost_backup_is_no_fault(self) -> None:
        self.kill(self.a2, self.at_a2)
        self.assertEqual([], self.pair.why_not_normal())

    def test_origin_that_dies_and_returns_in_the_same_epoch(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.kill(self.origin, self.at_origin)
        self.advance(3)
        self.at_origin.is_listening = True
        self.feed(3)
        self.advance(6)
        self.assert_copied()
        self.assert_watched(player, since)

    def test_new_epoch_reaches_every_tier(self) -> None:
        """The origin lost its log: viewers cross over inside their connection."""
        self.feed()
        player = self.watch()
        stream = self.origin.hub.get(NAME)
        epoch = stream.log.epoch + 1
        stream.succeed(memory_log(epoch=epoch, start=LogStart(time_ms=self.time_ms)))
        new = [avc_header(self.time_ms), aac_header(self.time_ms), *gops(2, start=self.time_ms)]
        publish(stream, new, at_once=False)
        self.advance(1)
        self.assertEqual([epoch] * 3, [node.hub.get(NAME).log.epoch for node in (self.a1, self.a2, self.agg)])
        self.assertEqual(log_bytes(new), contents(self.agg.hub.get(NAME).log.rtmp))
        self.assertEqual((new[-20:], []), (player.media[-20:], player.ends))


class ArrangeTests(PairTestCase):
    def test_another_order_is_followed_after_a_while_without_losing_a_byte(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.pair.arrange(["a2", "a1"])
        self.feed(RETURN_SECONDS - 2)
        self.assertEqual("a1", self.source)
        self.feed(4)
        self.assertEqual(("a2", []), (self.source, self.pair.why_not_normal()))
        self.assert_copied()
        self.assert_watched(player, since)

    def test_member_that_is_there_is_not_added_and_one_that_is_not_is_not_let_go(self) -> None:
        """What is told twice counts once."""
        self.pair.add_member("a1", self.at_a1)
        self.pair.let_go("a3")
        self.pair.add_member("a3", self.at_a2)
        self.assertEqual(["a1", "a2", "a3"], [link.name for link in self.pair.links])
        self.pair.let_go("a3")
        self.pair.let_go("a3")
        self.assertEqual(["a1", "a2"], [link.name for link in self.pair.links])


class TwoGroupsTests(PairTestCase):
    def test_stream_that_two_groups_list_is_copied_by_one(self) -> None:
        """Two pairs that both carry everything, which is the default: one log, one set of viewers."""
        second = self.agg.gather([("a2", self.at_a2)])
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.feed()
        self.assertEqual([True, False], [NAME in group.replicas for group in (self.pair, second)])
        self.assert_copied()
        self.assert_watched(player, since)
        self.pair.stop()


class StarvedTests(PairTestCase):
    """A member that runs, answers pings and sends nothing: only its own word tells."""

    def say(self, node, state, *why) -> None:
        self.patch(node, "health", lambda: (state, list(why)))
        node.tell_health()
        self.network.carry()

    def test_member_that_has_lost_its_own_upstream_is_left(self) -> None:
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.a1.gatherer.stop()
        self.say(self.a1, "down", "upstream: o1 is down")
        self.feed(3)
        self.assertEqual("a2", self.source)
        (why,) = self.pair.why_not_normal()
        self.assertIn("a1 says that it is down (upstream: o1 is down)", why)
        self.assert_copied()
        self.a1.gatherer.start()
        self.a1.gatherer.replicas[NAME].factories[0].start()
        self.say(self.a1, "normal")
        self.feed(RETURN_SECONDS - 2)
        self.assertEqual("a2", self.source)
        self.feed(4)
        self.assertEqual(("a1", []), (self.source, self.pair.why_not_normal()))
        self.assert_copied()
        self.assert_watched(player, since)

    def test_members_that_have_both_lost_their_upstream_are_read_all_the_same(self) -> None:
        self.feed()
        for node in (self.a1, self.a2):
            self.say(node, "down", "upstream: o1 is down")
        self.feed(2)
        self.assertEqual([], self.pair.why_not_normal())
        self.assert_copied()


class MergeTests(FailoverTests):
    """All the same when both are read at once."""

    options: ClassVar[dict] = {"mode": ReadMode.MERGE}

    def test_preferred_member_is_read(self) -> None:
        self.feed()
        self.assertEqual("a1+a2", self.source)
        self.assert_copied()

    def test_hung_member_is_left_within_the_dead_time(self) -> None:
        """No viewer waits for that: the other has brought every byte meanwhile."""
        self.feed()
        player = self.watch()
        since = len(self.sent) - 10
        self.hang(self.at_a1)
        self.feed(0.4)
        self.assert_copied()
        self.feed(4)
        self.assertEqual("a2", self.source)
        self.assert_watched(player, since)

    def test_mended_member_is_returned_to_after_a_while_without_losing_a_byte(self) -> None:
        self.feed()
        self.kill(self.a1, self.at_a1)
        self.feed(2)
        self.at_a1.is_listening = True
        self.feed(8)
        self.assertEqual("a1+a2", self.source)
        self.assert_copied()

    def test_member_that_crashes_every_few_seconds_is_not_returned_to(self) -> None:
        """It is, here, and that costs nobody anything."""
        self.feed()
        for _ in range(4):
            self.kill(self.a1, self.at_a1)
            self.feed(1)
            self.at_a1.is_listening = True
            self.feed(2)
        self.assert_copied()


class CatalogueTests(PairTestCase):
    options: ClassVar[dict] = {"patterns": ("live/*",)}

    def test_only_streams_that_match_are_copied(self) -> None:
        self.feed()
        publish(self.origin.ingest(OTHER).stream, HEADERS + gops(1))
        self.advance(1)
        self.assertIsNotNone(self.a1.hub.get(OTHER))
        self.assertIsNone(self.agg.hub.get(OTHER))

    def test_liveness_of_a_stream_comes_from_above(self) -> None:
        self.feed()
        stream = self.origin.hub.get(NAME)
        for is_live in (True, False, True):
            self.origin.hub.set_live(stream, is_live, "x")
            self.advance(0.2)
            self.assertEqual(is_live, self.agg.hub.get(NAME).is_live)

    def test_liveness_that_was_said_by_one_who_was_not_read_then_is_learnt_later(self) -> None:
        """The member was still being asked for the stream when the other said that it is live."""
        self.feed()
        self.origin.hub.set_live(self.origin.hub.get(NAME), True, "an encoder")
        self.advance(0.1)
        self.pair.replicas[NAME].set_live(False)
        self.assertFalse(self.agg.hub.get(NAME).is_live)
        self.advance(1.1)
        self.assertTrue(self.agg.hub.get(NAME).is_live)

    def test_stream_that_nobody_lists_is_kept_for_a_while_then_forgotten(self) -> None:
        self.feed()
        self.origin._forget(NAME)
        self.advance(2)
        self.assertIsNotNone(self.a1.hub.get(NAME))
        self.assertFalse(self.a1.hub.get(NAME).is_live)
        self.network.advance(FORGET_SECONDS + 10, 1.0)
        self.assertIsNone(self.a1.hub.get(NAME))
        self.network.advance(FORGET_SECONDS + 10, 1.0)
        self.assertIsNone(self.agg.hub.get(NAME))

    def test_stream_over_the_limit_is_not_copied_and_nothing_else_suffers(self) -> None:
        """Said once, and no connection is made for it; it is copied when there is room."""
        self.agg.hub.limits = self.agg.limits.__class__(streams=1)
        self.feed()
        second = StreamName("live", "second")
        publish(self.origin.ingest(second).stream, HEADERS + gops(1))
        with capturedLogs() as events:
            self.feed()
            attempts = self.at_a1.attempts
            self.origin.hub.set_live(self.origin.hub.get(second), True, "x")
            self.feed()
        said = [event for event in events if "is not copied" in (event["log_format"] or "")]
        self.assertEqual((1, 1, attempts), (len(said), len(self.agg.hub), self.at_a1.attempts))
        self.assert_copied()
        self.agg.hub.limits = self.agg.limits
        self.origin.hub.set_live(self.origin.hub.get(second), False, "")
        self.advance(1)
        self.assertIsNotNone(self.agg.hub.get(second))

    def test_stream_that_two_groups_have_is_copied_by_the_first(self) -> None:
        """Which pair carries a stream is the operator's choice; two that do are no conflict."""
        self.feed()
        other = Gatherer(
            "pair b",
            [("a2", self.at_a2)],
            patterns=("*",),
            hub=self.agg.hub,
            maker=self.agg.logs,
            settings=self.agg.upstream_settings,
            counts=Counts(),
        )
        other.start()
        self.feed()
        self.assertEqual({}, other.replicas)
        other.stop()
        self.assert_copied()
