"""The aggregator: its options and the rule by which it is normal."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.log.options import LogOptions
from relay.names import StreamName
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.net.replication import ReadMode
from relay.testing import MemoryNetwork, publish
from relay.tiers.aggregator import Aggregator
from tests.log.model import gops
from tests.net.driving import Player, connect, make_node, stop_node
from tests.tiers.test_options import GOOD, TierTestCase
from tests.wire import aac_header, avc_header, metadata

HEADERS = [metadata(), avc_header(), aac_header()]


class OptionTests(TierTestCase):
    def test_pairs_and_their_members_keep_their_order(self) -> None:
        arguments = ["--pair", "a=tcp:h:1,tcp:h:2", "--pair", "b=tcp:h:3,tcp:h:4"]
        options = self.parse("aggregator", ["--name", "agg1", *arguments])
        self.assertEqual([("a", ["tcp:h:1", "tcp:h:2"]), ("b", ["tcp:h:3", "tcp:h:4"])], options["pairs"])

    def test_bad_values_are_refused(self) -> None:
        for arguments, *words in (
            ([], "at least one --pair"),
            (["--pair", "tcp:h:1,tcp:h:2"], "--pair", "NAME=ENDPOINT,ENDPOINT"),
            (["--pair", "=tcp:h:1"], "--pair"),
            (["--pair", "a=tcp:h:1,"], "--pair"),
            (["--pair", "a=tcp:h:1", "--pair", "a=tcp:h:2"], "a is given twice"),
            (["--pair", "a=tcp:h:1", "--read", "both"], "--read 'both'", "active-standby, merge"),
        ):
            self.assert_refused("aggregator", ["--name", "agg1", *arguments], *words)
        self.assert_refused("aggregator", ["--pair", "c=tcp:h:x"], "--pair c", "is no endpoint", is_built=True)

    def test_options_of_every_node_are_taken(self) -> None:
        self.assertEqual("tcp:1935", self.parse("aggregator", GOOD["aggregator"])["listen"])


class AggregatorTests(SynchronousTestCase):
    """Two pairs, one aggregator, in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.members = {name: make_node(self.network, name) for name in ("a1", "a2", "b1", "b2")}
        pairs = [(pair, [(f"{pair}{i}", self.members[f"{pair}{i}"][1]) for i in (1, 2)]) for pair in "ab"]
        settings = NodeSettings(identity=NodeIdentity(name="agg1", tier="aggregator"))
        self.node = Aggregator(settings, self.network.reactor, pairs, LogOptions(), ReadMode.ACTIVE_STANDBY)
        self.node.startService()
        self.endpoint = self.network.endpoint(self.node.ports)
        self.network.advance(0.5)

    def tearDown(self) -> None:
        stop_node(self.network, self.node)
        for node, _ in self.members.values():
            stop_node(self.network, node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def kill(self, name: str) -> None:
        _, endpoint = self.members[name]
        endpoint.is_listening = False
        for link in endpoint.open_links:
            link.kill_server()
        self.network.carry()

    def mend(self, name: str) -> None:
        self.members[name][1].is_listening = True
        self.network.advance(2)

    def test_normal_while_every_preferred_distributor_runs(self) -> None:
        self.assertEqual(("normal", []), self.node.health())
        self.kill("b2")
        self.assertEqual(("normal", []), self.node.health())

    def test_degraded_while_a_backup_serves(self) -> None:
        self.kill("b1")
        state, (why,) = self.node.health()
        self.assertEqual("degraded", state)
        self.assertIn("pair b: b1 is down", why)
        self.mend("b1")
        self.assertEqual(("normal", []), self.node.health())

    def test_down_when_a_pair_is_lost(self) -> None:
        self.kill("b1")
        self.kill("b2")
        self.assertEqual("down", self.node.health()[0])
        self.mend("b2")
        self.assertEqual("degraded", self.node.health()[0])

    def test_streams_of_all_pairs_are_served(self) -> None:
        for pair, name in (("a1", "one"), ("b1", "two")):
            publish(self.members[pair][0].ingest(StreamName("live", name)).stream, HEADERS + gops(1))
        self.network.advance(0.5)
        for name in ("one", "two"):
            self.assertEqual(gops(1), connect(self.network, self.endpoint, Player(play=name)).media[3:])

    def test_encoder_is_told_to_publish_elsewhere(self) -> None:
        encoder = connect(self.network, self.endpoint, Player(publish="demo"))
        self.assertEqual(["NetStream.Publish.Denied"], encoder.codes)
