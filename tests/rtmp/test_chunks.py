"""The chunk reader and writer against one table, and against each other."""

from __future__ import annotations

import tracemalloc

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.chunks import ChunkReader, check_length, encode_message, message_header
from relay.rtmp.messages import MAX_CHUNK_SIZE, RawMessage
from tests import strategies, wire

LONG = bytes(range(130))


@attrs.frozen(kw_only=True)
class Case:
    """Bytes and the messages they are.  ``chunk_size`` is given where our writer makes the same bytes."""

    data: str
    messages: list[RawMessage]
    chunk_size: int = 0


VIDEO_AT_0 = RawMessage(6, 0, 9, 1, b"ab")

CASES = {
    "format 0": Case(data="06 000000 000002 09 01000000 6162", messages=[VIDEO_AT_0], chunk_size=128),
    "message stream id is little-endian": Case(
        data="03 000001 000001 14 04030201 78",
        messages=[RawMessage(3, 1, 20, 0x01020304, b"x")],
        chunk_size=128,
    ),
    "empty message": Case(data="06 000000 000000 09 01000000", messages=[RawMessage(6, 0, 9, 1, b"")], chunk_size=128),
    "continued by format 3": Case(
        data=f"06 000005 000082 09 01000000 {LONG[:128].hex()} C6 {LONG[128:].hex()}",
        messages=[RawMessage(6, 5, 9, 1, LONG)],
        chunk_size=128,
    ),
    "last 24-bit timestamp": Case(
        data="06 FFFFFE 000001 09 01000000 61", messages=[RawMessage(6, 0xFFFFFE, 9, 1, b"a")], chunk_size=128
    ),
    "first extended timestamp": Case(
        data="06 FFFFFF 000001 09 01000000 00FFFFFF 61",
        messages=[RawMessage(6, 0xFFFFFF, 9, 1, b"a")],
        chunk_size=128,
    ),
    "extended timestamp repeated on format 3 (ffmpeg, librtmp)": Case(
        data=f"06 FFFFFF 000082 09 01000000 80000001 {LONG[:128].hex()} C6 80000001 {LONG[128:].hex()}",
        messages=[RawMessage(6, 0x80000001, 9, 1, LONG)],
        chunk_size=128,
    ),
    "extended timestamp not repeated (old encoders)": Case(
        data=f"06 FFFFFF 000082 09 01000000 80000001 {LONG[:128].hex()} C6 {LONG[128:].hex()}"
        " 07 000000 000000 08 01000000",
        messages=[RawMessage(6, 0x80000001, 9, 1, LONG), RawMessage(7, 0, 8, 1, b"")],
    ),
    "format 1 is a delta": Case(
        data="06 000064 000001 09 01000000 61  46 000028 000002 09 6162",
        messages=[RawMessage(6, 100, 9, 1, b"a"), RawMessage(6, 140, 9, 1, b"ab")],
    ),
    "format 2 keeps length and type": Case(
        data="06 000064 000001 09 01000000 61  86 000028 62",
        messages=[RawMessage(6, 100, 9, 1, b"a"), RawMessage(6, 140, 9, 1, b"b")],
    ),
    "format 3 opens a message with the same delta again": Case(
        data="06 000064 000001 09 01000000 61  86 000028 62  C6 63",
        messages=[RawMessage(6, 100, 9, 1, b"a"), RawMessage(6, 140, 9, 1, b"b"), RawMessage(6, 180, 9, 1, b"c")],
    ),
    "format 3 right behind format 0 adds its timestamp (specification; nginx-rtmp differs)": Case(
        data="06 000014 000001 09 01000000 61  C6 62",
        messages=[RawMessage(6, 20, 9, 1, b"a"), RawMessage(6, 40, 9, 1, b"b")],
    ),
    "extended delta": Case(
        data="06 000001 000001 09 01000000 61  86 FFFFFF 01000000 62",
        messages=[RawMessage(6, 1, 9, 1, b"a"), RawMessage(6, 0x01000001, 9, 1, b"b")],
    ),
    "timestamp wraps at 2**32": Case(
        data="06 FFFFFF 000001 09 01000000 FFFFFFFE 61  86 000005 62",
        messages=[RawMessage(6, 0xFFFFFFFE, 9, 1, b"a"), RawMessage(6, 3, 9, 1, b"b")],
    ),
    "format 1 on a fresh chunk stream (librtmp's ping)": Case(
        data="42 000000 000006 04 0007 00000001",
        messages=[RawMessage(2, 0, 4, 0, bytes.fromhex("000700000001"))],
    ),
    "two-byte chunk stream id": Case(
        data="00 00 000000 000001 09 01000000 61  C0 00 62",
        messages=[RawMessage(64, 0, 9, 1, b"a"), RawMessage(64, 0, 9, 1, b"b")],
    ),
    "three-byte chunk stream id, low byte first": Case(
        data="01 01 02 000000 000001 09 01000000 61", messages=[RawMessage(64 + 1 + 512, 0, 9, 1, b"a")]
    ),
    "two forms of one chunk stream id": Case(
        data="00 05 000000 000001 09 01000000 61  C1 05 00 62",
        messages=[RawMessage(69, 0, 9, 1, b"a"), RawMessage(69, 0, 9, 1, b"b")],
    ),
    "chunk streams interleave": Case(
        data=f"06 000005 000082 09 01000000 {LONG[:128].hex()}  04 000006 000001 08 01000000 7A  C6 {LONG[128:].hex()}",
        messages=[RawMessage(4, 6, 8, 1, b"z"), RawMessage(6, 5, 9, 1, LONG)],
    ),
    "Set Chunk Size holds at once": Case(
        data=f"02 000000 000004 01 00000000 00000082  06 000005 000082 09 01000000 {LONG.hex()}",
        messages=[RawMessage(2, 0, 1, 0, bytes.fromhex("00000082")), RawMessage(6, 5, 9, 1, LONG)],
    ),
    "Set Chunk Size inside another message": Case(
        data=f"06 000005 000182 09 01000000 {LONG[:128].hex()} 02 000000 000004 01 00000000 00001000"
        f" C6 {LONG[:128].hex()}{LONG.hex()}",
        messages=[
            RawMessage(2, 0, 1, 0, bytes.fromhex("00001000")),
            RawMessage(6, 5, 9, 1, LONG[:128] + LONG[:128] + LONG),
        ],
    ),
    "Abort, then a clean new message": Case(
        data=f"06 000005 000082 09 01000000 {LONG[:128].hex()} 02 000000 000004 02 00000000 00000006"
        f" 06 000007 000001 09 01000000 61",
        messages=[RawMessage(2, 0, 2, 0, bytes.fromhex("00000006")), RawMessage(6, 7, 9, 1, b"a")],
    ),
    "Abort keeps the header for format 3": Case(
        data=f"06 000005 000082 09 01000000 {LONG[:128].hex()} 02 000000 000004 02 00000000 00000006"
        f" C6 {LONG[:128].hex()} C6 {LONG[128:].hex()}",
        messages=[RawMessage(2, 0, 2, 0, bytes.fromhex("00000006")), RawMessage(6, 10, 9, 1, LONG)],
    ),
    "Abort of an unknown chunk stream is ignored": Case(
        data="02 000000 000004 02 00000000 00000009  06 000000 000002 09 01000000 6162",
        messages=[RawMessage(2, 0, 2, 0, bytes.fromhex("00000009")), VIDEO_AT_0],
    ),
    "any chunk size over 0xFFFFFF is the same": Case(
        data=f"02 000000 000004 01 00000000 7FFFFFFF  06 000005 000082 09 01000000 {LONG.hex()}",
        messages=[RawMessage(2, 0, 1, 0, bytes.fromhex("7FFFFFFF")), RawMessage(6, 5, 9, 1, LONG)],
    ),
}

