"""Viewers on a host of ``vip_network.py``: one that only ever receives, and the question whether a new one is served.

They speak HTTP-FLV, over blocking sockets.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable

from vip_network import DEADLINE_SECONDS, PORT, STREAM

CLONE_NEWNET = 0x40000000  # <sched.h>; Python has os.setns from 3.12 on
CONNECT_SECONDS = 0.2
SOME_BYTES = 4096  # of media: about 100 ms of the demo


def enter(namespace: str) -> None:
    """Take the calling thread into a network namespace: the sockets that it makes from now on are there."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns({namespace})")
    finally:
        os.close(descriptor)


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
    """Asks once, then only receives.  Without a namespace, it is where the calling thread is.

    Raises (from the constructor): ``OSError``.
    """

    def __init__(self, namespace: str | None, host: str, seconds: float = CONNECT_SECONDS) -> None:
        def connect() -> socket.socket:
            return socket.create_connection((host, PORT), seconds)

        self.socket = connect() if namespace is None else in_namespace(namespace, connect)
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


def is_served(namespace: str | None, host: str, seconds: float = 1.0, connect_seconds: float = CONNECT_SECONDS) -> bool:
    """Is a viewer that connects now sent the stream?"""
    try:
        viewer = Viewer(namespace, host, connect_seconds)
    except OSError:
        return False
    try:
        viewer.read_some(seconds)
    except OSError:
        return False
    finally:
        viewer.close()
    return True
