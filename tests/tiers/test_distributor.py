"""The distributor: its options, its health, and its store across a restart."""

from __future__ import annotations

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from relay.names import StreamName
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.testing import MemoryNetwork, publish
from relay.tiers import distributor
from relay.tiers.distributor import Distributor, Options
from tests.log.model import contents, gops
from tests.net.driving import log_bytes, make_node, stop_node
from tests.net.test_discovery import FixedResolver, a, srv
from tests.net.test_pulling import Foreign
from tests.tiers.test_options import GOOD, TierTestCase
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]


class OptionTests(TierTestCase):
    def test_upstreams_keep_their_order(self) -> None:
        options = self.parse("distributor", ["--name", "a1", "--upstream", "tcp:h:1", "--upstream", "tcp:h:2"])
        self.assertEqual(["tcp:h:1", "tcp:h:2"], options["upstreams"])

    def test_bad_values_are_refused(self) -> None:
        self.assert_refused("distributor", ["--name", "a1"], "at least one --upstream")
        self.assert_refused("distributor", [*GOOD["distributor"], "--streams", "../x"], "--streams ../x")
        self.assert_refused("distributor", ["--upstream", "tcp:h:x"], "--upstream", "is no endpoint", is_built=True)

    def test_patterns_with_wildcards_are_not_names(self) -> None:
        options = self.parse("distributor", [*GOOD["distributor"], "--streams", "live/*", "--streams", "a/b"])
        self.assertEqual(["live/*", "a/b"], options["streams"])


class DistributorTests(SynchronousTestCase):
    """A running distributor in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.origin, self.at_origin = make_node(self.network)
        self.directory = self.mktemp()
        self.node = None

    def tearDown(self) -> None:
        stop_node(self.network, self.node)
        stop_node(self.network, self.origin)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def start(self, patterns=(), upstreams=None) -> None:
        if self.node is not None:
            stop_node(self.network, self.node)
        options = Options()
        options.parseOptions(["--name", "a1", "--store", self.directory, "--upstream", "tcp:h:1"])
        settings = NodeSettings(identity=NodeIdentity(name="a1", tier="distributor"))
        upstreams = upstreams or [("o1", self.at_origin)]
        self.node = Distributor(settings, self.network.reactor, upstreams, patterns, options)
        self.node.startService()
        self.network.advance(0.5)

    def feed(self, messages, name=NAME) -> None:
        publish(self.origin.ingest(name).stream, messages)
        self.network.carry()

    def copied(self, name=NAME) -> bytes:
        return contents(self.node.hub.get(name).log.rtmp)

    def test_every_stream_is_copied_and_stored(self) -> None:
        """From its first byte, if it is young when the copy begins."""
        self.start()
        self.feed(HEADERS + gops(2)[:1])
        self.feed(gops(2)[1:])
        self.assertEqual(log_bytes(HEADERS + gops(2)), self.copied())
        self.assertEqual([NAME], self.node.logs.names())

    def test_restarted_distributor_reads_on_from_its_end(self) -> None:
        self.start()
        self.feed(HEADERS + gops(2)[:1])
        self.feed(gops(2)[1:])
        self.start()
        self.feed(gops(1, start=800))
        self.assertEqual(log_bytes(HEADERS + gops(3)), self.copied())
        self.assertEqual(len(log_bytes(gops(1, start=800))), self.node.counts.bytes_copied)
        self.assertEqual(0, self.node.counts.bytes_missing)

    def test_only_streams_that_match_are_copied(self) -> None:
        self.start(["news/*"])
        self.feed(HEADERS + gops(1))
        self.feed(HEADERS + gops(1), StreamName("news", "one"))
        self.assertEqual(["news/one"], [str(stream.name) for stream in self.node.hub])

    def test_health_is_down_without_an_upstream(self) -> None:
        self.start()
        self.assertEqual(("normal", []), self.node.health())
        self.at_origin.is_listening = False
        for link in self.at_origin.open_links:
            link.kill_server()
        self.network.carry()
        state, (why,) = self.node.health()
        self.assertEqual("down", state)
        self.assertIn("o1 is down", why)

    def test_health_is_degraded_without_the_preferred_upstream(self) -> None:
        second, at_second = make_node(self.network, "o2")
        self.start(upstreams=[("o1", self.at_origin), ("o2", at_second)])
        self.at_origin.is_listening = False
        for link in self.at_origin.open_links:
            link.kill_server()
        self.network.carry()
        self.assertEqual("degraded", self.node.health()[0])
        stop_node(self.network, self.node)
        stop_node(self.network, second)
        self.start()

    def test_members_by_dns_are_read_in_the_order_of_the_zone(self) -> None:
        """Also when only a weight changes: nobody is lost, and the preferred one is read after a while."""
        second, at_second = make_node(self.network, "o2")
        self.addCleanup(stop_node, self.network, second)
        endpoints = {"h1": self.at_origin, "h2": at_second, "h3": at_second}
        self.patch(
            distributor, "client_endpoint", lambda clock, option, text: endpoints[f"h{text.partition(':port')[0][-1]}"]
        )
        options = Options()
        options.parseOptions(["--name", "a1", "--store", self.directory, "--upstream", "srv:_origin._tcp.x"])
        settings = NodeSettings(identity=NodeIdentity(name="a1", tier="distributor"))
        resolver = FixedResolver()

        def zone(*records: tuple[str, int]) -> None:
            addresses = [a(host, f"10.0.0.{host[1:]}") for host in endpoints]
            resolver.answer = ([srv(host, weight=weight, ttl=1) for host, weight in records], [], addresses)

        def hosts() -> list[str]:
            return [link.name.partition(":")[0] for link in self.node.gatherer.links]

        self.node = Distributor(settings, self.network.reactor, [], [], options)
        self.node.watch("_origin._tcp.x", resolver)
        zone(("h1", 10), ("h2", 5))
        self.node.startService()
        self.network.advance(0.5)
        self.assertEqual(["h1", "h2"], hosts())
        zone(("h1", 10), ("h2", 20), ("h3", 15))
        self.network.advance(1)
        self.assertEqual(["h2", "h3", "h1"], hosts())
        self.assertEqual(hosts(), [upstream.name.partition(":")[0] for upstream in self.node.gatherer.upstreams])
        self.assertEqual(("normal", []), self.node.health())
        zone(("h1", 10))
        self.network.advance(2)
        self.assertEqual((["h1"], 0), (hosts(), self.node.watcher.failures))

    def test_plain_rtmp_server_is_asked_for_the_streams_that_were_named(self) -> None:
        """It has no catalogue; positions begin here."""
        servers = []

        def make():
            servers.append(Foreign())
            return servers[-1]

        foreign = self.network.endpoint(Factory.forProtocol(make))
        self.start(["live/demo", "live/*"], [("foreign", foreign)])
        self.network.advance(1)
        (server,) = [server for server in servers if server.asked]
        self.assertEqual(("live", "demo"), server.asked)
        server.send(HEADERS + gops(1))
        self.network.carry()
        self.assertEqual(log_bytes(HEADERS + gops(1)), self.copied())
        self.assertNotEqual("down", self.node.health()[0])
        for pull in self.node.gatherer.pulls.values():
            pull.stop()
        self.network.carry()