ERRORS = {
    "format 3 on a fresh chunk stream": ("C6 61", RemoteProtocolError, "format 3"),
    "format 2 on a fresh chunk stream": ("86 000000 61", RemoteProtocolError, "format 2"),
    "format 0 inside a message": (
        f"06 000005 000082 09 01000000 {LONG[:128].hex()} 06 000005 000001 09 01000000 61",
        RemoteProtocolError,
        "inside a message",
    ),
    "format 1 with a new length inside a message (CVE-2016-10191)": (
        f"06 000005 000082 09 01000000 {LONG[:128].hex()} 46 000005 FFFF00 09 {LONG[:128].hex()}",
        RemoteProtocolError,
        "inside a message",
    ),
    "format 2 inside a message": (
        f"06 000005 000082 09 01000000 {LONG[:128].hex()} 86 000005 61",
        RemoteProtocolError,
        "inside a message",
    ),
    "chunk size 0": ("02 000000 000004 01 00000000 00000000", RemoteProtocolError, "chunk size 0"),
    "chunk size with the top bit": ("02 000000 000004 01 00000000 80000000", RemoteProtocolError, "chunk size"),
    "chunk size of 3 bytes": ("02 000000 000003 01 00000000 000010", RemoteProtocolError, "instead of 4"),
    "chunk size of no bytes": ("02 000000 000000 01 00000000", RemoteProtocolError, "instead of 4"),
    "chunk size 1": ("02 000000 000004 01 00000000 00000001", LimitExceeded, "chunk_size_min"),
    "acknowledgement of 5 bytes": ("02 000000 000005 03 00000000", RemoteProtocolError, "instead of 4"),
    "peer bandwidth of 4 bytes": ("02 000000 000004 06 00000000", RemoteProtocolError, "instead of 5"),
    "user control of 1 byte": ("02 000000 000001 04 00000000", RemoteProtocolError, "user control"),
    "user control of 65 bytes": ("02 000000 000041 04 00000000", RemoteProtocolError, "user control"),
}


