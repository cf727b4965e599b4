"""HTTP-FLV: one request a connection, answered strictly.  (FAULTS rows 15 and 16.)"""

from __future__ import annotations

import tracemalloc

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import NameRefused
from relay.flv.tags import FILE_HEADER
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.http_flv import HttpFlvProtocol, stream_of
from relay.testing import MemoryNetwork, publish
from tests.log.model import gops
from tests.net.driving import Recorder, connect, flv_tags, make_node, read_tags, stop_node
from tests.strategies import cuts, mutated
from tests.wire import aac_header, avc_header, metadata

HEADERS = [metadata(), avc_header(), aac_header()]
GET = b"GET /live/demo.flv HTTP/1.1\r\nHost: localhost\r\n\r\n"


def request(target="/live/demo.flv", method="GET", version="1.1", *lines: str) -> bytes:
    head = [f"{method} {target} HTTP/{version}", *lines, *([] if version == "1.0" else ["Host: x"])]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


class HttpTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network)
        self.stream = self.node.ingest(StreamName("live", "demo")).stream

    def tearDown(self) -> None:
        stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def go_live(self, messages=()) -> None:
        publish(self.stream, [*HEADERS, *gops(1), *messages])

    def ask(self, *pieces: bytes) -> Recorder:
        """A client that says these bytes."""
        peer = connect(self.network, self.endpoint, Recorder())
        for piece in pieces:
            if peer.transport.connected:
                peer.transport.write(piece)
            self.network.carry()
        return peer

    def status(self, peer: Recorder) -> int:
        return int(bytes(peer.received).split(b" ", 2)[1])

    def head(self, peer: Recorder) -> dict[str, str]:
        lines = bytes(peer.received).partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return dict(line.lower().split(": ", 1) for line in lines)

    def body(self, peer: Recorder) -> bytes:
        return bytes(peer.received).partition(b"\r\n\r\n")[2]


class AnswerTests(HttpTestCase):
    def test_get_of_a_live_stream_is_an_endless_flv_file(self) -> None:
        self.go_live()
        peer = self.ask(GET)
        publish(self.stream, gops(2, start=400))
        self.network.carry()
        self.assertEqual((200, "video/x-flv"), (self.status(peer), self.head(peer)["content-type"]))
        self.assertTrue(self.body(peer).startswith(FILE_HEADER))
        self.assertEqual(gops(3), read_tags(self.body(peer))[3:])
        self.assertTrue(self.body(peer).endswith(flv_tags(gops(3))))
        self.assertEqual([], peer.ends)

    def test_head_has_neither_length_nor_chunks(self) -> None:
        """The body ends with the connection: a length would be a lie, chunks would be work for each viewer."""
        self.go_live()
        head = self.head(self.ask(GET))
        self.assertEqual(("close", "no-store", "nosniff"),
                         (head["connection"], head["cache-control"], head["x-content-type-options"]))  # fmt: skip
        self.assertNotIn("content-length", head)
        self.assertNotIn("transfer-encoding", head)

    def test_request_byte_by_byte(self) -> None:
        self.go_live()
        peer = self.ask(*(GET[at : at + 1] for at in range(len(GET))))
        self.assertEqual((200, gops(1)), (self.status(peer), read_tags(self.body(peer))[3:]))

    def test_http_1_0_and_query(self) -> None:
        self.go_live()
        self.assertEqual(200, self.status(self.ask(request(version="1.0"))))
        self.assertEqual(200, self.status(self.ask(request("/live/demo.flv?token=a%20b&x"))))

    def test_get_waits_for_a_stream_that_is_not_there_yet(self) -> None:
        peer = self.ask(GET)
        self.network.advance(DEFAULT_LIMITS.stream_wait_seconds - 1, step=0.5)
        self.assertEqual(b"", bytes(peer.received))
        self.go_live()
        self.network.carry()
        self.assertEqual(200, self.status(peer))

    def test_get_of_an_absent_stream_is_404_after_the_wait(self) -> None:
        peer = self.ask(request("/live/absent.flv"))
        self.network.advance(DEFAULT_LIMITS.stream_wait_seconds + 1, step=0.5)
        self.assertEqual((404, [ConnectionDone]), (self.status(peer), peer.ends))
        self.assertEqual(1, self.node.outcomes["http_404"])

    def test_client_that_leaves_while_it_waits(self) -> None:
        peer = self.ask(request("/live/absent.flv"))
        peer.transport.loseConnection()
        self.network.carry()
        self.assertEqual(1, self.node.outcomes["http_peer_closed"])

    def test_head_is_the_same_head_at_once(self) -> None:
        self.assertEqual(404, self.status(self.ask(request(method="HEAD"))))
        self.go_live()
        peer = self.ask(request(method="HEAD"))
        self.assertEqual((200, b""), (self.status(peer), self.body(peer)))
        self.assertEqual(self.head(self.ask(GET)), self.head(peer))
        self.assertEqual([ConnectionDone], peer.ends)

    def test_head_of_an_absent_stream_has_no_body(self) -> None:
        peer = self.ask(request("/live/absent.flv", "HEAD"))
        self.assertEqual((404, b""), (self.status(peer), self.body(peer)))

    def test_options_says_what_is_allowed(self) -> None:
        peer = self.ask(request(method="OPTIONS"))
        self.assertEqual((204, b""), (self.status(peer), self.body(peer)))
        self.assertEqual(("get, head, options", "*"),
                         (self.head(peer)["allow"], self.head(peer)["access-control-allow-origin"]))  # fmt: skip

    def test_end_of_broadcast_ends_the_connection(self) -> None:
        self.go_live()
        peer = self.ask(GET)
        self.stream.end()
        self.network.carry()
        self.assertEqual([ConnectionDone], peer.ends)
        self.assertEqual(gops(1), read_tags(self.body(peer))[3:])
        self.assertEqual(1, self.node.outcomes["http_ended"])

    def test_origin_of_cors_is_configured(self) -> None:
        """FAULTS row 16."""
        self.go_live()
        self.node.allow_origin = "https://player.example"
        self.assertEqual("https://player.example", self.head(self.ask(GET))["access-control-allow-origin"])
        self.node.allow_origin = ""
        self.assertNotIn("access-control-allow-origin", self.head(self.ask(GET)))


