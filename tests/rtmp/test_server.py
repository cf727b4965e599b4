"""The server session: each answer as the clients of the world want it, each wrong step the peer's fault."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.rtmp import amf0
from relay.rtmp.chunks import ChunkReader
from relay.rtmp.events import (
    CommandAnswered,
    CommandReceived,
    ConnectRequested,
    HandshakeDone,
    MediaReceived,
    PingAnswered,
    PlayRequested,
    PublishRequested,
    StreamClosed,
)
from relay.rtmp.messages import MediaMessage, MessageType, RawMessage
from relay.rtmp.server import SERVER_CHUNK_SIZE, ConnectionState, ServerSession, StreamState
from tests import wire

HANDSHAKE_REPLY = 1 + 2 * 1536


class ServerCase(SynchronousTestCase):
    """A server session and a reader of what it writes."""

    def setUp(self) -> None:
        self.make()

    def make(self, **limits: Any) -> None:
        self.session = ServerSession(attrs.evolve(DEFAULT_LIMITS, **limits), wire.NONCE)
        self.reader = ChunkReader(DEFAULT_LIMITS)

    def feed(self, data: bytes, now: float = 0.0) -> list[Any]:
        return self.session.receive_data(data, now)

    def sent(self) -> list[RawMessage]:
        return self.reader.feed(self.session.data_to_send())

    def said(self) -> list[list[Any]]:
        """The commands among what was sent, their message stream id first."""
        return [
            [message.message_stream_id, *amf0.decode_all(message.payload, DEFAULT_LIMITS)]
            for message in self.sent()
            if message.message_type == MessageType.COMMAND_AMF0
        ]

    def shake(self) -> None:
        self.assertEqual([HandshakeDone()], self.feed(wire.handshake()))
        self.assertEqual(HANDSHAKE_REPLY, len(self.session.data_to_send()))

    def connect(self, data: bytes = b"", **properties: Any) -> ConnectRequested:
        self.shake()
        (request,) = self.feed(data or wire.connect_ffmpeg())
        self.assertIsInstance(request, ConnectRequested)
        self.session.accept_connect(request, properties)
        return request

    def publish(self) -> PublishRequested:
        self.connect()
        (request,) = self.feed(wire.publish_preamble())
        self.session.accept_publish(request)
        self.sent()
        return request

    def play(self) -> PlayRequested:
        self.connect()
        (request,) = self.feed(wire.play_preamble())
        self.sent()
        return request


class ConnectTests(ServerCase):
    def test_request_has_what_the_client_said(self) -> None:
        request = self.connect()
        self.assertEqual(
            (1.0, "live", "rtmp://127.0.0.1:1935/live", "FMLE/3.0 (compatible; Lavf59.27.100)"),
            (request.transaction_id, request.app, request.tc_url, request.flash_version),
        )

    def test_answer_is_window_bandwidth_chunk_size_result(self) -> None:
        """In that order, all on chunk streams 2 and 3, and what follows is one chunk a message."""
        self.connect(cluster="x")
        window, bandwidth, chunk_size, result = self.sent()
        self.assertEqual(RawMessage(2, 0, 5, 0, (67_108_864).to_bytes(4, "big")), window)
        self.assertEqual(RawMessage(2, 0, 6, 0, (67_108_864).to_bytes(4, "big") + b"\x02"), bandwidth)
        self.assertEqual(RawMessage(2, 0, 1, 0, SERVER_CHUNK_SIZE.to_bytes(4, "big")), chunk_size)
        self.assertEqual((3, 20, 0), (result.chunk_stream_id, result.message_type, result.message_stream_id))
        self.assertEqual(
            [
                "_result",
                1.0,
                {"fmsVer": "FMS/3,0,1,123", "capabilities": 31.0},
                {
                    "level": "status",
                    "code": "NetConnection.Connect.Success",
                    "description": "Connection succeeded.",
                    "objectEncoding": 0.0,
                    "cluster": "x",
                },
            ],
            amf0.decode_all(result.payload, DEFAULT_LIMITS),
        )

    def test_every_message_we_may_send_fits_one_chunk(self) -> None:
        """The log's bytes are never continued, whatever the operator's limit."""
        for message_bytes, expected in ((8 << 20, 10 << 20), (10 << 20, 10 << 20), (0xFFFFFF, 0xFFFFFF)):
            self.make(message_bytes=message_bytes)
            self.connect()
            self.assertEqual(expected, self.session.our_chunk_size)
            self.assertGreaterEqual(self.session.our_chunk_size, message_bytes)

    def test_enhanced_client_is_answered_what_we_honour(self) -> None:
        """Everything is forwarded; the reconnect bit (1) is not ours to echo."""
        self.connect(wire.connect_enhanced())
        ((_, _, _, _, info),) = self.said()
        self.assertEqual(["*"], info["fourCcList"])
        self.assertEqual({"*": 4.0}, info["videoFourCcInfoMap"])
        self.assertEqual({"*": 4.0}, info["audioFourCcInfoMap"])
        self.assertEqual(14.0, info["capsEx"])

    def test_obs_sets_its_chunk_size_before_connect(self) -> None:
        self.connect(wire.connect_obs())
        self.assertEqual(4096, self.session.their_chunk_size)
        ((_, _, _, _, info),) = self.said()
        self.assertEqual(["*"], info["fourCcList"])
        self.assertNotIn("capsEx", info)

    def test_legacy_client_is_not_told_of_enhancements(self) -> None:
        self.connect()
        ((_, _, _, _, info),) = self.said()
        self.assertFalse({"fourCcList", "capsEx", "videoFourCcInfoMap"} & set(info))

    def test_odd_caps_are_ignored(self) -> None:
        for caps in ("x", float("nan"), float("inf"), -1.5, None):
            self.make()
            self.connect(wire.command("connect", 1, {"app": "live", "capsEx": caps}))
            ((_, _, _, _, info),) = self.said()
            self.assertNotIn("capsEx", info)

    def test_amf3_command_is_read(self) -> None:
        """Flash sends type 17: one zero byte, then AMF0."""
        self.shake()
        payload = b"\0" + amf0.encode("connect", 1, {"app": "live", "objectEncoding": 3})
        (request,) = self.feed(wire.encode_message(RawMessage(3, 0, 17, 0, payload), 128))
        self.assertEqual("live", request.app)
        self.session.accept_connect(request)
        ((_, _, _, _, info),) = self.said()
        self.assertEqual(0.0, info["objectEncoding"])

    def test_unknown_marker_in_connect_ends_its_properties(self) -> None:
        self.shake()
        payload = amf0.encode("connect", 1) + b"\x03\x00\x03app\x02\x00\x04live\x00\x01x\x11\x0a\x0b"
        (request,) = self.feed(wire.encode_message(RawMessage(3, 0, 20, 0, payload), 128))
        self.assertEqual("live", request.app)

    def test_missing_and_odd_properties_are_empty(self) -> None:
        self.shake()
        (request,) = self.feed(wire.command("connect", 1, {"app": 5, "tcUrl": None}))
        self.assertEqual(("", "", ""), (request.app, request.tc_url, request.flash_version))

    def test_rejection(self) -> None:
        """GStreamer reads the description; the rest of what the peer sends is passed over."""
        self.shake()
        (request,) = self.feed(wire.connect_ffmpeg() + wire.publish_preamble())[:1]
        self.session.reject_connect(request, "no such application")
        self.assertEqual(
            [
                [
                    0,
                    "_error",
                    1.0,
                    None,
                    {"level": "error", "code": "NetConnection.Connect.Rejected", "description": "no such application"},
                ]
            ],
            self.said(),
        )
        self.assertEqual(ConnectionState.REJECTED, self.session.state)
        self.assertEqual([], self.feed(wire.publish_preamble()))
        self.assertEqual([], self.sent())

    def test_long_rejection_is_chunked_at_128(self) -> None:
        """Our chunk size is still the default then."""
        self.shake()
        (request,) = self.feed(wire.connect_ffmpeg())
        self.session.reject_connect(request, "x" * 500)
        self.assertEqual("x" * 500, self.said()[0][4]["description"])

    def test_pipelined_commands_are_answered_behind_connect(self) -> None:
        """createStream right behind connect, and even publish, in one piece with the handshake."""
        events = self.feed(wire.handshake() + wire.connect_ffmpeg() + wire.publish_preamble())
        self.assertEqual([HandshakeDone, ConnectRequested, PublishRequested], [type(event) for event in events])
        self.session.data_to_send()
        self.session.accept_connect(events[1])
        self.session.accept_publish(events[2])
        names = [(words[1], words[2]) for words in self.said()]
        self.assertEqual([("_result", 1), ("_result", 2), ("_result", 3), ("_result", 4), ("onStatus", 0)], names)

    def test_wrong_steps_are_ours(self) -> None:
        request = self.connect()
        with self.assertRaises(LocalProtocolError):
            self.session.accept_connect(request)
        with self.assertRaises(LocalProtocolError):
            self.session.reject_connect(request, "late")
        with self.assertRaises(LocalProtocolError):
            ServerSession(DEFAULT_LIMITS, wire.NONCE).send_ping(0)

    def test_second_connect_is_the_peers_fault(self) -> None:
        self.connect()
        with self.assertRaises(RemoteProtocolError):
            self.feed(wire.connect_ffmpeg())

    def test_any_other_command_before_connect_is_the_peers_fault(self) -> None:
        for name in ("createStream", "publish", "play", "relayAnything", "unknown", "_result"):
            self.make()
            self.shake()
            with self.assertRaises(RemoteProtocolError):
                self.feed(wire.command(name, 1, None, "x"))


class CommandTests(ServerCase):
    def test_publish_preamble_is_answered(self) -> None:
        """releaseStream and FCPublish with nothing, createStream with 1."""
        self.connect()
        (request,) = self.feed(wire.publish_preamble("demo?token=x"))
        self.assertEqual(
            (5.0, 1, "demo?token=x"), (request.transaction_id, request.message_stream_id, request.stream_key)
        )
        self.assertEqual(
            [[0, "_result", 2.0, None, None], [0, "_result", 3.0, None, None], [0, "_result", 4.0, None, 1.0]],
            self.said()[1:],
        )

    def test_nothing_is_written_as_undefined(self) -> None:
        self.connect()
        self.sent()
        self.feed(wire.command("FCPublish", 3, None, "demo"))
        (message,) = self.sent()
        self.assertEqual(amf0.encode("_result", 3, None, amf0.UNDEFINED), message.payload)

    def test_courtesies_and_unknown_commands_are_answered_if_they_ask(self) -> None:
        """Unknown ones are counted; with transaction id 0 nothing is said."""
        self.connect()
        self.sent()
        for name in ("releaseStream", "FCPublish", "FCUnpublish", "FCSubscribe", "_checkbw", "set_playlist", "x" * 300):
            self.feed(wire.command(name, 9, None, "demo"))
            self.assertEqual([[0, "_result", 9.0, None, None]], self.said(), name)
            self.feed(wire.command(name, 0, None, "demo"))
            self.assertEqual([], self.sent(), name)
        self.assertEqual(4, self.session.unknown_commands)

    def test_stream_length_is_0(self) -> None:
        """A live stream: ffmpeg makes a duration of anything greater."""
        self.connect()
        self.sent()
        self.feed(wire.command("getStreamLength", 3, None, "demo"))
        self.assertEqual([[0, "_result", 3.0, None, 0.0]], self.said())

    def test_message_stream_ids_are_given_back(self) -> None:
        """A player that changes its channel stays on id 1, the log's."""
        self.connect()
        self.sent()
        self.feed(wire.command("createStream", 2, None) * 2)
        self.assertEqual([1.0, 2.0], [words[4] for words in self.said()])
        self.feed(wire.command("deleteStream", 0, None, 1.0) + wire.command("createStream", 3, None))
        self.assertEqual([1.0], [words[4] for words in self.said()])

    def test_odd_ids_are_ignored(self) -> None:
        self.connect()
        for odd in (float("nan"), float("inf"), -1.0, 0.5, 1e300, "1", None, [], 99.0):
            self.assertEqual([], self.feed(wire.command("deleteStream", 0, None, odd)))
        self.assertEqual([], self.feed(wire.command("deleteStream")))
        self.assertEqual([], self.feed(wire.command("closeStream", 0, None, message_stream_id=7)))

    def test_command_without_a_name_is_the_peers_fault(self) -> None:
        for payload in (b"", b"\x05", amf0.encode(1.0), amf0.encode("")):
            self.make()
            self.connect()
            with self.assertRaises(RemoteProtocolError):
                self.feed(wire.encode_message(RawMessage(3, 0, 20, 0, payload), 128))

    def test_relay_commands_are_events_and_never_answered(self) -> None:
        self.connect()
        self.sent()
        self.assertEqual(
            [CommandReceived(name="relayHello", transaction_id=7.0, values=["a", {"b": 1.0}])],
            self.feed(wire.command("relayHello", 7, None, "a", {"b": 1})),
        )
        self.assertEqual([], self.sent())
        self.session.answer_command(7, {"ok": True})
        self.session.refuse_command(8, "who are you")
        self.session.send_command("relayBye", 0, "x")
        self.assertEqual(
            [
                [0, "_result", 7.0, None, {"ok": True}],
                [
                    0,
                    "_error",
                    8.0,
                    None,
                    {"level": "error", "code": "NetConnection.Call.Failed", "description": "who are you"},
                ],
                [0, "relayBye", 0.0, None, "x"],
            ],
            self.said(),
        )

    def test_answers_of_the_peer_are_events(self) -> None:
        self.connect()
        self.assertEqual(
            [
                CommandAnswered(transaction_id=3.0, is_error=False, values=["yes"]),
                CommandAnswered(transaction_id=4.0, is_error=True, values=[]),
            ],
            self.feed(wire.command("_result", 3, None, "yes") + wire.command("_error", 4, None)),
        )


