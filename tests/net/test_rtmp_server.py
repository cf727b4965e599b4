"""One RTMP connection at a node: its purpose, its deadlines, its end."""

from __future__ import annotations

from typing import ClassVar

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.identity import ClusterSecret
from relay.net.rtmp_server import PING_SECONDS
from relay.net.storing import StoringNode
from relay.rtmp.events import (
    CommandAnswered,
    Connected,
    ConnectRejected,
    HandshakeDone,
    PlayStarted,
    PublishStarted,
    StreamEnded,
)
from relay.testing import MemoryNetwork
from tests import wire
from tests.log.model import gops, video
from tests.net.driving import Player, Recorder, connect, make_node, stop_node
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]
LIMITS = DEFAULT_LIMITS


class ServerTestCase(SynchronousTestCase):
    """A node, and clients on a memory network."""

    changes: ClassVar[dict] = {}

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network, **self.changes)

    def tearDown(self) -> None:
        stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())
        self.assertEqual(0, self.node.ports.admission.connections)

    def client(self, protocol=None, **options):
        return connect(self.network, self.endpoint, protocol or Player(**options))

    def publisher(self, messages=(), **options) -> Player:
        encoder = self.client(publish="demo", **options)
        self.send(encoder, messages)
        return encoder

    def send(self, encoder: Player, messages) -> None:
        encoder.send(messages)
        self.network.carry()

    def raw(self, *pieces: bytes) -> Recorder:
        """A client that says these bytes."""
        peer = self.client(Recorder())
        for piece in pieces:
            if peer.transport.connected:
                peer.transport.write(piece)
            self.network.carry()
        return peer

    def advance(self, seconds: float, step: float = 0.5) -> None:
        self.network.advance(seconds, step)

    def assert_closed_after(self, peer, seconds: float, outcome: str) -> None:
        """Not a moment before; counted by this word."""
        self.advance(seconds - 0.5)
        self.assertEqual([], peer.ends)
        self.advance(1.5)
        self.assertEqual(1, len(peer.ends))
        self.assertEqual(1, self.node.outcomes[outcome], self.node.outcomes)


class DeadlineTests(ServerTestCase):
    """FAULTS row 7: whoever says nothing, or too slowly, does not stay."""

    def test_handshake_seconds(self) -> None:
        """The limit: one byte of C1 a second does not extend it."""
        peer = self.raw(b"\x03")
        for _ in range(int(LIMITS.handshake_seconds) - 1):
            peer.transport.write(b"\0")
            self.advance(1)
            self.assertEqual([], peer.ends)
        self.advance(1.5)
        self.assertEqual(1, self.node.outcomes["rtmp_handshake_timeout"])
        self.assertEqual(1, len(peer.ends))

    def test_first_command_seconds(self) -> None:
        """The limit: after the handshake, connect and no more is not enough."""
        self.assert_closed_after(self.client(), LIMITS.first_command_seconds, "rtmp_first_command_timeout")

    def test_connection_that_stopped_publishing_must_begin_anew(self) -> None:
        encoder = self.publisher(HEADERS)
        encoder.session.close_stream(1)
        encoder.flush()
        self.network.carry()
        self.assert_closed_after(encoder, LIMITS.first_command_seconds, "rtmp_first_command_timeout")

    def test_publisher_idle_seconds(self) -> None:
        """The limit: a publisher that sends nothing and answers no ping is closed; its name is free then."""
        encoder = self.publisher(HEADERS + gops(1))
        self.endpoint.links[0].is_cut = True
        self.advance(LIMITS.publisher_idle_seconds - 1)
        self.assertTrue(self.node.hub.get(NAME).is_live)
        self.advance(PING_SECONDS + 1)
        self.assertFalse(self.node.hub.get(NAME).is_live)
        self.endpoint.links[0].is_cut = False
        self.advance(LIMITS.close_seconds + 1)
        self.assertEqual((1, 1), (self.node.outcomes["rtmp_publisher_idle"], len(encoder.ends)))

    def test_silent_publisher_that_answers_pings_stays(self) -> None:
        """A still picture is no death."""
        encoder = self.publisher(HEADERS)
        self.advance(5 * LIMITS.publisher_idle_seconds)
        self.assertEqual([], encoder.ends)

    def test_stream_wait_seconds(self) -> None:
        """The limit: a player waits for a stream so long, then is told that there is none."""
        player = self.client(play="absent")
        self.assert_closed_after(player, LIMITS.stream_wait_seconds, "rtmp_play_refused")
        self.assertEqual(["NetStream.Play.StreamNotFound"], player.codes)

    def test_close_seconds(self) -> None:
        """The limit: a peer that does not take our last words is aborted."""
        player = self.client(play="../x")
        link = self.endpoint.links[0]
        self.assertEqual(["NetStream.Play.Failed"], player.codes)
        second = self.client(Recorder())
        link = self.endpoint.links[1]
        second.transport.write(wire.handshake() + wire.connect_ffmpeg() + wire.play_preamble("a/b"))
        link.server.receive(link.client.drain())
        link.is_cut = True
        self.assertTrue(link.server.connected)
        self.advance(LIMITS.close_seconds - 0.5)
        self.assertTrue(link.server.connected)
        self.advance(1)
        self.assertFalse(link.server.connected)
        link.is_cut = False


