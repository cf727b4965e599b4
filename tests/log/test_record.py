from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.log.record import NotARecord, encode, parse, parse_header, record_header, record_size
from relay.rtmp.chunks import ChunkReader
from relay.rtmp.messages import MediaMessage, MessageType
from tests.log.model import rtmp_bytes
from tests.strategies import mutated, timestamps
from tests.wire import set_chunk_size

messages = st.builds(
    MediaMessage,
    st.sampled_from((MessageType.AUDIO, MessageType.VIDEO, MessageType.DATA_AMF0)),
    timestamps(),
    st.binary(max_size=300),
)


@given(messages)
def test_bytes_are_one_canonical_chunk(message: MediaMessage) -> None:
    expected = rtmp_bytes(message)
    assert encode(message) == expected
    assert record_size(message) == len(expected)
    assert parse(b"before" + expected + b"after", 6) == (message, 6 + len(expected))


@given(messages)
def test_any_rtmp_peer_reads_the_message(message: MediaMessage) -> None:
    reader = ChunkReader(DEFAULT_LIMITS)
    (found,) = reader.feed(set_chunk_size(0xFFFFFF) + encode(message))[1:]
    assert (found.message_type, found.timestamp, found.payload) == (
        message.message_type, message.timestamp, message.payload,
    )  # fmt: skip
    assert found.message_stream_id == 1


@given(messages, st.data())
def test_every_prefix_is_not_all_there(message: MediaMessage, data: st.DataObject) -> None:
    encoded = encode(message)
    assert parse(encoded[: data.draw(st.integers(0, len(encoded) - 1))]) is None


@given(messages.flatmap(lambda message: mutated(encode(message))))
def test_whatever_is_read_is_written_the_same(data: bytes) -> None:
    """Only canonical bytes are believed, so a record that is read back can't differ from what is on disk."""
    try:
        found = parse(data)
    except NotARecord:
        return
    if found is not None:
        assert encode(found[0]) == data[: found[1]]


class RecordTests(SynchronousTestCase):
    def test_example_of_the_module(self) -> None:
        message = MediaMessage(MessageType.VIDEO, 40, b"hello")
        self.assertEqual("060000280000050901000000", record_header(message).hex())

    def test_extended_timestamp_begins_at_its_first_value(self) -> None:
        self.assertEqual(12, len(record_header(MediaMessage(8, 0xFFFFFE, b""))))
        self.assertEqual("04ffffff000000080100000000ffffff", record_header(MediaMessage(8, 0xFFFFFF, b"")).hex())

    def test_foreign_headers_are_refused(self) -> None:
        good = record_header(MediaMessage(9, 5, b""))
        wrong = {"format 1": 0x46, "chunk stream 4 for video": 0x04, "chunk stream 7": 0x07}
        for what, first in wrong.items():
            with self.assertRaises(NotARecord, msg=what):
                parse_header(bytes((first,)) + good[1:])
        with self.assertRaises(NotARecord, msg="message stream 2"):
            parse_header(good[:8] + b"\2\0\0\0")
        with self.assertRaises(NotARecord, msg="extension not needed"):
            parse_header(bytes.fromhex("04ffffff000000080100000000fffffe"))
