"""What a server's and a client's side of an RTMP connection have in common.

Owns the handshake, chunk sizes, acknowledgements, pings, aggregates, data messages, and the bound on how many messages
a second a peer may make us look at.  Does not know connect, publish or play: see ``server`` and ``client``.

Bytes in, events out::

    events = session.receive_data(data, now)      may raise RemoteProtocolError
    transport.write(session.data_to_send())       in both cases

A session that raised is unusable; it raises again if it is given more.  ``undelivered`` then has the events that came
before the error in that call, so that the outcome does not depend on how the bytes were cut.

Acknowledgements are sent (at half the window, as ffmpeg does, once a read at most) and never awaited: no client of our
time waits for them, and some never send one.
"""

from __future__ import annotations

from typing import Any

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import Limits
from relay.rtmp import amf0
from relay.rtmp.aggregate import split_aggregate
from relay.rtmp.chunks import ChunkReader, encode_message
from relay.rtmp.events import CommandAnswered, CommandReceived, Event, HandshakeDone, PingAnswered
from relay.rtmp.handshake import ClientHandshake, ServerHandshake
from relay.rtmp.media import normalize_data
from relay.rtmp.messages import (
    COMMAND_CHUNK_STREAM,
    CONTROL_CHUNK_STREAM,
    DEFAULT_CHUNK_SIZE,
    MediaMessage,
    MessageType,
    RawMessage,
    UserControl,
)

WINDOW_ACK_SIZE = 2_500_000
"""Bytes, for a peer that announces none; what Flash Media Server said and librtmp assumes."""

MIN_WINDOW = 4096
"""Bytes.  A peer that asks for acknowledgements more often gets them this often."""

COMMAND_UNIT = 512
"""Bytes.  A long command counts for one more message with each of them: a value takes 1 byte and 1 us to decode, so 500
commands of 4 KB a second would take the whole processor."""

RELAY_PREFIX = "relay"
"""Names of node-to-node commands begin so."""

_NOT_MEDIA = frozenset({"onStatus", "|RtmpSampleAccess"})
"""Data messages about the connection, not of the stream.  ffmpeg shows a relayed ``onStatus`` as one more stream."""


def as_number(values: list[Any], index: int) -> float:
    """The number at ``index`` of a command; 0 if there is none."""
    value = values[index] if index < len(values) else None
    return value if isinstance(value, float) else 0.0


def as_text(values: list[Any], index: int) -> str:
    value = values[index] if index < len(values) else None
    return value if isinstance(value, str) else ""


def as_object(values: list[Any], index: int) -> dict[str, Any]:
    value = values[index] if index < len(values) else None
    return value if isinstance(value, dict) else {}


def as_id(values: list[Any], index: int) -> int:
    """The message stream id at ``index`` of a command; -1 if what is there is none."""
    value = as_number(values, index)
    return int(value) if value.is_integer() and 0 <= value <= 0xFFFFFFFF else -1


