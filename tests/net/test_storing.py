"""Nodes that keep bytes: restarts, room for new streams, what is said when the disk fails."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded
from relay.names import StreamName
from relay.rtmp.events import PublishStarted
from relay.testing import MemoryNetwork, publish
from tests.log.model import contents, gops
from tests.net.driving import CopyingNode, Player, connect, log_bytes, make_node, read_messages, stop_node
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]


class StoringTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.directory = self.mktemp()
        self.node = None

    def tearDown(self) -> None:
        self.stop()
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def start(self, **changes) -> None:
        self.stop()
        self.node, self.endpoint = make_node(self.network, directory=self.directory, **changes)

    def stop(self) -> None:
        if self.node is not None:
            stop_node(self.network, self.node)
            self.node = None

    def encoder(self, messages, name="demo") -> Player:
        encoder = connect(self.network, self.endpoint, Player(publish=name))
        encoder.send(messages)
        self.network.carry()
        return encoder

    def test_restarted_node_goes_on_in_the_same_epoch_with_growing_timestamps(self) -> None:
        """The encoder comes back with timestamps from 0: viewers see one timeline."""
        self.start()
        self.encoder(HEADERS + gops(3))
        epoch = self.node.hub.get(NAME).log.epoch
        self.start()
        self.encoder(HEADERS + gops(1))
        log = self.node.hub.get(NAME).log
        times = [raw.timestamp for raw in read_messages(contents(log.rtmp)) if raw.message_type == 9]
        self.assertEqual((epoch, sorted(times), 2 + 40), (log.epoch, times, len(times)))

    def test_bytes_are_those_that_were_published(self) -> None:
        self.start()
        self.encoder(HEADERS + gops(2))
        self.start()
        self.assertEqual(log_bytes(HEADERS + gops(2)), contents(self.node.ingest(NAME).stream.log.rtmp))

    def test_memory_node_has_no_storage_problems(self) -> None:
        self.directory = None
        self.start()
        self.encoder(HEADERS + gops(1))
        self.assertEqual([], self.node.storage_problems())

    def test_stored_stream_has_no_problem_while_the_disk_takes_it(self) -> None:
        self.start()
        self.encoder(HEADERS + gops(1))
        self.assertEqual([], self.node.storage_problems())

    def test_new_stream_takes_the_room_of_one_that_is_over(self) -> None:
        """Names that were used once must not use the limit up; the longest idle goes first."""
        self.start(streams=2)
        for name in ("one", "two"):
            self.encoder(HEADERS + gops(1), name).transport.loseConnection()
            self.network.advance(1)
        self.encoder(HEADERS + gops(1), "three")
        self.assertEqual({"three", "two"}, {stream.name.name for stream in self.node.hub})

    def test_copies_hold_no_stream_that_is_over(self) -> None:
        """Every stream of an origin is copied all the time: what counts is who watches."""
        self.start(streams=1)
        copying, _ = make_node(self.network, "d1", kind=CopyingNode)
        copying.gather([("o1", self.endpoint)])
        encoder = self.encoder(HEADERS + gops(1), "one")
        self.network.advance(1)
        encoder.transport.loseConnection()
        self.network.advance(1)
        (stream,) = self.node.hub
        self.assertEqual((1, 0), (len(stream.viewers), stream.watching))
        self.encoder(HEADERS + gops(1), "two")
        self.assertEqual(["two"], [stream.name.name for stream in self.node.hub])
        stop_node(self.network, copying)

    def test_live_and_watched_streams_give_no_room(self) -> None:
        self.start(streams=2, end_seconds=1e6)
        self.encoder(HEADERS + gops(1), "one")
        self.encoder(HEADERS + gops(1), "two").transport.loseConnection()
        connect(self.network, self.endpoint, Player(play="two"))
        error = self.assertRaises(LimitExceeded, self.node.ingest, StreamName("live", "three"))
        self.assertEqual("streams", error.field)

    def test_stream_that_nobody_publishes_for_long_is_forgotten(self) -> None:
        self.start()
        self.encoder(HEADERS + gops(1)).transport.loseConnection()
        self.network.advance(10)
        self.node.expire()
        self.assertIsNotNone(self.node.hub.get(NAME))
        self.node._store_settings = self.node._store_settings.__class__(
            directory=self.directory, keep=self.node._store_settings.keep, idle_seconds=5
        )
        self.node.pulled.add(NAME)
        self.node.expire()
        self.assertIsNotNone(self.node.hub.get(NAME))
        self.node.pulled.clear()
        self.node.expire()
        self.assertIsNone(self.node.hub.get(NAME))
        self.assertTrue(self.encoder(HEADERS).has(PublishStarted))

    def test_ingest_of_a_name_is_one(self) -> None:
        self.start()
        self.assertIs(self.node.ingest(NAME), self.node.ingest(NAME))

    def test_reported_time_of_copies_is_where_a_lost_log_goes_on(self) -> None:
        self.start()
        self.node.reported_ms[NAME] = 500_000
        self.encoder(HEADERS + gops(1))
        self.assertGreater(self.node.hub.get(NAME).log.end_time_ms, 500_000)

    def test_stop_while_publishing_keeps_every_byte(self) -> None:
        self.start()
        self.encoder(HEADERS)
        publish(self.node.hub.get(NAME), gops(1))
        self.start()
        self.assertEqual(log_bytes(HEADERS + gops(1)), contents(self.node.ingest(NAME).stream.log.rtmp))
