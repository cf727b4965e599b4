"""The server's side of an RTMP connection: encoders publish to it, players and other nodes play from it.

Owns the order of commands and the exact shape of every answer.  Does not decide: it asks by events and is told.
Called by ``relay.net``.

Theory.  A connection goes through ``ConnectionState``; on it, each message stream goes through ``StreamState``::

    HANDSHAKE -> AWAITING_CONNECT -> CONNECT_PENDING -> CONNECTED
                                          \\-> REJECTED

    CREATED -> PUBLISH_PENDING -> PUBLISHING        any -> gone (deleteStream)
            -> PLAY_PENDING    -> PLAYING           any -> CREATED (closeStream, FCUnpublish, a refusal)

Every pair of state and input is legal, ignored, or the peer's fault, which closes the connection.  While connect is
pending, what the peer sent right behind it is taken, but its answers wait until connect is accepted.

Each answer is the one that ffmpeg, librtmp, OBS and GStreamer all understand.  We never send ``onBWDone`` (it makes
players call ``_checkbw``), and never StreamEOF, UnpublishNotify, Play.Stop or Play.Complete but by ``end_play``: each
of them makes players close.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, ClassVar

import attrs

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import Limits
from relay.rtmp import amf0
from relay.rtmp.chunks import encode_message
from relay.rtmp.events import ConnectRequested, MediaReceived, PlayRequested, PublishRequested, StreamClosed
from relay.rtmp.handshake import ServerHandshake
from relay.rtmp.messages import (
    COMMAND_CHUNK_STREAM,
    CONTROL_CHUNK_STREAM,
    MAX_CHUNK_SIZE,
    MediaMessage,
    MessageType,
    RawMessage,
    UserControl,
)
from relay.rtmp.session import (
    RELAY_PREFIX,
    Session,
    as_id,
    as_number,
    as_object,
    as_text,
)

SERVER_PROPERTIES: Mapping[str, Any] = {"fmsVer": "FMS/3,0,1,123", "capabilities": 31}
"""What nginx-rtmp and SRS claim to be; encoders have been seen to read it."""

_PEER_BANDWIDTH_DYNAMIC = 2

ANNOUNCED_WINDOW = 64 << 20
"""Bytes after which a peer should acknowledge; ffmpeg refuses 0, and 2**31 and more.  Nobody here waits for an
acknowledgement (the kernel knows what has arrived), and each costs a turn: with the usual 2.5 MB, ffmpeg sends one
every 10 s at 1 Mbit/s, librtmp every 2 s."""

SERVER_CHUNK_SIZE = 10 << 20
"""Bytes.  More than any message we accept (``Limits.message_bytes``), so that each we send is one chunk; nginx-rtmp and
MediaMTX, when they pull from us, close the connection at one byte more."""

_CAPS_MULTITRACK, _CAPS_MOD_EX, _CAPS_NANO_OFFSET = 2, 4, 8
OUR_CAPS = _CAPS_MULTITRACK | _CAPS_MOD_EX | _CAPS_NANO_OFFSET
"""E-RTMP ``capsEx`` bits that we honour by passing everything on.  Bit 1, reconnect, is not among them."""

_CAN_FORWARD = 4
ENHANCED_PROPERTIES: Mapping[str, Any] = {
    "fourCcList": ["*"],
    "videoFourCcInfoMap": {"*": _CAN_FORWARD},
    "audioFourCcInfoMap": {"*": _CAN_FORWARD},
}


END_CODE = "NetStream.Play.UnpublishNotify"
END_DESCRIPTION = "The broadcast is over."


class ConnectionState(Enum):
    """Where the connection is."""

    HANDSHAKE = auto()
    AWAITING_CONNECT = auto()
    CONNECT_PENDING = auto()
    CONNECTED = auto()
    REJECTED = auto()


class StreamState(Enum):
    """What a message stream is used for."""

    CREATED = auto()
    PUBLISH_PENDING = auto()
    PUBLISHING = auto()
    PLAY_PENDING = auto()
    PLAYING = auto()


@attrs.define
class _MessageStream:
    state: StreamState = StreamState.CREATED
    request: PublishRequested | PlayRequested | None = None


class ServerSession(Session):
    """Sans-IO server: see the module's theory.

    Args:
        nonce: 1528 unpredictable bytes for the handshake.
    """

    def __init__(self, limits: Limits, nonce: bytes) -> None:
        super().__init__(ServerHandshake(nonce), limits)
        self.state = ConnectionState.HANDSHAKE
        self._streams: dict[int, _MessageStream] = {}
        self._held: list[RawMessage] = []

    def stream_state(self, message_stream_id: int) -> StreamState | None:
        """None for an id that createStream has not given, or deleteStream has taken back."""
        stream = self._streams.get(message_stream_id)
        return None if stream is None else stream.state

    # What the peer does.

    def _handshake_done(self) -> None:
        self.state = ConnectionState.AWAITING_CONNECT

    def _receive_media(self, message_stream_id: int, message: MediaMessage) -> None:
        stream = self._streams.get(message_stream_id)
        if stream is None or stream.state is not StreamState.PUBLISHING:
            self._drop()
            return
        self._emit(MediaReceived(message_stream_id, message))

    def _receive_command(self, name: str, values: list[Any], message_stream_id: int) -> None:
        if self.state is ConnectionState.REJECTED:
            self._drop(is_counted=True)
            return
        if (name == "connect") != (self.state is ConnectionState.AWAITING_CONNECT):
            raise RemoteProtocolError(f"command {name[:64]!r} in state {self.state.name}")
        if name.startswith(RELAY_PREFIX):
            self._receive_relay_command(name, values)
        elif name in ("_result", "_error"):
            self._receive_answer(name, values)
        elif (command := self._COMMANDS.get(name)) is not None:
            command(self, values, message_stream_id)
        else:
            self.unknown_commands += 1
            self._answer(values, amf0.UNDEFINED)

    def _answer(self, values: list[Any], result: Any) -> None:
        """``_result`` with the caller's transaction id; 0 says that none is wanted."""
        transaction_id = as_number(values, 1)
        if transaction_id != 0:
            self._write_command(0, "_result", transaction_id, None, result)

    def _connect(self, values: list[Any], _message_stream_id: int) -> None:
        properties = as_object(values, 2)
        request = ConnectRequested(
            transaction_id=as_number(values, 1),
            app=self._short(properties.get("app")),
            tc_url=self._short(properties.get("tcUrl")),
            flash_version=self._short(properties.get("flashVer")),
            properties=properties,
        )
        self.state = ConnectionState.CONNECT_PENDING
        self._emit(request)

    def _short(self, value: Any) -> str:
        """Text that may become a URL, a name or part of a log line; empty if it is no text."""
        if not isinstance(value, str):
            return ""
        if len(value.encode()) > self.limits.url_bytes:
            raise LimitExceeded("url_bytes", self.limits.url_bytes, len(value.encode()))
        return value

    def _ignore(self, values: list[Any], _message_stream_id: int) -> None:
        """releaseStream, FCPublish and their like: every client copes with an empty answer."""
        self._answer(values, amf0.UNDEFINED)

    def _get_stream_length(self, values: list[Any], _message_stream_id: int) -> None:
        """0: a live stream.  A greater number makes ffmpeg invent a duration."""
        self._answer(values, 0)

    def _create_stream(self, values: list[Any], _message_stream_id: int) -> None:
        limit = self.limits.message_streams
        if len(self._streams) >= limit:
            raise LimitExceeded("message_streams", limit, len(self._streams) + 1)
        message_stream_id = next(free for free in range(1, limit + 1) if free not in self._streams)
        self._streams[message_stream_id] = _MessageStream()
        self._answer(values, message_stream_id)

    def _delete_stream(self, values: list[Any], _message_stream_id: int) -> None:
        self._close_stream(as_id(values, 3))
        self._streams.pop(as_id(values, 3), None)

    def _close_stream_command(self, _values: list[Any], message_stream_id: int) -> None:
        self._close_stream(message_stream_id)

    def _fc_unpublish(self, values: list[Any], _message_stream_id: int) -> None:
        key = as_text(values, 3)
        for message_stream_id, stream in self._streams.items():
            if isinstance(stream.request, PublishRequested) and stream.request.stream_key == key:
                self._close_stream(message_stream_id)
        self._answer(values, amf0.UNDEFINED)

    def _close_stream(self, message_stream_id: int) -> None:
        stream = self._streams.get(message_stream_id)
        if stream is None or stream.request is None:
            return
        stream.request, stream.state = None, StreamState.CREATED
        self._emit(StreamClosed(message_stream_id))

    def _publish(self, values: list[Any], message_stream_id: int) -> None:
        stream = self._idle_stream(message_stream_id, "publish")
        stream.request = PublishRequested(
            transaction_id=as_number(values, 1),
            message_stream_id=message_stream_id,
            stream_key=self._short(as_text(values, 3)),
        )
        stream.state = StreamState.PUBLISH_PENDING
        self._emit(stream.request)

    def _play(self, values: list[Any], message_stream_id: int) -> None:
        stream = self._idle_stream(message_stream_id, "play")
        stream.request = PlayRequested(
            transaction_id=as_number(values, 1),
            message_stream_id=message_stream_id,
            stream=self._short(as_text(values, 3)),
        )
        stream.state = StreamState.PLAY_PENDING
        self._emit(stream.request)

    def _idle_stream(self, message_stream_id: int, command: str) -> _MessageStream:
        stream = self._streams.get(message_stream_id)
        if stream is None:
            raise RemoteProtocolError(f"{command} on message stream {message_stream_id}, which was not created")
        if stream.state is not StreamState.CREATED:
            raise RemoteProtocolError(f"{command} on message stream {message_stream_id}, which is {stream.state.name}")
        return stream

    def _pause(self, values: list[Any], message_stream_id: int) -> None:
        """Live goes on; players only want to hear that they were heard."""
        if self.stream_state(message_stream_id) is StreamState.PLAYING:
            code = "NetStream.Pause.Notify" if values[3:4] == [True] else "NetStream.Unpause.Notify"
            self._write_status(message_stream_id, "status", code, "Live streams go on.", {})

    _COMMANDS: ClassVar[dict[str, Callable[[ServerSession, list[Any], int], None]]] = {
        "connect": _connect,
        "createStream": _create_stream,
        "deleteStream": _delete_stream,
        "closeStream": _close_stream_command,
        "publish": _publish,
        "play": _play,
        "pause": _pause,
        "FCUnpublish": _fc_unpublish,
        "releaseStream": _ignore,
        "FCPublish": _ignore,
        "FCSubscribe": _ignore,
        "_checkbw": _ignore,
        "getStreamLength": _get_stream_length,
    }

    # What we decide.

    def accept_connect(self, request: ConnectRequested, properties: Mapping[str, Any] | None = None) -> None:
        """Window, bandwidth, chunk size, then ``_result``; ``properties`` join its second object."""
        self._expect_connect_pending()
        self.state = ConnectionState.CONNECTED
        window = ANNOUNCED_WINDOW.to_bytes(4, "big")
        self._write_control(MessageType.WINDOW_ACK_SIZE, window)
        self._write_control(MessageType.SET_PEER_BANDWIDTH, window + bytes((_PEER_BANDWIDTH_DYNAMIC,)))
        self._write_chunk_size(SERVER_CHUNK_SIZE if self.limits.message_bytes <= SERVER_CHUNK_SIZE else MAX_CHUNK_SIZE)
        info = {
            "level": "status",
            "code": "NetConnection.Connect.Success",
            "description": "Connection succeeded.",
            "objectEncoding": 0,
            **_enhanced_properties(request.properties),
            **(properties or {}),
        }
        self._write_command(0, "_result", request.transaction_id, dict(SERVER_PROPERTIES), info)
        held, self._held = self._held, []
        for raw in held:
            self._write(raw)

    def reject_connect(self, request: ConnectRequested, description: str) -> None:
        """Refuse; the owner then flushes and closes."""
        self._expect_connect_pending()
        self.state = ConnectionState.REJECTED
        self._held.clear()
        info = {"level": "error", "code": "NetConnection.Connect.Rejected", "description": description}
        self._write_command(0, "_error", request.transaction_id, None, info)

    def _expect_connect_pending(self) -> None:
        if self.state is not ConnectionState.CONNECT_PENDING:
            raise LocalProtocolError(f"no connect is pending: the connection is {self.state.name}")

    def accept_publish(self, request: PublishRequested) -> None:
        """Let the encoder send.  Does nothing if it has closed the stream meanwhile."""
        stream = self._pending(request, StreamState.PUBLISH_PENDING)
        if stream is not None:
            stream.state = StreamState.PUBLISHING
            self._write_stream_event(UserControl.STREAM_BEGIN, request.message_stream_id)
            self.send_status(request.message_stream_id, "status", "NetStream.Publish.Start", "Publishing.")

    def refuse_publish(self, request: PublishRequested, code: str, description: str) -> None:
        """Say why not (``NetStream.Publish.BadName``, ``.Denied`` …); the owner then flushes and closes."""
        self._refuse(request, StreamState.PUBLISH_PENDING, code, description)

    def accept_play(self, request: PlayRequested, info: Mapping[str, Any] | None = None) -> None:
        """Announce the stream; media may follow at once.  Does nothing if the player has gone on meanwhile."""
        stream = self._pending(request, StreamState.PLAY_PENDING)
        if stream is not None:
            message_stream_id = request.message_stream_id
            stream.state = StreamState.PLAYING
            self._write_stream_event(UserControl.STREAM_BEGIN, message_stream_id)
            self.send_status(message_stream_id, "status", "NetStream.Play.Reset", "Resetting.")
            self.send_status(message_stream_id, "status", "NetStream.Play.Start", "Playing.", info)

    def refuse_play(self, request: PlayRequested, code: str, description: str) -> None:
        """Say why not (``NetStream.Play.StreamNotFound`` …); the owner then flushes and closes."""
        self._refuse(request, StreamState.PLAY_PENDING, code, description)

    def _refuse(
        self, request: PublishRequested | PlayRequested, state: StreamState, code: str, description: str
    ) -> None:
        stream = self._pending(request, state)
        if stream is not None:
            stream.request, stream.state = None, StreamState.CREATED
            self.send_status(request.message_stream_id, "error", code, description)

    def _pending(self, request: PublishRequested | PlayRequested, state: StreamState) -> _MessageStream | None:
        """The stream that waits for this answer; None if the peer closed it before the answer."""
        if self.state is not ConnectionState.CONNECTED:
            raise LocalProtocolError(f"a stream can't be answered while the connection is {self.state.name}")
        stream = self._streams.get(request.message_stream_id)
        if stream is None or stream.request is not request:
            return None
        if stream.state is not state:
            raise LocalProtocolError(f"message stream {request.message_stream_id} was answered before")
        return stream

    def end_play(self, message_stream_id: int) -> None:
        """The broadcast is over for good: every player closes on this."""
        stream = self._streams.get(message_stream_id)
        if stream is None or stream.state is not StreamState.PLAYING:
            return
        stream.request, stream.state = None, StreamState.CREATED
        self.send_status(message_stream_id, "status", END_CODE, END_DESCRIPTION)
        self._write_stream_event(UserControl.STREAM_EOF, message_stream_id)

    def send_status(
        self, message_stream_id: int, level: str, code: str, description: str, info: Mapping[str, Any] | None = None
    ) -> None:
        """onStatus on the stream's own id: ffmpeg wants exactly two values before the object."""
        self._write_status(message_stream_id, level, code, description, info or {})

    def _write_status(
        self, message_stream_id: int, level: str, code: str, description: str, info: Mapping[str, Any]
    ) -> None:
        status = {"level": level, "code": code, "description": description, **info}
        self._write_command(message_stream_id, "onStatus", 0, None, status)

    def _write_stream_event(self, event: UserControl, message_stream_id: int) -> None:
        self._write_user_control(event, message_stream_id.to_bytes(4, "big"))

    def _write(self, raw: RawMessage) -> None:
        if self.state is ConnectionState.CONNECT_PENDING and raw.message_type == MessageType.COMMAND_AMF0:
            self._held.append(raw)
        else:
            super()._write(raw)


def end_of_play(message_stream_id: int) -> bytes:
    """What :meth:`ServerSession.end_play` says, for a connection whose session is not here: chunk size at least 128."""
    status = {"level": "status", "code": END_CODE, "description": END_DESCRIPTION}
    command = amf0.encode("onStatus", 0, None, status)
    eof = UserControl.STREAM_EOF.to_bytes(2, "big") + message_stream_id.to_bytes(4, "big")
    said = [
        RawMessage(COMMAND_CHUNK_STREAM, 0, MessageType.COMMAND_AMF0, message_stream_id, command),
        RawMessage(CONTROL_CHUNK_STREAM, 0, MessageType.USER_CONTROL, 0, eof),
    ]
    return b"".join(encode_message(raw, MAX_CHUNK_SIZE) for raw in said)


def _enhanced_properties(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to an E-RTMP client: what it asked about and we honour.  Nothing for any other."""
    ours = {key: value for key, value in ENHANCED_PROPERTIES.items() if key in theirs}
    caps = theirs.get("capsEx")
    if isinstance(caps, float) and caps.is_integer():
        ours["capsEx"] = int(caps) & OUR_CAPS
    return ours
