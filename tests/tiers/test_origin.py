"""The origin: its options, what it does at its start, and what it does when copies are ahead of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError
from relay.log.options import LogOptions
from relay.names import StreamName
from relay.net.catalogue import CatalogueEntry
from relay.net.identity import NodeIdentity
from relay.net.ingest import SecondPublisher
from relay.net.node import NodeSettings
from relay.net.storing import StoreSettings
from relay.rtmp.events import PublishStarted
from relay.testing import MemoryNetwork, publish
from relay.tiers.origin import Origin, make_origin
from tests.log.model import contents, gops
from tests.net.driving import Player, connect, log_bytes, stop_node
from tests.tiers.test_options import TierTestCase
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]


class OptionTests(TierTestCase):
    def test_rule_for_publishers(self) -> None:
        for policy in SecondPublisher:
            arguments = ["--name", "o1", "--second-publisher", policy.value, "--takeover-seconds", "1.5"]
            origin = make_origin(self.parse("origin", [*arguments, "--end-seconds", "7"]), self.reactor)
            settings = origin._ingest_settings
            self.assertEqual((policy, 1.5, 7.0), (settings.policy, settings.takeover_seconds, settings.end_seconds))

    def test_pulls(self) -> None:
        options = self.parse(
            "origin", ["--name", "o1", "--pull", "live/a=rtmp://h/x/y", "--pull", "live/b=rtmps://h:1/x/y/z?k"]
        )
        self.assertEqual(["live/a", "live/b"], [str(name) for name, _ in options["pulls"]])
        self.assertEqual(["rtmp://h:1935", "rtmps://h:1"], [url.server for _, url in options["pulls"]])

    def test_bad_values_are_refused(self) -> None:
        for arguments, *words in (
            (["--second-publisher", "both"], "'both'", "refuse, standby, replace"),
            (["--pull", "rtmp://h/x/y"], "--pull", "APP/NAME=rtmp://HOST/APP/NAME"),
            (["--pull", "live=rtmp://h/x/y"], "--pull live", "'live' is not APP/NAME"),
            (["--pull", "live/../x=rtmp://h/x/y"], "--pull"),
            (["--pull", "live/demo=http://h/x/y"], "--pull live/demo"),
            (["--takeover-seconds", "0"], "--takeover-seconds 0"),
            (["--end-seconds", "never"], "--end-seconds 'never'"),
        ):
            self.assert_refused("origin", ["--name", "o1", *arguments], *words)

    def test_stream_key_of_a_bad_pull_is_not_repeated(self) -> None:
        self.assert_refused("origin", ["--name", "o1", "--pull", "li ve/demo=rtmp://h/x/s3cret"], "--pull")
        self.assertNotIn("s3cret", self.stderr.getvalue())

    def test_store_that_another_node_has_is_refused(self) -> None:
        directory = self.mktemp()
        options = ["--name", "o1", "--store", directory]
        first = make_origin(self.parse("origin", options), self.reactor)
        self.addCleanup(first.logs.close)
        error = self.assertRaises(ConfigError, make_origin, self.parse("origin", options), self.reactor)
        self.assertNotIn("\n", str(error))


class OriginTestCase(SynchronousTestCase):
    """A running origin in memory."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.directory = self.mktemp()
        self.origin = None
        self.start()

    def tearDown(self) -> None:
        stop_node(self.network, self.origin)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def start(self) -> None:
        if self.origin is not None:
            stop_node(self.network, self.origin)
        settings = NodeSettings(identity=NodeIdentity(name="o1", tier="origin"))
        store = StoreSettings(directory=self.directory, keep=LogOptions(keep_ms=3_600_000))
        self.origin = Origin(settings, self.network.reactor, store)
        self.origin.startService()
        self.endpoint = self.network.endpoint(self.origin.ports)

    def publish(self, messages) -> Player:
        encoder = connect(self.network, self.endpoint, Player(publish="demo"))
        encoder.send(messages)
        self.network.carry()
        return encoder

    @property
    def log(self):
        return self.origin.hub.get(NAME).log