class PublishTests(ServerCase):
    def test_acceptance_is_stream_begin_and_status_on_its_id(self) -> None:
        """ffmpeg parses at a fixed offset: exactly two values before the object."""
        self.connect()
        (request,) = self.feed(wire.publish_preamble())
        self.sent()
        self.session.accept_publish(request)
        begin, status = self.sent()
        self.assertEqual(RawMessage(2, 0, 4, 0, bytes.fromhex("000000000001")), begin)
        self.assertEqual(1, status.message_stream_id)
        self.assertEqual(
            [
                "onStatus",
                0.0,
                None,
                {"level": "status", "code": "NetStream.Publish.Start", "description": "Publishing."},
            ],
            amf0.decode_all(status.payload, DEFAULT_LIMITS),
        )

    def test_refusal_is_an_error_status_and_the_id_is_free_again(self) -> None:
        self.connect()
        (request,) = self.feed(wire.publish_preamble())
        self.sent()
        self.session.refuse_publish(request, "NetStream.Publish.BadName", "demo is published by another")
        self.assertEqual(
            [
                [
                    1,
                    "onStatus",
                    0.0,
                    None,
                    {
                        "level": "error",
                        "code": "NetStream.Publish.BadName",
                        "description": "demo is published by another",
                    },
                ]
            ],
            self.said(),
        )
        self.assertEqual(StreamState.CREATED, self.session.stream_state(1))
        self.assertEqual([], self.feed(wire.media(wire.h264_gop(2))), "media of a refused encoder")

    def test_media_are_what_the_log_stores(self) -> None:
        """@setDataFrame is gone, AMF3 data is AMF0 data."""
        self.publish()
        sent = [wire.published_metadata(), wire.avc_header(), wire.aac_header(), *wire.h264_gop(3)]
        received = self.feed(wire.media(sent))
        self.assertEqual([MediaReceived(1, message) for message in [wire.metadata(), *sent[1:]]], received)
        payload = b"\0" + wire.published_metadata().payload
        amf3 = wire.encode_message(RawMessage(5, 9, 15, 1, payload), 128)
        self.assertEqual([MediaReceived(1, wire.metadata(9))], self.feed(amf3))

    def test_data_about_the_connection_are_not_media(self) -> None:
        """|RtmpSampleAccess and onStatus data messages are no part of the stream."""
        self.publish()
        for name in ("|RtmpSampleAccess", "onStatus"):
            self.assertEqual([], self.feed(wire.media([MediaMessage(18, 0, amf0.encode(name, True, True))])))
        self.assertEqual(2, self.session.dropped_messages)

    def test_nameless_data_and_empty_media_are_dropped_and_counted(self) -> None:
        self.publish()
        odd = [MediaMessage(18, 0, b"\x05"), MediaMessage(18, 0, b""), MediaMessage(9, 0, b""), MediaMessage(8, 0, b"")]
        self.assertEqual([], self.feed(wire.media(odd)))
        self.assertEqual(4, self.session.dropped_messages)

    def test_one_byte_of_media_passes(self) -> None:
        self.publish()
        message = MediaMessage(9, 5, b"\x17")
        self.assertEqual([MediaReceived(1, message)], self.feed(wire.media([message])))

    def test_media_for_a_stream_that_does_not_publish_are_dropped_and_counted(self) -> None:
        self.publish()
        self.assertEqual([], self.feed(wire.media(wire.h264_gop(3), message_stream_id=2)))
        self.assertEqual([], self.feed(wire.media(wire.h264_gop(3), message_stream_id=0)))
        self.assertEqual(6, self.session.dropped_messages)

    def test_aggregate_is_taken_apart(self) -> None:
        self.publish()
        messages = wire.in_order(wire.h264_gop(3, 1000), wire.aac(3, 1000))
        odd = MediaMessage(20, 1000, amf0.encode("connect", 1))
        self.feed(wire.set_chunk_size(1 << 20))
        received = self.feed(wire.aggregate([*messages, odd], timestamp=1000))
        self.assertEqual([MediaReceived(1, message) for message in messages], received)
        self.assertEqual(1, self.session.dropped_messages, "a command inside is not obeyed")

    def test_each_way_to_end_closes_once(self) -> None:
        """And the connection goes on."""
        ends = {
            "FCUnpublish": wire.command("FCUnpublish", 6, None, "demo"),
            "deleteStream": wire.command("deleteStream", 7, None, 1.0),
            "closeStream": wire.command("closeStream", 0, None, message_stream_id=1),
            "ffmpeg's and OBS's end": wire.unpublish(),
        }
        for name, end in ends.items():
            self.make()
            self.publish()
            self.assertEqual([StreamClosed(1)], self.feed(end), name)
            self.assertEqual([], self.feed(end), name)
            self.assertEqual([], self.feed(wire.media(wire.h264_gop(2))), name)

    def test_unpublish_of_another_name_is_ignored(self) -> None:
        self.publish()
        self.assertEqual([], self.feed(wire.command("FCUnpublish", 6, None, "other")))
        self.assertEqual(StreamState.PUBLISHING, self.session.stream_state(1))

    def test_publish_again_on_the_same_connection(self) -> None:
        self.publish()
        self.feed(wire.unpublish())
        (request,) = self.feed(wire.publish_preamble("again"))
        self.session.accept_publish(request)
        self.assertEqual(2, len(self.feed(wire.media(wire.h264_gop(2)))))

    def test_two_streams_on_one_connection(self) -> None:
        """OBS multitrack may create more than one."""
        self.publish()
        second = wire.command("createStream", 6, None) + wire.command(
            "publish", 7, None, "two", "live", message_stream_id=2
        )
        (request,) = self.feed(second)
        self.session.accept_publish(request)
        received = self.feed(wire.media(wire.h264_gop(1)) + wire.media(wire.h264_gop(1), message_stream_id=2))
        self.assertEqual([1, 2], [event.message_stream_id for event in received])

    def test_stream_closed_before_our_answer_takes_no_answer(self) -> None:
        self.connect()
        (request,) = self.feed(wire.publish_preamble())
        self.assertEqual([StreamClosed(1)], self.feed(wire.command("deleteStream", 7, None, 1.0)))
        self.sent()
        self.session.accept_publish(request)
        self.session.refuse_publish(request, "NetStream.Publish.Denied", "late")
        self.assertEqual([], self.sent())

    def test_answering_twice_is_our_fault(self) -> None:
        request = self.publish()
        with self.assertRaises(LocalProtocolError):
            self.session.accept_publish(request)

    def test_publish_where_it_cannot_be_is_the_peers_fault(self) -> None:
        publish = wire.command("publish", 5, None, "demo", "live", message_stream_id=1)
        for preamble in (b"", wire.publish_preamble(), wire.play_preamble()):
            self.make()
            self.connect()
            self.feed(preamble)
            with self.assertRaises(RemoteProtocolError):
                self.feed(publish)


