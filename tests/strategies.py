"""Hypothesis strategies that several test files share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from relay.rtmp import amf0
from relay.rtmp.messages import MediaMessage, MessageType, RawMessage

EDGES = (0, 0xFFFFFF, 1 << 31, 1 << 32)
"""Where 24-bit, signed and 32-bit timestamps break."""

NO_SURROGATES = st.characters(exclude_categories=("Cs",))


def timestamps() -> st.SearchStrategy[int]:
    """32-bit ms, most of them within a few ms of an edge."""
    near = st.builds(lambda edge, off: (edge + off) & 0xFFFFFFFF, st.sampled_from(EDGES), st.integers(-3, 3))
    return near | st.integers(0, 0xFFFFFFFF)


def chunk_sizes() -> st.SearchStrategy[int]:
    return st.sampled_from((128, 129, 4096, 60_000, 0xFFFFFF)) | st.integers(128, 2000)


def payloads(min_size: int = 0, max_size: int = 600) -> st.SearchStrategy[bytes]:
    """Short random ones, and long ones that are cheap to draw."""
    filled = st.builds(
        lambda length, byte: bytes((byte,)) * length, st.integers(min_size, max_size), st.integers(0, 255)
    )
    return st.binary(min_size=min_size, max_size=40) | filled


def media_messages(min_size: int = 1) -> st.SearchStrategy[MediaMessage]:
    """Audio and video of any bytes."""
    kinds = st.sampled_from((MessageType.AUDIO, MessageType.VIDEO))
    return st.builds(MediaMessage, kinds, timestamps(), payloads(min_size))


def raw_messages() -> st.SearchStrategy[RawMessage]:
    """Any message that is not about chunks themselves, on any chunk stream that we write."""
    kinds = st.sampled_from((MessageType.AUDIO, MessageType.VIDEO, MessageType.DATA_AMF0, MessageType.COMMAND_AMF0))
    return st.builds(RawMessage, st.integers(2, 63), timestamps(), kinds, st.integers(0, 0xFFFFFFFF), payloads())


def amf_values() -> st.SearchStrategy[Any]:
    """Values that come back as they were."""
    text = st.text(NO_SURROGATES, max_size=30)
    dates = st.builds(amf0.Date, st.floats(allow_nan=False), st.integers(-720, 720))
    leaves = st.none() | st.booleans() | st.floats(allow_nan=False) | text | dates
    keys = st.text(NO_SURROGATES, min_size=1, max_size=10)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(keys, inner, max_size=4)
            | st.dictionaries(keys, inner, max_size=4).map(amf0.EcmaArray)
        ),
        max_leaves=15,
    )


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in pieces: whole, byte by byte, or cut anywhere."""
    if draw(st.booleans()):
        size = draw(st.sampled_from((1, 2, 3, 11, 64, max(1, len(data)))))
        return [data[at : at + size] for at in range(0, len(data), size)]
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@st.composite
def mutated(draw: st.DrawFn, data: bytes, start: int = 0) -> bytes:
    """Legal bytes with a few of them changed, dropped, repeated or cut off, all at or after ``start``."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(start, max(start, len(changed) - 1)))
        how = draw(st.sampled_from(("set", "flip", "drop", "insert", "repeat", "end")))
        if how == "set" and at < len(changed):
            changed[at] = draw(st.integers(0, 255))
        elif how == "flip" and at < len(changed):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "drop":
            del changed[at : at + draw(st.integers(1, 20))]
        elif how == "insert":
            changed[at:at] = draw(st.binary(max_size=20))
        elif how == "repeat":
            changed[at:at] = changed[at : at + draw(st.integers(1, 200))]
        elif how == "end":
            del changed[at:]
    return bytes(changed)
