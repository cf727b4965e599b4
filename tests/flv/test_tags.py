"""FLV tags, written and read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.flv.tags import FILE_HEADER, OVERHEAD, TagReader, tag, tag_head, tag_tail
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.messages import MediaMessage
from tests import strategies, wire

TABLE: dict[str, tuple[str, MediaMessage]] = {
    "video": ("09 000002 000028 00 000000 6162 0000000D", MediaMessage(9, 40, b"ab")),
    "audio": ("08 000001 000000 00 000000 61 0000000C", MediaMessage(8, 0, b"a")),
    "data, empty": ("12 000000 000000 00 000000 0000000B", MediaMessage(18, 0, b"")),
    "last 24-bit timestamp": ("09 000000 FFFFFF 00 000000 0000000B", MediaMessage(9, 0xFFFFFF, b"")),
    "upper 8 bits of the timestamp": ("09 000000 000000 01 000000 0000000B", MediaMessage(9, 1 << 24, b"")),
    "largest timestamp": ("09 000000 FFFFFE FF 000000 0000000B", MediaMessage(9, 0xFFFFFFFE, b"")),
}


class TableTests(SynchronousTestCase):
    def test_both_ways(self) -> None:
        for name, (text, message) in TABLE.items():
            data = bytes.fromhex(text)
            self.assertEqual(data.hex(), tag(message).hex(), name)
            self.assertEqual([message], TagReader(DEFAULT_LIMITS).feed(FILE_HEADER + data), name)

    def test_head_payload_tail_are_a_tag(self) -> None:
        message = wire.h264_gop(1)[0]
        length = len(message.payload)
        whole = tag_head(9, message.timestamp, length) + message.payload + tag_tail(length)
        self.assertEqual(tag(message), whole)
        self.assertEqual(OVERHEAD + length, len(whole))

    def test_file_header(self) -> None:
        self.assertEqual(bytes.fromhex("464C5601 05 00000009 00000000"), FILE_HEADER)

    def test_oversized_payload_is_our_fault(self) -> None:
        with self.assertRaises(LocalProtocolError):
            tag_head(9, 0, 1 << 24)


class ReaderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reader = TagReader(DEFAULT_LIMITS)

    def test_longer_header_is_skipped(self) -> None:
        header = b"FLV\x01\x05\x00\x00\x00\x0c" + b"xyz" + bytes(4)
        self.assertEqual(wire.aac(2), self.reader.feed(header + b"".join(map(tag, wire.aac(2)))))

    def test_other_tags_are_passed_over(self) -> None:
        other = tag_head(15, 0, 3) + b"abc" + tag_tail(3)
        self.assertEqual(wire.aac(1), self.reader.feed(FILE_HEADER + other + tag(wire.aac(1)[0])))

    def test_wrong_back_pointers_do_not_matter(self) -> None:
        data = tag(wire.aac(1)[0])[:-4] + b"\xff\xff\xff\xff"
        self.assertEqual(wire.aac(1), self.reader.feed(FILE_HEADER + data))

    def test_what_is_no_flv_is_refused(self) -> None:
        for data in (
            b"HTTP/1.1 404 N",
            b"FLW\x01\x05\x00\x00\x00\x09",
            b"FLV\x01\x05\xff\xff\xff\xff",
            b"FLV\x01\x05\x00\x00\x00\x08",
            FILE_HEADER + tag_head(0x29, 0, 0),
        ):
            with self.assertRaises(RemoteProtocolError):
                TagReader(DEFAULT_LIMITS).feed(data)

    def test_oversized_tag_is_refused_before_its_bytes_come(self) -> None:
        with self.assertRaises(LimitExceeded) as caught:
            self.reader.feed(FILE_HEADER + tag(wire.aac(1)[0]) + tag_head(9, 0, DEFAULT_LIMITS.message_bytes + 1))
        self.assertEqual("message_bytes", caught.exception.field)
        self.assertEqual(wire.aac(1), self.reader.undelivered)

    def test_nothing_is_kept_between_tags(self) -> None:
        self.reader.feed(FILE_HEADER + b"".join(map(tag, wire.h264_gop(20, size=5000))))
        self.assertEqual(0, len(self.reader._buffer))


@given(st.lists(strategies.media_messages(0), max_size=8), st.data())
def test_round_trip_in_any_pieces(messages: list[MediaMessage], data: st.DataObject) -> None:
    encoded = FILE_HEADER + b"".join(map(tag, messages))
    reader = TagReader(DEFAULT_LIMITS)
    assert messages == [m for piece in data.draw(strategies.cuts(encoded)) for m in reader.feed(piece)]


@given(st.data())
def test_mutated_files_give_messages_or_the_peers_fault_in_any_pieces(data: st.DataObject) -> None:
    changed = data.draw(strategies.mutated(FILE_HEADER + b"".join(map(tag, wire.h264_aac_stream(1)[:12]))))

    def run(pieces: list[bytes]) -> tuple[list[MediaMessage], str]:
        reader = TagReader(DEFAULT_LIMITS)
        seen: list[MediaMessage] = []
        for piece in pieces:
            try:
                seen += reader.feed(piece)
            except RemoteProtocolError as error:
                return seen + reader.undelivered, repr(error)
        return seen, ""

    assert run([changed]) == run(data.draw(strategies.cuts(changed)))
