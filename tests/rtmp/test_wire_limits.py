"""Each limit of the wire: one less is taken, one more closes, and the error names the limit.

``tests/test_limits.py`` looks up a test here for each of them.
"""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded
from relay.limits import DEFAULT_LIMITS
from relay.rtmp import amf0
from relay.rtmp.chunks import encode_message, message_header
from relay.rtmp.messages import MediaMessage, RawMessage
from tests import wire
from tests.rtmp.driving import YesServer

PUBLISH = wire.handshake() + wire.connect_ffmpeg() + wire.publish_preamble()


class WireLimitTests(SynchronousTestCase):
    def crosses(self, field: str, allowed: int, within: bytes, beyond: bytes) -> None:
        """With the field set to ``allowed``, ``within`` is taken and ``beyond`` is refused by that field."""
        limits = attrs.evolve(DEFAULT_LIMITS, **{field: allowed})
        for data, is_refused in ((within, False), (beyond, True)):
            server = YesServer(limits)
            server.feed(wire.handshake() + wire.connect_ffmpeg())
            server.feed(wire.publish_preamble())
            self.assertIsNone(server.error)
            server.feed(data)
            if is_refused:
                assert isinstance(server.error, LimitExceeded)
                self.assertEqual((field, allowed), (server.error.field, server.error.allowed))
            else:
                self.assertIsNone(server.error)

    def test_message_bytes(self) -> None:
        """Audio, video and aggregates."""
        for message_type in (8, 9, 22):
            within, beyond = message_header(6, 0, 1000, message_type, 1), message_header(6, 0, 1001, message_type, 1)
            self.crosses("message_bytes", 1000, within, beyond)

    def test_command_bytes(self) -> None:
        """Commands of both kinds, and whatever has no name."""
        for message_type in (20, 17, 16, 19, 99):
            within, beyond = message_header(3, 0, 1000, message_type, 0), message_header(3, 0, 1001, message_type, 0)
            self.crosses("command_bytes", 1000, within, beyond)

    def test_metadata_bytes(self) -> None:
        for message_type in (18, 15):
            within, beyond = message_header(5, 0, 1000, message_type, 1), message_header(5, 0, 1001, message_type, 1)
            self.crosses("metadata_bytes", 1000, within, beyond)

    def test_partial_bytes(self) -> None:
        """Three messages begun fit, the fourth does not; a whole one makes room again."""
        begun = b"".join(message_header(csid, 0, 200, 9, 1) + bytes(128) for csid in (10, 11, 12))
        ended = b"\xca" + bytes(72)
        again = message_header(13, 0, 200, 9, 1) + bytes(128)
        self.crosses("partial_bytes", 460, begun + ended + again, begun + again)

    def test_chunk_streams(self) -> None:
        """Ids 2 and 3 are in use after connect."""
        streams = [message_header(csid, 0, 1, 9, 1) + b"x" for csid in range(10, 16)]
        self.crosses("chunk_streams", 6, b"".join(streams[:5]), b"".join(streams))

    def test_chunk_size_min(self) -> None:
        self.crosses("chunk_size_min", 128, wire.set_chunk_size(128), wire.set_chunk_size(127))

    def test_message_streams(self) -> None:
        create = wire.command("createStream", 9, None)
        self.crosses("message_streams", 4, create * 3, create * 4)

    def test_control_messages_per_second(self) -> None:
        """Five went before in the same second."""
        ping = wire.user_control(6, bytes(4))
        self.crosses("control_messages_per_second", 20, ping * 15, ping * 16)

    def test_url_bytes(self) -> None:
        """tcUrl here; app, flashVer and both stream names share it."""
        for length, is_refused in ((1024, False), (1025, True)):
            server = YesServer()
            server.feed(wire.handshake() + wire.command("connect", 1, {"app": "live", "tcUrl": "u" * length}))
            self.assertEqual(is_refused, isinstance(server.error, LimitExceeded))
        play = wire.command("createStream", 2, None)
        within, beyond = (
            play + wire.command("play", 3, None, "n" * length, message_stream_id=2) for length in (100, 101)
        )
        self.crosses("url_bytes", 100, within, beyond)

    def test_amf_depth(self) -> None:
        within, beyond = (nested(levels) for levels in (8, 9))
        self.crosses("amf_depth", 8, within, beyond)

    def test_amf_items(self) -> None:
        """Name, transaction id and array are three."""
        within, beyond = (wire.command("x", 0, [None] * items) for items in (97, 98))
        self.crosses("amf_items", 100, within, beyond)

    def test_amf_string_bytes(self) -> None:
        """Short, long and as a key."""
        for value in (lambda length: "s" * length, lambda length: {"k" * length: 1}):
            within, beyond = (wire.command("x", 0, value(length)) for length in (100, 101))
            self.crosses("amf_string_bytes", 100, within, beyond)
        long = amf0.encode("x", 0) + b"\x0c\x00\x00\x00\x65" + b"s" * 101
        refused = encode_message(RawMessage(3, 0, 20, 0, long), 128)
        self.crosses("amf_string_bytes", 100, wire.command("x", 0), refused)

    def test_real_streams_cross_none(self) -> None:
        """The defaults leave room: a large keyframe, much metadata, many tracks."""
        server = YesServer()
        server.feed(PUBLISH)
        media = [
            MediaMessage(9, 0, b"\x17\x01" + bytes(4 << 20)),
            wire.metadata(**{f"key{index}": "v" * 100 for index in range(1000)}),
            *(wire.on_track(wire.enhanced_video_header(), track) for track in range(32)),
        ]
        server.feed(wire.media(media))
        self.assertIsNone(server.error)


def nested(levels: int) -> bytes:
    """A command with an object of so many levels."""
    value: object = None
    for _ in range(levels):
        value = {"a": value}
    return wire.command("x", 0, value)
