"""The log's bytes: one message is one type-0 chunk.

Owns the canonical form, both ways, so that a log can be rebuilt by reading it.  Files and offsets of a whole log are
:mod:`relay.log.segment`'s and :mod:`relay.log.recovery`'s.

A video message of 5 bytes at 40 ms is, in hex, ``06 000028 000005 09 01000000`` and its payload: chunk stream 6,
timestamp, length, message type, message stream 1 (little-endian).  From timestamp 0xFFFFFF on, the three bytes are all
ones and four more follow the header.
"""

from __future__ import annotations

import struct

from relay.rtmp.chunks import message_header
from relay.rtmp.messages import (
    EXTENDED_TIMESTAMP,
    MEDIA_CHUNK_STREAM,
    MEDIA_MESSAGE_STREAM_ID,
    MediaMessage,
    MessageType,
)

HEADER_BYTES = 12
LONG_HEADER_BYTES = 16
"""With an extended timestamp."""

_HEADER = struct.Struct(">IIII")
_SHORT_HEADER = struct.Struct(">III")
_STREAM_ID_WORD = MEDIA_MESSAGE_STREAM_ID << 24
"""Message stream id 1, little-endian, read as a big-endian word."""

_TYPE_OF = {int(chunk_stream): int(kind) for kind, chunk_stream in MEDIA_CHUNK_STREAM.items()}
_CHUNK_STREAM = {int(kind): chunk_stream for kind, chunk_stream in MEDIA_CHUNK_STREAM.items()}
STORED_TYPES = frozenset(_CHUNK_STREAM)
"""Audio, video and AMF0 data: all else has no place in a log."""


class NotARecord(ValueError):
    """The bytes are not a header that this log writes."""


def record_header(message: MediaMessage) -> bytes:
    """The chunk header that goes before ``message.payload`` in the log."""
    kind = message.message_type
    return message_header(
        _CHUNK_STREAM[kind], message.timestamp & 0xFFFFFFFF, len(message.payload), kind, MEDIA_MESSAGE_STREAM_ID
    )


def record_size(message: MediaMessage) -> int:
    """Bytes that the message takes in the log."""
    is_long = message.timestamp & 0xFFFFFFFF >= EXTENDED_TIMESTAMP
    return len(message.payload) + (LONG_HEADER_BYTES if is_long else HEADER_BYTES)


def encode(message: MediaMessage) -> bytes:
    """The message as the log has it, in one piece."""
    return record_header(message) + message.payload


def parse_header(data: bytes | memoryview, at: int = 0) -> tuple[int, int, int, int] | None:
    """``(message_type, timestamp, header bytes, payload bytes)`` of the record at ``data[at:]``; None: not all there.

    Raises:
        NotARecord: no message of ours begins like this.
    """
    left = len(data) - at
    if left < HEADER_BYTES:
        return None
    first, second, stream = _SHORT_HEADER.unpack_from(data, at)
    chunk_stream, timestamp = first >> 24, first & 0xFFFFFF
    length, kind = second >> 8, second & 0xFF
    if stream != _STREAM_ID_WORD or _TYPE_OF.get(chunk_stream) != kind:
        raise NotARecord(f"no header of ours: {bytes(data[at : at + HEADER_BYTES]).hex()}")
    if timestamp < EXTENDED_TIMESTAMP:
        return kind, timestamp, HEADER_BYTES, length
    if left < LONG_HEADER_BYTES:
        return None
    timestamp = _HEADER.unpack_from(data, at)[3]
    if timestamp < EXTENDED_TIMESTAMP:
        raise NotARecord(f"an extended timestamp of {timestamp} needs no extension")
    return kind, timestamp, LONG_HEADER_BYTES, length


def parse(data: bytes | memoryview, at: int = 0) -> tuple[MediaMessage, int] | None:
    """The whole message at ``data[at:]`` and where the next begins; None: it is not all there.

    Raises:
        NotARecord: no message of ours begins like this.
    """
    header = parse_header(data, at)
    if header is None:
        return None
    kind, timestamp, header_bytes, length = header
    end = at + header_bytes + length
    if end > len(data):
        return None
    return MediaMessage(kind, timestamp, bytes(data[at + header_bytes : end])), end


__all__ = [
    "HEADER_BYTES",
    "LONG_HEADER_BYTES",
    "STORED_TYPES",
    "MessageType",
    "NotARecord",
    "encode",
    "parse",
    "parse_header",
    "record_header",
    "record_size",
]
