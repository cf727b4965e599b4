"""FLV: a file header, then one tag a message, each followed by a pointer back.

Owns the bytes of both directions.  Called by ``relay.log`` (the FLV rendition), ``relay.net`` (HTTP-FLV) and the
examples.

A tag is 11 bytes of head, the payload, and 4 bytes that say how long both were::

    09 00000A 000028 00 000000  <10 bytes>  00000015      video, 10 bytes, 40 ms

The timestamp is 24 bits and then its upper 8.  Adobe calls the whole signed; live streams let it wrap at 2**32.
"""

from __future__ import annotations

from struct import Struct

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import Limits
from relay.rtmp.messages import MAX_CHUNK_SIZE, MediaMessage, MessageType

HEAD_BYTES = 11
TAIL_BYTES = 4
OVERHEAD = HEAD_BYTES + TAIL_BYTES
"""A message of n bytes is a tag of n + 15."""

_HEADER_BYTES = 9
_SIGNATURE = b"FLV"
_HAS_AUDIO, _HAS_VIDEO = 4, 1
FILE_HEADER = b"FLV\x01" + bytes((_HAS_AUDIO | _HAS_VIDEO,)) + b"\x00\x00\x00\x09" + bytes(TAIL_BYTES)
"""Both flags, whatever the stream has: what comes later isn't known yet, and ffmpeg and browsers look at the tags."""

MAX_HEADER_BYTES = 1024
"""A file header may be longer than 9 bytes, but nobody has ever needed it."""

_MEDIA_TYPES = frozenset((MessageType.AUDIO, MessageType.VIDEO, MessageType.DATA_AMF0))
_FILTER_BIT = 0x20
_TYPE_MASK = 0x1F

_HEAD = Struct(">II3x")
_TAIL = Struct(">I")


def tag_head(message_type: int, timestamp: int, length: int) -> bytes:
    """The 11 bytes before a payload of ``length`` bytes."""
    if not 0 <= length <= MAX_CHUNK_SIZE:
        raise LocalProtocolError(f"a payload of {length} bytes does not fit a 24-bit length")
    return _HEAD.pack(message_type << 24 | length, (timestamp & 0xFFFFFF) << 8 | timestamp >> 24)


def tag_tail(length: int) -> bytes:
    """The 4 bytes behind a payload of ``length`` bytes."""
    return _TAIL.pack(HEAD_BYTES + length)


def tag(message: MediaMessage) -> bytes:
    """One message as a whole tag."""
    length = len(message.payload)
    return tag_head(message.message_type, message.timestamp, length) + message.payload + tag_tail(length)


class TagReader:
    """FLV bytes in, messages out; what arrives may be cut anywhere.  After an error it is unusable.

    Tags of other types are passed over.  Back pointers are not compared: writers of live FLV get them wrong.
    """

    def __init__(self, limits: Limits) -> None:
        self.undelivered: list[MediaMessage] = []
        """What the last call of ``feed`` completed, also if it then raised."""
        self._limits = limits
        self._buffer = bytearray()
        self._needed = _HEADER_BYTES
        self._has_header = False

    def feed(self, data: bytes) -> list[MediaMessage]:
        """Take what arrived; return the messages that it completed.

        Raises:
            RemoteProtocolError: this is no FLV, or it is encrypted.
            LimitExceeded: a tag is larger than a message may be.
        """
        buffer = self._buffer
        buffer += data
        messages = self.undelivered = []
        if len(buffer) < self._needed:
            return messages
        with memoryview(buffer) as view:
            offset = 0 if self._has_header else self._read_header(view)
            while self._has_header:
                after = self._read_tag(view, offset)
                if after == offset:
                    break
                offset = after
        del buffer[:offset]
        return messages

    def _read_header(self, view: memoryview) -> int:
        if bytes(view[:3]) != _SIGNATURE:
            raise RemoteProtocolError("this is not FLV")
        size = int.from_bytes(view[5:_HEADER_BYTES], "big")
        if not _HEADER_BYTES <= size <= MAX_HEADER_BYTES:
            raise RemoteProtocolError(f"an FLV header of {size} bytes")
        end = size + TAIL_BYTES
        if end > len(view):
            self._needed = end
            return 0
        self._has_header = True
        return end

    def _read_tag(self, view: memoryview, offset: int) -> int:
        """Consume the tag at ``offset`` if it is whole; return where the next one begins."""
        body = offset + HEAD_BYTES
        if body > len(view):
            self._needed = HEAD_BYTES
            return offset
        first = int.from_bytes(view[offset : offset + 4], "big")
        length = first & 0xFFFFFF
        if length > self._limits.message_bytes:
            raise LimitExceeded("message_bytes", self._limits.message_bytes, length)
        if first >> 24 & _FILTER_BIT:
            raise RemoteProtocolError("an encrypted FLV tag")
        end = body + length + TAIL_BYTES
        if end > len(view):
            self._needed = end - offset
            return offset
        message_type = first >> 24 & _TYPE_MASK
        if message_type in _MEDIA_TYPES:
            timestamp = int.from_bytes(view[offset + 4 : offset + 7], "big") | view[offset + 7] << 24
            self.undelivered.append(MediaMessage(message_type, timestamp, bytes(view[body : body + length])))
        return end
