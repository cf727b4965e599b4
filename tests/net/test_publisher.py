"""A clip, published in time, again and again, as an encoder would."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.demo import CLIP_DURATION_MS, read_clip
from relay.errors import RemoteProtocolError
from relay.flv.tags import FILE_HEADER
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.publisher import FlvLoop, PublisherService
from relay.net.rtmp_client import ClientSettings
from relay.testing import MemoryNetwork
from tests.log.model import contents, gops
from tests.net.driving import flv_tags, make_node, read_messages, stop_node
from tests.wire import aac, aac_header, avc_header

NAME = StreamName("live", "demo")
FRAMES = gops(1, frames=25)  # one second
CLIP = FILE_HEADER + flv_tags([avc_header(), *FRAMES])


class FlvLoopTests(SynchronousTestCase):
    def take(self, loop: FlvLoop, count: int):
        return [loop.take() for _ in range(count)]

    def test_timestamps_go_on_over_the_seam(self) -> None:
        """The next turn's first frame comes one frame after the last."""
        times = [message.timestamp for message in self.take(FlvLoop(CLIP), 3 * 26) if message.payload[1] == 1]
        self.assertEqual(list(range(0, 3000, 40)), times)

    def test_payloads_repeat(self) -> None:
        messages = self.take(FlvLoop(CLIP), 52)
        self.assertEqual(*([message.payload for message in half] for half in (messages[:26], messages[26:])))

    def test_turns_are_counted(self) -> None:
        loop = FlvLoop(CLIP, turns=2)
        self.take(loop, 51)
        self.assertFalse(loop.is_over)
        self.take(loop, 1)
        self.assertTrue(loop.is_over)

    def test_clip_of_sound_alone_lasts_as_long_as_it_sounds(self) -> None:
        sound = FILE_HEADER + flv_tags([aac_header(), *aac(10)])
        self.assertEqual(9 * 23 + 23, FlvLoop(sound).duration_ms)

    def test_demo_clip_lasts_as_long_as_it_says(self) -> None:
        self.assertEqual(CLIP_DURATION_MS, FlvLoop(read_clip()).duration_ms)

    def test_what_is_no_clip_is_refused(self) -> None:
        for data in (b"", b"no flv at all", FILE_HEADER, FILE_HEADER + b"\x09\xff\xff\xff" + bytes(50)):
            self.assertRaises(RemoteProtocolError, FlvLoop, data)


class PublisherServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network)
        self.service = self.make()

    def tearDown(self) -> None:
        if self.service.running:
            self.service.stopService()
        self.network.carry()
        stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def make(self, turns=None) -> PublisherService:
        settings = ClientSettings(limits=DEFAULT_LIMITS, clock=self.network.reactor)
        return PublisherService([("o1", self.endpoint)], NAME, CLIP, settings, turns)

    @property
    def stored(self):
        return read_messages(contents(self.node.hub.get(NAME).log.rtmp))

    def advance(self, seconds: float) -> None:
        self.network.advance(seconds, 0.01)

    def test_messages_come_when_they_are_due(self) -> None:
        self.service.startService()
        self.network.carry()
        for second in (0.5, 1.0, 1.5):
            self.advance(0.5)
            frames = [raw for raw in self.stored if raw.payload[1] == 1]
            self.assertLessEqual(abs(len(frames) - second * 25), 2)
            self.assertLessEqual(frames[-1].timestamp, second * 1000 + 6)

    def test_turns_end_with_the_connection_closed_in_order(self) -> None:
        self.service = self.make(turns=2)
        finished = self.service.when_finished()
        self.service.startService()
        self.advance(1.9)
        self.assertNoResult(finished)
        self.advance(0.5)
        self.successResultOf(finished)
        self.assertEqual(2 * 26, len(self.stored))
        self.assertFalse(self.node.hub.get(NAME).is_live)
        self.assertEqual([], self.endpoint.open_links)
        self.advance(5)
        self.assertEqual(1, self.endpoint.attempts)

    def test_lost_connection_begins_anew(self) -> None:
        self.service.startService()
        self.advance(0.5)
        self.endpoint.open_links[0].kill_server()
        self.advance(1)
        self.assertEqual((2, True), (self.endpoint.attempts, self.node.hub.get(NAME).is_live))

    def test_refused_publisher_asks_less_and_less(self) -> None:
        """The name is taken: it is no use to ask ten times a second."""
        other = self.make()
        other.startService()
        self.advance(0.1)
        self.service.startService()
        self.advance(20)
        before = self.endpoint.attempts
        self.advance(2.4)
        self.assertLessEqual(self.endpoint.attempts - before, 1)
        self.assertLess(before, 15)
        other.stopService()
        self.network.carry()

    def test_stop_leaves_nothing(self) -> None:
        self.service.startService()
        self.advance(0.5)
        stopping = self.service.stopService()
        self.network.carry()
        self.successResultOf(stopping)
        self.assertEqual([], self.endpoint.open_links)
