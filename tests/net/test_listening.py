"""Listening on real sockets: TCP that follows a log, TLS that writes it, UNIX sockets, ports in use."""

from __future__ import annotations

import datetime
import gc
import socket
import ssl
import tempfile
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import ssl as twisted_ssl
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from relay.log.options import LogOptions
from relay.names import StreamName
from relay.net.following import FollowingTransport
from relay.net.identity import NodeIdentity
from relay.net.listening import ListeningService
from relay.net.node import NodeSettings
from relay.net.storing import StoreSettings
from relay.rtmp.events import PlayStarted
from relay.testing import publish
from tests.log.model import gops
from tests.net.driving import Player, PublishingNode, Recorder, flv_tags
from tests.net.peers import eventually
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]
BIG = gops(10, size=20_000)  # 2 MB: more than the buffers on the way


def make_certificate(path: Path) -> None:
    """A key and a certificate of its own for localhost, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))


class ListeningTestCase(TestCase):
    """A node on a real endpoint, with one live stream."""

    async def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

        self.reactor = reactor
        settings = NodeSettings(identity=NodeIdentity(name="o1", tier="origin"))
        self.node = PublishingNode(settings, reactor, StoreSettings(keep=LogOptions(segment_bytes=300_000)))
        self.stream = self.node.ingest(NAME).stream

    async def tearDown(self) -> None:
        if self.node.running:
            await self.node.stopService()
        gc.collect()

    async def listen(self, description: str):
        self.node.listen(serverFromString(self.reactor, description))
        self.node.startService()
        return await self.node.when_listening()

    async def connect(self, description: str, protocol):
        endpoint = clientFromString(self.reactor, description)
        return await endpoint.connect(Factory.forProtocol(lambda: protocol))


class TcpTests(ListeningTestCase):
    async def test_viewer_s_transport_follows_the_log(self) -> None:
        """Whatever endpoint string made the port."""
        port = await self.listen("tcp:0:interface=127.0.0.1")
        publish(self.stream, HEADERS + BIG)
        player = await self.connect(f"tcp:127.0.0.1:{port.getHost().port}", Player(play="demo"))
        await eventually(lambda: len(player.media) == 3 + 10)
        (viewer,) = self.stream.viewers
        self.assertIsInstance(viewer.transport, FollowingTransport)
        self.assertEqual(BIG[-10:], player.media[3:])
        player.transport.loseConnection()
        await eventually(lambda: player.ends)

    async def test_twenty_lines_of_raw_socket_watch(self) -> None:
        port = await self.listen("tcp:0:interface=127.0.0.1")
        publish(self.stream, HEADERS + BIG)
        body = await deferToThread(partial(self.get, port.getHost().port))
        self.assertTrue(body.startswith(b"HTTP/1.1 200"))
        self.assertIn(flv_tags(BIG[-10:]), body)

    def get(self, port: int) -> bytes:
        size = len(flv_tags(BIG[-10:]))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /live/demo.flv HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while len(data) < size or not data.endswith(flv_tags(BIG[-1:])):
                data += connection.recv(65536)
            return data

    async def test_port_in_use_is_an_error_at_the_start(self) -> None:
        port = await self.listen("tcp:0:interface=127.0.0.1")
        taken = serverFromString(self.reactor, f"tcp:{port.getHost().port}:interface=127.0.0.1")
        second = ListeningService(taken, Factory())
        self.assertRaises(CannotListenError, second.privilegedStartService)

    async def test_stopped_service_listens_no_more(self) -> None:
        port = await self.listen("tcp:0:interface=127.0.0.1")
        number = port.getHost().port
        await self.node.stopService()
        with socket.socket() as probe:
            self.assertNotEqual(0, probe.connect_ex(("127.0.0.1", number)))

    async def test_whoever_asks_early_is_told_the_port(self) -> None:
        self.node.listen(serverFromString(self.reactor, "tcp:0:interface=127.0.0.1"))
        waiting = self.node.when_listening()
        self.assertNoResult(waiting)
        self.node.startService()
        self.assertGreater((await waiting).getHost().port, 0)


class UnixTests(ListeningTestCase):
    async def test_viewer_on_a_unix_socket_is_served_by_writes(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/relay.sock"
            await self.listen(f"unix:{path}")
            publish(self.stream, HEADERS + BIG)
            player = await self.connect(f"unix:{path}", Player(play="demo"))
            await eventually(lambda: len(player.media) == 3 + 10)
            self.assertEqual(BIG[-10:], player.media[3:])
            player.transport.loseConnection()
            await eventually(lambda: player.ends)


class TlsTests(ListeningTestCase):
    """RTMPS and HTTPS: the same bytes through Twisted's TLS, by writes."""

    async def setUp(self) -> None:
        await super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.certificate = Path(directory.name) / "node.pem"
        make_certificate(self.certificate)

    async def listen_tls(self) -> int:
        pem = str(self.certificate)
        port = await self.listen(f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}")
        return port.getHost().port

    async def connect_tls(self, port: int, protocol):
        options = twisted_ssl.CertificateOptions()  # no trust: the certificate is its own
        self.reactor.connectSSL("127.0.0.1", port, ClientFactoryFor(protocol), options)
        await eventually(lambda: protocol.connected)
        return protocol

    async def test_rtmps_viewer_gets_the_log_byte_for_byte(self) -> None:
        port = await self.listen_tls()
        publish(self.stream, HEADERS + BIG[:50])
        player = await self.connect_tls(port, Player(play="demo"))
        await eventually(lambda: player.has(PlayStarted))
        publish(self.stream, BIG[50:], at_once=False)
        await eventually(lambda: len(player.media) == 3 + 60)
        self.assertEqual(BIG[40:], player.media[3:])
        player.transport.abortConnection()
        await eventually(lambda: player.ends)

    async def test_rtmps_viewer_that_does_not_read_holds_little_and_goes_on_when_it_reads(self) -> None:
        """The cursor waits, not a queue: past TLS, too."""
        port = await self.listen_tls()
        publish(self.stream, HEADERS + BIG[:10])
        player = await self.connect_tls(port, Player(play="demo"))
        await eventually(lambda: len(player.media) == 13)
        player.transport.pauseProducing()
        (viewer,) = self.stream.viewers
        flood = gops(50, start=400, size=20_000)  # 10 MB
        publish(self.stream, flood, at_once=False)
        await eventually(viewer._follower.is_congested)
        self.assertLess(viewer.offset, self.stream.log.end - (2 << 20))
        player.transport.resumeProducing()
        await eventually(lambda: len(player.media) == 13 + 500)
        self.assertEqual(flood, player.media[13:])
        player.transport.abortConnection()
        await eventually(lambda: player.ends)

    async def test_https_viewer_gets_flv(self) -> None:
        port = await self.listen_tls()
        publish(self.stream, HEADERS + BIG)
        body = await deferToThread(partial(self.get, port))
        self.assertIn(flv_tags(BIG[-10:]), body)

    def get(self, port: int) -> bytes:
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(b"GET /live/demo.flv HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while flv_tags(BIG[-1:]) not in data[-30_000:]:
                data += connection.recv(65536)
            return data

    async def test_plain_client_on_a_tls_port_harms_nobody(self) -> None:
        port = await self.listen_tls()
        peer = await self.connect(f"tcp:127.0.0.1:{port}", Recorder())
        peer.transport.write(b"GET / HTTP/1.1\r\n\r\n")
        await eventually(lambda: peer.ends)
        await eventually(lambda: not self.node.ports.connections)


class ClientFactoryFor(Factory):
    """A client factory with one protocol, for ``connectSSL``."""

    noisy = False

    def __init__(self, protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr):
        return self._protocol

    def startedConnecting(self, connector) -> None:
        """Nothing to note."""

    def clientConnectionLost(self, connector, reason) -> None:
        """The protocol hears of it itself."""

    def clientConnectionFailed(self, connector, reason) -> None:
        raise AssertionError(reason)
