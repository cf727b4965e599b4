"""Chunks: the pieces that messages travel in.

Owns chunk headers in both directions, putting messages together, and the two control messages that change how chunks
are read (Set Chunk Size, Abort).  Does not know what a message means.  Called by the sessions, and by ``relay.log`` for
the header of a stored message.

Theory.  A chunk is a basic header (1 to 3 bytes: format and chunk stream id), a message header of 11, 7, 3 or 0 bytes,
sometimes 4 bytes of extended timestamp, and a piece of payload.  Formats 1 to 3 leave out what equals the previous
message of that chunk stream, so a reader keeps one header per chunk stream id::

    06 000000 00000A 09 01000000 ...   format 0: timestamp 0, 10 bytes, video, message stream 1 (little-endian)
    46 000028 00000A 09 ...            format 1: timestamp delta 40
    86 000028 ...                      format 2: delta only
    C6 ...                             format 3: a further piece, or a new message like the last one

The reader works on one ``bytearray`` and commits a chunk only when all of it has arrived, so that no state depends on
how the bytes were cut.  A message that is one chunk is copied once, out of that buffer.  What is buffered is what was
received: a declared length reserves nothing, and every check of a declared length comes before waiting for its bytes.
"""

from __future__ import annotations

from struct import Struct

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import Limits
from relay.rtmp.messages import DEFAULT_CHUNK_SIZE, EXTENDED_TIMESTAMP, MAX_CHUNK_SIZE, MessageType, RawMessage

_TWO_WORDS = Struct(">II")
_MESSAGE_STREAM_ID = Struct("<I")
_EXTENDED = Struct(">I")
_HEADER_BYTES = (11, 7, 3)
_CONTINUATION = 0xC0
_TIMESTAMP_MASK = 0xFFFFFFFF

_EXACT_LENGTH = {
    MessageType.SET_CHUNK_SIZE: 4,
    MessageType.ABORT: 4,
    MessageType.ACKNOWLEDGEMENT: 4,
    MessageType.WINDOW_ACK_SIZE: 4,
    MessageType.SET_PEER_BANDWIDTH: 5,
}

USER_CONTROL_BYTES = range(2, 65)
"""Lengths allowed: an event number and at most what the longest one has (SWF verification: 2 + 42)."""


def message_header(
    chunk_stream_id: int, timestamp: int, length: int, message_type: int, message_stream_id: int
) -> bytes:
    """A format 0 header: 12 bytes, or 16 from timestamp 0xFFFFFF on."""
    if not 2 <= chunk_stream_id <= 63:
        raise LocalProtocolError(f"chunk stream id {chunk_stream_id} is not one we write (2 to 63)")
    if not 0 <= length <= MAX_CHUNK_SIZE:
        raise LocalProtocolError(f"a message of {length} bytes does not fit a 24-bit length")
    word = length << 8 | message_type
    if timestamp < EXTENDED_TIMESTAMP:
        head = _TWO_WORDS.pack(chunk_stream_id << 24 | timestamp, word)
        return head + _MESSAGE_STREAM_ID.pack(message_stream_id)
    head = _TWO_WORDS.pack(chunk_stream_id << 24 | EXTENDED_TIMESTAMP, word)
    return head + _MESSAGE_STREAM_ID.pack(message_stream_id) + _EXTENDED.pack(timestamp)


def encode_message(raw: RawMessage, chunk_size: int) -> bytes:
    """One format 0 chunk, then format 3 chunks for what is over ``chunk_size``.

    From timestamp 0xFFFFFF on, each of those repeats the extended timestamp (RTMP 1.0, 5.3.1.3; ffmpeg and librtmp
    read it so).  A format 3 chunk is never used to open a message: implementations disagree on its timestamp.
    """
    payload = raw.payload
    length = len(payload)
    head = message_header(raw.chunk_stream_id, raw.timestamp, length, raw.message_type, raw.message_stream_id)
    if length <= chunk_size:
        return head + payload
    again = bytes((_CONTINUATION | raw.chunk_stream_id,))
    if raw.timestamp >= EXTENDED_TIMESTAMP:
        again += _EXTENDED.pack(raw.timestamp)
    return head + again.join(payload[at : at + chunk_size] for at in range(0, length, chunk_size))


