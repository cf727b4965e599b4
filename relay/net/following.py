"""Sending a rendition to a socket: a viewer is a cursor, not a queue.

Owns the way of bytes from a segment to a transport; knows nothing of RTMP, FLV or streams.  The port makes the
transports (:mod:`relay.net.listening`), :class:`relay.net.viewer.Viewer` starts them following,
:class:`relay.net.wakeup.Wakeup` pumps.

Theory.  A follower is in one of four states:

    idle        no cursor; the transport is an ordinary Twisted transport
    flowing     the socket took all there was; the next wake-up goes on
    in step     the same, and a cohort sends for it (:mod:`relay.net.cohort`); its own cursor rests.  Whatever concerns
                it alone, a write, a halt, its end, makes it fall out first
    congested   the socket is full; the reactor goes on when it is writable, wake-ups do nothing

Bytes written with ``transport.write`` go first: a follower sends nothing while Twisted's own buffer holds any.  So a
preamble is written, then ``follow`` is called.  Whoever wants to write in the middle sets ``cursor.stop`` to a message
boundary and waits for ``blocked(AT_STOP)``.

Invariants: no byte of the log is ever copied into a per-viewer buffer (``FollowingTransport``), or more than one
``READ_SIZE`` of it (``WritingFollower``); the cursor's offset counts exactly the bytes that the kernel, or Twisted's
buffer, has accepted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet import tcp
from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.log.cursor import Cursor, CursorState
from relay.net.cohort import Cohort, Cohorts, WhoT

READ_SIZE = 64 << 10  # bytes; Twisted asks a producer to pause past 64 KiB

Blocked = Callable[[CursorState], bool]
"""Called when the cursor can't go on by itself.  Says whether it moved the cursor, so that sending goes on at once."""


def _go_on(cursor: Cursor, blocked: Blocked | None) -> bool:
    """The cursor has nothing to read where it is: may it read on now?"""
    state = cursor.advance()
    if state is CursorState.READY:
        return True
    return state is not CursorState.AT_END and blocked is not None and blocked(state)


class Following(Protocol):
    """What a viewer needs of the thing that sends for it."""

    def follow(self, cursor: Cursor, blocked: Blocked) -> None:
        """Send what ``cursor`` reads, from now on."""

    def pump(self) -> bool:
        """Send as much as is there and fits.  False if it is congested and so did not even try."""

    def unfollow(self) -> None:
        """Send no more; the cursor stays where it is."""

    def is_congested(self) -> bool:
        """Are bytes waiting that the peer does not take?"""

    def fall_in(self, cohorts: Cohorts[WhoT], who: WhoT) -> bool:
        """Be sent what others are sent, if it stands where they do."""

    def fall_out(self) -> None:
        """Be sent for alone, from here on."""

    @property
    def is_in_step(self) -> bool:
        """Does a cohort send for it?"""

    @property
    def read_offset(self) -> int:
        """Of the next byte that the cohort sends, while it is in step."""


