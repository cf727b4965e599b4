"""What has broken other servers, sent to a whole session: the numbers are the rows of our table of bad input.

The rows that concern a single layer in depth are tested there too (``test_chunks``, ``test_amf0``).  Here each is seen
from outside: the connection is closed as the peer's fault, or goes on, and costs little.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded, NameRefused, RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName, split_query
from relay.rtmp import amf0
from relay.rtmp.chunks import ChunkReader, encode_message, message_header
from relay.rtmp.events import MediaReceived, PublishRequested, StreamClosed
from relay.rtmp.messages import MAX_CHUNK_SIZE, MediaMessage, MessageType, RawMessage
from tests import wire
from tests.rtmp.driving import YesServer


def connected() -> YesServer:
    server = YesServer()
    server.feed(wire.handshake() + wire.connect_ffmpeg())
    server.sent.clear()
    return server


def publishing() -> YesServer:
    server = connected()
    server.feed(wire.publish_preamble())
    server.sent.clear()
    server.events.clear()
    return server


def command_bytes(payload: bytes, message_type: int = 20) -> bytes:
    return encode_message(RawMessage(3, 0, message_type, 0, payload), 128)


class FaultCase(SynchronousTestCase):
    def closes(self, server: YesServer, data: bytes, kind: type[RemoteProtocolError] = RemoteProtocolError) -> Any:
        """The peer's fault, found in little time; another connection goes on."""
        before = time.process_time()
        server.feed(data)
        self.assertLess(time.process_time() - before, 0.25)
        self.assertIsInstance(server.error, kind)
        self.assertEqual([], server.feed(wire.play_preamble()))
        bystander = publishing()
        self.assertEqual(3, len(bystander.feed(wire.media(wire.h264_gop(3)))))
        return server.error


class Row1And2AmfTests(FaultCase):
    def test_deep_connect_closes(self) -> None:
        for nested in ("03000161", "0A00000001", "0800000000000161"):
            server = YesServer()
            server.feed(wire.handshake())
            payload = amf0.encode("connect", 1) + (bytes.fromhex(nested) * 100_000)[:60_000]
            self.assertEqual("amf_depth", self.closes(server, command_bytes(payload), LimitExceeded).field)

    def test_command_of_400_000_bytes_is_refused_by_its_length(self) -> None:
        """Without waiting for it."""
        server = YesServer()
        server.feed(wire.handshake())
        error = self.closes(server, message_header(3, 0, 400_000, 20, 0), LimitExceeded)
        self.assertEqual("command_bytes", error.field)

    def test_deep_metadata_pass_unread(self) -> None:
        """We look at the name alone, so that what is in it can hurt nobody here."""
        server = publishing()
        message = MediaMessage(18, 0, amf0.encode("onMetaData") + bytes.fromhex("03000161") * 50_000)
        self.assertEqual([MediaReceived(1, message)], server.feed(wire.media([message])))

    def test_declared_counts_and_lengths_close(self) -> None:
        for tail in ("0AFFFFFFFF05", "08FFFFFFFF00016105", "0CFFFFFFFF61", "03FFFF61", "02FFFF61"):
            server = YesServer()
            server.feed(wire.handshake())
            self.closes(server, command_bytes(amf0.encode("connect", 1) + bytes.fromhex(tail)))

    def test_connect_cut_at_every_byte_closes_or_lacks_its_end(self) -> None:
        whole = amf0.encode("connect", 1, {"app": "live", "tcUrl": "rtmp://h/live", "fourCcList": ["*"]})
        for end in range(len(whole)):
            server = YesServer()
            server.feed(wire.handshake())
            server.feed(command_bytes(whole[:end]))
            cut_between_values = end in (len(amf0.encode("connect")), len(amf0.encode("connect", 1)))
            self.assertEqual(cut_between_values, server.error is None, end)