def check_length(message_type: int, length: int, limits: Limits) -> None:
    """Refuse a declared message length before any of its bytes are kept.

    Raises:
        RemoteProtocolError: a control message has not its one right length.
        LimitExceeded: the message is larger than its type may be.
    """
    exact = _EXACT_LENGTH.get(message_type)  # type: ignore[call-overload]
    if exact is not None:
        if length != exact:
            raise RemoteProtocolError(f"control message {message_type} of {length} bytes instead of {exact}")
    elif message_type == MessageType.USER_CONTROL:
        if length not in USER_CONTROL_BYTES:
            raise RemoteProtocolError(f"user control message of {length} bytes")
    elif message_type in (MessageType.AUDIO, MessageType.VIDEO, MessageType.AGGREGATE):
        if length > limits.message_bytes:
            raise LimitExceeded("message_bytes", limits.message_bytes, length)
    elif message_type in (MessageType.DATA_AMF0, MessageType.DATA_AMF3):
        if length > limits.metadata_bytes:
            raise LimitExceeded("metadata_bytes", limits.metadata_bytes, length)
    elif length > limits.command_bytes:
        raise LimitExceeded("command_bytes", limits.command_bytes, length)


class _ChunkStream:
    """The last header of one chunk stream id, and the message that is under way on it."""

    __slots__ = ("delta", "extended", "id", "length", "message_stream_id", "message_type", "partial", "timestamp")

    def __init__(self, chunk_stream_id: int) -> None:
        self.id = chunk_stream_id
        self.timestamp = 0
        self.delta = 0
        self.length = 0
        self.message_type = 0
        self.message_stream_id = 0
        self.extended = b""
        """The 4 bytes of extended timestamp as sent, empty if there were none."""
        self.partial: bytearray | None = None