class PlayTests(ServerCase):
    def test_acceptance_is_begin_reset_start(self) -> None:
        """In that order; the node's position rides in Play.Start."""
        request = self.play()
        self.assertEqual((4.0, 1, "demo"), (request.transaction_id, request.message_stream_id, request.stream))
        self.session.accept_play(request, {"epoch": 7})
        begin, *statuses = self.sent()
        self.assertEqual(RawMessage(2, 0, 4, 0, bytes.fromhex("000000000001")), begin)
        self.assertEqual([1, 1], [status.message_stream_id for status in statuses])
        infos = [amf0.decode_all(status.payload, DEFAULT_LIMITS) for status in statuses]
        self.assertEqual([["onStatus", 0.0, None]] * 2, [info[:3] for info in infos])
        self.assertEqual(["NetStream.Play.Reset", "NetStream.Play.Start"], [info[3]["code"] for info in infos])
        self.assertEqual({"status"}, {info[3]["level"] for info in infos})
        self.assertEqual(7.0, infos[1][3]["epoch"])

    def test_nothing_else_that_makes_players_close_or_call_back_is_ever_sent(self) -> None:
        """No onBWDone, no Data.Start, no StreamEOF."""
        request = self.play()
        self.session.accept_play(request)
        self.assertEqual([4, 20, 20], [message.message_type for message in self.sent()])

    def test_refusal(self) -> None:
        request = self.play()
        self.session.refuse_play(request, "NetStream.Play.StreamNotFound", "demo is not live")
        ((msid, _, _, _, info),) = self.said()
        self.assertEqual((1, "error", "NetStream.Play.StreamNotFound"), (msid, info["level"], info["code"]))

    def test_end_is_notify_then_eof_once(self) -> None:
        self.session_plays()
        self.session.end_play(1)
        self.session.end_play(1)
        status, eof = self.sent()
        self.assertIn(b"NetStream.Play.UnpublishNotify", status.payload)
        self.assertEqual(RawMessage(2, 0, 4, 0, bytes.fromhex("000100000001")), eof)

    def session_plays(self) -> None:
        self.session.accept_play(self.play())
        self.sent()

    def test_pause_is_answered_and_changes_nothing(self) -> None:
        self.session_plays()
        for flag, code in ((True, "NetStream.Pause.Notify"), (False, "NetStream.Unpause.Notify")):
            pause = wire.command("pause", 0, None, flag, 1000.0, message_stream_id=1)
            self.assertEqual([], self.feed(pause))
            self.assertEqual([code], [words[4]["code"] for words in self.said()])
        self.assertEqual(StreamState.PLAYING, self.session.stream_state(1))

    def test_pause_without_play_says_nothing(self) -> None:
        self.connect()
        self.sent()
        self.feed(wire.command("pause", 0, None, True, 0.0, message_stream_id=1))
        self.assertEqual([], self.sent())

    def test_player_that_leaves_closes_the_stream(self) -> None:
        self.session_plays()
        self.assertEqual([StreamClosed(1)], self.feed(wire.command("deleteStream", 0, None, 1.0)))
        self.assertIsNone(self.session.stream_state(1))

    def test_media_from_a_player_are_dropped(self) -> None:
        self.session_plays()
        self.assertEqual([], self.feed(wire.media(wire.h264_gop(3))))

    def test_reconnect_request_can_be_sent(self) -> None:
        """E-RTMP's clean way to drain."""
        self.session_plays()
        self.session.send_status(0, "status", "NetConnection.Connect.ReconnectRequest", "", {"tcUrl": "rtmp://b/live"})
        ((msid, _, _, _, info),) = self.said()
        self.assertEqual((0, "rtmp://b/live"), (msid, info["tcUrl"]))