class PlayingTests(ServerTestCase):
    def test_player_gets_headers_and_the_newest_gop_then_all_that_comes(self) -> None:
        messages = gops(3)
        encoder = self.publisher(HEADERS + messages[:15])
        player = self.client(play="demo")
        self.assertTrue(player.has(PlayStarted))
        self.send(encoder, messages[15:])
        self.assertEqual(messages[10:], player.media[3:])
        self.assertEqual([18, 9, 8], [message.message_type for message in player.media[:3]])

    def test_player_that_came_first_starts_with_the_stream(self) -> None:
        player = self.client(play="demo")
        self.assertFalse(player.has(PlayStarted))
        self.publisher(HEADERS + gops(1))
        self.assertEqual(gops(1), player.media[3:])

    def test_player_is_told_the_end_of_the_broadcast_and_closed(self) -> None:
        encoder = self.publisher(HEADERS + gops(1))
        player = self.client(play="demo")
        encoder.transport.loseConnection()
        self.advance(29)
        self.assertEqual(([], False), (player.ends, player.has(StreamEnded)))
        self.advance(2)
        self.assertTrue(player.has(StreamEnded))
        self.assertEqual([ConnectionDone], player.ends)
        self.assertEqual(1, self.node.outcomes["rtmp_ended"])

    def test_player_stays_while_the_publisher_comes_back(self) -> None:
        """The encoder crashes and is started again: the player sees a keyframe, growing timestamps, no end."""
        encoder = self.publisher(HEADERS + gops(1))
        player = self.client(play="demo")
        encoder.transport.abortConnection()
        self.advance(5)
        self.publisher(HEADERS + gops(1))
        self.assertEqual(([], 3 + 10 + 3 + 10), (player.ends, len(player.media)))
        times = [message.timestamp for message in player.media if message.message_type == 9][1:]
        self.assertEqual(sorted(times), times)
        self.assertGreater(times[-1], 5000)

    def test_ping_and_pause_of_a_player_are_answered_between_messages(self) -> None:
        encoder = self.publisher(HEADERS + gops(1))
        player = self.client(play="demo")
        for index in range(5):
            player.session.send_ping(index)
            player.session.send_command("pause", 0, True, 0.0)
            player.flush()
            self.send(encoder, gops(1, start=400 * (index + 1)))
        self.assertEqual(gops(6), player.media[3:])
        self.assertEqual(5, sum(type(event).__name__ == "PingAnswered" for event in player.events))

    def test_player_that_leaves_is_forgotten(self) -> None:
        self.publisher(HEADERS + gops(1))
        player = self.client(play="demo")
        waiting = self.client(play="absent")
        player.transport.loseConnection()
        waiting.transport.loseConnection()
        self.network.carry()
        self.assertEqual(0, self.node.viewers)
        self.assertEqual(2, self.node.outcomes["rtmp_peer_closed"])

    def test_second_play_on_a_connection_is_refused(self) -> None:
        self.publisher(HEADERS + gops(1))
        player = self.client(play="demo")
        player.session.create_stream()
        player.flush()
        self.network.carry()
        self.assertIn("NetStream.Play.Failed", player.codes)

    def test_player_may_close_its_stream_and_play_another(self) -> None:
        self.publisher(HEADERS + gops(1))
        peer = self.raw(wire.handshake(), wire.connect_ffmpeg(), wire.play_preamble("demo"))
        self.assertEqual(1, self.node.viewers)
        peer.transport.write(wire.command("closeStream", 0, None, message_stream_id=1))
        self.network.carry()
        self.assertEqual(0, self.node.viewers)
        peer.transport.write(wire.command("play", 0, None, "demo", message_stream_id=1))
        self.network.carry()
        self.assertEqual((1, []), (self.node.viewers, peer.ends))

    def test_flv_suffix_and_query_are_not_part_of_the_name(self) -> None:
        """And neither is the instance that some encoders append to the application."""
        self.publisher(HEADERS + gops(1), app="live/")
        for stream, app in (("demo.flv", "live"), ("demo?token=x", "live?a=b"), ("demo", "/live/")):
            self.assertTrue(self.client(play=stream, app=app).has(PlayStarted), stream)


