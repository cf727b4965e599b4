"""One port speaks everything: the first bytes decide, in whatever pieces they come.

FAULTS rows 7 (silence, wrong protocol), 14 (PROXY headers), 20 (floods of connections) and 22 (any segmentation).
"""

from __future__ import annotations

from collections import Counter

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.net.proxy import V2_SIGNATURE, ProxyAddress, is_authentic, make_header
from relay.net.sniffing import LOOPBACK, PortFactory, parse_networks
from relay.testing import CongestibleTransport, ManualReactor
from tests import wire
from tests.net.driving import Recorder
from tests.strategies import cuts

RTMP = wire.handshake()[:1537]
HTTP = b"GET /live/demo.flv HTTP/1.1\r\nHost: x\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 1935\r\n"
SECRET = b"0123456789abcdef"
V2 = V2_SIGNATURE + bytes.fromhex("2111000cc0000207c6336401dc04078f")
PROVED = make_header(ProxyAddress.make("192.0.2.7", 56324), ProxyAddress.make("198.51.100.1", 1935), bytes(16), SECRET)
LOCAL = V2_SIGNATURE + bytes.fromhex("20000000")
TLS_HELLO = bytes.fromhex("1603010200010001fc0303")
STRANGER = "203.0.113.9"


class Port:
    """A PortFactory whose protocols only record, and the connections made to it."""

    def __init__(self, **changes) -> None:
        self.clock = ManualReactor()
        self.outcomes: Counter[str] = Counter()
        self.spoken: list[tuple[str, str, Recorder]] = []
        trusted = changes.pop("trusted", LOOPBACK)
        self.factory = PortFactory(
            make_rtmp=lambda peer, header: self._speak("rtmp", peer),
            make_http=lambda peer, header: self._speak("http", peer),
            limits=attrs.evolve(DEFAULT_LIMITS, **changes),
            clock=self.clock,
            outcomes=self.outcomes,
            trusted=trusted,
            is_authentic=lambda header: is_authentic(header, SECRET),
        )

    def _speak(self, kind: str, peer: str) -> Recorder:
        protocol = Recorder()
        self.spoken.append((kind, peer, protocol))
        return protocol

    def connect(self, host="127.0.0.1", port=40_000) -> CongestibleTransport | None:
        """A connection from that address; None: it was not admitted."""
        address = IPv6Address("TCP", host, port) if ":" in host else IPv4Address("TCP", host, port)
        protocol = self.factory.buildProtocol(address)
        if protocol is None:
            return None
        transport = CongestibleTransport(self.clock, address)
        transport.connect(protocol)
        return transport

    def say(self, pieces, host="127.0.0.1") -> tuple[str, str, bytes] | str:
        """Which protocol got which bytes from whom; or the outcome that was counted."""
        transport = self.connect(host)
        assert transport is not None
        for piece in pieces:
            if piece and not transport.is_aborted:
                transport.receive(piece)
        self.clock.advance(0)
        if self.spoken:
            kind, peer, protocol = self.spoken[-1]
            return kind, peer, bytes(protocol.received)
        return next(iter(self.outcomes), "")

    def close(self) -> None:
        self.factory.close()
        self.clock.advance(DEFAULT_LIMITS.close_seconds)
        self.clock.advance(0)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


