"""Viewers on a host of :mod:`benchmarks.vip_network`: one that only ever receives, and the question whether a new one
would be served.

They speak HTTP-FLV, over blocking sockets.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from benchmarks.vip_network import DEADLINE_SECONDS, PORT, STREAM, enter

CONNECT_SECONDS = 0.2
SOME_BYTES = 4096  # of media: about 20 ms of the demo


def in_namespace(namespace: str, make: Callable[[], socket.socket]) -> socket.socket:
    """Let a thread of its own make a socket there; this one stays where it is."""
    made: list[socket.socket | OSError] = []

    def work() -> None:
        try:
            enter(namespace)
            made.append(make())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Viewer:
    """Asks once, then only receives.

    Raises (from the constructor): ``OSError``.
    """

    def __init__(self, namespace: str, host: str, seconds: float = CONNECT_SECONDS) -> None:
        self.socket = in_namespace(namespace, lambda: socket.create_connection((host, PORT), seconds))
        self.socket.sendall(f"GET /{STREAM}.flv HTTP/1.0\r\n\r\n".encode())

    def read_some(self, seconds: float = DEADLINE_SECONDS) -> None:
        """Receive a bit of the stream.  Raises ``OSError`` if it isn't sent any."""
        self.socket.settimeout(seconds)
        left = SOME_BYTES
        while left > 0:
            data = self.socket.recv(left)
            if not data:
                raise ConnectionError("the stream ended")
            left -= len(data)

    def end(self, seconds: float = DEADLINE_SECONDS) -> str:
        """Receive until it ends: "reset", "closed", or "hangs" when nothing has come for so long."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return "hangs"
        except ConnectionResetError:
            return "reset"
        return "closed"

    def close(self) -> None:
        """Leave."""
        self.socket.close()


def is_served(namespace: str, host: str, seconds: float = 1.0) -> bool:
    """Is a viewer that connects now sent the stream?"""
    try:
        viewer = Viewer(namespace, host)
    except OSError:
        return False
    try:
        viewer.read_some(seconds)
    except OSError:
        return False
    finally:
        viewer.close()
    return True
