"""What is set on real sockets."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS, Limits
from relay.net.sockets import NOTSENT_LOWAT, host_of, tune, viewer_timeout_ms, write_now
from relay.testing import ManualReactor
from tests.net.driving import Recorder, TcpPair


class FakeAddress:
    """Where the peer is."""

    host = "192.0.2.7"


class FakeTransport:
    """As much of a Twisted transport as is asked for."""

    def __init__(self, handle: socket.socket) -> None:
        self._handle = handle

    def getHandle(self) -> socket.socket:
        return self._handle

    def getPeer(self) -> FakeAddress:
        return FakeAddress()


class TuneTests(SynchronousTestCase):
    """The kernel takes what we ask for."""

    def test_tcp_socket_gets_timeouts_and_bounds(self) -> None:
        """A viewer's socket is closed by the kernel in the end, sends at once, and holds little unsent."""
        with socket.socket() as handle:
            tune(FakeTransport(handle), 40_000, NOTSENT_LOWAT)
            options = [
                handle.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_USER_TIMEOUT, socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT)
            ]
            self.assertEqual([40_000, 1, NOTSENT_LOWAT], options)
            self.assertEqual(1, handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            self.assertEqual(13, handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))

    def test_unix_socket_is_left_alone(self) -> None:
        """It has none of these options."""
        with socket.socket(socket.AF_UNIX) as handle:
            tune(FakeTransport(handle), 40_000)
            self.assertEqual(0, handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def test_host_of_is_the_peer(self) -> None:
        """As text."""
        with socket.socket() as handle:
            self.assertEqual("192.0.2.7", host_of(FakeTransport(handle)))


class WriteNowTests(SynchronousTestCase):
    """What is short need not wait for the reactor."""

    def test_writes_at_once_and_in_order(self) -> None:
        """What the socket doesn't take goes the transport's way, and so does all that comes after it."""
        reactor = ManualReactor()
        pair = TcpPair(Recorder(), reactor, send_buffer=4 << 10, receive_buffer=4 << 10)
        self.addCleanup(pair.close)
        write_now(pair.transport, b"ping")
        self.assertEqual(([], b"ping"), (reactor.getWriters(), pair.read()))
        much = bytes(range(256)) * 400
        write_now(pair.transport, much)
        write_now(pair.transport, b"pong")
        self.assertEqual([pair.transport], reactor.getWriters())
        self.assertEqual(b"ping" + much + b"pong", pair.run(4000))

    def test_nothing_is_written_when_the_connection_is_lost(self) -> None:
        """As with a transport's own ``write``: an answer may come too late."""
        pair = TcpPair(Recorder(), ManualReactor())
        self.addCleanup(pair.close)
        pair.transport.abortConnection()
        pair.run()
        self.assertFalse(pair.transport.connected)
        write_now(pair.transport, b"ping")
        self.assertEqual(b"", bytes(pair.received))


class ViewerTimeoutTests(SynchronousTestCase):
    """Our own rule for viewers comes before the kernel's."""

    def test_viewer_timeout_comes_after_our_own_deadlines(self) -> None:
        """A viewer that takes nothing is closed, and reset if it doesn't take that either, whatever the limits are."""
        for limits in (DEFAULT_LIMITS, Limits(viewer_close_seconds=120), Limits(close_seconds=60)):
            ours = limits.viewer_close_seconds + limits.close_seconds
            self.assertGreater(viewer_timeout_ms(limits), ours * 1000)
