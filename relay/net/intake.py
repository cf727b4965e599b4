"""Letting what comes from upstream wait in the kernel until readers are to be woken.

Owns when one connection's bytes are read.  Made by :class:`relay.net.reading.Reading`, told by
:class:`relay.net.streams.LiveStream`.

Theory.  To take in one message costs a turn of the reactor, a ``recv``, a ``pwritev`` and a look at who waits, about
200 us; ten messages in one read cost hardly more.  While a stream's readers are woken at intervals, nobody gains by its
bytes being read before.  So they are *held*: ``SO_RCVLOWAT`` tells epoll to say nothing of less than ``HELD_BYTES``,
and they are *drawn* just before some readers are woken, which adds no lag.  An end, a reset and a flood are told at
once, whatever is held.
"""

from __future__ import annotations

from twisted.internet import tcp
from twisted.internet.interfaces import ITransport
from twisted.logger import Logger

from relay.net.sockets import wake_from

HELD_BYTES = tcp.Connection.bufferSize  # 64 KiB, a twentieth of a second of 10 Mbit/s: one read takes all that waits


class Intake:
    """The receiving side of one connection.  One without a kernel socket of its own (TLS) is always read at once."""

    log = Logger()

    def __init__(self, transport: ITransport | None) -> None:
        self._connection = transport if isinstance(transport, tcp.Connection) else None
        self._is_held = False

    def hold(self) -> None:
        """Let bytes wait until they are drawn."""
        if self._connection is not None and self._connection.connected and not self._is_held:
            self._is_held = True
            wake_from(self._connection.getHandle(), HELD_BYTES)

    def release(self) -> None:
        """Read them as they come, those that wait included."""
        if self._is_held and self._connection is not None:
            self._is_held = False
            if self._connection.connected:
                wake_from(self._connection.getHandle(), 1)

    def draw(self) -> None:
        """Read what waits.  The protocol gets it as always; an end is left to the reactor, which is told of it, too."""
        if not self._is_held or self._connection is None or not self._connection.connected:
            return
        try:
            self._connection.doRead()
        except Exception:
            self.log.failure("reading from upstream")
            self._connection.abortConnection()
