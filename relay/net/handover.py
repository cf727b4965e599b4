"""A balancer hands its sockets over to its successor: what the two processes say to each other, and how.

Owns the theory, the frames and the greeting.  The old process's side is :mod:`relay.net.giving`, the new one's
:mod:`relay.net.taking`; what is said of one viewer is :mod:`relay.net.viewer_state`, the listening sockets are
:mod:`relay.net.ports`.

Theory.  The old process (the giver) listens on a UNIX socket; the new one (the taker) connects to it when it starts:

    taker                                       giver
    hello version name aggregators     ->
                                       <-       hello version, ports (with their sockets), links that are up
    ... its own control links come up; what aggregators say on them it keeps, unanswered ...
    linked                             ->
                                                ... barrier on each of its own links ...
                                       <-       barred
    word, word, ...                    ->       notes each, and answers: noted
    take                               ->
                                                ... halts every viewer ...
                                       <-       viewer (with its sockets), viewer, ...
                                       <-       all
    commit                             ->
    goes on with them                           forgets them, stays for those who can't be handed over, ends

**Whose is a viewer?**  Both processes have its sockets from the moment they are sent.  Neither reads or writes them
between the halt and the commit, so going back is always possible: the giver goes on as if nothing had happened.

    H1  The taker touches a viewer's socket only after its ``commit`` is in the giver's receive queue.
    H2  The giver goes on with its viewers only when no ``commit`` is there, and none can come any more.

The kernel is the arbiter.  ``commit`` is one ``send`` of a few bytes: all of it is in the queue, or nothing.  A giver
that is tired of waiting shuts its socket for reading first: from then on ``send`` fails at the other end (EPIPE).  What
is in the queue then is read, and decides.  A taker that dies leaves what it has sent, and then the end of the file.

**When the giver dies** before the commit, its sockets are still open here.  A taker whose connection ends goes on with
what it has if the process is gone (a pidfd says so), and with nothing if it lives: then it has changed its mind (H2).

**What aggregators say** (:mod:`relay.net.sessions`) goes to the newest connection of a balancer's name: the taker's,
as soon as it has said ``relayHello``.  It must reach the process that has the session, before it is answered (I3), and
in order.  Let T be the moment at which an aggregator takes the taker's hello.

    H3  What it says before T, the giver has heard before any of what it says after T.

The taker keeps what it hears.  Its links being up, T is past for all; the giver then asks each aggregator for an echo
on its own link, behind which nothing can be on the way.  Only then (``barred``) the taker passes on what it kept, and
answers the aggregators when the giver has noted it.  What comes after ``take`` it keeps again, and hears it itself once
the viewers are its own.  If a link of either comes or goes in between, the order is not known any more, and the whole
is called off.  Viewers who stay with the giver are heard of in the same way, by words passed on, as long as it lives.

**Bounds.**  A taker has ``PREPARE_SECONDS`` from its hello to ``take``; from the halt to the commit it has
``HALT_SECONDS``, and a little more for each viewer, which is the longest pause of any.

Refused: moving viewers one by one, so that each pauses for less.  A taker that dies would take some of them with it.
Refused: no barrier, and sorting out by numbers what came on which link.  Aggregators would have to count for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IFileDescriptorReceiver, IPullProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.errors import ConfigError, RelayError
from relay.net.sockets import has_unwritten

VERSION = 1  # of all that is said here; two processes that differ don't hand over
PREPARE_SECONDS = 30.0
HALT_SECONDS = 5.0
HALT_SECONDS_A_VIEWER = 0.002  # it takes 0.4 ms on an idle machine, some of it twice at once
GREETING_SECONDS = 5.0  # for the giver's reactor to get to it
FRAME_BYTES = 1 << 20  # a viewer in its handshake has up to 2 * replay_bytes, in base64
FRAME_DESCRIPTORS = 64  # listening sockets; a viewer has up to six
_HEADER = struct.Struct("!IB")  # bytes of JSON, descriptors that go with it
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (SO_PEERCRED, unix(7))


class HandoverFailed(RelayError):
    """It didn't come about; the giver goes on with what it has."""


@attrs.frozen
class Frame:
    """One thing said: a word, what belongs to it, and descriptors that are the receiver's from now on."""

    word: str
    values: dict[str, Any]
    descriptors: list[int] = attrs.field(factory=list)

    def encode(self) -> bytes:
        """Its bytes; the descriptors go beside them."""
        body = json.dumps([self.word, self.values], separators=(",", ":")).encode()
        return _HEADER.pack(len(body), len(self.descriptors)) + body

    def close(self) -> None:
        """Nobody wants its descriptors."""
        close_all(self.descriptors)


