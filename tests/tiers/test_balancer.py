"""The balancer: what it makes of the words of its aggregators."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.net.backends import BackendState, Policy, ReturnRule
from relay.net.balancing import BalancingOptions
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.testing import MemoryNetwork
from relay.tiers.balancer import Balancer, make_balancer
from relay.tiers.views import BalancerView
from tests.net.driving import make_node, stop_node
from tests.net.test_discovery import FixedResolver, a, srv
from tests.tiers.test_options import GOOD, TierTestCase


class BalancerTestCase(SynchronousTestCase):
    """Two aggregators, one balancer, in memory."""

    rule = ReturnRule()

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.aggregators = {name: make_node(self.network, name) for name in ("agg1", "agg2")}
        settings = NodeSettings(identity=NodeIdentity(name="lb1", tier="balancer"))
        endpoints = [(name, endpoint) for name, (_, endpoint) in self.aggregators.items()]
        self.node = Balancer(settings, self.network.reactor, endpoints, Policy.ANY, BalancingOptions(), self.rule)
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


class BalancerTests(BalancerTestCase):
    """Everything counts at once."""

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

    def test_aggregator_that_drains_gets_nobody_until_it_drains_no_more(self) -> None:
        self.node.startService()
        self.network.carry()
        node = self.aggregators["agg1"][0]
        node.drain.begin("a test")
        self.network.carry()
        self.assertIs(BackendState.DRAINING, self.node.pool.backends["agg1"].state)
        self.assertEqual(["agg1 is draining: a test"], list(self.view.health().why))
        self.assertEqual(["it drains: a test", ""], [link.why for link in self.view.links()])
        self.assertEqual([], self.lost)
        node.drain.end()
        self.network.carry()
        self.assertIs(BackendState.UP, self.node.pool.backends["agg1"].state)

    def test_balancer_itself_is_not_drained(self) -> None:
        self.assertIsNone(self.view.drain)


class ReturnTests(BalancerTestCase):
    """With a rise time."""

    rule = ReturnRule(rise_seconds=2.0)

    def test_aggregator_that_is_back_is_shown_to_be_rising(self) -> None:
        self.node.startService()
        self.network.advance(3)
        self.kill("agg1")
        self.aggregators["agg1"][1].is_listening = True
        self.network.advance(1)
        self.assertRegex(self.view.links()[0].why, r"^it gets viewers again if it stays up for [01]\.\d s more$")
        self.network.advance(2)
        self.assertEqual("", self.view.links()[0].why)


class DiscoveryTests(BalancerTestCase):
    """Members by DNS."""

    def setUp(self) -> None:
        super().setUp()
        self.resolver = FixedResolver()

    def watch(self, *services: str) -> None:
        for service in services:
            self.node.watch(service, self.resolver, lambda _: self.aggregators["agg1"][1])
        self.node.startService()
        self.network.carry()

    def zone(self, *records: tuple[int, int], service: str = "") -> None:
        """(host number, weight)."""
        addresses = [a(f"h{number}", f"10.0.0.{number}") for number in range(9)]
        answer = [srv(f"h{number}", weight=weight, ttl=1) for number, weight in records], [], addresses
        self.resolver.answers[service] = answer

    def states(self) -> dict[str, str]:
        """Of those that DNS has told of."""
        found = self.node.pool.backends.items()
        return {name.partition(":")[0]: backend.state.value for name, backend in found if ":" in name}

    def test_one_edit_of_the_zone_changes_a_weight_and_two_members(self) -> None:
        self.zone((1, 10), (2, 10))
        self.watch("_relay._tcp.x")
        self.assertEqual({"h1": "up", "h2": "up"}, self.states())
        self.node.pool.backends["h2:1935/10.0.0.2"].viewers = 1
        self.zone((1, 20), (3, 10))
        self.network.advance(1.1)
        self.assertEqual({"h1": "up", "h2": "draining", "h3": "up"}, self.states())
        self.node.pool.backends["h2:1935/10.0.0.2"].viewers = 0
        self.network.advance(1)
        self.assertEqual({"h1": "up", "h3": "up"}, self.states())
        self.assertEqual(list(self.node.pool.backends), [link.name for link in self.node.links])

    def test_member_of_two_services_stays_until_both_let_it_go(self) -> None:
        self.zone((1, 10), (2, 10), service="_one._tcp.x")
        self.zone((1, 10), (3, 10), service="_two._tcp.x")
        self.watch("_one._tcp.x", "_two._tcp.x")
        self.assertEqual({"h1": "up", "h2": "up", "h3": "up"}, self.states())
        self.zone((2, 10), service="_one._tcp.x")
        self.network.advance(2)
        self.assertEqual({"h1": "up", "h2": "up", "h3": "up"}, self.states())
        self.zone((3, 10), service="_two._tcp.x")
        self.network.advance(2)
        self.assertEqual({"h2": "up", "h3": "up"}, self.states())
        self.zone((1, 10), (3, 10), service="_two._tcp.x")
        self.network.advance(2)
        self.assertEqual({"h1": "up", "h2": "up", "h3": "up"}, self.states())
        self.assertEqual([0, 0], [watcher.failures for watcher in self.node.watchers])

    def test_member_that_leaves_and_comes_back_before_its_viewers_are_gone_stays(self) -> None:
        self.zone((1, 10), (2, 10))
        self.watch("_relay._tcp.x")
        self.node.pool.backends["h1:1935/10.0.0.1"].viewers = 1
        self.zone((2, 10))
        self.network.advance(1.1)
        self.assertEqual({"h1": "draining", "h2": "up"}, self.states())
        self.zone((1, 10), (2, 10))
        self.network.advance(1.1)
        self.assertEqual({"h1": "up", "h2": "up"}, self.states())
        self.node.pool.backends["h1:1935/10.0.0.1"].viewers = 0
        self.network.advance(1.1)
        self.assertEqual({"h1": "up", "h2": "up"}, self.states())

    def test_aggregator_that_the_operator_names_stays(self) -> None:
        """Called as a member is, by chance."""
        _, endpoint = self.aggregators["agg2"]
        settings = NodeSettings(identity=NodeIdentity(name="lb1", tier="balancer"))
        name = "h1:1935/10.0.0.1"
        self.node = Balancer(settings, self.network.reactor, [(name, endpoint)], Policy.ANY, BalancingOptions())
        self.zone((1, 10), (2, 10))
        self.watch("_relay._tcp.x")
        self.zone((2, 10))
        self.network.advance(2)
        self.assertEqual({"h1": "up", "h2": "up"}, self.states())
        self.assertIs(endpoint, self.node.pool.backends[name].endpoint)


class OptionTests(TierTestCase):
    def test_rule_of_return_and_of_the_pin_reach_the_pool(self) -> None:
        rule = ["--rise-seconds", "0.5", "--slow-start-seconds", "3"]
        pin = ["--pin", "agg1", "--when-pinned-down", "fall-back"]
        balancer = make_balancer(self.parse("balancer", [*GOOD["balancer"], *rule, *pin]), self.reactor)
        self.assertEqual(ReturnRule(rise_seconds=0.5, slow_start_seconds=3.0), balancer.pool.rule)
        self.assertTrue(balancer.pool.falls_back)

    def test_viewers_of_a_pinned_aggregator_are_held_by_default(self) -> None:
        balancer = make_balancer(self.parse("balancer", GOOD["balancer"]), self.reactor)
        self.assertFalse(balancer.pool.falls_back)
        self.assertEqual(ReturnRule(rise_seconds=1.0, slow_start_seconds=10.0), balancer.pool.rule)

    def test_bytes_for_viewers_are_gathered_if_the_operator_wants_that(self) -> None:
        for arguments, seconds in (([], 0), (["--merge-ms", "150"], 0.15)):
            balancer = make_balancer(self.parse("balancer", [*GOOD["balancer"], *arguments]), self.reactor)
            self.assertEqual(seconds, balancer.factory.options.merge_seconds)
            self.assertEqual(seconds, balancer.factory.splicer.merge_seconds)

    def test_bad_values_are_refused(self) -> None:
        for arguments, *words in (
            (["--when-pinned-down", "panic"], "--when-pinned-down 'panic'", "hold, fall-back"),
            (["--rise-seconds", "-1"], "--rise-seconds -1"),
            (["--slow-start-seconds", "soon"], "--slow-start-seconds 'soon'"),
            (["--pin", "agg9"], "--pin 'agg9'"),
            (["--merge-ms", "-5"], "--merge-ms -5"),
        ):
            self.assert_refused("balancer", [*GOOD["balancer"], *arguments], *words)