class ControlTests(ServerCase):
    def test_ping_is_answered_with_its_own_bytes(self) -> None:
        self.connect()
        self.sent()
        self.feed(wire.user_control(6, b"\xde\xad\xbe\xef"))
        self.assertEqual([RawMessage(2, 0, 4, 0, b"\x00\x07\xde\xad\xbe\xef")], self.sent())

    def test_our_ping_and_its_answer(self) -> None:
        self.connect()
        self.sent()
        self.session.send_ping(0x1_0000_0005)
        self.assertEqual([RawMessage(2, 0, 4, 0, b"\x00\x06\x00\x00\x00\x05")], self.sent())
        self.assertEqual([PingAnswered(5)], self.feed(wire.user_control(7, b"\0\0\0\5")))

    def test_librtmps_pong_on_a_fresh_chunk_stream_is_read(self) -> None:
        """It is sent as format 1."""
        self.connect()
        self.assertEqual([PingAnswered(5)], self.feed(bytes.fromhex("42 000000 000006 04 0007 00000005")))

    def test_other_user_control_is_ignored(self) -> None:
        """Buffer length, SWF verification, buffer empty and ready, pings cut short."""
        self.connect()
        self.sent()
        for event, payload in (
            (3, bytes(8)),
            (26, b""),
            (27, bytes(42)),
            (31, bytes(4)),
            (32, bytes(4)),
            (6, b""),
            (7, b"a"),
        ):
            self.assertEqual([], self.feed(wire.user_control(event, payload)))
        self.assertEqual([], self.sent())

    def test_acknowledgement_after_each_window(self) -> None:
        """The peer's window; the value is all bytes so far; one a read at most."""
        self.publish()
        self.feed(wire.control(5, (100_000).to_bytes(4, "big")) + wire.set_chunk_size(1 << 20))
        self.sent()
        media = wire.media([MediaMessage(9, 0, b"\x27" + bytes(30_000))], 1 << 20)
        acknowledged = [self.session.bytes_received]
        for _ in range(40):
            self.feed(media)
            acknowledgements = self.sent()
            self.assertLessEqual(self.session.bytes_received - acknowledged[-1], 100_000)
            for message in acknowledgements:
                self.assertEqual((2, 3, 4), (message.chunk_stream_id, message.message_type, len(message.payload)))
                self.assertEqual(self.session.bytes_received, int.from_bytes(message.payload, "big"))
                acknowledged.append(self.session.bytes_received)
        self.assertEqual(21, len(acknowledged))

    def test_acknowledgement_without_a_told_window(self) -> None:
        self.publish()
        self.feed(wire.set_chunk_size(1 << 20))
        for _ in range(3):
            self.feed(wire.media([MediaMessage(9, 0, bytes(1 << 20))], 1 << 20))
        self.assertEqual([3], [message.message_type for message in self.sent()])

    def test_acknowledgement_wraps_at_32_bits(self) -> None:
        self.publish()
        self.session.bytes_received = (1 << 32) + 5
        self.feed(b"")
        self.assertEqual([RawMessage(2, 0, 3, 0, b"\0\0\0\5")], self.sent())

    def test_tiny_window_does_not_make_us_answer_every_byte(self) -> None:
        """Nor does window 0, nor one with the top bit."""
        for window in (0, 1, 0x80000000):
            self.make()
            self.publish()
            self.feed(wire.control(5, window.to_bytes(4, "big")))
            self.sent()
            for _ in range(50):
                self.feed(wire.user_control(3, bytes(8)))
            self.assertLessEqual(len(self.sent()), 1, window)

    def test_missing_acknowledgements_never_stop_us(self) -> None:
        """A peer that was told a window and sends none is served all the same."""
        self.publish()
        for second in range(20):
            self.assertEqual(25, len(self.feed(wire.media(wire.h264_gop(25, second * 1000)), second)))

    def test_unknown_and_shared_object_messages_are_dropped_and_counted(self) -> None:
        self.connect()
        for message_type in (7, 16, 19, 99, 255):
            self.assertEqual([], self.feed(wire.encode_message(RawMessage(3, 0, message_type, 0, b"abc"), 128)))
        self.assertEqual(5, self.session.dropped_messages)

    def test_failed_session_stays_failed_and_keeps_its_last_words(self) -> None:
        """What was to be sent still can be; more input gives an error again."""
        self.publish()
        with self.assertRaises(RemoteProtocolError) as first:
            self.feed(wire.user_control(6, bytes(4)) + wire.media(wire.h264_gop(2)) + wire.connect_ffmpeg())
        self.assertEqual(2, len(self.session.undelivered))
        self.assertEqual([4], [message.message_type for message in self.sent()])
        with self.assertRaises(RemoteProtocolError) as second:
            self.feed(b"")
        self.assertEqual(str(first.exception), str(second.exception))

    def test_long_commands_count_for_more_than_one(self) -> None:
        """4 KB of nulls are 4,000 values to decode: 500 of them a second would be all that the node does."""
        self.make(control_messages_per_second=500)
        self.connect()
        command = wire.command("getStreamLength", 0, *[None] * 4000)
        self.feed(command * 50)
        with self.assertRaises(LimitExceeded):
            self.feed(command * 50)

    def test_control_rate_may_be_lifted_for_a_node(self) -> None:
        self.make(control_messages_per_second=10)
        self.connect()
        self.session.allow_control_messages(1000)
        self.feed(wire.command("relayX", 0, None) * 500)
        with self.assertRaises(LimitExceeded):
            self.feed(wire.command("relayX", 0, None) * 600)


class SecretTests(ServerCase):
    def test_no_repr_shows_a_stream_key(self) -> None:
        """Events and messages end in log lines."""
        self.connect()
        events = self.feed(wire.publish_preamble("topsecret") + wire.command("relayX", 0, None, "topsecret"))
        reader = ChunkReader(DEFAULT_LIMITS)
        messages = reader.feed(wire.publish_preamble("topsecret"))
        self.assertEqual(2, len(events))
        self.assertNotIn("topsecret", repr(events) + repr(messages))
        self.make()
        self.shake()
        events = self.feed(wire.command("connect", 1, {"app": "live", "tcUrl": "rtmp://h/live?topsecret"}))
        self.assertNotIn("topsecret", repr(events))

    def test_errors_do_not_repeat_what_the_peer_sent_at_length(self) -> None:
        self.shake()
        with self.assertRaises(RemoteProtocolError) as caught:
            self.feed(wire.command("x\r\n\x1b[31m" * 1000, 1, None))
        self.assertLess(len(str(caught.exception)), 400)
        self.assertTrue(str(caught.exception).isprintable())