def close_all(descriptors: Iterable[int]) -> None:
    """Close what we were sent."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class FrameReader:
    """Bytes and descriptors in, frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def descriptor(self, descriptor: int) -> None:
        """One has come; it is never later than the frame that it belongs to."""
        self._descriptors.append(descriptor)

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame.

        Raises:
            HandoverFailed: this is none.
        """
        if len(self._buffer) < _HEADER.size:
            return None
        size, count = _HEADER.unpack_from(self._buffer)
        if size > FRAME_BYTES or count > FRAME_DESCRIPTORS:
            raise HandoverFailed("the other process speaks another language")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        if len(self._descriptors) < count:
            raise HandoverFailed(f"{count} descriptors should have come, {len(self._descriptors)} have")
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        descriptors, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        try:
            word, values = json.loads(body)
            return Frame(str(word), dict(values), descriptors)
        except (ValueError, TypeError):
            close_all(descriptors)
            raise HandoverFailed("the other process speaks another language") from None

    def close(self) -> None:
        """Nobody wants what is left."""
        close_all(self._descriptors)
        self._descriptors.clear()
        self._buffer.clear()


@implementer(IFileDescriptorReceiver)
class FrameProtocol(Protocol):
    """Frames over a UNIX transport.  Subclasses override ``heard`` and ``over``."""

    transport: Any

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._is_over = False
        self._timer: IDelayedCall | None = None

    def heard(self, frame: Frame) -> None:
        """The other process says something.

        Raises:
            HandoverFailed: it makes no sense.
        """

    def failed(self, why: HandoverFailed) -> None:
        """What it says makes no sense; it is not heard any more."""

    def over(self) -> None:
        """The connection is gone.  Called once."""

    def say(self, word: str, descriptors: Iterable[int] = (), **values: Any) -> None:
        """Say something; the descriptors must stay open until it has left."""
        frame = Frame(word, values, list(descriptors))
        data, rest = frame.encode(), frame.descriptors
        if rest and not has_unwritten(self.transport):
            data, rest = _send_now(self.transport.getHandle(), data, rest)
        if data:
            self.transport.write(data)
        for descriptor in rest:
            self.transport.sendFileDescriptor(descriptor)

    def set_timer(self, clock: IReactorTime, seconds: float, late: Callable[[str], None], words: str) -> None:
        """Call ``late`` with these words then; there is one timer."""

        def call() -> None:
            self._timer = None
            late(words)

        self.stop_timer()
        self._timer = clock.callLater(seconds, call)

    def stop_timer(self) -> None:
        """It is in time, or it does not matter any more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def read_frames(self) -> None:
        """Hear what has come whole."""
        try:
            while not self._is_over and (frame := self._reader.next()) is not None:
                self.heard(frame)
        except HandoverFailed as why:
            self.failed(why)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._reader.descriptor(descriptor)

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        self.read_frames()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._reader.close()
        if not self._is_over:
            self._is_over = True
            self.over()


def _send_now(handle: socket.socket, data: bytes, descriptors: list[int]) -> tuple[bytes, list[int]]:
    """All at once, if there is room; what is left.  (Twisted sends a byte with each descriptor, and reads as often.)"""
    try:
        return data[socket.send_fds(handle, [data], descriptors) :], []
    except OSError:
        return data, descriptors  # full, or broken: the transport finds out


@implementer(IPullProducer)
class Batches:
    """Says many things, a few each time that the other process has taken all before: nothing waits in memory.

    Args:
        say_some: says the next few; false when there are no more.
    """

    def __init__(self, transport: Any, say_some: Any) -> None:
        self._transport = transport
        self._say_some = say_some
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self._say_some():
            self._transport.startWriting()  # it asks again when there is room, even if nothing waits in its buffer
        else:
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The connection is lost; its protocol knows."""


def peer_credentials(handle: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other end of a UNIX socket, as they were when it connected or listened."""
    data = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


@attrs.frozen
class Greeting:
    """A giver that has said hello: the connection, what it said, and a pidfd of its process (-1: there is none)."""

    connection: socket.socket
    frame: Frame
    pidfd: int


def greet(path: str, name: str, aggregators: list[str]) -> Greeting | None:
    """Connect to the giver at ``path`` and say hello; ``None`` if nobody is there.

    This waits for the answer: it is called before the reactor runs, because a node that can't take over must not start.

    Raises:
        ConfigError: there is somebody, who does not hand over to us.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(GREETING_SECONDS)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise ConfigError(f"--take-over-from {path}: {error.strerror or error}") from None
    reader = FrameReader()
    try:
        hello = Frame("hello", {"version": VERSION, "name": name, "aggregators": aggregators})
        with contextlib.suppress(BrokenPipeError):  # it has refused us already, and says why
            connection.sendall(hello.encode())
        frame = _answer(connection, reader)
        if frame.word == "refused":
            raise HandoverFailed(str(frame.values.get("why")))
        if frame.word != "hello" or frame.values.get("version") != VERSION:
            frame.close()
            raise HandoverFailed(f"another version answers (ours is {VERSION})")
        connection.setblocking(False)
        return Greeting(connection, frame, _pidfd(connection))
    except (HandoverFailed, OSError) as error:
        reader.close()
        connection.close()
        raise ConfigError(f"--take-over-from {path}: {error or 'no answer'}") from None


def _answer(connection: socket.socket, reader: FrameReader) -> Frame:
    while (frame := reader.next()) is None:
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, FRAME_DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            reader.descriptor(descriptor)
        if not data:
            raise HandoverFailed("the process there ends, or does not want us")
        reader.feed(data)
    return frame


def _pidfd(connection: socket.socket) -> int:
    try:
        return os.pidfd_open(peer_credentials(connection)[0])
    except OSError:
        return -1  # it is in another container
