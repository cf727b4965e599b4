"""The balancer: what it makes of the words of its aggregators."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.net.backends import Policy
from relay.net.balancing import BalancingOptions
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.testing import MemoryNetwork
from relay.tiers.balancer import Balancer
from relay.tiers.views import BalancerView
from tests.net.driving import make_node, stop_node


class BalancerTests(SynchronousTestCase):
    """Two aggregators, one balancer, in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.aggregators = {name: make_node(self.network, name) for name in ("agg1", "agg2")}
        settings = NodeSettings(identity=NodeIdentity(name="lb1", tier="balancer"))
        endpoints = [(name, endpoint) for name, (_, endpoint) in self.aggregators.items()]
        self.node = Balancer(settings, self.network.reactor, endpoints, Policy.ANY, BalancingOptions())
        self.view = BalancerView(self.node.factory, "lb1")
        self.lost: list[str] = []
        self.patch(self.node.factory, "aggregator_lost", self.lost.append)

    def tearDown(self) -> None:
        stopping = self.node.stopService()
        self.network.carry()
        self.successResultOf(stopping)
        for node, _ in self.aggregators.values():
            stop_node(self.network, node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def kill(self, name: str) -> None:
        _, endpoint = self.aggregators[name]
        endpoint.is_listening = False
        for link in endpoint.open_links:
            link.kill_server()
        self.network.carry()

    def say(self, name: str, state: str, why: list[str]) -> None:
        self.aggregators[name][0].control.set_health(state, why)
        self.network.carry()

    def test_aggregators_that_were_never_reached_serve_nobody(self) -> None:
        self.assertEqual("down", self.view.health().state)
        for _, endpoint in self.aggregators.values():
            endpoint.is_listening = False
        self.node.startService()
        self.network.advance(5)
        self.assertEqual("down", self.view.health().state)
        self.assertEqual(2, len(self.view.health().why))

    def test_normal_once_all_are_reached(self) -> None:
        self.node.startService()
        self.network.carry()
        self.assertEqual(("normal", ()), (self.view.health().state, self.view.health().why))

    def test_lost_aggregator_s_sessions_move_once(self) -> None:
        self.node.startService()
        self.network.carry()
        self.kill("agg1")
        self.network.advance(5)
        self.assertEqual((["agg1"], "degraded"), (self.lost, self.view.health().state))

    def test_sessions_of_an_aggregator_that_dies_after_it_said_it_is_down_move_too(self) -> None:
        """It serves what it has until then."""
        self.node.startService()
        self.network.carry()
        self.say("agg1", "down", ["pair a is lost"])
        self.assertEqual([], self.lost)
        self.kill("agg1")
        self.assertEqual(["agg1"], self.lost)
