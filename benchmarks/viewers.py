"""A viewer on a plain blocking socket, over RTMP or HTTP-FLV, for measuring from outside.

Owns the viewer's side only and works against any server.  Called by the benchmarks.  It waits in ``recv`` and notes the
time when that returns, so nothing stands between the socket and the clock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

import attrs

from relay.errors import RemoteProtocolError
from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.rtmp import events
from relay.rtmp.client import ClientSession
from relay.rtmp.handshake import NONCE_BYTES
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType

READ_BYTES = 64 << 10
TIMEOUT_SECONDS = 10.0  # of silence; the demo has a frame every 40 ms
DEFAULT_PORTS = {"rtmp": 1935, "http": 80}


class ViewerFailed(Exception):
    """The server refused, or ended, or broke the protocol."""


@attrs.frozen
class Arrival:
    """A message, and when ``recv`` gave its last byte (monotonic seconds, the same clock in all processes)."""

    at: float
    message: MediaMessage

    @property
    def is_video_frame(self) -> bool:
        """Is it a picture (and no decoder set-up message)?"""
        message = self.message
        return (
            message.message_type == MessageType.VIDEO
            and not describe(message.message_type, message.payload).is_sequence_header
        )


class Viewer:
    """One connection.

    Args:
        url: ``rtmp://HOST[:PORT]/APP/NAME`` or ``http://HOST[:PORT]/APP/NAME.flv``.
        receive_buffer: ``SO_RCVBUF`` in bytes; 0 leaves it to the kernel.
    """

    def __init__(self, url: str, receive_buffer: int = 0) -> None:
        self.url = url
        self._parts = urlsplit(url)
        if self._parts.scheme not in DEFAULT_PORTS or not self._parts.hostname:
            raise ViewerFailed(f"{url} is neither rtmp://HOST/APP/NAME nor http://HOST/APP/NAME.flv")
        address = (self._parts.hostname, self._parts.port or DEFAULT_PORTS[self._parts.scheme])
        family, kind, protocol, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        self.socket = socket.socket(family, kind, protocol)
        self.socket.settimeout(TIMEOUT_SECONDS)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # counts only before connect
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began_at = time.monotonic()
        try:
            self.socket.connect(where)
        except OSError:
            self.socket.close()
            raise
        self.connected_at = time.monotonic()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def arrivals(self) -> Iterator[Arrival]:
        """Ask for the stream and yield its messages until it ends.

        Raises:
            ViewerFailed: the server refused us or broke the protocol.
            TimeoutError: it was silent for too long.
        """
        try:
            yield from self._rtmp() if self._parts.scheme == "rtmp" else self._http_flv()
        except RemoteProtocolError as error:
            raise ViewerFailed(f"{self.url}: {error}") from None

    def _http_flv(self) -> Iterator[Arrival]:
        self.socket.sendall(f"GET {self._parts.path} HTTP/1.0\r\nHost: {self._parts.netloc}\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._read()
        head, _, data = data.partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0].decode("latin-1")
        if " 200 " not in status:
            raise ViewerFailed(f"{self.url}: {status}")
        reader = TagReader(DEFAULT_LIMITS)
        while True:
            now = time.monotonic()
            for message in reader.feed(data):
                yield Arrival(now, message)
            data = self._read()

    def _rtmp(self) -> Iterator[Arrival]:
        app, _, name = self._parts.path.strip("/").rpartition("/")
        query = f"?{self._parts.query}" if self._parts.query else ""
        session = ClientSession(DEFAULT_LIMITS, os.urandom(NONCE_BYTES))
        while True:
            self.socket.sendall(session.data_to_send())
            data = self._read()
            now = time.monotonic()
            for event in session.receive_data(data, now):
                match event:
                    case events.HandshakeDone():
                        session.connect(app, f"rtmp://{self._parts.netloc}/{app}")
                    case events.Connected():
                        session.create_stream()
                    case events.StreamCreated(message_stream_id):
                        session.play(message_stream_id, name + query)
                    case events.MediaReceived(_, message):
                        yield Arrival(now, message)
                    case events.StreamEnded():
                        return
                    case events.ConnectRejected(code, why):
                        raise ViewerFailed(f"{self.url}: {code}: {why}")
                    case events.StatusReceived(level="error", code=code, description=why):
                        raise ViewerFailed(f"{self.url}: {code}: {why}")

    def _read(self) -> bytes:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ViewerFailed(f"{self.url}: the server closed the connection")
        return data


@attrs.frozen
class Join:
    """How long one viewer waited, ms from the call of ``connect``."""

    connected_ms: float
    first_frame_ms: float


def first_video_frame(url: str) -> Join:
    """Join, wait for the first whole picture, leave."""
    with Viewer(url) as viewer:
        for arrival in viewer.arrivals():
            if arrival.is_video_frame:
                return Join(
                    connected_ms=(viewer.connected_at - viewer.began_at) * 1000,
                    first_frame_ms=(arrival.at - viewer.began_at) * 1000,
                )
    raise ViewerFailed(f"{url}: the stream ended")