class FollowingTransport(tcp.Server):
    """A TCP server transport that sends from a segment's file descriptor by ``sendfile``."""

    _cursor: Cursor | None = None
    _blocked: Blocked | None = None
    _congested = False
    _send_failed = False
    _cohort: Cohort[Any] | None = None
    written_bytes = 0  # by write and writeSequence; the log's bytes are not among them

    @property
    def is_in_step(self) -> bool:
        return self._cohort is not None

    @property
    def read_offset(self) -> int:
        return -1 if self._cohort is None else self._cohort.cursor.offset

    def fall_in(self, cohorts: Cohorts[WhoT], who: WhoT) -> bool:
        cursor = self._cursor
        if cursor is None or cursor.stop is not None or self.is_congested() or self.disconnecting or self.disconnected:
            return False
        cohort = cohorts.at(cursor)
        if cohort is None:
            return False
        cohort.add(self.fileno(), self, who)
        cursor.rest()
        self._cohort = cohort
        return True

    def fall_out(self) -> None:
        if self._cohort is not None:
            self._cohort.leave(self.fileno())

    def fell_out(self, leader: Cursor, offset: int, error: OSError | None) -> None:
        self._cohort = None
        assert self._cursor is not None
        self._cursor.resume(leader, offset)
        if error is not None:
            self._send_failed = not isinstance(error, BlockingIOError)
            self._congested = True
            self.startWriting()

    def follow(self, cursor: Cursor, blocked: Blocked) -> None:
        self._cursor = cursor
        self._blocked = blocked
        self._congested = False
        self.pump()

    def unfollow(self) -> None:
        self.fall_out()
        self._cursor = None
        self._blocked = None
        self._congested = False

    def is_congested(self) -> bool:
        return self._congested or bool(self._tempDataBuffer or self.dataBuffer)

    def write(self, data: bytes) -> None:
        self.fall_out()
        self.written_bytes += len(data)
        super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def pump(self) -> bool:
        """One ``sendfile`` in the ordinary case.  Errors are left to the reactor, which calls ``doWrite`` and gets
        them."""
        self.fall_out()
        if self._cursor is None or self._congested or self._tempDataBuffer or self.dataBuffer or self.disconnected:
            return False
        if not self._send():
            self._congested = True
            self.startWriting()
        return True

    def doWrite(self) -> Any:
        self.fall_out()
        if self._tempDataBuffer or self.dataBuffer or self._cursor is None or self.disconnecting:
            result = super().doWrite()
            if result is not None or self._tempDataBuffer or self.dataBuffer or self.disconnecting:
                return result
            if self._cursor is None:
                return None
        self._congested = False
        if self._send_failed:
            return CONNECTION_LOST
        if self._send():
            if not (self._tempDataBuffer or self.dataBuffer):
                self.stopWriting()
        elif self._send_failed:
            return CONNECTION_LOST
        else:
            self._congested = True
            self.startWriting()
        return None

    def _send(self) -> bool:
        """Send until the cursor has to wait (True) or the socket is full or broken (False)."""
        socket_fd = self.fileno()
        while (cursor := self._cursor) is not None:
            segment = cursor.segment
            offset = cursor.offset
            end = segment.end
            if cursor.stop is not None and cursor.stop < end:
                end = cursor.stop
            if offset < end:
                try:
                    sent = os.sendfile(socket_fd, segment.fd, offset - segment.start, end - offset)
                except (BlockingIOError, InterruptedError):
                    return False
                except OSError:
                    self._send_failed = True
                    return False
                if not sent:  # the file was cut by somebody else: the rest will never come
                    self._send_failed = True
                    return False
                cursor.offset = offset + sent
                if sent < end - offset:
                    return False
            elif not _go_on(cursor, self._blocked):
                return True
            if self._tempDataBuffer or self.dataBuffer:
                return True  # the owner wrote something, which has to go first; doWrite goes on from there
        return True

    def connectionLost(self, reason: Failure) -> None:
        self.unfollow()
        super().connectionLost(reason)


@implementer(IPushProducer)
class WritingFollower:
    """The same for transports without a kernel socket of their own (TLS, UNIX): reads a piece, writes it, waits to be
    resumed."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._cursor: Cursor | None = None
        self._blocked: Blocked | None = None
        self._paused = False
        self._pumping = False

    def follow(self, cursor: Cursor, blocked: Blocked) -> None:
        self._cursor = cursor
        self._blocked = blocked
        self._paused = False
        self._transport.registerProducer(self, True)
        self.pump()

    def unfollow(self) -> None:
        if self._cursor is not None:
            self._cursor = None
            self._blocked = None
            self._transport.unregisterProducer()

    def is_congested(self) -> bool:
        return self._paused

    is_in_step = False  # each has its own keys
    read_offset = -1

    def fall_in(self, cohorts: Cohorts[WhoT], who: WhoT) -> bool:
        return False

    def fall_out(self) -> None:
        """It never is in step."""

    def pump(self) -> bool:
        if self._pumping or self._paused:
            return not self._paused  # a write inside the loop may have paused and resumed us
        self._pumping = True
        try:
            while self._cursor is not None and not self._paused:
                data = self._cursor.read(READ_SIZE)
                if data:
                    self._transport.write(data)
                elif not _go_on(self._cursor, self._blocked):
                    break
        finally:
            self._pumping = False
        return True

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self.pump()

    def stopProducing(self) -> None:
        self._cursor = None
        self._blocked = None


def following(transport: ITransport) -> Following:
    """The best follower for this transport: itself where the kernel can copy, else one that writes."""
    if isinstance(transport, FollowingTransport):
        return transport
    return WritingFollower(transport)