class BadRequestTests(HttpTestCase):
    """FAULTS row 15: a strict parser, one response, then the end."""

    BAD = {
        "content-length and transfer-encoding": request("/live/demo.flv", "GET", "1.1", "Content-Length: 5",
                                                        "Transfer-Encoding: chunked"),
        "two content-lengths": request("/live/demo.flv", "GET", "1.1", "Content-Length: 5", "Content-Length: 6"),
        "signed content-length": request("/live/demo.flv", "GET", "1.1", "Content-Length: +5"),
        "body of a GET": request("/live/demo.flv", "GET", "1.1", "Content-Length: 5") + b"hello",
        "chunked body of a GET": request("/live/demo.flv", "GET", "1.1", "Transfer-Encoding: chunked")
        + b"5\r\nhello\r\n0\r\n\r\n",
        "space before the colon": request("/live/demo.flv", "GET", "1.1", "Content-Length : 5"),
        "NUL in a header": request("/live/demo.flv", "GET", "1.1", "X: a\0b"),
        "no Host": b"GET /live/demo.flv HTTP/1.1\r\n\r\n",
        "two Hosts": request("/live/demo.flv", "GET", "1.1", "Host: y"),
        "no version": b"GET /live/demo.flv\r\n\r\n",
        "space in the target": request("/live/demo .flv"),
        "PROXY version 1 from a stranger": b"PROXY TCP4 a b 1 2\r\n\r\n",
    }  # fmt: skip

    def test_bad_requests_are_400_and_closed(self) -> None:
        self.go_live()
        for name, bad in self.BAD.items():
            with self.subTest(name):
                protocol, transport = self.alone()
                protocol.dataReceived(bad)
                self.assertEqual(b"400", transport.value()[9:12], name)
                self.assertTrue(transport.disconnecting)
                protocol.connectionLost()
        self.assertEqual(0, self.node.viewers)

    def alone(self):
        """The protocol without the port, which would take some of these for PROXY headers."""
        protocol, transport = HttpFlvProtocol(self.node, "test:1"), StringTransport()
        transport.abortConnection = transport.loseConnection
        protocol.makeConnection(transport)
        return protocol, transport

    def test_other_methods_are_405(self) -> None:
        for method in ("POST", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "PRI"):
            peer = self.ask(request(method=method))
            self.assertEqual((405, "get, head, options"), (self.status(peer), self.head(peer)["allow"]), method)
            self.assertEqual(1, len(peer.ends))

    def test_names_that_are_none_are_404_at_once(self) -> None:
        """FAULTS row 9."""
        for target in ("/", "/live/demo", "/live/../demo.flv", "/a/b/c.flv", "/live/%2e%2e.flv", "/.flv", "//demo.flv",
                       "http://x/live/demo", "*", "/live/.flv", "/live/a%00b.flv", "/live/" + "x" * 300 + ".flv",
                       ):  # fmt: skip
            peer = self.ask(request(target))
            self.assertEqual((404, 1), (self.status(peer), len(peer.ends)), target)

    def test_query_of_too_many_keys_is_no_error_of_ours(self) -> None:
        self.go_live()
        self.assertEqual(404, self.status(self.ask(request("/live/demo.flv?" + "a&" * 500))))

    def test_what_a_peer_said_is_not_markup(self) -> None:
        """FAULTS row 16: the answer's body is plain text, and never taken for another type."""
        peer = self.ask(request("/live/<script>alert(1)</script>.flv"))
        self.assertEqual("text/plain; charset=us-ascii", self.head(peer)["content-type"])
        self.assertEqual("nosniff", self.head(peer)["x-content-type-options"])

    def test_whatever_follows_the_request_is_ignored(self) -> None:
        """Pipelined requests, garbage, a second GET: one response."""
        self.go_live()
        peer = self.ask(GET + GET, GET, b"\0garbage\xff" * 100, b"POST / HTTP/1.1\r\n\r\n")
        self.assertEqual(1, bytes(peer.received).count(b"HTTP/1."))
        publish(self.stream, gops(1, start=400))
        self.network.carry()
        self.assertEqual((gops(2), []), (read_tags(self.body(peer))[3:], peer.ends))

    def test_whatever_follows_while_the_client_waits_is_not_kept(self) -> None:
        protocol, transport = self.alone()
        protocol.dataReceived(GET)
        more = bytes(100_000)
        tracemalloc.start()
        for _ in range(50):
            protocol.dataReceived(more)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertLess(held, 100_000)
        self.go_live()
        self.assertEqual(b"200", transport.value()[9:12])
        protocol.connectionLost()

    def test_upgrade_is_not_granted(self) -> None:
        self.go_live()
        upgrade = request("/live/demo.flv", "GET", "1.1", "Connection: Upgrade", "Upgrade: websocket")
        self.assertEqual(200, self.status(self.ask(upgrade)))

    def test_http_head_bytes(self) -> None:
        """The limit: a longer head is refused, however it comes; one below it is read."""
        limit = DEFAULT_LIMITS.http_head_bytes
        for size, status in ((limit - 200, 404), (limit + 200, 431), (4 * limit, 431)):
            long = request("/live/", "GET", "1.1", "X: " + "y" * size)
            for pieces in ([long], [long[at : at + 1000] for at in range(0, len(long), 1000)]):
                self.assertEqual(status, self.status(self.ask(*pieces)), size)

    def test_endless_head_is_cut_off(self) -> None:
        peer = self.ask(b"GET / HTTP/1.1\r\n", *([b"X: y\r\n" * 1000] * 5))
        self.assertEqual((431, 1), (self.status(peer), len(peer.ends)))

    def test_http_head_seconds(self) -> None:
        """The limit: one byte a second does not extend it."""
        peer = self.ask(b"GET")
        for _ in range(int(DEFAULT_LIMITS.http_head_seconds) - 1):
            peer.transport.write(b" ")
            self.network.advance(1)
            self.assertEqual([], peer.ends)
        self.network.advance(1.5)
        self.assertEqual((408, 1), (self.status(peer), len(peer.ends)))

    def test_close_seconds_are_the_last(self) -> None:
        """A client that does not take its 404 is aborted."""
        peer = connect(self.network, self.endpoint, Recorder())
        link = self.endpoint.links[0]
        peer.transport.write(request("/"))
        link.server.receive(link.client.drain())
        link.is_cut = True
        self.network.advance(DEFAULT_LIMITS.close_seconds + 0.5, step=0.5)
        self.assertFalse(link.server.connected)
        link.is_cut = False


