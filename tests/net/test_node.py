"""What all media nodes do: check each second, say how they are, stop in order."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relay.names import StreamName
from relay.net.ingest import PublishRefused
from relay.net.node import Node
from relay.net.rtmp_client import NODE_COMMAND_BYTES
from relay.rtmp.events import PlayStarted
from relay.testing import MemoryNetwork, publish
from tests.log.model import gops
from tests.net.driving import Player, connect, make_node, stop_node
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]


class NodeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network)

    def tearDown(self) -> None:
        if self.node.running:
            stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def watch(self) -> Player:
        publish(self.node.ingest(NAME).stream, HEADERS + gops(1))
        player = connect(self.network, self.endpoint, Player(play="demo"))
        self.assertTrue(player.has(PlayStarted))
        return player

    def test_slow_viewers_are_looked_for_each_second(self) -> None:
        """A viewer whose cable is pulled goes when it has taken no byte for viewer_close_seconds."""
        self.watch()
        self.endpoint.links[0].is_cut = True
        stream = self.node.hub.get(NAME)
        publish(stream, gops(2, start=400, size=50_000))
        self.network.advance(self.node.limits.viewer_close_seconds + 3, step=0.5)
        self.assertEqual(0, self.node.viewers)
        self.network.advance(self.node.limits.close_seconds + 1, step=0.5)
        self.assertEqual(1, self.node.outcomes["rtmp_evicted_slow"])
        self.endpoint.links[0].is_cut = False

    def test_check_that_fails_once_is_made_again(self) -> None:
        """An error in one second's check is logged; the next second has its own."""
        calls = []

        def health():
            calls.append(None)
            if len(calls) == 1:
                raise ZeroDivisionError
            return "normal", []

        self.node.health = health
        self.network.advance(3.5, step=0.5)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertGreaterEqual(len(calls), 3)

    def test_only_origins_take_encoders(self) -> None:
        error = self.assertRaises(PublishRefused, Node.publish, self.node, NAME, None)
        self.assertEqual("NetStream.Publish.Denied", error.code)

    def test_nodes_may_say_more_in_one_command_than_viewers(self) -> None:
        limits = self.node.upstream_settings.limits
        self.assertEqual(NODE_COMMAND_BYTES, limits.command_bytes)
        self.assertLess(self.node.limits.command_bytes, NODE_COMMAND_BYTES)

    def test_stop_waits_for_what_the_tier_has_to_end(self) -> None:
        player = self.watch()
        first: Deferred[None] = Deferred()
        self.node.stop_reading = lambda: [first]
        stopping = self.node.stopService()
        self.network.advance(10, step=0.5)
        self.assertNoResult(stopping)
        self.assertEqual([], player.ends)
        first.callback(None)
        self.network.advance(1)
        self.successResultOf(stopping)
        self.assertEqual(1, len(player.ends))

    def test_stop_is_not_kept_by_a_failure_of_what_it_waits_for(self) -> None:
        first: Deferred[None] = Deferred()
        self.node.stop_reading = lambda: [first]
        stopping = self.node.stopService()
        first.errback(ZeroDivisionError())
        self.network.advance(1)
        self.successResultOf(stopping)

    def test_stop_is_not_kept_by_a_peer_that_takes_nothing(self) -> None:
        self.watch()
        self.endpoint.links[0].is_cut = True
        publish(self.node.hub.get(NAME), gops(1, start=400, size=50_000))
        stop_node(self.network, self.node)
        self.assertEqual({}, self.node.ports.connections)
        self.endpoint.links[0].is_cut = False
        self.network.carry()