class ChunkReader:
    """Bytes in, whole messages out.  After an error it is unusable."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.chunk_size = DEFAULT_CHUNK_SIZE
        self.undelivered: list[RawMessage] = []
        """What the last call of ``feed`` completed, also if it then raised."""
        self._buffer = bytearray()
        self._needed = 1
        self._streams: dict[int, _ChunkStream] = {}
        self._partial_bytes = 0

    def feed(self, data: bytes) -> list[RawMessage]:
        """Take what arrived; return the messages that it completed, Set Chunk Size and Abort among them.

        Raises:
            RemoteProtocolError: the peer broke a rule; see ``undelivered``.
        """
        buffer = self._buffer
        buffer += data
        messages = self.undelivered = []
        if len(buffer) < self._needed:
            return messages
        self._needed = 1
        offset = 0
        with memoryview(buffer) as view:
            while offset < len(view):
                after = self._read_chunk(view, offset)
                if after == offset:
                    break
                offset = after
        del buffer[:offset]
        return messages

    def _wait(self, offset: int, needed: int) -> int:
        """More bytes are needed: nothing is consumed, and ``feed`` need not look again before they are there."""
        self._needed = needed - offset
        return offset

    def _read_chunk(self, view: memoryview, offset: int) -> int:
        """Consume the chunk at ``offset`` if it is whole; return where the next one begins."""
        marker = view[offset]
        chunk_stream_id = marker & 0x3F
        at = offset + 1
        if chunk_stream_id < 2:
            at += 1 + chunk_stream_id
            if at > len(view):
                return self._wait(offset, at)
            chunk_stream_id = 64 + view[offset + 1] + (view[offset + 2] << 8 if chunk_stream_id else 0)
        if marker < _CONTINUATION:
            return self._read_head(view, offset, at, chunk_stream_id)
        stream = self._streams.get(chunk_stream_id)
        if stream is None:
            raise RemoteProtocolError(f"format 3 chunk on fresh chunk stream {chunk_stream_id}")
        if stream.extended:
            skip = self._extended_bytes(view, at, stream.extended)
            if skip < 0:
                return self._wait(offset, at + 4)
            at += skip
        if stream.partial is None:
            timestamp = (stream.timestamp + stream.delta) & _TIMESTAMP_MASK
            return self._open_message(view, offset, at, stream, timestamp)
        return self._continue_message(view, offset, at, stream)

    @staticmethod
    def _extended_bytes(view: memoryview, at: int, expected: bytes) -> int:
        """4 if a format 3 chunk repeats the extended timestamp, 0 if not, -1 if that can't be told yet.

        Half of the senders repeat it and half do not; SRS and GStreamer compare in the same way.
        """
        seen = view[at : at + 4]
        if seen != expected[: len(seen)]:
            return 0
        return 4 if len(seen) == 4 else -1

    def _read_head(self, view: memoryview, offset: int, at: int, chunk_stream_id: int) -> int:
        """A format 0, 1 or 2 chunk: the first of a message."""
        chunk_format = view[offset] >> 6
        stream = self._streams.get(chunk_stream_id)
        if stream is None:
            stream = self._fresh_stream(chunk_stream_id, chunk_format)
        elif stream.partial is not None:
            raise RemoteProtocolError(f"new message header inside a message on chunk stream {chunk_stream_id}")
        body = at + _HEADER_BYTES[chunk_format]
        if body > len(view):
            return self._wait(offset, body)
        delta = int.from_bytes(view[at : at + 3], "big")
        extended = b""
        if delta == EXTENDED_TIMESTAMP:
            if body + 4 > len(view):
                return self._wait(offset, body + 4)
            extended = bytes(view[body : body + 4])
            delta = int.from_bytes(extended, "big")
            body += 4
        # What follows may be done twice for a chunk that is not whole yet: it depends on the header alone.
        if chunk_format < 2:
            stream.length = int.from_bytes(view[at + 3 : at + 6], "big")
            stream.message_type = view[at + 6]
            check_length(stream.message_type, stream.length, self.limits)
        if chunk_format == 0:
            stream.message_stream_id = int.from_bytes(view[at + 7 : at + 11], "little")
        stream.extended = extended
        stream.delta = delta
        timestamp = delta if chunk_format == 0 else (stream.timestamp + delta) & _TIMESTAMP_MASK
        return self._open_message(view, offset, body, stream, timestamp)

    def _fresh_stream(self, chunk_stream_id: int, chunk_format: int) -> _ChunkStream:
        """Format 0 opens a chunk stream; librtmp pings on a fresh one with format 1, so that may do it too."""
        if chunk_format == 2:
            raise RemoteProtocolError(f"format 2 chunk on fresh chunk stream {chunk_stream_id}")
        if len(self._streams) >= self.limits.chunk_streams:
            raise LimitExceeded("chunk_streams", self.limits.chunk_streams, len(self._streams) + 1)
        stream = self._streams[chunk_stream_id] = _ChunkStream(chunk_stream_id)
        return stream

    def _open_message(self, view: memoryview, offset: int, body: int, stream: _ChunkStream, timestamp: int) -> int:
        """The first chunk of a message, from its payload on.  Commits the timestamp only if the chunk is whole."""
        length = stream.length
        end = body + min(length, self.chunk_size)
        held = self._partial_bytes + end - body
        if held > self.limits.partial_bytes:
            raise LimitExceeded("partial_bytes", self.limits.partial_bytes, held)
        if end > len(view):
            return self._wait(offset, end)
        stream.timestamp = timestamp
        if end - body == length:
            self._deliver(stream, bytes(view[body:end]))
        else:
            stream.partial = bytearray(view[body:end])
            self._partial_bytes = held
        return end

    def _continue_message(self, view: memoryview, offset: int, body: int, stream: _ChunkStream) -> int:
        """Format 3 chunks of the message under way: this one, and those of the same kind right behind it."""
        partial = stream.partial
        assert partial is not None
        marker = view[offset] if body - offset == 1 else -1
        size, left, limit = self.chunk_size, stream.length - len(partial), self.limits.partial_bytes
        while True:
            end = body + (size if size < left else left)
            held = self._partial_bytes + end - body
            if held > limit:
                raise LimitExceeded("partial_bytes", limit, held)
            if end > len(view):
                return self._wait(offset, end)
            partial += view[body:end]
            self._partial_bytes = held
            left -= end - body
            if not left:
                self._partial_bytes -= stream.length
                stream.partial = None
                self._deliver(stream, bytes(partial))
                return end
            if end == len(view) or view[end] != marker or stream.extended:
                return end
            offset, body = end, end + 1

    def _deliver(self, stream: _ChunkStream, payload: bytes) -> None:
        self.undelivered.append(
            RawMessage(stream.id, stream.timestamp, stream.message_type, stream.message_stream_id, payload)
        )
        if stream.message_type == MessageType.SET_CHUNK_SIZE:
            self._set_chunk_size(int.from_bytes(payload, "big"))
        elif stream.message_type == MessageType.ABORT:
            self._abort(int.from_bytes(payload, "big"))

    def _set_chunk_size(self, size: int) -> None:
        if not 1 <= size <= 0x7FFFFFFF:
            raise RemoteProtocolError(f"chunk size {size} is outside 1 to 0x7FFFFFFF")
        if size < self.limits.chunk_size_min:
            raise LimitExceeded("chunk_size_min", self.limits.chunk_size_min, size)
        self.chunk_size = min(size, MAX_CHUNK_SIZE)

    def _abort(self, chunk_stream_id: int) -> None:
        """Forget an unfinished message; its header stays in force.  Unknown ids are ignored."""
        stream = self._streams.get(chunk_stream_id)
        if stream is not None and stream.partial is not None:
            self._partial_bytes -= len(stream.partial)
            stream.partial = None