class OriginTests(OriginTestCase):
    """Its start, and copies that are ahead of it."""

    def test_restarted_origin_lists_what_it_has_before_anybody_publishes(self) -> None:
        """So that distributors go on asking it, and viewers find the stream."""
        self.publish(HEADERS + gops(2))
        epoch = self.log.epoch
        self.start()
        self.assertEqual((epoch, log_bytes(HEADERS + gops(2))), (self.log.epoch, contents(self.log.rtmp)))
        self.assertTrue(connect(self.network, self.endpoint, Player(play="demo")).media)

    def test_broadcast_whose_publisher_does_not_come_back_after_a_restart_is_over(self) -> None:
        """Viewers at the tiers below have waited as long as for one that left."""
        self.publish(HEADERS + gops(2))
        self.start()
        viewer = connect(self.network, self.endpoint, Player(play="demo"))
        self.network.advance(29)
        self.assertEqual([], viewer.ends)
        self.network.advance(2)
        self.assertEqual((1, True), (len(viewer.ends), self.log.is_finished))

    def test_copy_that_is_ahead_makes_a_new_epoch_begin(self) -> None:
        """I1: offsets that were used and lost are never used again with other bytes."""
        self.publish(HEADERS + gops(1))
        old = self.log
        node = {"relayNode": "a1", "relayTier": "distributor"}
        ask = f"demo?epoch={old.epoch}&offset={old.end + 1000}"
        copy = connect(self.network, self.endpoint, Player(play=ask, properties=node))
        self.assertGreater(self.log.epoch, old.epoch)
        self.assertIs(self.log, old.successor)
        self.assertGreaterEqual(self.log.end_time_ms, old.end_time_ms)
        copy.transport.loseConnection()
        self.network.carry()

    def test_time_that_copies_report_is_where_a_lost_stream_goes_on(self) -> None:
        entry = CatalogueEntry(name=NAME, epoch=5, start=0, end=9, time_ms=500_000, is_live=True)
        self.origin.control.on_report(entry)
        self.publish(HEADERS + gops(1))
        self.assertGreater(self.log.end_time_ms, 500_000)

    def test_copy_of_another_epoch_that_is_ahead_in_time_renews_a_stream(self) -> None:
        """The publisher was back before the copies were: what they have of the lost epoch still goes before ours."""
        self.publish(HEADERS + gops(1))
        epoch = self.log.epoch
        entry = CatalogueEntry(name=NAME, epoch=5, start=0, end=9, time_ms=500_000, is_live=True)
        self.origin.control.on_report(entry)
        self.assertGreater(self.log.epoch, epoch)
        self.assertGreaterEqual(self.log.end_time_ms, 500_000)

    def test_health_is_normal_while_the_store_takes_bytes(self) -> None:
        self.publish(HEADERS + gops(1))
        self.assertEqual(("normal", []), self.origin.health())

    def test_health_is_degraded_when_the_store_takes_none(self) -> None:
        """FAULTS row 18: the broadcast goes on, and the operator is told."""
        self.publish(HEADERS + gops(1))
        self.log._storage.is_storing = False
        state, (why,) = self.origin.health()
        self.assertEqual("degraded", state)
        self.assertIn("live/demo", why)

    def test_embedded_origin_can_be_fed_without_a_connection(self) -> None:
        publish(self.origin.ingest(NAME).stream, HEADERS + gops(1))
        self.assertTrue(connect(self.network, self.endpoint, Player(play="demo")).media)


class DrainTests(OriginTestCase):
    """No new broadcast; those that are here go on to their end."""

    def test_new_broadcast_is_refused(self) -> None:
        self.origin.drain.begin("a test")
        self.assertEqual(["NetStream.Publish.Denied"], self.publish([]).codes)
        self.origin.drain.end()
        self.assertTrue(self.publish(HEADERS).has(PublishStarted))

    def test_publisher_of_a_broadcast_that_goes_on_may_come_back(self) -> None:
        """Its stream is here and nowhere else."""
        encoder = self.publish(HEADERS + gops(1))
        self.origin.drain.begin("a test")
        self.assertEqual(1, self.origin.drain.remaining().publishers)
        encoder.transport.abortConnection()
        self.network.carry()
        self.assertEqual(0, self.origin.drain.remaining().publishers)
        self.assertTrue(self.publish(HEADERS + gops(1)).has(PublishStarted))

    def test_broadcast_that_is_over_is_a_new_one(self) -> None:
        self.publish(HEADERS + gops(1)).transport.abortConnection()
        self.network.carry()
        self.network.advance(31, step=0.5)
        self.origin.drain.begin("a test")
        self.assertEqual(["NetStream.Publish.Denied"], self.publish([]).codes)

    def test_distributors_are_not_told_to_leave(self) -> None:
        """They could read these bytes nowhere else."""
        self.origin.drain.begin("a test")
        self.assertEqual(("normal", []), self.origin.told_health())
        self.assertEqual("down", self.origin.shown_health()[0])
