"""Viewers who wait: the watch for one that leaves, and the room for those who have no backend yet.

Owns no connection: it says when.  Called by :mod:`relay.net.balancing`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.net.backends import BackendPool
from relay.net.sockets import has_peer_ended, was_reset

# Viewers let go together, and the pause before the next of them: 100 every 10 ms are no burst to an aggregator.
RELEASED_AT_ONCE = 100
RELEASE_SECONDS = 0.01
_WAKE_ON_END_ONLY = 64 << 10  # bytes of SO_RCVLOWAT; no viewer says as much before it is answered


@implementer(IReadDescriptor)
class DepartureWatch:
    """Notices that a paused viewer leaves, and reads nothing.

    A high ``SO_RCVLOWAT`` makes the kernel keep quiet about bytes; FIN and reset are reported all the same.  A FIN
    behind bytes may be a half-close (``printf 'GET ...' | nc``), so it is leaving only for an impatient watch.
    """

    def __init__(self, reactor: Any, handle: socket.socket, left: Callable[[], None]) -> None:
        self._reactor = reactor
        self._handle = handle
        self._left = left
        self._is_impatient = False
        self._is_watching = True
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _WAKE_ON_END_ONLY)
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._handle.fileno()

    def logPrefix(self) -> str:
        return "departure"

    def doRead(self) -> None:
        """FIN, a reset, or a great many bytes: in any case there is no more to be learnt by watching."""
        self.stop()
        self._judge()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw the error before we did."""
        self.stop()
        self._left()

    def be_impatient(self) -> None:
        """From now on any FIN is leaving, one that came before too."""
        self._is_impatient = True
        self._judge()

    def stop(self) -> None:
        """Watch no more, and leave the socket as it was."""
        if self._is_watching:
            self._is_watching = False
            self._reactor.removeReader(self)
            if self._handle.fileno() >= 0:
                self._handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _judge(self) -> None:
        has_ended = has_peer_ended(self._handle) and (self._is_impatient or not self._has_bytes())
        if has_ended or was_reset(self._handle):
            self.stop()
            self._left()

    def _has_bytes(self) -> bool:
        try:
            return bool(self._handle.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False


class WaitingRoom:
    """Held viewers, in the order of their coming.

    They are let go when the pool says that a backend has become usable: a few at a time, and a single one while every
    usable backend is suspect.  No polling: the only other alarm is the moment at which a suspect may be tried again.

    Args:
        places: how many may wait at once.
        pin: the backend they all want, if any.
    """

    def __init__(self, clock: IReactorTime, pool: BackendPool[Any], places: int, pin: str | None = None) -> None:
        self._clock = clock
        self._pool = pool
        self._places = places
        self._pin = pin
        self._waiting: dict[Deferred[bool], IDelayedCall] = {}
        self._alarm: IDelayedCall | None = None
        self._is_closed = False
        pool.add_observer(self._release)

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, until: float) -> Deferred[bool]:
        """True when it is worth asking the pool again; false when the time is over or no place is free."""
        left = until - self._clock.seconds()
        if self._is_closed or left <= 0 or len(self._waiting) >= self._places:
            return succeed(False)
        waiting: Deferred[bool] = Deferred(self._forget)
        self._waiting[waiting] = self._clock.callLater(left, self._call, waiting, False)
        self._set_alarm(self._pool.next_retry())
        return waiting

    def close(self) -> None:
        """Let nobody in any more, and stop listening to the pool.  Those who wait are cancelled by their owners."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pool.remove_observer(self._release)
        self._clear_alarm()

    def _call(self, waiting: Deferred[bool], is_usable: bool) -> None:
        self._forget(waiting)
        waiting.callback(is_usable)

    def _forget(self, waiting: Deferred[bool]) -> None:
        timer = self._waiting.pop(waiting)
        if timer.active():
            timer.cancel()
        if not self._waiting:
            self._clear_alarm()

    def _release(self) -> None:
        self._clear_alarm()
        if not self._waiting:
            return
        if not self._pool.has_usable(self._pin):
            self._set_alarm(self._pool.next_retry())
            return
        count = RELEASED_AT_ONCE if self._pool.has_proven(self._pin) else 1
        self._set_alarm(self._clock.seconds() + RELEASE_SECONDS)
        for waiting in list(self._waiting)[:count]:
            if waiting in self._waiting:  # one who was called may have made another leave
                self._call(waiting, True)

    def _set_alarm(self, at: float | None) -> None:
        """Look again at this time, or before."""
        if at is None or (self._alarm is not None and self._alarm.getTime() <= at):
            return
        self._clear_alarm()
        self._alarm = self._clock.callLater(max(0.0, at - self._clock.seconds()), self._release)

    def _clear_alarm(self) -> None:
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._alarm = None
