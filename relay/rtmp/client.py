"""The client's side of an RTMP connection: what pulls from an upstream, and what publishes.

Owns what we ask of a server and the reading of its answers, ours and foreign ones (nginx-rtmp, SRS, ffmpeg
``-listen``).  Called by ``relay.net`` and by the examples.

Theory.  ``connect`` once, after ``HandshakeDone``; then ``create_stream``, and on ``StreamCreated`` either ``play`` or
``publish``.  Answers are matched by transaction id, the rest by message stream id; what comes on an id that we never
created belongs to our only stream: ``ffmpeg -listen`` sends its media on 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from relay.errors import LocalProtocolError
from relay.limits import Limits
from relay.rtmp.chunks import encode_message
from relay.rtmp.events import (
    Connected,
    ConnectRejected,
    MediaReceived,
    PlayStarted,
    PublishStarted,
    StatusReceived,
    StreamCreated,
    StreamEnded,
)
from relay.rtmp.handshake import ClientHandshake
from relay.rtmp.messages import MEDIA_CHUNK_STREAM, MediaMessage, MessageType, RawMessage, UserControl
from relay.rtmp.session import RELAY_PREFIX, Session, as_id, as_number, as_object

CLIENT_CHUNK_SIZE = 60_000
"""Bytes.  What SRS itself uses; SRS refuses over 65536 and nginx-rtmp over 10 MiB."""

BUFFER_MS = 3000
"""What librtmp and ffmpeg say they buffer; servers of our time do not act on it."""

CLIENT_PROPERTIES: Mapping[str, Any] = {
    "flashVer": "LNX 9,0,124,2",
    "fpad": False,
    "capabilities": 15,
    "audioCodecs": 4071,
    "videoCodecs": 252,
    "videoFunction": 1,
    "fourCcList": ["*"],
    "capsEx": 14,
}
"""What ffmpeg says as a player, and the E-RTMP properties of one that passes everything on."""

_ENDED = frozenset({"NetStream.Play.UnpublishNotify", "NetStream.Play.Stop", "NetStream.Play.Complete"})
_PLAY_STARTED = frozenset({"NetStream.Play.Start", "NetStream.Play.PublishNotify"})


class ConnectState(Enum):
    """How far connect is."""

    NOT_ASKED = auto()
    ASKED = auto()
    CONNECTED = auto()
    REJECTED = auto()


class ClientStreamState(Enum):
    """What a message stream is used for."""

    CREATED = auto()
    PLAY_ASKED = auto()
    PLAYING = auto()
    PUBLISH_ASKED = auto()
    PUBLISHING = auto()
    ENDED = auto()


class _Call(Enum):
    """What an answer is the answer to."""

    CONNECT = auto()
    CREATE_STREAM = auto()
    COURTESY = auto()
    """releaseStream and FCPublish: nobody waits for the answer."""


class ClientSession(Session):
    """Sans-IO client: see the module's theory.

    Args:
        nonce: 1528 unpredictable bytes for the handshake.
        digest: offer the digest handshake.
    """

    def __init__(self, limits: Limits, nonce: bytes, digest: bool = False) -> None:
        super().__init__(ClientHandshake(nonce, digest), limits)
        self.state = ConnectState.NOT_ASKED
        self._streams: dict[int, ClientStreamState] = {}
        self._calls: dict[float, _Call] = {}
        self._last_transaction_id = 0

    # What we ask for.

    def connect(self, app: str, tc_url: str, properties: Mapping[str, Any] | None = None) -> None:
        """Ask once, after ``HandshakeDone``; ``properties`` join (or replace) those of ``CLIENT_PROPERTIES``."""
        if self.state is not ConnectState.NOT_ASKED:
            raise LocalProtocolError("connect can be asked once")
        self._write_chunk_size(CLIENT_CHUNK_SIZE)
        self.state = ConnectState.ASKED
        asked = {"app": app, "tcUrl": tc_url, **CLIENT_PROPERTIES, **(properties or {})}
        self._write_command(0, "connect", self._next_transaction_id(_Call.CONNECT), asked)

    def create_stream(self) -> int:
        """Ask for a message stream; returns the transaction id, which only a refusal (CommandAnswered) bears."""
        self._expect_connected()
        transaction_id = self._next_transaction_id(_Call.CREATE_STREAM)
        self.send_command("createStream", transaction_id)
        return transaction_id

    def play(self, message_stream_id: int, stream: str) -> None:
        """Ask for a live stream; ``?query`` and all is part of the name."""
        self._use(message_stream_id, ClientStreamState.PLAY_ASKED)
        self._write_command(message_stream_id, "play", self._next_transaction_id(_Call.COURTESY), None, stream, -1000)
        buffer = message_stream_id.to_bytes(4, "big") + BUFFER_MS.to_bytes(4, "big")
        self._write_user_control(UserControl.SET_BUFFER_LENGTH, buffer)

    def publish(self, message_stream_id: int, stream_key: str) -> None:
        """Ask to publish, as encoders do: releaseStream and FCPublish before."""
        self._use(message_stream_id, ClientStreamState.PUBLISH_ASKED)
        for name in ("releaseStream", "FCPublish"):
            self.send_command(name, self._next_transaction_id(_Call.COURTESY), stream_key)
        transaction_id = self._next_transaction_id(_Call.COURTESY)
        self._write_command(message_stream_id, "publish", transaction_id, None, stream_key, "live")

    def send_media(self, message_stream_id: int, message: MediaMessage) -> None:
        """One message of a stream that we publish."""
        if self._streams.get(message_stream_id) is not ClientStreamState.PUBLISHING:
            raise LocalProtocolError(f"message stream {message_stream_id} does not publish")
        chunk_stream_id = MEDIA_CHUNK_STREAM[MessageType(message.message_type)]
        raw = RawMessage(chunk_stream_id, message.timestamp, message.message_type, message_stream_id, message.payload)
        self._out += encode_message(raw, self.our_chunk_size)

    def call(self, name: str, *values: Any) -> int:
        """A command that wants an answer (CommandAnswered); returns its transaction id."""
        self._expect_connected()
        transaction_id = self._next_transaction_id()
        self.send_command(name, transaction_id, *values)
        return transaction_id

    def close_stream(self, message_stream_id: int) -> None:
        """Stop publishing or playing; the id is given back."""
        if self._streams.pop(message_stream_id, None) is not None:
            self.send_command("deleteStream", 0, message_stream_id)

    def unpublish(self, message_stream_id: int, stream_key: str) -> None:
        """Stop publishing in order, as encoders do: FCUnpublish, then :meth:`close_stream`."""
        if message_stream_id in self._streams:
            self.send_command("FCUnpublish", self._next_transaction_id(_Call.COURTESY), stream_key)
            self.close_stream(message_stream_id)

    def _next_transaction_id(self, call: _Call | None = None) -> int:
        self._last_transaction_id += 1
        if call is not None:
            self._calls[self._last_transaction_id] = call
        return self._last_transaction_id

    def _expect_connected(self) -> None:
        if self.state is not ConnectState.CONNECTED:
            raise LocalProtocolError(f"not connected: {self.state.name}")

    def _use(self, message_stream_id: int, state: ClientStreamState) -> None:
        if self._streams.get(message_stream_id) is not ClientStreamState.CREATED:
            raise LocalProtocolError(f"message stream {message_stream_id} is not free")
        self._streams[message_stream_id] = state

    # What the server does.

    def _handshake_done(self) -> None:
        """The owner is told by HandshakeDone, and connects."""

    def _receive_media(self, message_stream_id: int, message: MediaMessage) -> None:
        message_stream_id = self._our_stream(message_stream_id)
        if self._streams.get(message_stream_id) is not ClientStreamState.PLAYING:
            self._drop()
            return
        self._emit(MediaReceived(message_stream_id, message))

    def _receive_user_control(self, event: int, payload: bytes) -> None:
        if event == UserControl.STREAM_EOF and len(payload) >= 4:
            self._end_stream(int.from_bytes(payload[:4], "big"))

    def _receive_command(self, name: str, values: list[Any], message_stream_id: int) -> None:
        if name in ("_result", "_error"):
            self._receive_any_answer(name, values)
        elif name == "onStatus":
            self._receive_status(as_object(values, 3), self._our_stream(message_stream_id))
        elif name.startswith(RELAY_PREFIX):
            self._receive_relay_command(name, values)
        else:
            self.unknown_commands += 1

    def _receive_any_answer(self, name: str, values: list[Any]) -> None:
        call = self._calls.pop(as_number(values, 1), None)
        if call is _Call.CONNECT:
            self._connect_answered(name, values)
        elif call is _Call.CREATE_STREAM and name == "_result" and as_id(values, 3) > 0:
            self._streams[as_id(values, 3)] = ClientStreamState.CREATED
            self._emit(StreamCreated(as_id(values, 3)))
        elif call is not _Call.COURTESY:
            self._receive_answer(name, values)

    def _connect_answered(self, name: str, values: list[Any]) -> None:
        info = as_object(values, 3)
        code = _text(info, "code")
        if name == "_result" and code in ("", "NetConnection.Connect.Success"):
            self.state = ConnectState.CONNECTED
            self._emit(Connected({**as_object(values, 2), **info}))
        else:
            self.state = ConnectState.REJECTED
            self._emit(ConnectRejected(code, _text(info, "description")))

    def _our_stream(self, message_stream_id: int) -> int:
        if message_stream_id not in self._streams and len(self._streams) == 1:
            return next(iter(self._streams))
        return message_stream_id

    def _receive_status(self, info: dict[str, Any], message_stream_id: int) -> None:
        code = _text(info, "code")
        state = self._streams.get(message_stream_id)
        if code in _PLAY_STARTED and state is ClientStreamState.PLAY_ASKED:
            self._streams[message_stream_id] = ClientStreamState.PLAYING
            self._emit(PlayStarted(message_stream_id, info))
        elif code == "NetStream.Publish.Start" and state is ClientStreamState.PUBLISH_ASKED:
            self._streams[message_stream_id] = ClientStreamState.PUBLISHING
            self._emit(PublishStarted(message_stream_id))
        elif code in _ENDED:
            self._end_stream(message_stream_id)
        else:
            self._emit(
                StatusReceived(
                    message_stream_id=message_stream_id,
                    level=_text(info, "level"),
                    code=code,
                    description=_text(info, "description"),
                    info=info,
                )
            )

    def _end_stream(self, message_stream_id: int) -> None:
        message_stream_id = self._our_stream(message_stream_id)
        if self._streams.get(message_stream_id) in (ClientStreamState.PLAY_ASKED, ClientStreamState.PLAYING):
            self._streams[message_stream_id] = ClientStreamState.ENDED
            self._emit(StreamEnded(message_stream_id))


def _text(info: Mapping[str, Any], key: str) -> str:
    value = info.get(key)
    return value if isinstance(value, str) else ""
