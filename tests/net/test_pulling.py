"""A stream taken from a plain RTMP server, for ever."""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.failover import Upstream
from relay.net.pulling import SILENT_SECONDS, Pull
from relay.net.rtmp_client import ClientSettings
from relay.rtmp.events import ConnectRequested, PlayRequested, PublishStarted
from relay.rtmp.server import ServerSession
from relay.testing import MemoryNetwork
from tests import wire
from tests.log.model import contents, gops
from tests.net.driving import Player, connect, log_bytes, make_node, read_messages, stop_node
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]


class Foreign(Protocol):
    """A server that plays to whoever asks, and knows no positions."""

    def __init__(self) -> None:
        self.session = ServerSession(DEFAULT_LIMITS, wire.NONCE)
        self.asked: tuple[str, str] | None = None
        self.app = ""

    def dataReceived(self, data: bytes) -> None:
        for event in self.session.receive_data(data, 0.0):
            if isinstance(event, ConnectRequested):
                self.app = event.app
                self.session.accept_connect(event)
            elif isinstance(event, PlayRequested):
                self.asked = (self.app, event.stream)
                self.session.accept_play(event)
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.session.data_to_send())

    def send(self, messages) -> None:
        self.transport.write(log_bytes(messages))


class PullTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network)
        self.servers: list[Foreign] = []
        self.at_foreign = self.network.endpoint(Factory.forProtocol(self.make_server))
        settings = ClientSettings(limits=DEFAULT_LIMITS, clock=self.network.reactor)
        self.pull = Pull(
            NAME,
            self.node.ingest(NAME),
            [Upstream(name="rtmp://foreign", endpoint=self.at_foreign)],
            ("their/app", "rtmp://foreign/their/app", "key?token=s3cret"),
            settings,
        )
        self.pull.start()
        self.network.carry()

    def tearDown(self) -> None:
        self.pull.stop()
        self.network.carry()
        stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def make_server(self) -> Foreign:
        self.servers.append(Foreign())
        return self.servers[-1]

    def send(self, messages) -> None:
        self.servers[-1].send(messages)
        self.network.carry()

    @property
    def stream(self):
        return self.node.hub.get(NAME)

    @property
    def stored(self):
        return read_messages(contents(self.stream.log.rtmp))

    def test_server_is_asked_for_its_own_name_and_the_stream_is_ours(self) -> None:
        self.assertEqual(("their/app", "key?token=s3cret"), self.servers[0].asked)
        self.send(HEADERS + gops(2))
        self.assertEqual(log_bytes(HEADERS + gops(2)), contents(self.stream.log.rtmp))
        self.assertEqual((True, "pull from rtmp://foreign"), (self.stream.is_live, self.stream.source))

    def test_stream_is_not_live_before_there_is_media(self) -> None:
        self.assertFalse(self.stream.is_live)

    def test_lost_server_is_asked_again_and_the_log_goes_on(self) -> None:
        self.send(HEADERS + gops(1))
        self.at_foreign.links[0].kill_server()
        self.network.advance(1)
        self.send(HEADERS + gops(1, start=50_000))
        times = [raw.timestamp for raw in self.stored if raw.message_type == 9]
        self.assertEqual((2, sorted(times)), (len(self.servers), times))
        self.assertLess(times[-1], 5_000)

    def test_server_that_plays_nothing_is_asked_anew(self) -> None:
        """It may have lost its own source."""
        self.network.advance(SILENT_SECONDS - 1, 0.5)
        self.assertEqual(1, len(self.servers))
        self.network.advance(2)
        self.assertEqual(2, len(self.servers))
        for index in range(10):
            self.send(gops(1, start=1000 * index))
            self.network.advance(2)
        self.assertEqual(2, len(self.servers))

    def test_end_at_the_server_is_asked_again(self) -> None:
        self.send(HEADERS + gops(1))
        self.servers[0].session.end_play(1)
        self.servers[0].flush()
        self.network.advance(1)
        self.assertEqual(2, len(self.servers))

    def test_name_that_an_encoder_publishes_here_is_left_to_it(self) -> None:
        """The pull asks again, less and less often, and has the name when the encoder leaves."""
        encoder = connect(self.network, self.endpoint, Player(publish="demo"))
        self.assertTrue(encoder.has(PublishStarted))
        encoder.send(HEADERS + gops(1))
        self.network.carry()
        self.send(HEADERS + gops(1))
        self.assertEqual([], encoder.ends)
        self.network.advance(0.01)
        encoder.transport.loseConnection()
        self.network.advance(2)
        self.send(HEADERS + gops(1))
        self.assertEqual("pull from rtmp://foreign", self.stream.source)

    def test_stop_while_connected(self) -> None:
        self.send(HEADERS + gops(1))
        stopping = self.pull.stop()
        self.network.carry()
        self.successResultOf(stopping)
        self.assertFalse(self.stream.is_live)
