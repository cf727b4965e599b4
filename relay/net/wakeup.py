"""When the followers of a stream are told that there is more to send.

Owns the rhythm; knows nothing of bytes.  Called by :class:`relay.net.streams.LiveStream` after each flush of its log;
calls ``pump()`` on each follower.

Theory.  A wake-up costs one system call per viewer, however little there is to send.  While few watch, each flush
wakes all at once: no lag is added.  As the number grows, wake-ups are merged: a follower is woken at most once per
*interval*, which grows with the number of followers up to a bound.  One that was congested when it was last woken
made no system call, so it doesn't count: viewers that never read add no lag to those that do.  So that a wake-up of
thousands is not a burst that delays everything else, the followers are dealt into slices, one a *tick*, and the ticks
are spread over the interval.  The time to the next tick is reckoned from when each waiting slice was first told, so
that late ticks, and followers dealt anew in a storm of arrivals, still keep the bound.

    flowing      1 ... EAGER          at once, each flush
    more         interval = bound x min(1, flowing / FULL), in ticks of at least TICK

Design refused: a timer per follower (the timer heap costs more than the send), and a fixed tick (adds lag for nobody's
good while few watch).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

EAGER = 64  # followers up to which each flush wakes all: about 1 ms of system calls
FULL = 1000  # followers from which the whole interval is used
TICK = 0.005  # seconds between slices at the least: an epoll round with work in it


class Follower(Protocol):
    """What a wake-up needs of whom it wakes."""

    def pump(self) -> bool:
        """Send what there is.  False if it is congested and so did not even try."""


class Wakeup:
    """Wakes the followers of one stream.

    Invariant: after ``notify()``, each follower's ``pump`` is called within ``bound`` seconds (of an idle reactor's
    time).

    Args:
        clock: the reactor.
        bound: longest time that wake-ups are merged for, seconds; 0 wakes at once however many there are.
    """

    def __init__(self, clock: IReactorTime, bound: float = 0.1) -> None:
        self._clock = clock
        self._bound = bound
        self._followers: dict[Follower, int] = {}  # follower -> slice, in order of arrival
        self._congested: set[Follower] = set()  # those that were, when they were last woken
        self._slices: list[dict[Follower, None]] = [{}]
        self._dirty: dict[int, float] = {}  # slices not woken since a notify, and when that was
        self._next = 0
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def interval(self) -> float:
        """Seconds that wake-ups are merged for at the present number of flowing followers."""
        count = len(self._followers) - len(self._congested)
        return 0.0 if count <= EAGER else self._bound * min(1.0, count / FULL)

    def add(self, follower: Follower) -> None:
        """Wake ``follower`` from now on."""
        index = min(range(len(self._slices)), key=lambda i: len(self._slices[i]))
        self._followers[follower] = index
        self._slices[index][follower] = None
        self._resize()

    def remove(self, follower: Follower) -> None:
        """Wake it no more; it need not be known."""
        index = self._followers.pop(follower, None)
        if index is not None:
            self._congested.discard(follower)
            del self._slices[index][follower]
            self._resize()

    def notify(self) -> None:
        """There is more to send."""
        if len(self._slices) == 1:
            self._wake(self._followers)
            return
        now = self._clock.seconds()
        for index in range(len(self._slices)):
            self._dirty.setdefault(index, now)
        self._schedule()

    def close(self) -> None:
        """Forget everybody and stop the clock."""
        self._followers.clear()
        self._congested.clear()
        self._slices = [{}]
        self._dirty.clear()
        self._cancel()

    def _schedule(self) -> None:
        if self._dirty and self._call is None:
            self._call = self._clock.callLater(self._tick_seconds(), self._tick)

    def _tick_seconds(self) -> float:
        """The even pace, or a faster one if a slice would else be woken after its time."""
        now, interval = self._clock.seconds(), self.interval
        pace = interval / len(self._slices)
        for place, index in enumerate(self._in_turn(), 1):
            pace = min(pace, (self._dirty[index] + interval - now) / place)
        return max(0.0, pace)

    def _in_turn(self) -> list[int]:
        """The dirty slices in the order in which they will be woken."""
        count = len(self._slices)
        order = (at % count for at in range(self._next, self._next + count))
        return [index for index in order if index in self._dirty]

    def _tick(self) -> None:
        self._call = None
        index = self._in_turn()[0]
        self._next = (index + 1) % len(self._slices)
        del self._dirty[index]
        self._wake(self._slices[index])
        self._schedule()

    def _wake(self, followers: Iterable[Follower]) -> None:
        before = len(self._congested)
        for follower in list(followers):
            if follower.pump():
                self._congested.discard(follower)
            elif follower in self._followers:
                self._congested.add(follower)
        if len(self._congested) != before:
            self._resize()

    def _resize(self) -> None:
        """Deal the followers anew when the number of slices no longer fits; with some slack, so that it is rare."""
        wanted = max(1, int(self.interval / TICK))
        if wanted == len(self._slices) or (wanted > 1 and abs(wanted - len(self._slices)) < 3):
            return
        waiting_since = min(self._dirty.values(), default=None)
        self._cancel()
        self._slices = [{} for _ in range(wanted)]
        self._next = 0
        for position, follower in enumerate(self._followers):
            self._followers[follower] = position % wanted
            self._slices[position % wanted][follower] = None
        self._dirty.clear()
        if waiting_since is None:
            return
        if wanted > 1:
            self._dirty = dict.fromkeys(range(wanted), waiting_since)
            self._schedule()
        else:
            self.notify()

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