class PublishingTests(ServerTestCase):
    def test_second_publisher_is_told_bad_name_and_closed(self) -> None:
        """FAULTS row 8; 50 of them do the first no harm."""
        first = self.publisher(HEADERS + gops(1))
        for _ in range(50):
            second = self.publisher()
            self.assertEqual((["NetStream.Publish.BadName"], 1), (second.codes, len(second.ends)))
        self.send(first, gops(1, start=400))
        self.assertEqual([], first.ends)

    def test_publisher_that_returns_before_its_old_connection_is_gone(self) -> None:
        """The half dead one is sent away after the take-over time."""
        first = self.publisher(HEADERS + gops(1))
        self.endpoint.links[0].is_cut = True
        self.advance(4)
        second = self.publisher(HEADERS + gops(1))
        self.assertTrue(second.has(PublishStarted))
        self.endpoint.links[0].is_cut = False
        self.network.carry()
        self.assertEqual((["NetStream.Publish.BadName"], 1), (first.codes, len(first.ends)))
        self.assertEqual(1, self.node.outcomes["rtmp_replaced"])

    def test_connection_that_plays_can_t_publish(self) -> None:
        self.publisher(HEADERS + gops(1))
        peer = self.raw(wire.handshake(), wire.connect_ffmpeg(), wire.play_preamble("demo"))
        publish = wire.command("publish", 9, None, "other", "live", message_stream_id=2)
        peer.transport.write(wire.command("createStream", 8, None) + publish)
        self.network.carry()
        self.assertIn(b"NetStream.Publish.Denied", peer.received)

    def test_streams_limit_is_told_to_the_publisher(self) -> None:
        """There is no room for one more name while all are live."""
        self.node.hub.limits = self.node.limits = LIMITS.__class__(streams=1)
        self.publisher(HEADERS + gops(1))
        peer = self.raw(wire.handshake(), wire.connect_ffmpeg(), wire.publish_preamble("other"))
        self.assertIn(b"NetStream.Publish.Rejected", peer.received)

    def test_one_connection_publishes_several_streams(self) -> None:
        peer = self.raw(wire.handshake(), wire.connect_ffmpeg(), wire.publish_preamble("demo"))
        second = wire.command("publish", 9, None, "other", "live", message_stream_id=2)
        peer.transport.write(wire.command("createStream", 8, None) + second)
        peer.transport.write(wire.media([avc_header(), *gops(1)]) + wire.media(gops(1), message_stream_id=2))
        self.network.carry()
        self.assertEqual([True, True], [stream.is_live for stream in self.node.hub])
        peer.transport.write(wire.command("deleteStream", 0, None, 1))
        self.network.carry()
        self.assertEqual([False, True], [stream.is_live for stream in self.node.hub])

    def test_media_before_an_error_in_the_same_read_is_kept(self) -> None:
        """FAULTS row 22: what was whole counts, however the bytes were cut."""
        peer = self.raw(wire.handshake(), wire.connect_ffmpeg(), wire.publish_preamble("demo"))
        peer.transport.write(wire.media([avc_header(), *gops(1)]) + wire.set_chunk_size(0))
        self.network.carry()
        self.assertEqual(1, self.node.outcomes["rtmp_protocol_error"])
        self.assertEqual(1, len(peer.ends))
        self.assertEqual(gops(1)[-1].timestamp, self.node.hub.get(NAME).log.end_time_ms)

    def test_node_that_takes_no_encoders_says_so(self) -> None:
        stop_node(self.network, self.node)
        self.node, self.endpoint = make_node(self.network, kind=StoringNode)
        self.assertTrue(self.publisher().codes[0].startswith("NetStream.Publish."))


