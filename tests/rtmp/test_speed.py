"""The ingest path keeps up: floors far below what it does, and no quadratic behaviour."""

from __future__ import annotations

import time

import pytest

from relay.limits import DEFAULT_LIMITS
from relay.rtmp.chunks import ChunkReader
from relay.rtmp.messages import MediaMessage
from tests import wire


def seconds(size: int, chunk_size: int, count: int, read: int) -> float:
    """Processor seconds to read ``count`` messages of ``size`` bytes in reads of ``read`` bytes."""
    messages = [MediaMessage(9, 0, bytes(size))] * count
    data = wire.set_chunk_size(chunk_size) + wire.media(messages, chunk_size)
    pieces = [data[at : at + read] for at in range(0, len(data), read)]
    reader = ChunkReader(DEFAULT_LIMITS)
    before = time.process_time()
    seen = sum(len(reader.feed(piece)) for piece in pieces)
    assert seen == count + 1
    return time.process_time() - before


@pytest.mark.parametrize(
    ("size", "chunk_size", "read"),
    [(8 << 20, 0xFFFFFF, 1 << 16), (8 << 20, 0xFFFFFF, 1400), (8 << 20, 4096, 1 << 16), (5000, 128, 1 << 16)],
)
def test_at_least_20_megabytes_a_second(size: int, chunk_size: int, read: int) -> None:
    """200 streams of 1 Mbit/s are 25; what is measured on an idle core is 200 and more."""
    count = max(1, (8 << 20) // size)
    assert seconds(size, chunk_size, count, read) < count * size / 20e6


def test_message_in_many_reads_costs_in_proportion() -> None:
    """8 times the bytes take at most 8 times as long, with slack for noise: not 64 times."""
    small = min(seconds(1 << 20, 0xFFFFFF, 1, 1000) for _ in range(3))
    large = min(seconds(8 << 20, 0xFFFFFF, 1, 1000) for _ in range(3))
    assert large < 24 * small + 0.01
