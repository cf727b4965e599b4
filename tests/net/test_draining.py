"""A node drains: who is counted, who leaves, how long a stop waits, and what the neighbours make of it."""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.names import StreamName
from relay.net.draining import Remaining
from relay.net.identity import NodeIdentity
from relay.net.links import ControlLink
from relay.net.proxy import TLV_BALANCER, make_header
from relay.net.replication import ReadMode
from relay.net.rtmp_client import ClientSettings
from relay.rtmp.events import PlayStarted
from relay.testing import MemoryNetwork, publish
from tests.log.model import gops
from tests.net.driving import Player, connect, make_node, stop_node
from tests.net.test_gathering import PairTestCase
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]


class SessionPlayer(Player):
    """A viewer whom a balancer brings."""

    def __init__(self, balancer: str, number: int) -> None:
        super().__init__(play="demo")
        self._header = make_header(None, None, bytes([number] * 16), b"", {TLV_BALANCER: balancer.encode()})

    def connectionMade(self) -> None:
        self.transport.write(self._header)
        super().connectionMade()


class DrainTestCase(SynchronousTestCase):
    """A node with a stream, and a balancer's control connection to it."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network, "agg1")
        self.node.settings = attrs.evolve(self.node.settings, drain_seconds=10.0)
        publish(self.node.ingest(NAME).stream, HEADERS + gops(1))
        identity = NodeIdentity(name="lb1", tier="balancer")
        settings = ClientSettings(identity=identity, limits=self.node.limits, clock=self.network.reactor)
        self.told: list[tuple[str, list[str]]] = []
        self.link = ControlLink("agg1", self.endpoint, settings, lambda link: self.told.append(link.health))
        self.link.start()
        self.network.carry()

    def tearDown(self) -> None:
        self.link.stop()
        self.network.carry()
        if self.node.running:
            stop_node(self.network, self.node)
        self.network.advance(6, step=0.5)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def watch(self, player: Player | None = None) -> Player:
        player = connect(self.network, self.endpoint, player or Player(play="demo"))
        self.assertTrue(player.has(PlayStarted))
        return player

    def leave(self, player: Player) -> None:
        player.transport.abortConnection()
        self.network.carry()


class DrainTests(DrainTestCase):
    def test_readers_are_counted_by_what_becomes_of_them(self) -> None:
        """Sessions of a balancer that is not there can't be moved by it."""
        self.watch(SessionPlayer("lb1", 1))
        self.watch(SessionPlayer("lb1", 2))
        self.watch(SessionPlayer("lb9", 3))
        self.watch()
        self.assertEqual(Remaining(sessions=2, others=2), self.node.drain.remaining())
        self.link.stop()
        self.network.carry()
        self.assertEqual(Remaining(others=4), self.node.drain.remaining())

    def test_neighbours_are_told_that_it_drains_and_that_it_does_not_any_more(self) -> None:
        self.node.drain.begin("a test")
        self.network.carry()
        self.assertEqual(("draining", ["a test"]), self.told[-1])
        self.node.drain.end()
        self.network.carry()
        self.assertEqual(("normal", []), self.told[-1])

    def test_neighbour_that_comes_later_is_told_too(self) -> None:
        self.node.drain.begin("a test")
        self.endpoint.links[0].kill_server()
        self.network.advance(2)
        self.assertEqual(("draining", ["a test"]), self.told[-1])

    def test_check_is_told_that_it_is_down(self) -> None:
        """The contract has three words; the reason says which kind of down."""
        self.node.drain.begin("a test")
        self.assertEqual(("down", ["draining: a test"]), self.node.shown_health())
        self.node.drain.end()
        self.assertEqual(("normal", []), self.node.shown_health())

    def test_node_that_drains_serves_on(self) -> None:
        """New viewers too, if they come all the same."""
        first = self.watch()
        self.node.drain.begin("a test")
        second = self.watch()
        publish(self.node.ingest(NAME).stream, gops(1, start=400))
        self.network.advance(0.2)
        for player in (first, second):
            self.assertEqual(gops(1, start=400), player.media[-len(gops(1)) :])