class TableTests(SynchronousTestCase):
    def test_read_table_gives_messages(self) -> None:
        """Every row is read as its messages, whole and byte by byte."""
        for name, case in CASES.items():
            data = bytes.fromhex(case.data)
            for size in (len(data), 1):
                reader = ChunkReader(DEFAULT_LIMITS)
                seen = [m for at in range(0, len(data), size) for m in reader.feed(data[at : at + size])]
                self.assertEqual(case.messages, seen, f"{name}, {size} bytes at a time")

    def test_write_table_gives_bytes(self) -> None:
        """Rows that our writer could have made are what it makes."""
        written = {name: case for name, case in CASES.items() if case.chunk_size}
        self.assertGreater(len(written), 5)
        for name, case in written.items():
            data = b"".join(encode_message(message, case.chunk_size) for message in case.messages)
            self.assertEqual(bytes.fromhex(case.data).hex(" "), data.hex(" "), name)

    def test_read_illegal_rows_raises(self) -> None:
        """Every illegal row is the peer's fault, whole and byte by byte."""
        for name, (text, kind, words) in ERRORS.items():
            data = bytes.fromhex(text)
            for size in (len(data), 1):
                reader = ChunkReader(DEFAULT_LIMITS)
                with self.assertRaises(kind, msg=name) as caught:
                    for at in range(0, len(data), size):
                        reader.feed(data[at : at + size])
                self.assertIn(words, str(caught.exception), name)

    def test_error_leaves_earlier_messages_undelivered(self) -> None:
        """What came before the broken rule in the same read is not lost."""
        reader = ChunkReader(DEFAULT_LIMITS)
        with self.assertRaises(RemoteProtocolError):
            reader.feed(bytes.fromhex(CASES["format 0"].data) + b"\xc7")
        self.assertEqual([VIDEO_AT_0], reader.undelivered)


class WriterTests(SynchronousTestCase):
    def test_header_is_12_bytes_or_16(self) -> None:
        """What the log counts on."""
        self.assertEqual(12, len(message_header(6, 0xFFFFFE, 1, 9, 1)))
        self.assertEqual(16, len(message_header(6, 0xFFFFFF, 1, 9, 1)))
        self.assertEqual(16, len(message_header(6, 0xFFFFFFFF, 1, 9, 1)))

    def test_ids_and_lengths_we_cannot_write_are_our_fault(self) -> None:
        for chunk_stream_id, length in ((1, 0), (64, 0), (6, MAX_CHUNK_SIZE + 1), (6, -1)):
            with self.assertRaises(LocalProtocolError):
                message_header(chunk_stream_id, 0, length, 9, 1)

    def test_largest_message_is_one_chunk(self) -> None:
        """At the largest chunk size nothing is ever continued."""
        payload = bytes(MAX_CHUNK_SIZE)
        data = encode_message(RawMessage(6, 0, 9, 1, payload), MAX_CHUNK_SIZE)
        self.assertEqual(12 + MAX_CHUNK_SIZE, len(data))


