"""The client's end of a connection: what it says, how long it waits, how it ends."""

from __future__ import annotations

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.net.identity import NodeIdentity, PeerNode
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.rtmp.events import ConnectRequested, PingAnswered
from relay.rtmp.server import ServerSession
from relay.testing import MemoryNetwork
from tests import wire
from tests.net.driving import Recorder, connect, make_node, stop_node


class Client(RtmpClientProtocol):
    """Notes what it is told."""

    def __init__(self, settings) -> None:
        super().__init__(settings, "live", "rtmp://o1/live")
        self.created_streams: list[int] = []
        self.heard: list[object] = []
        self.outcomes: list[str] = []

    def created(self, message_stream_id: int) -> None:
        self.created_streams.append(message_stream_id)

    def received(self, event) -> None:
        self.heard.append(event)

    def over(self, outcome: str) -> None:
        self.outcomes.append(outcome)


class Rejecting(Recorder):
    """A server that rejects connect."""

    def connectionMade(self) -> None:
        self.session = ServerSession(DEFAULT_LIMITS, wire.NONCE)

    def dataReceived(self, data: bytes) -> None:
        for event in self.session.receive_data(data, 0.0):
            if isinstance(event, ConnectRequested):
                self.properties = event.properties
                self.session.reject_connect(event, "not today\x1b[2J")
        self.transport.write(self.session.data_to_send())


class ClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.identity = NodeIdentity(name="a1", tier="distributor")

    def tearDown(self) -> None:
        self.network.advance(1)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def client(self, server, identity=None) -> Client:
        settings = ClientSettings(identity=identity, limits=DEFAULT_LIMITS, clock=self.network.reactor)
        endpoint = self.network.endpoint(Factory.forProtocol(server))
        return connect(self.network, endpoint, Client(settings))

    def at_node(self, identity) -> Client:
        node, endpoint = make_node(self.network)
        settings = ClientSettings(identity=identity, limits=DEFAULT_LIMITS, clock=self.network.reactor)
        client = connect(self.network, endpoint, Client(settings))
        self.addCleanup(stop_node, self.network, node)
        self.addCleanup(client.give_up, "stopped")
        return client

    def test_node_and_node_know_each_other(self) -> None:
        client = self.at_node(self.identity)
        self.assertEqual((PeerNode("o1", "origin"), [1]), (client.peer_node, client.created_streams))

    def test_without_an_identity_the_client_is_an_ordinary_one(self) -> None:
        client = self.at_node(None)
        self.assertEqual((None, [1]), (client.peer_node, client.created_streams))

    def test_ping_is_answered(self) -> None:
        client = self.at_node(self.identity)
        client.session.send_ping(77)
        client.flush()
        self.network.carry()
        self.assertEqual([PingAnswered(77)], client.heard)

    def test_server_that_says_nothing_is_given_up(self) -> None:
        client = self.client(Recorder)
        self.network.advance(DEFAULT_LIMITS.handshake_seconds - 0.5, 0.5)
        self.assertEqual([], client.outcomes)
        self.network.advance(1)
        self.assertEqual(["handshake_timeout"], client.outcomes)

    def test_server_that_rejects_is_given_up(self) -> None:
        client = self.client(Rejecting)
        self.assertEqual(["refused"], client.outcomes)

    def test_server_that_breaks_a_rule_is_given_up(self) -> None:
        client = self.client(Recorder)
        client.dataReceived(b"HTTP/1.1 400 Bad Request\r\n" * 200)
        self.network.carry()
        self.assertEqual(["protocol_error"], client.outcomes)

    def test_first_reason_counts_and_over_is_called_once(self) -> None:
        client = self.client(Recorder)
        client.give_up("first")
        client.give_up("second")
        self.network.carry()
        self.assertEqual(["first"], client.outcomes)

    def test_lost_connection_is_over(self) -> None:
        client = self.client(Recorder)
        client.transport.lose(ConnectionError())
        self.assertEqual(["connection_lost"], client.outcomes)

    def test_rest_of_a_read_is_not_heard_after_giving_up(self) -> None:
        """A subclass that leaves at one event is not told of those behind it."""
        client = self.at_node(self.identity)
        heard = []
        client.received = lambda event: (heard.append(event), client.give_up("left"))
        client.dataReceived(wire.user_control(7, bytes(4)) * 3)
        self.assertEqual(1, len(heard))