class StopTests(DrainTestCase):
    def test_stop_waits_for_sessions_and_serves_meanwhile(self) -> None:
        """And the neighbours know that it is to stop."""
        player = self.watch(SessionPlayer("lb1", 1))
        stopping = self.node.stopService()
        self.network.advance(1)
        self.assertNoResult(stopping)
        self.assertEqual(("draining", ["it is stopped"]), self.told[-1])
        publish(self.node.ingest(NAME).stream, gops(1, start=400))
        self.network.advance(0.2)
        self.assertEqual(gops(1, start=400), player.media[-len(gops(1)) :])
        self.leave(player)
        self.network.advance(0.5)
        self.successResultOf(stopping)

    def test_stop_waits_no_longer_than_it_was_told(self) -> None:
        player = self.watch(SessionPlayer("lb1", 1))
        stopping = self.node.stopService()
        self.network.advance(9.9)
        self.assertNoResult(stopping)
        self.network.advance(0.5)
        self.successResultOf(stopping)
        self.assertEqual(1, len(player.ends))

    def test_stop_does_not_wait_for_those_who_can_t_be_moved(self) -> None:
        """Viewers that came directly, and those of a balancer that is gone."""
        self.watch()
        self.watch(SessionPlayer("lb9", 1))
        stopping = self.node.stopService()
        self.network.advance(0.5)
        self.successResultOf(stopping)

    def test_stop_waits_no_more_when_the_balancer_goes(self) -> None:
        """As when a whole cluster is stopped: each tier goes as soon as the one below has gone."""
        self.watch(SessionPlayer("lb1", 1))
        stopping = self.node.stopService()
        self.network.advance(1)
        self.assertNoResult(stopping)
        self.link.stop()
        self.network.advance(0.5)
        self.successResultOf(stopping)

    def test_stop_without_waiting_is_at_once(self) -> None:
        self.node.settings = attrs.evolve(self.node.settings, drain_seconds=0.0)
        self.watch(SessionPlayer("lb1", 1))
        stopping = self.node.stopService()
        self.network.advance(0.1)
        self.successResultOf(stopping)
        self.assertNotIn("draining", [state for state, _ in self.told])

    def test_stop_waits_no_more_when_it_is_to_hurry(self) -> None:
        """As for a second signal."""
        self.watch(SessionPlayer("lb1", 1))
        stopping = self.node.stopService()
        self.network.advance(1)
        self.node.drain.hurry()
        self.network.advance(0.5)
        self.successResultOf(stopping)

    def test_stop_can_t_be_called_off(self) -> None:
        self.watch(SessionPlayer("lb1", 1))
        stopping = self.node.stopService()
        self.node.drain.end()
        self.assertEqual("it is stopped", self.node.drain.why)
        self.network.advance(11, step=0.5)
        self.successResultOf(stopping)


class PairTests(PairTestCase):
    """A member of a pair drains: the aggregator reads on at the other, from the next byte."""

    def test_member_that_drains_is_left_while_it_serves(self) -> None:
        self.feed()
        player, since = self.watch(), len(self.sent) - 10
        self.assertEqual(1, self.a1.drain.remaining().copies)
        self.a1.drain.begin("a test")
        self.feed()
        self.assertEqual(("a2", Remaining()), (self.source, self.a1.drain.remaining()))
        self.assertEqual(["pair: a1 drains (a test)"], self.pair.why_not_normal())
        self.assert_copied()
        self.assert_watched(player, since)

    def test_member_that_drains_no_more_is_returned_to(self) -> None:
        self.feed()
        self.a1.drain.begin("a test")
        self.feed()
        self.a1.drain.end()
        self.feed(8)
        self.assertEqual(("a1", []), (self.source, self.pair.why_not_normal()))
        self.assert_copied()

    def test_backup_that_drains_changes_nothing(self) -> None:
        self.feed()
        self.a2.drain.begin("a test")
        self.feed()
        self.assertEqual(("a1", []), (self.source, self.pair.why_not_normal()))

    def test_members_that_both_drain_are_read_all_the_same(self) -> None:
        """Nobody else is there."""
        self.feed()
        self.a1.drain.begin("a test")
        self.a2.drain.begin("a test")
        self.feed(2)
        self.assert_copied()
        self.assertEqual(1, self.a1.drain.remaining().copies + self.a2.drain.remaining().copies)

    def test_member_that_drains_is_read_again_when_the_other_dies(self) -> None:
        self.feed()
        player, since = self.watch(), len(self.sent) - 10
        self.a1.drain.begin("a test")
        self.feed()
        self.kill(self.a2, self.at_a2)
        self.feed(2)
        self.assertEqual("a1", self.source)
        self.assert_copied()
        self.assert_watched(player, since)


class MergedPairTests(PairTestCase):
    """The same when both are read at once."""

    options = {"mode": ReadMode.MERGE}

    def test_member_that_drains_is_left_and_not_asked_again(self) -> None:
        self.feed()
        self.assertEqual([1, 1], [node.drain.remaining().copies for node in (self.a1, self.a2)])
        self.a1.drain.begin("a test")
        for _ in range(5):
            self.feed(2)
            self.assertEqual(Remaining(), self.a1.drain.remaining())
        self.assert_copied()
        self.a1.drain.end()
        self.feed(2)
        self.assertEqual([1, 1], [node.drain.remaining().copies for node in (self.a1, self.a2)])
        self.assert_copied()
