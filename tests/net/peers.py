"""The far ends of connections under test: plain sockets, so that a test decides every FIN, reset and byte."""

import functools
import os
import resource
import socket
import struct
import time

from twisted.internet.task import deferLater


def open_descriptors():
    """How many file descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


async def eventually(condition, seconds=30.0):
    """Wait until ``condition()`` is true; what it returned."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {seconds} s: {condition}")
        await deferLater(reactor, 0.002)
    return result


class Peer:
    """A connected non-blocking socket."""

    def __init__(self, connection):
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.end = None  # what reading ended with: "fin" or "reset"
        self._unread = bytearray()

    @classmethod
    def connect(cls, port, receive_buffer=0):
        """To a port on this machine; a small receive buffer makes a peer that is soon congested."""
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(("127.0.0.1", port))
        return cls(connection)

    async def send(self, data):
        view = memoryview(data)
        while view:
            view = view[await eventually(functools.partial(self.try_send, view)) :]

    async def read(self, count):
        """Exactly this many bytes."""
        await eventually(lambda: self._poll() and len(self._unread) >= count)
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    def has(self, count):
        """Have so many bytes come that were not read yet?"""
        self._poll()
        return len(self._unread) >= count

    async def read_to_end(self):
        """All that comes, and ``end`` is set."""
        await eventually(lambda: self._poll() and self.end)
        data, self._unread = bytes(self._unread), bytearray()
        return data

    def send_fin(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        self.socket.close()

    def try_send(self, view):
        """Part of it, as much as the socket takes; how much that was."""
        try:
            return self.socket.send(view[: 1 << 18])
        except BlockingIOError:
            return 0

    def _poll(self):
        for _ in range(16):
            if self.end is not None:
                break
            try:
                data = self.socket.recv(1 << 18)
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.end = "reset"
                break
            if not data:
                self.end = "fin"
            self._unread += data
        return True


class Listener:
    """A listening socket that accepts when told; connects succeed before, as with any backlog."""

    def __init__(self, port=0, receive_buffer=0):
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind(("127.0.0.1", port))
        self.socket.listen()
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    async def accept(self):
        return Peer(await eventually(self.try_accept))

    def try_accept(self):
        """A plain socket, or ``None``."""
        try:
            return self.socket.accept()[0]
        except BlockingIOError:
            return None

    def close(self):
        self.socket.close()


class NoMoreDescriptors:
    """While entered, the process can open no more files."""

    def __enter__(self):
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        self._fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, self._limits[1]))
        try:
            while True:
                self._fillers.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return self

    def __exit__(self, *_exception):
        for filler in self._fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
