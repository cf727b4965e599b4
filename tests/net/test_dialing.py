"""Dialing on real sockets of this machine."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from relay.net.dialing import DialingEndpoint, dialing_endpoint
from relay.net.legs import can_half_close


class Hearing(Protocol):
    """Keeps what it hears, and tells of its end."""

    transport: Any

    def __init__(self, is_paused: bool = False) -> None:
        self.heard = b""
        self.when_heard: Deferred[bytes] = Deferred()
        self.when_lost: Deferred[None] = Deferred()
        self._is_paused = is_paused

    def connectionMade(self) -> None:
        if self._is_paused:
            self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if not self.when_heard.called:
            self.when_heard.callback(self.heard)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.when_lost.callback(None)


class OneFactory(Factory):
    """Makes this protocol, whoever comes."""

    noisy = False

    def __init__(self, protocol: Protocol | None) -> None:
        self._protocol = protocol
        self.addresses: list[IAddress | None] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        self.addresses.append(addr)
        return self._protocol


class DescriptionTests(SynchronousTestCase):
    """Which strings go the quick way."""

    def test_ip_addresses_go_the_quick_way(self) -> None:
        """In all the spellings that Twisted has for them."""
        for text, shown in (
            ("tcp:127.0.0.1:1935", "127.0.0.1 port 1935"),
            ("tcp:host=10.0.0.1:port=65535", "10.0.0.1 port 65535"),
            (r"tcp:\:\:1:1935", "::1 port 1935"),
            (r"tcp:host=fd00\:\:2:port=1", "fd00::2 port 1"),
        ):
            self.assertEqual(f"<DialingEndpoint {shown}>", repr(dialing_endpoint(reactor, text)))

    def test_everything_else_is_twisteds(self) -> None:
        """Names, options, other kinds of endpoint."""
        for text in ("tcp:localhost:1935", "tcp:127.0.0.1:1935:timeout=3", "unix:/run/relay", "tcp:dead:1935"):
            self.assertNotIsInstance(dialing_endpoint(reactor, text), DialingEndpoint)
        self.assertIsInstance(dialing_endpoint(reactor, "tcp:127.0.0.1:1935:timeout=3"), TCP4ClientEndpoint)

    def test_what_is_no_endpoint_is_refused(self) -> None:
        """As by Twisted."""
        self.assertRaises(ValueError, dialing_endpoint, reactor, "1935")


class DialingTests(TestCase):
    """Connecting."""

    def setUp(self) -> None:
        self.listener = self.listen(socket.AF_INET, "127.0.0.1", 8)

    def listen(self, family: int, host: str, backlog: int) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(listener.close)
        listener.bind((host, 0))
        listener.listen(backlog)
        return listener

    def endpoint(self, listener: socket.socket) -> Any:
        host, port = listener.getsockname()[:2]
        return dialing_endpoint(reactor, "tcp:" + host.replace(":", "\\:") + f":{port}")

    async def turns(self, count: int) -> None:
        """Let the reactor serve its sockets."""
        for _ in range(count):
            await deferLater(reactor, 0, lambda: None)

    async def lose(self, hearing: Hearing) -> None:
        hearing.transport.loseConnection()
        await hearing.when_lost

    async def test_loopback_is_connected_at_once(self) -> None:
        """Both sides can speak, and the addresses are those of the sockets."""
        hearing = Hearing()
        factory = OneFactory(hearing)
        self.assertIs(hearing, self.successResultOf(self.endpoint(self.listener).connect(factory)))
        accepted, peer = self.listener.accept()
        self.addCleanup(accepted.close)
        self.assertTrue(can_half_close(hearing.transport))
        self.assertEqual(IPv4Address("TCP", *peer), hearing.transport.getHost())
        self.assertEqual(IPv4Address("TCP", *self.listener.getsockname()), hearing.transport.getPeer())
        self.assertEqual([hearing.transport.getPeer()], factory.addresses)
        hearing.transport.write(b"ping")
        await self.turns(2)
        self.assertEqual(b"ping", accepted.recv(16, socket.MSG_DONTWAIT))
        accepted.send(b"pong")
        self.assertEqual(b"pong", await hearing.when_heard)
        await self.lose(hearing)

    async def test_the_peers_end_is_the_protocols_end(self) -> None:
        """FIN is read like from any transport."""
        hearing = Hearing()
        self.endpoint(self.listener).connect(OneFactory(hearing))
        self.listener.accept()[0].close()
        await hearing.when_lost

    async def test_one_that_is_paused_at_once_hears_nothing(self) -> None:
        """Not before it asks for it."""
        hearing = Hearing(is_paused=True)
        self.endpoint(self.listener).connect(OneFactory(hearing))
        accepted, _ = self.listener.accept()
        self.addCleanup(accepted.close)
        accepted.send(b"early")
        await self.turns(2)
        self.assertEqual(b"", hearing.heard)
        hearing.transport.resumeProducing()
        self.assertEqual(b"early", await hearing.when_heard)
        await self.lose(hearing)

    async def test_ipv6(self) -> None:
        """The same."""
        listener = self.listen(socket.AF_INET6, "::1", 8)
        hearing = Hearing()
        await self.endpoint(listener).connect(OneFactory(hearing))
        self.assertEqual("::1", hearing.transport.getPeer().host)
        self.assertEqual(listener.getsockname()[1], hearing.transport.getPeer().port)
        await self.lose(hearing)

    async def test_nobody_listens(self) -> None:
        """The error says so."""
        endpoint = self.endpoint(self.listener)
        self.listener.close()
        with self.assertRaises(ConnectionRefusedError):
            await endpoint.connect(OneFactory(Hearing()))

    async def test_nobody_is_wanted(self) -> None:
        """A factory that makes no protocol is told so, and the socket is closed."""
        with self.assertRaises(ConnectionRefusedError):
            await self.endpoint(self.listener).connect(OneFactory(None))
        self.assertEqual(b"", self.listener.accept()[0].recv(1, socket.MSG_DONTWAIT))

    async def test_an_address_that_cannot_be_reached(self) -> None:
        """The kernel says so at once."""
        with self.assertRaises(Exception) as caught:
            await dialing_endpoint(reactor, "tcp:255.255.255.255:1935").connect(OneFactory(Hearing()))
        self.assertIn(getattr(caught.exception, "osError", 0), (errno.ENETUNREACH, errno.EACCES))

    def slow(self) -> tuple[socket.socket, list[socket.socket]]:
        """A listener whose queue is full: the kernel drops what comes, and who dials tries again after a second."""
        listener = self.listen(socket.AF_INET, "127.0.0.1", 0)
        filling = [socket.socket() for _ in range(3)]
        for each in filling:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
            self.addCleanup(each.close)
        return listener, filling

    async def test_a_connect_that_takes_time(self) -> None:
        """It is made when the kernel has made it."""
        listener, filling = self.slow()
        hearing = Hearing()
        dialing = self.endpoint(listener).connect(OneFactory(hearing))
        self.assertNoResult(dialing)
        for _ in filling[:2]:
            listener.accept()[0].close()
        await dialing
        self.assertTrue(hearing.transport.connected)
        await self.lose(hearing)

    async def test_a_connect_that_is_cancelled(self) -> None:
        """Nothing is left of it."""
        listener, _ = self.slow()
        before = len(list(Path("/proc/self/fd").iterdir()))
        dialing = self.endpoint(listener).connect(OneFactory(Hearing()))
        self.assertNoResult(dialing)
        dialing.cancel()
        self.failureResultOf(dialing, ConnectingCancelledError)
        self.assertEqual(before, len(list(Path("/proc/self/fd").iterdir())))

    def test_a_socket_that_meets_itself(self) -> None:
        """A dead port of this machine never answers, also when the kernel picks it for the one who dials."""
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        host, port = self.listener.getsockname()
        self.listener.close()
        port = max(low, port & ~1)  # the kernel gives who connects even ports, one after another
        endpoint = dialing_endpoint(reactor, f"tcp:{host}:{port}")
        for _ in range((high - low) // 2 + 2):
            self.failureResultOf(endpoint.connect(OneFactory(Hearing())), ConnectionRefusedError)
