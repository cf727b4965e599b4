"""Passing bytes on in fewer, larger pieces: what an operator can choose who has more processor to save than time.

Owns which flows of a balancer are paced, and their rhythm.  Made by :class:`relay.net.joining.Splicer`, told by
:class:`relay.net.splice.SplicePair` once a second.

Theory.  A wake-up for one viewer costs about 13 us, however little there is; nearly all of it is TCP's work for one
packet in and one out.  An aggregator with many viewers sends to each at intervals already, so a balancer that gathers
two such pieces does half the work.  A flow that has moved more than a connection begins with is *paced*: of less than
``HELD_BYTES`` epoll says nothing (``SO_RCVLOWAT``), and it is pumped once an *interval*, which grows with the number of
flows up to the bound.  The flows are dealt into ``SLICES``, one a tick.  Ends and errors are told at once; what is held
then was never counted as sent, and is read, or sent again by the next aggregator.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relay.net.legs import Flow

EAGER = 64  # flows up to which nothing waits: as an aggregator's readers (relay.net.wakeup)
FULL = 1000  # flows from which the whole interval is used
SLICES = 10
HELD_BYTES = 64 << 10  # a fifth of a second of 2.5 Mbit/s; faster streams wake more often by themselves


class Pacer:
    """The paced flows of one balancer.

    Args:
        clock: the reactor.
        bound: the longest interval, seconds.
        pump: called with a flow whose time has come.
    """

    def __init__(self, clock: IReactorTime, bound: float, pump: Callable[[Flow], None]) -> None:
        self._clock = clock
        self._bound = bound
        self._pump = pump
        self._slices: list[dict[Flow, socket.socket]] = [{} for _ in range(SLICES)]
        self._next = 0
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return sum(map(len, self._slices))

    @property
    def interval(self) -> float:
        """Seconds for which bytes are gathered at present."""
        return self._bound * min(1.0, len(self) / FULL)

    def add(self, flow: Flow) -> None:
        """It streams: pace it until it gets another source or sink, or is removed; adding it again is harmless."""
        if flow.pacer is not None or flow.source is None:
            return
        flow.pacer = self
        handle = flow.source.transport.getHandle()
        min(self._slices, key=len)[flow] = handle
        if self._call is not None:
            _set_low_water(handle, HELD_BYTES)
        elif len(self) > EAGER:
            self._set_all(HELD_BYTES)
            self._tick()

    def remove(self, flow: Flow) -> None:
        """Its source wakes it again."""
        flow.pacer = None
        for slice_ in self._slices:
            handle = slice_.pop(flow, None)
            if handle is not None:
                _set_low_water(handle, 1)
        if self._call is not None and len(self) <= EAGER // 2:
            self._call.cancel()
            self._call = None
            self._set_all(1)

    def _tick(self) -> None:
        self._call = self._clock.callLater(self.interval / SLICES, self._tick)
        slice_, self._next = self._slices[self._next], (self._next + 1) % SLICES
        for flow in list(slice_):
            if flow.is_watched:
                self._pump(flow)

    def _set_all(self, count: int) -> None:
        for slice_ in self._slices:
            for handle in slice_.values():
                _set_low_water(handle, count)


def _set_low_water(handle: socket.socket, count: int) -> None:
    with suppress(OSError):  # closed by somebody else, who tells the pair
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