class SizeTests(SynchronousTestCase):
    def test_one_terabyte_declared_keeps_only_what_came(self) -> None:
        """64 chunk streams, each with the largest message declared and one chunk sent."""
        limits = attrs.evolve(DEFAULT_LIMITS, message_bytes=MAX_CHUNK_SIZE)
        data = b"".join(message_header(csid, 0, MAX_CHUNK_SIZE, 9, 1) + bytes(128) for csid in range(2, 2 + 62))
        reader = ChunkReader(limits)
        tracemalloc.start()
        try:
            self.assertEqual([], reader.feed(data))
            self.assertLess(tracemalloc.get_traced_memory()[1], 20 * len(data))
        finally:
            tracemalloc.stop()

    def test_too_long_is_refused_before_its_bytes_come(self) -> None:
        """The header is enough."""
        for message_type, field in (
            (9, "message_bytes"),
            (8, "message_bytes"),
            (22, "message_bytes"),
            (18, "metadata_bytes"),
            (15, "metadata_bytes"),
            (20, "command_bytes"),
            (17, "command_bytes"),
            (99, "command_bytes"),
        ):
            allowed = getattr(DEFAULT_LIMITS, field)
            check_length(message_type, allowed, DEFAULT_LIMITS)
            with self.assertRaises(LimitExceeded) as caught:
                ChunkReader(DEFAULT_LIMITS).feed(message_header(6, 0, allowed + 1, message_type, 1))
            self.assertEqual(field, caught.exception.field)

    def test_buffer_is_empty_between_messages(self) -> None:
        """A connection that has sent whole messages holds none of their bytes."""
        reader = ChunkReader(DEFAULT_LIMITS)
        reader.feed(wire.set_chunk_size(1 << 20) + wire.media(wire.h264_gop(50, size=4000), 1 << 20))
        self.assertEqual((0, 0), (len(reader._buffer), reader._partial_bytes))

    def test_partial_bytes_come_back_after_each_way_a_message_ends(self) -> None:
        """Neither a finished nor an aborted message stays counted."""
        for case in CASES.values():
            reader = ChunkReader(DEFAULT_LIMITS)
            reader.feed(bytes.fromhex(case.data))
            self.assertEqual(0, reader._partial_bytes)


@given(st.lists(strategies.raw_messages(), max_size=8), strategies.chunk_sizes(), st.data())
def test_round_trip_in_any_pieces(messages: list[RawMessage], chunk_size: int, data: st.DataObject) -> None:
    """What is written is read, however the bytes are cut."""
    encoded = wire.set_chunk_size(chunk_size) + b"".join(encode_message(m, chunk_size) for m in messages)
    reader = ChunkReader(DEFAULT_LIMITS)
    seen = [m for piece in data.draw(strategies.cuts(encoded)) for m in reader.feed(piece)]
    assert messages == seen[1:]


@given(st.lists(strategies.raw_messages(), min_size=1, max_size=5, unique_by=lambda m: m.chunk_stream_id), st.data())
def test_interleaving_changes_only_the_order(messages: list[RawMessage], data: st.DataObject) -> None:
    """Chunks of different chunk streams may come in any order."""
    queues = []
    for message in messages:
        whole = encode_message(message, 128)
        head = len(message_header(message.chunk_stream_id, message.timestamp, len(message.payload), 9, 1))
        again = 1 + (4 if message.timestamp >= 0xFFFFFF else 0) + 128
        first = head + min(128, len(message.payload))
        queues.append([whole[:first], *(whole[at : at + again] for at in range(first, len(whole), again))])
    mixed = b""
    while queues:
        queue = data.draw(st.sampled_from(queues))
        mixed += queue.pop(0)
        queues = [queue for queue in queues if queue]
    seen = ChunkReader(DEFAULT_LIMITS).feed(mixed)
    by_id = {message.chunk_stream_id: message for message in seen}
    assert {message.chunk_stream_id: message for message in messages} == by_id
    assert len(messages) == len(seen)


@given(st.binary(max_size=4000), st.data())
def test_any_bytes_give_messages_or_the_peers_fault(junk: bytes, data: st.DataObject) -> None:
    """And the same for any pieces."""

    def run(pieces: list[bytes]) -> tuple[list[RawMessage], str]:
        reader = ChunkReader(DEFAULT_LIMITS)
        seen: list[RawMessage] = []
        for piece in pieces:
            try:
                seen += reader.feed(piece)
            except RemoteProtocolError as error:
                return seen + reader.undelivered, repr(error)
        return seen, ""

    assert run([junk]) == run(data.draw(strategies.cuts(junk)))


@pytest.mark.parametrize("first", [0xFFFFFF - 1000, (1 << 31) - 1000, (1 << 32) - 1000])
@pytest.mark.parametrize("chunk_size", [128, 4096])
def test_streams_across_an_edge_keep_their_timestamps(first: int, chunk_size: int) -> None:
    """Live streams pass 4 h 39 min, 24 days and 49 days."""
    messages = wire.h264_gop(50, first, size=400)
    encoded = wire.set_chunk_size(chunk_size) + wire.media(messages, chunk_size)
    seen = ChunkReader(DEFAULT_LIMITS).feed(encoded)[1:]
    assert [message.timestamp for message in messages] == [message.timestamp for message in seen]