HERE, VIEWER = "127.0.0.1:40000", "192.0.2.7:56324"
GOOD = {
    "RTMP": (RTMP, ("rtmp", HERE, RTMP)),
    "HTTP": (HTTP, ("http", HERE, HTTP)),
    "OPTIONS": (HTTP.replace(b"GET", b"OPTIONS"), ("http", HERE, HTTP.replace(b"GET", b"OPTIONS"))),
    "POST, which begins like PROXY": (b"POST / HTTP/1.1\r\n", ("http", HERE, b"POST / HTTP/1.1\r\n")),
    "PROXY v1, RTMP": (V1 + RTMP, ("rtmp", VIEWER, RTMP)),
    "PROXY v1, HTTP": (V1 + HTTP, ("http", VIEWER, HTTP)),
    "PROXY v2, RTMP": (V2 + RTMP, ("rtmp", VIEWER, RTMP)),
    "PROXY v2, HTTP": (V2 + HTTP, ("http", VIEWER, HTTP)),
    "PROXY v2 with a proof, RTMP": (PROVED + RTMP, ("rtmp", VIEWER, RTMP)),
    "PROXY v2 LOCAL: a health check speaks for itself": (LOCAL + HTTP, ("http", HERE, HTTP)),
}
BAD = {
    "TLS hello": (TLS_HELLO, "bad_first_byte"),
    "zero": (b"\0", "bad_first_byte"),
    "RTMPE": (b"\x06", "bad_first_byte"),
    "lower case": (b"get / HTTP/1.1", "bad_first_byte"),
    "line ends first": (b"\r\n\r\nGET / HTTP/1.1", "bad_proxy_header"),
    "PROXY v1 without an end": (b"PROXY TCP4 " + b"1" * 200, "bad_proxy_header"),
    "PROXY v1 nonsense": (b"PROXY TCP4 a b c d\r\n", "bad_proxy_header"),
    "PROXY v2 too long": (V2[:14] + b"\xff\xff", "bad_proxy_header"),
    "TLS behind PROXY": (V2 + TLS_HELLO, "bad_first_byte"),
}


class SniffingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.port = Port()

    def tearDown(self) -> None:
        self.port.close()

    def each(self, table):
        for name, (data, expected) in table.items():
            for pieces in ([data], one_by_one(data)):
                with self.subTest(name, pieces=len(pieces)):
                    self.port.close()
                    self.port = Port()
                    yield pieces, expected

    def test_first_bytes_decide_whole_and_byte_by_byte(self) -> None:
        for pieces, expected in self.each(GOOD):
            self.assertEqual(expected, self.port.say(pieces))

    def test_anything_else_is_refused_at_once_and_counted(self) -> None:
        for pieces, expected in self.each(BAD):
            self.assertEqual(expected, self.port.say(pieces))
            self.assertEqual({}, self.port.factory.connections)

    def test_refusal_behind_a_proxy_header_is_told_before_the_connection_is_closed(self) -> None:
        """Or the balancer would take it for the death of this node, and bring the same bytes to another."""
        told: Deferred[None] = Deferred()
        self.port.factory.disown = lambda header: told
        transport = self.port.connect()
        assert transport is not None
        transport.receive(PROVED)
        transport.receive(b"\xff")
        transport.receive(RTMP)  # it is too late for that
        self.assertEqual(({"bad_first_byte": 1}, []), (dict(self.port.outcomes), self.port.spoken))
        self.assertFalse(transport.is_aborted)
        told.callback(None)
        self.assertTrue(transport.is_aborted)

    def test_second_proxy_header_is_no_header(self) -> None:
        """A viewer behind the balancer can't name another address."""
        self.assertEqual("bad_first_byte", self.port.say([V2 + V2 + RTMP]))

    def test_proxy_header_of_a_stranger_is_a_bad_first_byte(self) -> None:
        """Version 1 looks like an HTTP method then, which h11 refuses; version 2 without a proof is refused."""
        self.assertEqual(("http", f"{STRANGER}:40000", V1), self.port.say([V1], STRANGER))
        self.port.spoken.clear()
        self.assertEqual("untrusted_proxy_header", self.port.say(one_by_one(V2 + RTMP), STRANGER))
        self.assertEqual([], self.port.spoken)

    def test_proxy_header_that_proves_the_secret_is_believed_from_anywhere(self) -> None:
        self.assertEqual(("rtmp", VIEWER, RTMP), self.port.say(one_by_one(PROVED + RTMP), STRANGER))

    def test_proxy_header_of_a_listed_network_is_believed(self) -> None:
        self.port = Port(trusted=parse_networks(["203.0.113.0/24", "2001:db8::/32"]))
        self.assertEqual(("rtmp", VIEWER, RTMP), self.port.say([V1 + RTMP], STRANGER))
        self.assertEqual(("rtmp", VIEWER, RTMP), self.port.say([V2 + RTMP], "2001:db8::7"))
        self.port.spoken.clear()
        self.assertEqual("untrusted_proxy_header", self.port.say([V2 + RTMP], "127.0.0.1"))

    def test_ipv4_peer_of_an_ipv6_listener_is_believed_as_what_it_is(self) -> None:
        self.assertEqual(("rtmp", VIEWER, RTMP), self.port.say([V2 + RTMP], "::ffff:127.0.0.1"))
        self.port.spoken.clear()
        self.assertEqual("untrusted_proxy_header", self.port.say([V2 + RTMP], f"::ffff:{STRANGER}"))
        self.port = Port(trusted=parse_networks(["203.0.113.0/24"]))
        self.assertEqual(("rtmp", VIEWER, RTMP), self.port.say([V2 + RTMP], f"::ffff:{STRANGER}"))

    def test_unix_socket_is_trusted(self) -> None:
        self.assertTrue(self.port.factory.trusts(""))
        self.assertFalse(self.port.factory.trusts("no address"))

    def test_bytes_after_the_choice_go_through(self) -> None:
        transport = self.port.connect()
        transport.receive(RTMP)
        transport.receive(b"more")
        self.assertEqual(RTMP + b"more", bytes(self.port.spoken[0][2].received))

    def test_end_is_passed_on_once(self) -> None:
        transport = self.port.connect()
        transport.receive(RTMP)
        transport.lose(ConnectionAborted())
        self.assertEqual([ConnectionAborted], self.port.spoken[0][2].ends)
        self.assertEqual({}, self.port.factory.connections)

    def test_silent_connection_is_closed(self) -> None:
        """FAULTS row 7: connect only, no byte."""
        transport = self.port.connect()
        self.port.clock.advance(DEFAULT_LIMITS.handshake_seconds - 0.1)
        self.assertTrue(transport.connected)
        self.port.clock.advance(0.2)
        self.port.clock.advance(0)
        self.assertFalse(transport.connected)
        self.assertEqual({"silent": 1}, dict(self.port.outcomes))

    def test_proxy_header_seconds(self) -> None:
        """The limit: a header that comes one byte a second is not waited for."""
        transport = self.port.connect()
        for byte in one_by_one(V1)[: int(DEFAULT_LIMITS.proxy_header_seconds)]:
            transport.receive(byte)
            self.assertTrue(transport.connected)
            self.port.clock.advance(1.0)
        self.port.clock.advance(0.1)
        self.port.clock.advance(0)
        self.assertFalse(transport.connected)

    def test_deadline_ends_when_the_protocol_is_known(self) -> None:
        transport = self.port.connect()
        transport.receive(V2 + RTMP)
        self.port.clock.advance(1000)
        self.assertTrue(transport.connected)


