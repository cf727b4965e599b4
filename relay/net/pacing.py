"""Passing bytes on in fewer, larger pieces: what an operator can choose who has more processor to save than time.

Owns which flows of a balancer are paced, and their rhythm.  Made by :class:`relay.net.joining.Splicer`, told by
:class:`relay.net.splice.SplicePair` once a second.

Theory.  A wake-up for one viewer costs about 13 us, however little there is; nearly all of it is TCP's work for one
packet in and one out.  An aggregator with many viewers sends to each at intervals already, so a balancer that gathers
two such pieces does half the work.  While there are more than ``EAGER`` of them, flows that have moved more than a
connection begins with are *paced*: of less than ``HELD_BYTES`` epoll says nothing (``SO_RCVLOWAT``), and each is
pumped once an interval.  They are dealt into ``SLICES``, one a tick.  Ends and errors are told at once; what waits then
is read, or was never counted as passed on.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relay.net.legs import Flow
from relay.net.sockets import wake_from

EAGER = 64  # flows up to which nothing waits: as an aggregator's readers (relay.net.wakeup)
TICK = 0.005  # seconds, at the least
SLICES = 10  # at the most
HELD_BYTES = 64 << 10  # a fifth of a second of 2.5 Mbit/s; faster streams wake more often by themselves


class Pacer:
    """The paced flows of one balancer.

    Args:
        clock: the reactor.
        interval: seconds for which bytes are gathered, in whole ticks.
        pump: called with a flow whose time has come.
    """

    def __init__(self, clock: IReactorTime, interval: float, pump: Callable[[Flow], None]) -> None:
        slices = max(1, min(SLICES, int(interval / TICK)))
        self._clock = clock
        self._tick_seconds = max(TICK, interval / slices)
        self._pump = pump
        self._slices: list[dict[Flow, socket.socket]] = [{} for _ in range(slices)]
        self._next = 0
        self._due = 0.0  # when the next tick is
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return sum(map(len, self._slices))

    def add(self, flow: Flow) -> None:
        """It streams: pace it until it gets another source or sink, or is removed; adding it again is harmless."""
        if flow.pacer is not None or flow.source is None:
            return
        flow.pacer = self
        handle = flow.source.transport.getHandle()
        min(self._slices, key=len)[flow] = handle
        if self._call is not None:
            wake_from(handle, HELD_BYTES)
        elif len(self) > EAGER:
            self._set_all(HELD_BYTES)
            self._due = self._clock.seconds()
            self._tick()

    def remove(self, flow: Flow) -> None:
        """Its source wakes it again."""
        flow.pacer = None
        for slice_ in self._slices:
            handle = slice_.pop(flow, None)
            if handle is not None:
                wake_from(handle, 1)
        if self._call is not None and len(self) <= EAGER // 2:
            self._call.cancel()
            self._call = None
            self._set_all(1)

    def _tick(self) -> None:
        now = self._clock.seconds()
        self._due = max(now, self._due + self._tick_seconds)
        self._call = self._clock.callLater(self._due - now, self._tick)
        slice_, self._next = self._slices[self._next], (self._next + 1) % len(self._slices)
        for flow in list(slice_):
            if flow.is_watched:
                self._pump(flow)

    def _set_all(self, count: int) -> None:
        for slice_ in self._slices:
            for handle in slice_.values():
                wake_from(handle, count)
