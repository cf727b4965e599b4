"""Aggregate messages: several audio, video and data messages in one (Flash Media Server and its encoders send them).

Owns taking them apart.  We never write one.  Called by the sessions.

Inside are FLV tags: an 11-byte head (type, 24-bit size, 24-bit timestamp, its upper 8 bits, 24 bits unused), the
payload, and 4 bytes that point back.  The timestamps count from anywhere: the first one stands for the outer one.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.errors import RemoteProtocolError
from relay.rtmp.messages import MessageType, RawMessage

_HEAD_BYTES = 11
_BACK_POINTER_BYTES = 4

MAX_MESSAGES = 1024
"""In one aggregate.  Servers gather at most a few seconds; 8 MiB of empty tags would be half a million."""


def split_aggregate(outer: RawMessage) -> Iterator[RawMessage]:
    """The messages inside, with the outer message stream id and the outer timeline.

    Raises:
        RemoteProtocolError: a size that goes past the end, an aggregate inside, or more than ``MAX_MESSAGES``.
    """
    payload = outer.payload
    shift: int | None = None
    at = 0
    for _ in range(MAX_MESSAGES):
        if at == len(payload):
            return
        body = at + _HEAD_BYTES
        end = body + int.from_bytes(payload[at + 1 : at + 4], "big")
        if end + _BACK_POINTER_BYTES > len(payload):
            raise RemoteProtocolError(f"a message inside an aggregate goes past its {len(payload)} bytes")
        if payload[at] == MessageType.AGGREGATE:
            raise RemoteProtocolError("an aggregate inside an aggregate")
        timestamp = int.from_bytes(payload[at + 4 : at + 7], "big") | payload[at + 7] << 24
        if shift is None:
            shift = outer.timestamp - timestamp
        yield RawMessage(
            outer.chunk_stream_id,
            (timestamp + shift) & 0xFFFFFFFF,
            payload[at],
            outer.message_stream_id,
            payload[body:end],
        )
        at = end + _BACK_POINTER_BYTES
    if at != len(payload):
        raise RemoteProtocolError(f"an aggregate of more than {MAX_MESSAGES} messages")