class NodeCommandTests(ServerTestCase):
    """FAULTS row 19: only neighbours that prove themselves may speak as such."""

    changes: ClassVar[dict] = {"secret": ClusterSecret(b"0123456789abcdef")}

    def test_viewer_that_sends_node_commands_is_refused_and_closed(self) -> None:
        for command in ("relayHello", "relayCatalogue", "relayAnything"):
            viewer = self.client()
            self.assertTrue(viewer.has(Connected))
            viewer.session.call(command, [])
            viewer.flush()
            self.network.carry()
            (answer,) = [event for event in viewer.events if isinstance(event, CommandAnswered)]
            self.assertTrue(answer.is_error)
            self.assertEqual(1, len(viewer.ends))
        self.assertEqual(3, self.node.outcomes["rtmp_protocol_error"])
        self.assertEqual([], self.node.control.neighbours)

    def test_node_with_a_wrong_proof_is_rejected_at_connect(self) -> None:
        wrong = ClusterSecret(b"another secret, as long")
        for proof in (None, "", 5.0, "00" * 32, wrong):

            def properties(session, proof=proof):
                if isinstance(proof, ClusterSecret):
                    proof = proof.prove("client", "a1", session.their_nonce, session.our_nonce)
                return {"relayNode": "a1", "relayTier": "distributor", "relayProof": proof}

            peer = self.client(properties=properties)
            self.assertTrue(peer.has(ConnectRejected))
            self.assertEqual(1, len(peer.ends))
        self.assertEqual(5, self.node.outcomes["rtmp_unproven_node"])

    def test_viewer_can_t_read_from_a_position(self) -> None:
        """Its query means nothing: it gets the stream as any viewer does."""
        self.publisher(HEADERS + gops(3))
        epoch = self.node.hub.get(NAME).log.epoch
        viewer = self.client(play=f"demo?epoch={epoch}&offset=0")
        (started,) = [event for event in viewer.events if isinstance(event, PlayStarted)]
        self.assertNotIn("relayEpoch", started.info)
        self.assertEqual(gops(3)[20:], viewer.media[3:])


class StoppingTests(ServerTestCase):
    def test_stopping_node_lets_everybody_go(self) -> None:
        encoder = self.publisher(HEADERS + gops(1))
        player, waiting, silent = self.client(play="demo"), self.client(play="absent"), self.client(Recorder())
        stop_node(self.network, self.node)
        for peer in (encoder, player, waiting, silent):
            self.assertIn(peer.ends, ([ConnectionDone], [ConnectionLost]))

    def test_error_in_a_peer_s_handler_is_no_error_of_others(self) -> None:
        """FAULTS row 22: random bytes after the handshake close that connection, quietly."""
        encoder = self.publisher(HEADERS + gops(1))
        for seed in range(50):
            noise = bytes((seed * 7 + index * index * 13) & 0xFF for index in range(300))
            self.raw(wire.handshake(), wire.connect_ffmpeg() + noise)
        self.send(encoder, [video(400)])
        self.assertEqual([], encoder.ends)
        self.assertTrue(self.client(play="demo").has(HandshakeDone))
