"""The fakes of ``relay.testing`` behave as what they stand for."""

from __future__ import annotations

from twisted.internet import tcp
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from relay.testing import CongestibleTransport, ManualReactor, MemoryNetwork, make_hub, publish
from tests.net.driving import Recorder, TcpPair
from tests.wire import h264_gop

PIECE = 40 << 10  # bytes of one write: two of them are past Twisted's mark of 64 KiB


@implementer(IPushProducer)
class Source:
    """Writes pieces while it may; notes what it is told."""

    def __init__(self, transport) -> None:
        self.told: list[str] = []
        self._transport = transport

    def write(self, pieces: int) -> None:
        for _ in range(pieces):
            self._transport.write(bytes(PIECE))

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class Fake:
    """One side of a memory connection, with the same face as TcpPair."""

    def __init__(self, protocol, reactor) -> None:
        self.transport = CongestibleTransport(reactor)
        self.transport.connect(protocol)
        self.reactor = reactor

    def run(self) -> int:
        return len(self.transport.drain())

    def close(self) -> None:
        self.transport.abortConnection()
        self.reactor.turn()


class RealPair(TcpPair):
    def __init__(self, protocol, reactor) -> None:
        super().__init__(protocol, reactor, kind=tcp.Server, send_buffer=4 << 10, receive_buffer=4 << 10)

    def run(self) -> int:
        before = len(self.received)
        return len(super().run()) - before


class CongestibleTransportTests(SynchronousTestCase):
    """The fake does what a socket with a slow peer does."""

    def tell_story(self, kind):
        """Pause, pause again, drain, close with a producer registered, unregister: everything that can be seen."""
        protocol = Recorder()
        pair = kind(protocol, ManualReactor())
        source = Source(pair.transport)
        pair.transport.registerProducer(source, True)
        seen = []
        source.write(1)
        seen.append(list(source.told))
        source.write(3)
        seen.append(list(source.told))
        seen.append(pair.run())
        seen.append(list(source.told))
        source.write(2)
        pair.transport.loseConnection()
        seen.append(pair.run())
        seen.append((list(source.told), list(protocol.ends)))
        pair.transport.unregisterProducer()
        pair.run()
        seen.append((list(source.told), list(protocol.ends)))
        pair.close()
        return seen

    def test_story_on_a_real_socket_and_on_the_fake_is_the_same(self) -> None:
        """Whatever a producer is told by a full socket, it is told by the fake, in the same order."""
        fake = self.tell_story(Fake)
        self.assertEqual(self.tell_story(RealPair), fake)
        self.assertEqual(["pause", "pause"], fake[1][:2])
        self.assertEqual(4 * PIECE, fake[2])
        self.assertEqual([ConnectionDone], fake[-1][1])

    def test_drain_takes_what_it_was_told(self) -> None:
        transport = CongestibleTransport(ManualReactor())
        transport.connect(Recorder())
        transport.write(b"0123456789")
        self.assertEqual((b"012", 7), (transport.drain(3), transport.unsent))
        self.assertEqual(b"3456789", transport.drain())

    def test_abort_is_heard_in_the_next_round_and_stops_the_producer(self) -> None:
        reactor, protocol = ManualReactor(), Recorder()
        transport = CongestibleTransport(reactor)
        transport.connect(protocol)
        source = Source(transport)
        transport.registerProducer(source, True)
        transport.write(b"lost")
        transport.abortConnection()
        self.assertEqual([], protocol.ends)
        reactor.turn()
        self.assertEqual(([ConnectionAborted], ["stop"], b""), (protocol.ends, source.told, transport.drain()))

    def test_paused_reader_gets_its_bytes_later(self) -> None:
        protocol = Recorder()
        transport = CongestibleTransport(ManualReactor())
        transport.connect(protocol)
        transport.pauseProducing()
        transport.receive(b"held")
        self.assertEqual(b"", protocol.received)
        transport.resumeProducing()
        self.assertEqual(b"held", protocol.received)


class MemoryNetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.servers: list[Recorder] = []
        self.endpoint = self.network.endpoint(Factory.forProtocol(self.make_server))

    def make_server(self):
        self.servers.append(Recorder())
        return self.servers[-1]

    def connect(self):
        connecting = self.endpoint.connect(Factory.forProtocol(Recorder))
        self.network.carry()
        return self.successResultOf(connecting)

    def test_what_was_written_before_a_close_arrives_before_its_end(self) -> None:
        client = self.connect()
        client.transport.write(b"last words")
        client.transport.loseConnection()
        self.network.carry()
        (server,) = self.servers
        self.assertEqual((b"last words", [ConnectionDone]), (bytes(server.received), server.ends))
        self.assertEqual([], self.endpoint.open_links)

    def test_killed_server_is_an_end_for_its_client(self) -> None:
        client = self.connect()
        self.endpoint.links[0].kill_server()
        self.network.carry()
        self.assertEqual(([ConnectionDone], [ConnectionLost]), (client.ends, self.servers[0].ends))

    def test_cut_link_says_nothing(self) -> None:
        client = self.connect()
        self.endpoint.links[0].is_cut = True
        client.transport.write(b"x")
        self.network.advance(60)
        self.assertEqual(([], b""), (client.ends, self.servers[0].received))

    def test_refused_connect_fails_at_once(self) -> None:
        self.endpoint.is_listening = False
        self.failureResultOf(self.endpoint.connect(Factory.forProtocol(Recorder)), ConnectionRefusedError)

    def test_abort_is_a_reset_for_the_peer(self) -> None:
        self.connect().transport.abortConnection()
        self.network.carry()
        self.assertEqual([ConnectionLost], self.servers[0].ends)


class BuilderTests(SynchronousTestCase):
    def test_published_stream_can_be_joined(self) -> None:
        hub, stream = make_hub()
        self.assertIsNone(stream.log.newest_join_point())
        publish(stream, h264_gop(3))
        self.assertIs(stream, self.successResultOf(hub.when_joinable(stream.name)))
        hub.close()
