"""A session goes on at another aggregator from the exact byte, or is closed, and never guessed at (I4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from relay.log.points import LogStart
from relay.names import StreamName
from relay.net.proxy import TLV_BALANCER, TLV_RESUME, ProxyAddress, make_header
from relay.net.resuming import CATCH_UP_SECONDS
from relay.net.sessions import ResumePoint
from relay.testing import MemoryNetwork, memory_log, publish
from tests import wire
from tests.log.model import gops
from tests.net.driving import Recorder, connect, flv_tags, log_bytes, make_node, stop_node
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
MESSAGES = [metadata(), avc_header(), aac_header(), *gops(4)]
WRITERS = {"rtmp": log_bytes, "flv": flv_tags}


def header(point: bytes) -> bytes:
    viewer, balancer = ProxyAddress.make("192.0.2.7", 5000), ProxyAddress.make("198.51.100.1", 1935)
    return make_header(viewer, balancer, bytes(16), tlvs={TLV_RESUME: point, TLV_BALANCER: b"lb1"})


class ResumeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network)
        self.stream = self.node.ingest(NAME).stream
        publish(self.stream, MESSAGES)
        self.epoch = self.stream.log.epoch

    def tearDown(self) -> None:
        stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def resume(self, rendition: str, offset: int, epoch: int | None = None, name=NAME) -> Recorder:
        point = ResumePoint(rendition, name, self.epoch if epoch is None else epoch, offset)
        return self.say(header(point.to_bytes()))

    def say(self, data: bytes) -> Recorder:
        peer = connect(self.network, self.endpoint, Recorder())
        peer.transport.write(data)
        self.network.carry()
        return peer

    def assert_impossible(self, peer: Recorder) -> None:
        """Closed at once, with not a byte."""
        self.assertEqual((b"", [ConnectionLost]), (bytes(peer.received), peer.ends))
        self.assertEqual(1, self.node.outcomes["resumed_impossible"])

    def test_session_goes_on_from_any_byte_without_a_word(self) -> None:
        """In the middle of a message as well: no header, no preamble, the very next byte."""
        for rendition, write in WRITERS.items():
            whole = write(MESSAGES)
            for offset in (0, 1, 100, len(whole) // 2, len(whole) - 1, len(whole)):
                peer = self.resume(rendition, offset)
                self.assertEqual(whole[offset:], bytes(peer.received), (rendition, offset))
                peer.transport.loseConnection()
                self.network.carry()

    def test_what_comes_later_follows(self) -> None:
        peers = {rendition: self.resume(rendition, 0) for rendition in WRITERS}
        publish(self.stream, gops(2, start=1600))
        self.network.carry()
        for rendition, write in WRITERS.items():
            self.assertEqual(write([*MESSAGES, *gops(2, start=1600)]), bytes(peers[rendition].received))

    def test_viewer_that_is_a_moment_ahead_of_us_is_waited_for(self) -> None:
        """The aggregator that died was ahead; the bytes are on their way here."""
        more = gops(1, start=1600)
        for rendition, write in WRITERS.items():
            offset = len(write(MESSAGES + more)) - 7
            peer = self.resume(rendition, offset)
            self.network.advance(1)
            self.assertEqual((b"", []), (bytes(peer.received), peer.ends), rendition)
        for message in more:
            publish(self.stream, [message])
        self.network.carry()
        for link in self.endpoint.links:
            self.assertEqual(7, len(link.client.protocol.received))

    def test_viewer_ahead_of_us_is_not_waited_for_for_long(self) -> None:
        peer = self.resume("rtmp", self.stream.log.end + 1)
        self.network.advance(CATCH_UP_SECONDS - 0.5)
        self.assertEqual([], peer.ends)
        self.network.advance(1)
        self.assert_impossible(peer)

    def test_viewer_that_leaves_while_it_is_waited_for(self) -> None:
        peer = self.resume("rtmp", self.stream.log.end + 1)
        peer.transport.loseConnection()
        self.network.carry()
        self.assertEqual(1, self.node.outcomes["resumed_peer_closed"])

    def test_what_is_not_here_is_impossible(self) -> None:
        for number, (epoch, name) in enumerate(((self.epoch + 1, NAME), (self.epoch, StreamName("live", "other")))):
            with self.subTest(number):
                self.node.outcomes.clear()
                self.assert_impossible(self.resume("rtmp", 0, epoch, name))

    def test_byte_that_retention_has_dropped_is_impossible(self) -> None:
        self.node.hub.remove(NAME)
        log = memory_log(MESSAGES, epoch=self.epoch, start=LogStart(offset=1000, flv_offset=1000))
        self.stream = self.node.hub.add(NAME, log)
        self.node._ingests.clear()
        for rendition in WRITERS:
            self.node.outcomes.clear()
            self.assert_impossible(self.resume(rendition, 999))

    def test_session_in_the_former_epoch_reads_it_to_its_end_and_crosses(self) -> None:
        new = [avc_header(1600), aac_header(1600), *gops(1, start=1600)]
        self.stream.succeed(memory_log(epoch=self.epoch + 1, start=LogStart(time_ms=1600)))
        publish(self.stream, new)
        offset = len(log_bytes(MESSAGES)) - 100
        received = bytes(self.resume("rtmp", offset).received)
        self.assertTrue(received.startswith(log_bytes(MESSAGES)[offset:]))
        self.assertTrue(received.endswith(log_bytes(new)))

    def test_what_the_viewer_says_is_thrown_away(self) -> None:
        """It answers the aggregator that is dead."""
        peer = self.resume("rtmp", 0)
        for said in (wire.control(3, bytes(4)), wire.user_control(7, bytes(4)), b"GET / HTTP/1.1\r\n\r\n", bytes(5000)):
            peer.transport.write(said)
        self.network.carry()
        self.assertEqual((log_bytes(MESSAGES), []), (bytes(peer.received), peer.ends))

    def test_end_of_broadcast_ends_a_resumed_session_as_any_other(self) -> None:
        rtmp, flv = self.resume("rtmp", 0), self.resume("flv", 0)
        self.stream.end()
        self.network.carry()
        self.assertIn(b"NetStream.Play.UnpublishNotify", rtmp.received)
        self.assertEqual(([ConnectionDone], [ConnectionDone]), (rtmp.ends, flv.ends))
        self.assertEqual(2, self.node.outcomes["resumed_ended"])

    def test_header_that_is_no_position_is_refused(self) -> None:
        for point in (
            b"",
            b"rtmp live/demo 1",
            b"mp4 live/demo 1 0",
            b"rtmp ../x 1 0",
            b"rtmp live/demo 1 -1",
            b"\xff" * 40,
        ):
            peer = self.say(header(point))
            self.assertEqual((b"", 1), (bytes(peer.received), len(peer.ends)), point)
        self.assertEqual(6, self.node.outcomes["bad_proxy_header"])

    def test_stranger_can_t_resume(self) -> None:
        """Only whoever may send a PROXY header at all."""
        self.node.ports._trusted = ()
        peer = self.resume("rtmp", 0)
        self.assertEqual(b"", bytes(peer.received))
        self.assertEqual(1, self.node.outcomes["untrusted_proxy_header"])


@given(st.sampled_from(sorted(WRITERS)), st.lists(st.integers(1, 1500), max_size=6))
def test_session_cut_at_any_bytes_reads_the_rendition_whole(rendition, counts) -> None:
    """Aggregator after aggregator dies under a viewer; what it has in the end is the rendition."""
    whole = WRITERS[rendition](MESSAGES)
    network = MemoryNetwork()
    node, endpoint = make_node(network)
    publish(node.ingest(NAME).stream, MESSAGES)
    epoch = node.hub.get(NAME).log.epoch
    seen = b""
    for count in [*counts, len(whole)]:
        peer = connect(network, endpoint, Recorder())
        peer.transport.write(header(ResumePoint(rendition, NAME, epoch, len(seen)).to_bytes()))
        network.carry()
        seen += bytes(peer.received)[:count]
        endpoint.links[-1].kill_server()
        network.carry()
    assert seen == whole
    stop_node(network, node)