class Row3To6ChunkTests(FaultCase):
    def test_65_597_chunk_streams_close(self) -> None:
        server = publishing()
        data = b"".join(
            b"\x01" + (csid - 64).to_bytes(2, "little") + message_header(2, 0, 0x7FFFFF, 9, 1)[1:] + b"x" * 128
            for csid in range(64, 400)
        )
        self.assertEqual("chunk_streams", self.closes(server, data, LimitExceeded).field)

    def test_partial_messages_of_a_connection_are_bounded_together(self) -> None:
        server = publishing()
        server.feed(wire.set_chunk_size(7 << 20))
        piece = bytes(7 << 20)
        for csid in (10, 11):
            server.feed(message_header(csid, 0, 8 << 20, 9, 1) + piece)
            self.assertIsNone(server.error)
        error = self.closes(server, message_header(12, 0, 8 << 20, 9, 1) + piece[:100], LimitExceeded)
        self.assertEqual("partial_bytes", error.field)

    def test_bad_chunk_sizes_close(self) -> None:
        for payload in (bytes(4), b"\x80\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"", b"\0", b"\0\0\0"):
            self.closes(publishing(), wire.control(MessageType.SET_CHUNK_SIZE, payload))

    def test_huge_chunk_size_reserves_nothing(self) -> None:
        server = publishing()
        server.feed(wire.set_chunk_size(0x7FFFFFFF))
        self.assertEqual(MAX_CHUNK_SIZE, server.session.their_chunk_size)
        self.assertEqual(3, len(server.feed(wire.media(wire.h264_gop(3), MAX_CHUNK_SIZE))))

    def test_chunk_size_a_thousand_times_a_second_closes(self) -> None:
        error = self.closes(publishing(), wire.set_chunk_size(4096) * 1000, LimitExceeded)
        self.assertEqual("control_messages_per_second", error.field)

    def test_new_length_in_the_middle_of_a_message_closes(self) -> None:
        server = publishing()
        server.feed(message_header(6, 0, 1000, 9, 1) + bytes(128))
        self.closes(server, bytes.fromhex("46 000000 FFFFFF 09") + bytes(128))

    def test_format_3_first_closes(self) -> None:
        self.closes(publishing(), b"\xca" + bytes(10))

    def test_abort_of_unknown_is_ignored_and_of_known_starts_clean(self) -> None:
        server = publishing()
        server.feed(wire.control(MessageType.ABORT, (40).to_bytes(4, "big")))
        server.feed(message_header(6, 0, 1000, 9, 1) + b"old" + bytes(125))
        server.feed(wire.control(MessageType.ABORT, (6).to_bytes(4, "big")))
        self.assertEqual(3, len(server.feed(wire.media(wire.h264_gop(3)))))


class Row9And10NameTests(FaultCase):
    NAMES = ("../../etc/x", "%2e%2e%2f", "a/b", "a\0b", "..", ".hidden", "x" * 300, "\r\nSet-Cookie: x", "\x1b[31m",
             "${jndi:ldap://x}", "'; drop table", "", "?k=v", "ü", "a b")  # fmt: skip

    def test_bad_names_reach_the_owner_and_are_no_stream_names(self) -> None:
        """The session passes them on as they are; the whitelist of names refuses each."""
        for name in self.NAMES:
            server = connected()
            server.feed(wire.publish_preamble(name))
            (request,) = [event for event in server.events if isinstance(event, PublishRequested)]
            self.assertEqual(name, request.stream_key)
            with self.assertRaises(NameRefused):
                StreamName("live", split_query(request.stream_key)[0])

    def test_invalid_utf8_is_no_stream_name(self) -> None:
        server = connected()
        server.feed(wire.command("createStream", 1, None))
        payload = amf0.encode("publish", 2, None) + b"\x02\x00\x03a\xff\xfe"
        server.feed(encode_message(RawMessage(3, 0, 20, 1, payload), 128))
        (request,) = [event for event in server.events if isinstance(event, PublishRequested)]
        with self.assertRaises(NameRefused):
            StreamName("live", request.stream_key)

    def test_overlong_names_and_urls_close(self) -> None:
        for properties in ({"app": "x" * 1025}, {"tcUrl": "x" * 1025}, {"flashVer": "\u00fc" * 513}):
            server = YesServer()
            server.feed(wire.handshake())
            error = self.closes(server, wire.command("connect", 1, properties), LimitExceeded)
            self.assertEqual("url_bytes", error.field)
        for preamble in (wire.publish_preamble("x" * 1025), wire.play_preamble("x" * 1025)):
            self.assertEqual("url_bytes", self.closes(connected(), preamble, LimitExceeded).field)

    def test_what_may_be_logged_cannot_break_a_line(self) -> None:
        """Events and errors are logged by their repr."""
        server = YesServer()
        evil = "x\r\n2026-01-01 root logged in \x1b[2J"
        server.feed(wire.handshake() + wire.command("connect", 1, {"app": evil, "flashVer": evil}))
        server.feed(wire.publish_preamble(evil))
        server.feed(wire.command(evil, 1, None) + wire.command("connect", 1, {"app": evil}))
        text = repr(server.events) + repr(server.error) + str(server.error)
        self.assertTrue(text.isprintable(), text)


class Row12FloodTests(FaultCase):
    FLOODS = {
        "commands": wire.command("whatever", 0, None),
        "answered commands": wire.command("_checkbw", 1, None),
        "pings": wire.user_control(6, bytes(4)),
        "pongs": wire.user_control(7, bytes(4)),
        "acknowledgements": wire.control(3, bytes(4)),
        "windows": wire.control(5, bytes(4)),
        "aborts": wire.control(2, bytes(4)),
        "unknown types": encode_message(RawMessage(3, 0, 99, 0, b"x"), 128),
        "empty media": wire.media([MediaMessage(9, 0, b"")]),
        "nameless data": wire.media([MediaMessage(18, 0, b"\x05")]),
        "media of no stream": wire.media([MediaMessage(9, 0, b"x")], message_stream_id=7),
        "empty aggregates": encode_message(RawMessage(6, 0, 22, 1, b""), 128),
    }

    def test_each_flood_closes(self) -> None:
        limit = DEFAULT_LIMITS.control_messages_per_second
        for name, data in self.FLOODS.items():
            server = publishing()
            error = self.closes(server, data * (limit + 1), LimitExceeded)
            self.assertEqual("control_messages_per_second", error.field, name)

    def test_the_allowed_rate_goes_on_for_ever(self) -> None:
        """Half the limit in each half second."""
        for name, data in self.FLOODS.items():
            server = YesServer()
            server.feed(wire.handshake() + wire.connect_ffmpeg() + wire.publish_preamble(), now=0.0)
            for half_second in range(2, 10):
                server.feed(data * 240, now=half_second / 2)
            self.assertIsNone(server.error, name)

    def test_answers_to_a_flood_of_pings_are_bounded(self) -> None:
        server = publishing()
        server.feed(wire.user_control(6, bytes(4)) * 5000)
        answered = ChunkReader(DEFAULT_LIMITS).feed(bytes(server.sent))
        self.assertIn(len(answered), range(400, DEFAULT_LIMITS.control_messages_per_second + 1))

    def test_media_are_no_flood(self) -> None:
        """A fast encoder that catches up sends thousands of messages in one read."""
        server = publishing()
        self.assertEqual(5000, len(server.feed(wire.media(wire.aac(5000)))))


class Row17TimestampTests(FaultCase):
    def test_wild_timestamps_are_passed_on_as_sent(self) -> None:
        """Making a timeline of them is the log's work."""
        server = publishing()
        wild = [0, 0xFFFFFFFF, 5, 5, 5, 1 << 31, 1, 0xFFFFFF]
        events = server.feed(wire.media([MediaMessage(9, timestamp, b"\x27\x01") for timestamp in wild]))
        self.assertEqual(wild, [event.message.timestamp for event in events])


class Row23AuthTests(FaultCase):
    def test_adobe_user_and_password_are_no_way_in(self) -> None:
        """authmod=adobe (MD5) is not spoken: its parameters are a part of the name like any other."""
        server = connected()
        server.feed(wire.publish_preamble("demo?authmod=adobe&user=x&response=y"))
        (request,) = [event for event in server.events if isinstance(event, PublishRequested)]
        self.assertEqual("demo?authmod=adobe&user=x&response=y", request.stream_key)

    def test_ends_of_a_stream_need_its_key(self) -> None:
        """FCUnpublish of a name closes no stream of another name."""
        server = publishing()
        self.assertEqual([], server.feed(wire.command("FCUnpublish", 1, None, "other")))
        self.assertEqual([StreamClosed(1)], server.feed(wire.command("FCUnpublish", 1, None, "demo")))
