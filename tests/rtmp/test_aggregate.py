"""Aggregates come apart into the messages that they hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.aggregate import MAX_MESSAGES, split_aggregate
from relay.rtmp.chunks import ChunkReader
from relay.rtmp.messages import MediaMessage, RawMessage
from tests import strategies, wire


def outer(messages: list[MediaMessage], timestamp: int = 0) -> RawMessage:
    (message,) = ChunkReader(DEFAULT_LIMITS).feed(wire.set_chunk_size(1 << 24) + wire.aggregate(messages, timestamp))[
        1:
    ]
    return message


class SplitTests(SynchronousTestCase):
    def test_inner_timestamps_follow_the_outer_one(self) -> None:
        """They count from anywhere; the first stands for the outer timestamp, across 2**32 too."""
        messages = wire.h264_gop(3, start=70_000)
        for start in (0, 1000, 0xFFFFFFFF):
            seen = [inner.timestamp for inner in split_aggregate(outer(messages, start))]
            self.assertEqual([start, (start + 40) & 0xFFFFFFFF, (start + 80) & 0xFFFFFFFF], seen)

    def test_payloads_and_stream_are_kept(self) -> None:
        messages = wire.in_order(wire.h264_gop(3), wire.aac(3))
        seen = list(split_aggregate(outer(messages)))
        self.assertEqual([(m.message_type, m.payload) for m in messages], [(m.message_type, m.payload) for m in seen])
        self.assertEqual({1}, {m.message_stream_id for m in seen})

    def test_every_cut_but_between_messages_is_the_peers_fault(self) -> None:
        whole = outer(wire.h264_gop(2, size=8))
        size = len(whole.payload) // 2
        for end in range(len(whole.payload)):
            cut = RawMessage(6, 0, 22, 1, whole.payload[:end])
            if end in (0, size):
                self.assertEqual(end // size, len(list(split_aggregate(cut))))
            else:
                with self.assertRaises(RemoteProtocolError):
                    list(split_aggregate(cut))

    def test_aggregate_inside_an_aggregate_is_the_peers_fault(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            list(split_aggregate(outer([MediaMessage(22, 0, b"")])))

    def test_too_many_messages_are_the_peers_fault(self) -> None:
        self.assertEqual(MAX_MESSAGES, len(list(split_aggregate(outer([MediaMessage(8, 0, b"")] * MAX_MESSAGES)))))
        with self.assertRaises(RemoteProtocolError):
            list(split_aggregate(outer([MediaMessage(8, 0, b"")] * (MAX_MESSAGES + 1))))


@given(st.lists(strategies.media_messages(), max_size=5), st.data())
def test_mutated_aggregates_give_messages_or_the_peers_fault(messages: list[MediaMessage], data: st.DataObject) -> None:
    payload = data.draw(strategies.mutated(outer(messages).payload))
    try:
        seen = list(split_aggregate(RawMessage(6, 0, 22, 1, payload)))
    except RemoteProtocolError:
        return
    assert sum(len(message.payload) + 15 for message in seen) == len(payload)
