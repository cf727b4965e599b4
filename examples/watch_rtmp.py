"""Watch a stream over RTMP with our client session on a plain blocking socket: print what comes.

    python examples/watch_rtmp.py rtmp://127.0.0.1:1935/live/demo | head

The session knows the protocol and no network: bytes go in, events come out, and whoever calls it moves the bytes.  So
it fits a blocking socket as well as Twisted, asyncio or a test without any socket.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

from relay.limits import DEFAULT_LIMITS
from relay.net.urls import RtmpUrl, parse_rtmp_url
from relay.rtmp import events
from relay.rtmp.client import ClientSession
from relay.rtmp.handshake import NONCE_BYTES
from relay.rtmp.messages import MediaMessage, MessageType


def watch(url: RtmpUrl) -> Iterator[MediaMessage]:
    """Yield the stream's messages until it ends."""
    session = ClientSession(DEFAULT_LIMITS, os.urandom(NONCE_BYTES))
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(session.data_to_send())
        while data := connection.recv(64 << 10):
            for event in session.receive_data(data, time.monotonic()):
                match event:
                    case events.HandshakeDone():
                        session.connect(url.app, url.tc_url)
                    case events.Connected():
                        session.create_stream()
                    case events.StreamCreated(message_stream_id):
                        session.play(message_stream_id, url.stream)
                    case events.MediaReceived(_, message):
                        yield message
                    case events.StreamEnded():
                        return
                    case (
                        events.ConnectRejected(code, why)
                        | events.StatusReceived(level="error", code=code, description=why)
                    ):
                        sys.exit(f"{code}: {why}")
            connection.sendall(session.data_to_send())


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when head has seen enough
    for message in watch(parse_rtmp_url(sys.argv[1])):
        print(MessageType(message.message_type).name.lower(), message.timestamp, len(message.payload), flush=True)