class AdmissionTests(SynchronousTestCase):
    """FAULTS row 20."""

    def port(self, **changes) -> Port:
        port = Port(**changes)
        self.addCleanup(port.close)
        return port

    def test_connections(self) -> None:
        """The limit: one more than ``connections`` is refused; there is room again when one leaves."""
        port = self.port(connections=3)
        admitted = [port.connect(f"192.0.2.{index}") for index in range(3)]
        self.assertIsNone(port.connect())
        self.assertEqual({"refused_limit": 1}, dict(port.outcomes))
        admitted[0].lose(ConnectionAborted())
        self.assertIsNotNone(port.connect())

    def test_connections_per_address(self) -> None:
        """The limit: one address has no more than its share; others are not kept out by it."""
        port = self.port(connections_per_address=2)
        admitted = [port.connect(STRANGER, 1000 + index) for index in range(2)]
        self.assertIsNone(port.connect(STRANGER, 1002))
        self.assertEqual({"refused_address": 1}, dict(port.outcomes))
        self.assertIsNotNone(port.connect("192.0.2.1"))
        admitted[0].lose(ConnectionAborted())
        self.assertIsNotNone(port.connect(STRANGER, 1003))

    def test_proxied_connections_are_counted_by_the_viewer_s_address(self) -> None:
        """A balancer brings thousands: its own address has no share of them, each viewer's has."""
        port = self.port(connections_per_address=2)
        for _ in range(2):
            port.connect().receive(V2 + RTMP)  # two of one viewer
        port.connect().receive(V2 + RTMP)
        self.assertEqual(1, port.outcomes["refused_address"])
        port.connect().receive(V1.replace(b"192.0.2.7", b"192.0.2.8") + RTMP)
        port.clock.advance(0)
        self.assertEqual([f"192.0.2.{host}:56324" for host in (7, 7, 8)], [peer for _, peer, _ in port.spoken])
        self.assertEqual((3, 3), (len(port.factory.connections), port.factory.admission.connections))

    def test_handshaking_connections(self) -> None:
        """The limit: connections that have not said anything yet are a small part of all."""
        port = self.port(handshaking_connections=2)
        first, _ = port.connect(), port.connect()
        self.assertIsNone(port.connect())
        self.assertEqual({"refused_handshaking": 1}, dict(port.outcomes))
        first.receive(RTMP)
        self.assertIsNotNone(port.connect())

    def test_counts_return_to_zero_however_connections_end(self) -> None:
        port = self.port()
        for data in (b"", RTMP, HTTP, TLS_HELLO, V2, V2 + RTMP, b"PROXY nonsense\r\n"):
            transport = port.connect()
            if data:
                transport.receive(data)
            port.clock.advance(0)
            transport.lose(ConnectionAborted())
        factory = port.factory
        self.assertEqual(({}, 0, 0), (factory.connections, factory.undecided, factory.admission.connections))
        self.assertEqual([], port.clock.getDelayedCalls())

    def test_unix_socket_has_no_address_to_count(self) -> None:
        port = self.port(connections_per_address=1)
        protocols = [port.factory.buildProtocol(UNIXAddress(None)) for _ in range(5)]
        self.assertNotIn(None, protocols)
        for protocol in protocols:
            port.factory.gone(protocol, "")


class ClosingTests(SynchronousTestCase):
    def test_close_of_an_idle_port_is_done_at_once(self) -> None:
        self.successResultOf(Port().factory.close())

    def test_close_seconds(self) -> None:
        """The limit: a stopping node waits so long for a peer to take what was written, then aborts."""
        port = Port()
        quick, slow = port.connect(), port.connect()
        for transport in (quick, slow):
            transport.receive(RTMP)
            transport.write(b"last words")
        closing = port.factory.close()
        self.assertEqual(b"last words", quick.drain())
        port.clock.advance(DEFAULT_LIMITS.close_seconds - 0.1)
        self.assertNoResult(closing)
        port.clock.advance(0.2)
        port.clock.advance(0)
        self.successResultOf(closing)
        self.assertEqual([], port.clock.getDelayedCalls())


class NetworkTests(SynchronousTestCase):
    def test_networks_are_parsed(self) -> None:
        (network, address) = parse_networks(["10.1.2.3/8", "::1"])
        self.assertEqual(("10.0.0.0/8", "::1/128"), (str(network), str(address)))

    def test_text_of_a_bad_network_is_in_the_error(self) -> None:
        self.assertIn("10.0.0.0/99", str(self.assertRaises(ValueError, parse_networks, ["10.0.0.0/99"])))


@given(st.data())
def test_any_segmentation_makes_the_same_choice(data) -> None:
    """FAULTS row 22."""
    said, expected = data.draw(st.sampled_from([*GOOD.values(), *BAD.values()]))
    port = Port()
    assert port.say(data.draw(cuts(said))) == expected
    port.close()


@given(st.binary(min_size=1, max_size=64))
def test_any_first_bytes_are_spoken_refused_or_waited_for(data) -> None:
    """Never an exception."""
    port = Port()
    port.say([data])
    port.close()
    assert not port.factory.connections
    assert isinstance(port.outcomes, Counter)
