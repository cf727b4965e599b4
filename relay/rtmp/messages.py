"""What RTMP carries once chunks are put together: message numbers and the two message records.

Owns the numbers of the protocol and the fixed ids that our log is written with.  Holds no behaviour.  Used by all of
``relay.rtmp``, ``relay.flv`` and ``relay.log``.
"""

from __future__ import annotations

from enum import IntEnum

import attrs


class MessageType(IntEnum):
    """The message type byte of a message header (RTMP 1.0, sections 5.4 and 7.1)."""

    SET_CHUNK_SIZE = 1
    ABORT = 2
    ACKNOWLEDGEMENT = 3
    USER_CONTROL = 4
    WINDOW_ACK_SIZE = 5
    SET_PEER_BANDWIDTH = 6
    AUDIO = 8
    VIDEO = 9
    DATA_AMF3 = 15
    SHARED_OBJECT_AMF3 = 16
    COMMAND_AMF3 = 17
    DATA_AMF0 = 18
    SHARED_OBJECT_AMF0 = 19
    COMMAND_AMF0 = 20
    AGGREGATE = 22


class UserControl(IntEnum):
    """The first two bytes of a user control message (RTMP 1.0, section 7.1.7)."""

    STREAM_BEGIN = 0
    STREAM_EOF = 1
    STREAM_DRY = 2
    SET_BUFFER_LENGTH = 3
    STREAM_IS_RECORDED = 4
    PING_REQUEST = 6
    PING_RESPONSE = 7


MAX_CHUNK_SIZE = 0xFFFFFF
"""Bytes.  A message length has 24 bits, so at this chunk size every message is one chunk."""

DEFAULT_CHUNK_SIZE = 128
"""Bytes, each way, until Set Chunk Size says otherwise (RTMP 1.0, section 5.4.1)."""

CONTROL_CHUNK_STREAM = 2
"""Protocol control and user control messages (RTMP 1.0, section 5.4)."""

COMMAND_CHUNK_STREAM = 3
"""Commands; what ffmpeg, librtmp and GStreamer use."""

MEDIA_CHUNK_STREAM = {MessageType.AUDIO: 4, MessageType.VIDEO: 6, MessageType.DATA_AMF0: 5}
"""The log's fixed chunk stream ids, so that every node writes the same bytes."""

MEDIA_MESSAGE_STREAM_ID = 1
"""The log's fixed message stream id: the first one that createStream gives."""

EXTENDED_TIMESTAMP = 0xFFFFFF
"""From this timestamp on (ms, 4 h 39 min) the header's 24 bits are all ones and 32 bits follow."""


def _length_only(payload: bytes) -> str:
    """A payload in a ``repr``: it may be megabytes, or hold a stream key."""
    return f"<{len(payload)} bytes>"


@attrs.frozen
class RawMessage:
    """One message as it was on the wire.  ``timestamp`` is absolute, in ms, 32 bits."""

    chunk_stream_id: int
    timestamp: int
    message_type: int
    message_stream_id: int
    payload: bytes = attrs.field(repr=_length_only)


@attrs.frozen
class MediaMessage:
    """One audio, video or AMF0 data message: what a log stores and a viewer is sent."""

    message_type: int
    timestamp: int
    payload: bytes = attrs.field(repr=_length_only)