class Session:
    """One side of one connection."""

    def __init__(self, handshake: ServerHandshake | ClientHandshake, limits: Limits) -> None:
        self.limits = limits
        self.our_chunk_size = DEFAULT_CHUNK_SIZE
        self.bytes_received = 0
        self.unknown_commands = 0
        self.dropped_messages = 0
        """Media of a stream that neither publishes nor plays, empty media, and messages of no known type."""
        self.undelivered: list[Event] = []
        self._handshake = handshake
        self._reader = ChunkReader(limits)
        self._out = bytearray()
        self._failure = ""
        self._now = 0.0
        self._their_window = WINDOW_ACK_SIZE
        self._bytes_acknowledged = 0
        self._control_limit: float = limits.control_messages_per_second
        self._control_count = 0
        self._control_since = float("-inf")

    @property
    def our_nonce(self) -> bytes:
        """The 1528 bytes of our first handshake message."""
        return self._handshake.our_nonce

    @property
    def their_nonce(self) -> bytes:
        """The peer's 1528 bytes; empty until they are here."""
        return self._handshake.their_nonce

    @property
    def their_chunk_size(self) -> int:
        return self._reader.chunk_size

    def data_to_send(self) -> bytes:
        """What has to be written now; empties it."""
        data = self._handshake.data_to_send() + self._out
        self._out.clear()
        return data

    def allow_control_messages(self, per_second: float) -> None:
        """Another bound than the limits' own, for a peer that proved to be one of our nodes."""
        self._control_limit = per_second

    def use_limits(self, limits: Limits) -> None:
        """Other bounds from here on, for a peer that proved to be one of our nodes."""
        self.limits = self._reader.limits = limits

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """What the peer did.

        Args:
            now: monotonic seconds; only counts messages per second.

        Raises:
            RemoteProtocolError: the peer broke a rule, or (LimitExceeded) a bound.
        """
        if self._failure:
            raise RemoteProtocolError(self._failure)
        self._now = now
        events = self.undelivered = []
        self.bytes_received += len(data)
        try:
            self._receive(data)
        except RemoteProtocolError as error:
            # its text only: the error itself holds on to every frame and buffer that it passed
            self._failure = str(error)
            raise
        self._acknowledge()
        return events

    def _receive(self, data: bytes) -> None:
        if not self._handshake.is_complete:
            data = self._handshake.feed(data)
            self._out += self._handshake.data_to_send()
            if not self._handshake.is_complete:
                return
            self._emit(HandshakeDone())
            self._handshake_done()
        failure: RemoteProtocolError | None = None
        try:
            messages = self._reader.feed(data)
        except RemoteProtocolError as error:
            failure, messages = error, self._reader.undelivered
        for raw in messages:
            self._receive_message(raw)
        if failure is not None:
            raise failure

    def _emit(self, event: Event) -> None:
        self.undelivered.append(event)

    # What a side adds.

    def _handshake_done(self) -> None:
        raise NotImplementedError

    def _receive_media(self, message_stream_id: int, message: MediaMessage) -> None:
        raise NotImplementedError

    def _receive_command(self, name: str, values: list[Any], message_stream_id: int) -> None:
        """``values`` is the whole command: name, transaction id, command object, arguments."""
        raise NotImplementedError

    def _receive_user_control(self, event: int, payload: bytes) -> None:
        """Other than pings."""

    # Messages.

    def _receive_message(self, raw: RawMessage) -> None:
        message_type = raw.message_type
        if message_type in (MessageType.AUDIO, MessageType.VIDEO) and raw.payload:
            self._receive_media(raw.message_stream_id, MediaMessage(message_type, raw.timestamp, raw.payload))
        elif message_type in (MessageType.DATA_AMF0, MessageType.DATA_AMF3):
            self._receive_data_message(raw)
        elif message_type == MessageType.AGGREGATE:
            self._count_control()
            for inner in split_aggregate(raw):
                self._receive_inner_message(inner)
        else:
            self._count_control()
            self._receive_control(raw)

    def _receive_inner_message(self, raw: RawMessage) -> None:
        """A message inside an aggregate; anything but media there is ignored."""
        if raw.message_type in (MessageType.AUDIO, MessageType.VIDEO, MessageType.DATA_AMF0, MessageType.DATA_AMF3):
            self._receive_message(raw)
        else:
            self._drop()

    def _receive_data_message(self, raw: RawMessage) -> None:
        named = normalize_data(raw.payload)
        if named is None or named[0] in _NOT_MEDIA:
            self._drop()
            return
        message = MediaMessage(MessageType.DATA_AMF0, raw.timestamp, named[1])
        self._receive_media(raw.message_stream_id, message)

    def _receive_control(self, raw: RawMessage) -> None:
        message_type, payload = raw.message_type, raw.payload
        if message_type == MessageType.COMMAND_AMF0:
            self._decode_command(payload, raw.message_stream_id)
        elif message_type == MessageType.COMMAND_AMF3:
            # AMF3 commands begin with 0x00 ("AMF0 follows") from every encoder that sends them
            self._decode_command(payload.removeprefix(b"\x00"), raw.message_stream_id)
        elif message_type == MessageType.USER_CONTROL:
            self._receive_any_user_control(payload)
        elif message_type == MessageType.WINDOW_ACK_SIZE:
            self._their_window = max(int.from_bytes(payload, "big"), MIN_WINDOW)
        elif message_type > MessageType.SET_PEER_BANDWIDTH:
            self._drop(is_counted=True)

    def _drop(self, is_counted: bool = False) -> None:
        """Pass over a message that means nothing to us, but not a flood of them."""
        self.dropped_messages += 1
        if not is_counted:
            self._count_control()

    def _count_control(self, count: int = 1) -> None:
        if self._now - self._control_since >= 1:
            self._control_since = self._now
            self._control_count = 0
        self._control_count += count
        if self._control_count > self._control_limit:
            raise LimitExceeded("control_messages_per_second", self._control_limit)

    def _receive_any_user_control(self, payload: bytes) -> None:
        event = int.from_bytes(payload[:2], "big")
        if event == UserControl.PING_REQUEST and len(payload) >= 6:
            self._write_user_control(UserControl.PING_RESPONSE, payload[2:6])
        elif event == UserControl.PING_RESPONSE and len(payload) >= 6:
            self._emit(PingAnswered(int.from_bytes(payload[2:6], "big")))
        else:
            self._receive_user_control(event, payload[2:])

    def _decode_command(self, payload: bytes, message_stream_id: int) -> None:
        self._count_control(len(payload) // COMMAND_UNIT)
        values = amf0.decode_all(payload, self.limits)
        name = as_text(values, 0)
        if not name:
            raise RemoteProtocolError("a command without a name")
        self._receive_command(name, values, message_stream_id)

    def _receive_relay_command(self, name: str, values: list[Any]) -> None:
        self._emit(CommandReceived(name=name, transaction_id=as_number(values, 1), values=values[3:]))

    def _receive_answer(self, name: str, values: list[Any]) -> None:
        is_error = name == "_error"
        self._emit(CommandAnswered(transaction_id=as_number(values, 1), is_error=is_error, values=values[3:]))

    # Calls that both sides have.

    def send_command(self, name: str, transaction_id: float, *values: Any) -> None:
        """A command about the connection; with transaction id 0 no answer is wanted."""
        self._write_command(0, name, transaction_id, None, *values)

    def answer_command(self, transaction_id: float, *values: Any) -> None:
        self._write_command(0, "_result", transaction_id, None, *values)

    def refuse_command(self, transaction_id: float, description: str) -> None:
        info = {"level": "error", "code": "NetConnection.Call.Failed", "description": description}
        self._write_command(0, "_error", transaction_id, None, info)

    def send_ping(self, timestamp: int) -> None:
        """Ask for a sign of life; ``PingAnswered`` brings the same 32 bits back."""
        self._write_user_control(UserControl.PING_REQUEST, (timestamp & 0xFFFFFFFF).to_bytes(4, "big"))

    # Writing.

    def _acknowledge(self) -> None:
        unacknowledged = self.bytes_received - self._bytes_acknowledged
        if self._handshake.is_complete and unacknowledged >= self._their_window // 2:
            self._bytes_acknowledged = self.bytes_received
            self._write_control(MessageType.ACKNOWLEDGEMENT, (self.bytes_received & 0xFFFFFFFF).to_bytes(4, "big"))

    def _write_control(self, message_type: MessageType, payload: bytes) -> None:
        self._write(RawMessage(CONTROL_CHUNK_STREAM, 0, message_type, 0, payload))

    def _write_user_control(self, event: UserControl, payload: bytes) -> None:
        self._write_control(MessageType.USER_CONTROL, event.to_bytes(2, "big") + payload)

    def _write_command(self, message_stream_id: int, *values: Any) -> None:
        payload = amf0.encode(*values)
        self._write(RawMessage(COMMAND_CHUNK_STREAM, 0, MessageType.COMMAND_AMF0, message_stream_id, payload))

    def _write_chunk_size(self, size: int) -> None:
        self._write_control(MessageType.SET_CHUNK_SIZE, size.to_bytes(4, "big"))
        self.our_chunk_size = size

    def _write(self, raw: RawMessage) -> None:
        if not self._handshake.is_complete:
            raise LocalProtocolError("nothing but the handshake may be sent before it is done")
        self._out += encode_message(raw, self.our_chunk_size)