class TargetTests(SynchronousTestCase):
    def test_path_is_app_and_name(self) -> None:
        self.assertEqual(StreamName("live", "demo"), stream_of("/live/demo.flv?a=b")[0])
        self.assertEqual(StreamName("live", "demo.flv"), stream_of("/live/demo.flv.flv")[0])
        self.assertEqual(StreamName("live", "demo"), stream_of("HTTP://user@host:80/live/demo.flv?a=b")[0])

    def test_anything_else_is_refused(self) -> None:
        for target in ("", "live/demo.flv", "/live", "/live/demo.flv/", "/live/demo.mp4", "ftp://host/live/demo.flv"):
            self.assertRaises(NameRefused, stream_of, target)


@attrs.define
class Answers:
    """What a protocol without a node's port made of some bytes."""

    network: MemoryNetwork = attrs.field(factory=MemoryNetwork)

    def of(self, pieces) -> tuple[bytes, bool]:
        node, _ = make_node(self.network)
        publish(node.ingest(StreamName("live", "demo")).stream, [*HEADERS, *gops(1)])
        transport = StringTransport()
        transport.abortConnection = transport.loseConnection
        protocol = HttpFlvProtocol(node, "test:1")
        protocol.makeConnection(transport)
        for piece in pieces:
            if not transport.disconnecting:
                protocol.dataReceived(piece)
        result = transport.value(), transport.disconnecting
        protocol.connectionLost()
        stop_node(self.network, node)
        return result


@given(st.data())
def test_any_request_cut_anywhere_has_one_answer_at_most(data) -> None:
    """FAULTS row 22: the same answer for every segmentation, and never an unhandled exception."""
    said = data.draw(mutated(data.draw(st.sampled_from([GET, *BadRequestTests.BAD.values()]))))
    answers = Answers()
    whole, is_over = answers.of([said] if said else [])
    assert whole.count(b"HTTP/1.1 ") <= 1
    pieces = [piece for piece in data.draw(cuts(said)) if piece]
    assert answers.of(pieces)[0][9:12] == whole[9:12]
    assert is_over == (whole[9:12] not in (b"", b"200"))
