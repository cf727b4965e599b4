"""The client session: what it asks, and what it makes of answers, foreign ones too."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LocalProtocolError, RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.rtmp import amf0
from relay.rtmp.chunks import ChunkReader, encode_message
from relay.rtmp.client import CLIENT_CHUNK_SIZE, ClientSession
from relay.rtmp.events import (
    CommandAnswered,
    CommandReceived,
    Connected,
    ConnectRejected,
    HandshakeDone,
    MediaReceived,
    PingAnswered,
    PlayStarted,
    PublishStarted,
    StatusReceived,
    StreamCreated,
    StreamEnded,
)
from relay.rtmp.messages import MediaMessage, RawMessage
from tests import wire

SERVER_HANDSHAKE = b"\x03" + bytes(1536) + bytes(1536)
SUCCESS = {"level": "status", "code": "NetConnection.Connect.Success", "description": "", "objectEncoding": 0}


def status(code: str, message_stream_id: int = 1, level: str = "status", **info: Any) -> bytes:
    values = {"level": level, "code": code, "description": "words", **info}
    return wire.command("onStatus", 0, None, values, message_stream_id=message_stream_id)


class ClientCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.session = ClientSession(DEFAULT_LIMITS, wire.NONCE)
        self.reader = ChunkReader(DEFAULT_LIMITS)

    def feed(self, data: bytes) -> list[Any]:
        return self.session.receive_data(data, 0.0)

    def sent(self) -> list[RawMessage]:
        return self.reader.feed(self.session.data_to_send())

    def said(self) -> list[list[Any]]:
        return [
            [m.message_stream_id, *amf0.decode_all(m.payload, DEFAULT_LIMITS)]
            for m in self.sent()
            if m.message_type == 20
        ]

    def connect(self) -> None:
        self.assertEqual(1537, len(self.session.data_to_send()))
        self.assertEqual([HandshakeDone()], self.feed(SERVER_HANDSHAKE))
        self.assertEqual(1536, len(self.session.data_to_send()))
        self.session.connect("live", "rtmp://h/live")
        self.sent()
        (event,) = self.feed(wire.command("_result", 1, {"fmsVer": "x"}, SUCCESS))
        self.assertIsInstance(event, Connected)

    def create(self, message_stream_id: int = 1) -> None:
        self.connect()
        self.session.create_stream()
        self.sent()
        self.assertEqual(
            [StreamCreated(message_stream_id)], self.feed(wire.command("_result", 2, None, message_stream_id))
        )

    def play(self, message_stream_id: int = 1) -> None:
        self.create(message_stream_id)
        self.session.play(message_stream_id, "demo")
        self.sent()


class ConnectTests(ClientCase):
    def test_connect_is_chunk_size_then_command(self) -> None:
        """60000: SRS and nginx-rtmp take no more than 65536 and 10 MiB."""
        self.session.data_to_send()
        self.feed(SERVER_HANDSHAKE)
        self.session.data_to_send()
        self.session.connect("live", "rtmp://h/live", {"token": "x", "flashVer": "ours"})
        chunk_size, connect = self.sent()
        self.assertEqual(RawMessage(2, 0, 1, 0, CLIENT_CHUNK_SIZE.to_bytes(4, "big")), chunk_size)
        name, transaction_id, properties = amf0.decode_all(connect.payload, DEFAULT_LIMITS)
        self.assertEqual(("connect", 1.0), (name, transaction_id))
        self.assertEqual(
            ("live", "rtmp://h/live", "x", "ours", ["*"]),
            tuple(properties[key] for key in ("app", "tcUrl", "token", "flashVer", "fourCcList")),
        )

    def test_both_objects_of_the_answer_are_one(self) -> None:
        self.session.data_to_send()
        self.feed(SERVER_HANDSHAKE)
        self.session.connect("live", "rtmp://h/live")
        (event,) = self.feed(wire.command("_result", 1, {"fmsVer": "FMS"}, {**SUCCESS, "relay": {"a": 1}}))
        self.assertEqual(("FMS", {"a": 1.0}), (event.properties["fmsVer"], event.properties["relay"]))

    def test_rejections(self) -> None:
        """By _error, by a _result that says so, and without words."""
        rejected = {"level": "error", "code": "NetConnection.Connect.Rejected", "description": "no"}
        for data, event in (
            (wire.command("_error", 1, None, rejected), ConnectRejected("NetConnection.Connect.Rejected", "no")),
            (wire.command("_result", 1, None, rejected), ConnectRejected("NetConnection.Connect.Rejected", "no")),
            (wire.command("_error", 1), ConnectRejected("", "")),
        ):
            self.setUp()
            self.session.data_to_send()
            self.feed(SERVER_HANDSHAKE)
            self.session.connect("live", "rtmp://h/live")
            self.assertEqual([event], self.feed(data))
            with self.assertRaises(LocalProtocolError):
                self.session.create_stream()

    def test_server_that_speaks_at_once_is_read(self) -> None:
        """nginx-rtmp and ffmpeg say windows, chunk size and onBWDone around the answer."""
        self.session.data_to_send()
        self.feed(SERVER_HANDSHAKE)
        self.session.connect("live", "rtmp://h/live")
        events = self.feed(
            wire.control(5, (5_000_000).to_bytes(4, "big"))
            + wire.control(6, (5_000_000).to_bytes(4, "big") + b"\x02")
            + wire.user_control(0, bytes(4))
            + wire.set_chunk_size(4096)
            + wire.command("_result", 1, {"fmsVer": "x"}, SUCCESS, chunk_size=4096)
            + wire.command("onBWDone", 0, None, 8192)
        )
        self.assertEqual([Connected], [type(event) for event in events])
        self.assertEqual((4096, 1), (self.session.their_chunk_size, self.session.unknown_commands))
        self.assertEqual(["connect"], [words[1] for words in self.said_after_handshake()])

    def said_after_handshake(self) -> list[list[Any]]:
        data = self.session.data_to_send()[1536:]
        return [
            [0, *amf0.decode_all(m.payload, DEFAULT_LIMITS)] for m in self.reader.feed(data) if m.message_type == 20
        ]

    def test_asking_out_of_order_is_our_fault(self) -> None:
        with self.assertRaises(LocalProtocolError):
            self.session.connect("live", "rtmp://h/live")
        with self.assertRaises(LocalProtocolError):
            self.session.create_stream()
        with self.assertRaises(LocalProtocolError):
            self.session.call("relayX")
        self.connect()
        with self.assertRaises(LocalProtocolError):
            self.session.connect("live", "rtmp://h/live")
        with self.assertRaises(LocalProtocolError):
            self.session.play(1, "demo")
        with self.assertRaises(LocalProtocolError):
            self.session.send_media(1, wire.avc_header())

    def test_other_version_is_the_servers_fault(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            self.feed(b"HTTP/1.1 400 Bad Request\r\n")


class PlayTests(ClientCase):
    def test_play_is_asked_on_its_stream(self) -> None:
        self.create()
        self.session.play(1, "demo?epoch=3")
        play, buffer = self.sent()
        self.assertEqual(1, play.message_stream_id)
        self.assertEqual(["play", 3.0, None, "demo?epoch=3", -1000.0], amf0.decode_all(play.payload, DEFAULT_LIMITS))
        self.assertEqual(RawMessage(2, 0, 4, 0, bytes.fromhex("0003 00000001 00000BB8")), buffer)

    def test_start_brings_its_info_once(self) -> None:
        """Reset before it is an ordinary status."""
        self.play()
        reset, started = self.feed(status("NetStream.Play.Reset") + status("NetStream.Play.Start", epoch=7))
        self.assertEqual(
            StatusReceived(
                message_stream_id=1, level="status", code="NetStream.Play.Reset", description="words", info=reset.info
            ),
            reset,
        )
        self.assertEqual((PlayStarted, 1, 7.0), (type(started), started.message_stream_id, started.info["epoch"]))
        self.assertEqual([StatusReceived], [type(event) for event in self.feed(status("NetStream.Play.Start"))])

    def test_media_before_start_are_dropped(self) -> None:
        self.play()
        self.assertEqual([], self.feed(wire.media(wire.h264_gop(2))))
        self.assertEqual(2, self.session.dropped_messages)

    def test_media_on_any_id_are_our_only_streams(self) -> None:
        """ffmpeg -listen sends its media on message stream 0."""
        self.play()
        self.feed(status("NetStream.Play.Start", 0))
        messages = wire.h264_gop(2)
        for message_stream_id in (0, 1, 5):
            self.assertEqual(
                [MediaReceived(1, message) for message in messages],
                self.feed(wire.media(messages, message_stream_id=message_stream_id)),
            )

    def test_metadata_arrive_as_the_log_stores_them(self) -> None:
        self.play()
        self.feed(status("NetStream.Play.Start"))
        access = MediaMessage(18, 0, amf0.encode("|RtmpSampleAccess", True, True))
        data_start = MediaMessage(18, 0, amf0.encode("onStatus", {"code": "NetStream.Data.Start"}))
        received = self.feed(wire.media([access, data_start, wire.published_metadata()]))
        self.assertEqual([MediaReceived(1, wire.metadata())], received)

    def test_errors_are_statuses(self) -> None:
        self.play()
        (event,) = self.feed(status("NetStream.Play.StreamNotFound", level="error"))
        self.assertEqual(("error", "NetStream.Play.StreamNotFound"), (event.level, event.code))

    def test_each_way_to_end_is_told_once(self) -> None:
        for end in (
            status("NetStream.Play.UnpublishNotify"),
            status("NetStream.Play.Stop"),
            status("NetStream.Play.Complete"),
            wire.user_control(1, (1).to_bytes(4, "big")),
        ):
            self.setUp()
            self.play()
            self.feed(status("NetStream.Play.Start"))
            self.assertEqual([StreamEnded(1)], self.feed(end + end))
            self.assertEqual([], self.feed(wire.media(wire.h264_gop(1))))

    def test_second_stream_does_not_take_the_firsts_statuses(self) -> None:
        self.play()
        self.session.create_stream()
        self.feed(wire.command("_result", 4, None, 2.0))
        self.session.play(2, "other")
        self.feed(status("NetStream.Play.Start", 1))
        self.assertEqual([], self.feed(wire.media(wire.h264_gop(1), message_stream_id=2)))
        self.assertEqual([], self.feed(wire.user_control(1, (9).to_bytes(4, "big"))))
        self.feed(status("NetStream.Play.Start", 2))
        self.assertEqual(1, len(self.feed(wire.media(wire.h264_gop(1), message_stream_id=2))))

    def test_close_gives_the_id_back(self) -> None:
        self.play()
        self.session.close_stream(1)
        self.session.close_stream(1)
        self.assertEqual([[0, "deleteStream", 0.0, None, 1.0]], self.said())


class PublishTests(ClientCase):
    def test_publish_as_encoders_do(self) -> None:
        self.create()
        self.session.publish(1, "demo?token=x")
        self.assertEqual(
            [
                [0, "releaseStream", 3.0, None, "demo?token=x"],
                [0, "FCPublish", 4.0, None, "demo?token=x"],
                [1, "publish", 5.0, None, "demo?token=x", "live"],
            ],
            self.said(),
        )
        events = self.feed(
            wire.command("_error", 3, None, {})
            + wire.command("_result", 4, None)
            + wire.command("onFCPublish", 0, None, {})
            + status("NetStream.Publish.Start")
        )
        self.assertEqual([PublishStarted(1)], events)
        media = wire.h264_aac_stream(1)
        for message in media:
            self.session.send_media(1, message)
        self.assertEqual([wire.raw(message) for message in media], self.sent())

    def test_refusal_is_a_status(self) -> None:
        self.create()
        self.session.publish(1, "demo")
        (event,) = self.feed(status("NetStream.Publish.BadName", level="error"))
        self.assertEqual("NetStream.Publish.BadName", event.code)
        with self.assertRaises(LocalProtocolError):
            self.session.send_media(1, wire.avc_header())


class CommandTests(ClientCase):
    def test_call_and_its_answers(self) -> None:
        self.connect()
        first, second = self.session.call("relayA", 1, "x"), self.session.call("relayB")
        self.assertEqual([[0, "relayA", 2.0, None, 1.0, "x"], [0, "relayB", 3.0, None]], self.said())
        self.assertEqual(
            [
                CommandAnswered(transaction_id=second, is_error=True, values=[]),
                CommandAnswered(transaction_id=first, is_error=False, values=["yes"]),
            ],
            self.feed(wire.command("_error", 3, None) + wire.command("_result", 2, None, "yes")),
        )

    def test_relay_commands_are_events(self) -> None:
        self.connect()
        self.assertEqual(
            [CommandReceived(name="relayAppeared", transaction_id=0.0, values=["live/demo"])],
            self.feed(wire.command("relayAppeared", 0, None, "live/demo")),
        )

    def test_refused_create_stream_is_an_answer(self) -> None:
        for answer in (wire.command("_error", 2, None, {}), wire.command("_result", 2, None, "x")):
            self.setUp()
            self.connect()
            transaction_id = self.session.create_stream()
            (event,) = self.feed(answer)
            self.assertEqual(transaction_id, event.transaction_id)

    def test_pings_both_ways(self) -> None:
        self.connect()
        self.feed(wire.user_control(6, b"\1\2\3\4"))
        self.assertEqual([RawMessage(2, 0, 4, 0, b"\0\7\1\2\3\4")], self.sent())
        self.session.send_ping(9)
        self.assertEqual([PingAnswered(9)], self.feed(wire.user_control(7, (9).to_bytes(4, "big"))))

    def test_odd_statuses_do_no_harm(self) -> None:
        self.play()
        for values in ((), (5,), ({"code": 5, "level": None},), ("x",)):
            (event,) = self.feed(wire.command("onStatus", 0, None, *values, message_stream_id=1))
            self.assertEqual("", event.code)

    def test_control_messages_of_a_foreign_server_do_no_harm(self) -> None:
        self.connect()
        for event, payload in ((1, b""), (1, bytes(3)), (2, bytes(4)), (4, bytes(4)), (31, bytes(4)), (99, b"")):
            self.assertEqual([], self.feed(wire.user_control(event, payload)))
        self.assertEqual([], self.feed(encode_message(RawMessage(3, 0, 77, 0, b"?"), 128)))
