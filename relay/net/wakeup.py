"""When the followers of a stream are told that there is more to send.

Owns the rhythm; knows nothing of bytes.  Called by :class:`relay.net.streams.LiveStream` after each flush of its log;
calls ``pump()`` on each follower.

Theory.  A wake-up costs one system call per viewer, however little there is to send.  While few watch, each flush
wakes all at once: no lag is added.  As the number grows, wake-ups are merged: a follower is woken at most once per
*interval*, which grows with the number of followers up to a bound.  So that a wake-up of thousands is not a burst that
delays everything else, the followers are dealt into slices, one a *tick*, and the ticks are spread over the interval.
The time to the next tick is reckoned from when each waiting slice was first told, so that late ticks, and followers
dealt anew in a storm of arrivals, still keep the bound.

Viewers that never read must add no lag to those that do.  One that was congested when it was last woken made no system
call, so it doesn't count.  But one that has just come looks like a reader until its socket is full.  So there are two
groups, each with its own slices: newcomers, and those that have taken more than buffers hold (*readers*).  While the
readers are few, they are woken at once, however many newcomers there are.

    flowing, of both groups            newcomers        readers
    1 ... EAGER                        at once          at once
    more, EAGER or fewer are readers   merged           at once
    more readers than that             merged           merged

    merged: interval = bound x min(1, flowing / FULL), in 2 to SLICES slices of PER_SLICE followers, and in ticks from
    TICK to LONG_TICK; at once while that is less than LEAST_INTERVAL, which would add lag and merge nothing

Nobody needs the bytes before somebody is woken.  So while wake-ups wait, the *source* may let bytes wait as well; it is
asked for them before each tick.

Readers that keep up are all at one place when they have been woken, and one loop sends for them from then on
(:mod:`relay.net.cohort`); the others are pumped one by one.

Design refused: a timer per follower (the timer heap costs more than the send), and a fixed tick (adds lag for nobody's
good while few watch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relay.net.cohort import Cohorts

EAGER = 64  # followers up to which each flush wakes all: about 1 ms of system calls
FULL = 1000  # followers from which the whole interval is used
TICK = 0.005  # seconds between slices at the least: an epoll round with work in it
LEAST_INTERVAL = 0.02  # seconds: the messages of one stream come about as far apart
PER_SLICE = 500  # followers, before there is another slice: 5 ms of system calls, in which nothing else is served
LONG_TICK = 0.2  # seconds between slices, while there may be more of them: what the source may let wait for so long
SLICES = 10  # at the most: a tick costs about 300 us besides its followers, most of it for taking in what has come


def slices_for(flowing: int, interval: float) -> int:
    """How many slices so many followers are dealt into, whose wake-ups are merged for so many seconds."""
    if interval < LEAST_INTERVAL:
        return 1
    wanted = max(2, math.ceil(flowing / PER_SLICE), math.ceil(interval / LONG_TICK))
    return min(int(interval / TICK), SLICES, wanted)


class Follower(Protocol):
    """What a wake-up needs of whom it wakes."""

    def pump(self) -> bool:
        """Send what there is.  False if it is congested and so did not even try."""

    def is_known_to_read(self) -> bool:
        """Has it taken more than buffers hold, so that somebody must be reading?"""

    def fall_in(self, cohorts: Cohorts[Any]) -> bool:
        """Be sent what others are sent, if it stands where they do; then it is not pumped until it falls out."""


FollowerT = TypeVar("FollowerT", bound=Follower)


class Source(Protocol):
    """Where the bytes come from that followers are woken for."""

    def draw(self) -> None:
        """Have what has come by now: followers are about to be woken.  Raises nothing."""

    def watch(self) -> None:
        """Have what comes as it comes: nobody is about to be woken, or all are at once."""


class Wakeup(Generic[FollowerT]):
    """Wakes the followers of one stream.

    Invariant: after ``notify()``, each follower's ``pump`` is called within ``bound`` seconds (of an idle reactor's
    time).

    Args:
        clock: the reactor.
        bound: longest time that wake-ups are merged for, seconds; 0 wakes at once however many there are.
        source: told when it may let bytes wait.
    """

    def __init__(self, clock: IReactorTime, bound: float, source: Source) -> None:
        self._clock = clock
        self._bound = bound
        self._source = source
        self._taken_at = 0.0  # when all that had come was taken in
        self._readers = self._group(lambda: self.interval, self._fall_in)
        self._newcomers = self._group(lambda: self.newcomers_interval, self._promote)

    def __len__(self) -> int:
        return len(self._readers.followers) + len(self._newcomers.followers)

    @property
    def interval(self) -> float:
        """Seconds that wake-ups of readers are merged for at the present number of flowing followers."""
        return 0.0 if self._readers.flowing <= EAGER else self.newcomers_interval

    @property
    def newcomers_interval(self) -> float:
        """The same for those that are not known to read yet."""
        count = self._readers.flowing + self._newcomers.flowing
        return 0.0 if count <= EAGER else self._bound * min(1.0, count / FULL)

    @property
    def is_patient(self) -> bool:
        """Will all that are woken be woken by ticks, before each of which the source is asked for what it has?"""
        return not (self._readers.is_eager or self._newcomers.is_eager) and (
            self._readers.is_waiting or self._newcomers.is_waiting
        )

    def alone(self) -> list[FollowerT]:
        """Those for whom no cohort sends: whoever is too slow is among them."""
        return [*self._readers.alone(), *self._newcomers.alone()]

    def add(self, follower: FollowerT) -> None:
        """Wake ``follower`` from now on; adding it again is harmless."""
        (self._readers if follower.is_known_to_read() else self._newcomers).add(follower)

    def remove(self, follower: FollowerT) -> None:
        """Wake it no more; it need not be known."""
        self._readers.remove(follower)
        self._newcomers.remove(follower)

    def notify(self) -> None:
        """There is more to send."""
        now = self._clock.seconds()
        since = self._taken_at if self.is_patient else now  # the source may have let it wait
        self._taken_at = now
        self._readers.notify(since)
        self._newcomers.notify(since)

    def close(self) -> None:
        """Forget everybody and stop the clock."""
        self._readers.close()
        self._newcomers.close()

    def _group(self, interval: Callable[[], float], woken: Callable[[FollowerT], None]) -> _Group[FollowerT]:
        return _Group(self._clock, interval, self._resize, woken, self._ticks)

    def _promote(self, follower: FollowerT) -> None:
        if follower.is_known_to_read():
            self._newcomers.remove(follower)
            self._readers.add(follower)

    def _fall_in(self, follower: FollowerT) -> None:
        self._readers.fall_in(follower)

    def _resize(self) -> None:
        self._readers.resize()
        self._newcomers.resize()
        self._look()

    @contextmanager
    def _ticks(self) -> Iterator[None]:
        self._source.draw()
        self._taken_at = self._clock.seconds()
        try:
            yield
        finally:
            self._look()

    def _look(self) -> None:
        if not self.is_patient:
            self._source.watch()


class _Group(Generic[FollowerT]):
    """Followers that are woken at one interval.

    Args:
        interval: seconds that wake-ups are merged for at present.
        resize: called when the number of flowing followers has changed; calls ``resize`` of all groups.
        woken: called with each follower that was woken alone and stayed.
        ticks: what a tick is done in.
    """

    def __init__(
        self,
        clock: IReactorTime,
        interval: Callable[[], float],
        resize: Callable[[], None],
        woken: Callable[[FollowerT], None],
        ticks: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.followers: dict[FollowerT, int] = {}  # follower -> slice, in order of arrival
        self._clock = clock
        self._interval = interval
        self._resize_all = resize
        self._woken = woken
        self._ticks = ticks
        self._congested: set[FollowerT] = set()  # those that were, when they were last woken
        self._slices: list[_Slice[FollowerT]] = [_Slice()]
        self._dirty: dict[int, float] = {}  # slices not woken since a notify, and when that was
        self._next = 0
        self._call: IDelayedCall | None = None

    @property
    def flowing(self) -> int:
        """How many are not known to be congested."""
        return len(self.followers) - len(self._congested)

    @property
    def is_eager(self) -> bool:
        """Is somebody here woken by each notify?"""
        return len(self._slices) == 1 and bool(self.followers)

    @property
    def is_waiting(self) -> bool:
        """Is a tick to come?"""
        return bool(self._dirty)

    def alone(self) -> Iterator[FollowerT]:
        return (follower for slice_ in self._slices for follower in slice_.alone)

    def add(self, follower: FollowerT) -> None:
        if follower in self.followers:
            return
        index = min(range(len(self._slices)), key=lambda i: len(self._slices[i]))
        self.followers[follower] = index
        self._slices[index].alone[follower] = None
        self._resize_all()

    def remove(self, follower: FollowerT) -> None:
        index = self.followers.pop(follower, None)
        if index is not None:
            self._congested.discard(follower)
            del self._slices[index].alone[follower]
            self._resize_all()

    def fall_in(self, follower: FollowerT) -> None:
        """Let a cohort send for it, if it is where others are."""
        slice_ = self._slices[self.followers[follower]]
        if follower.fall_in(slice_.cohorts):
            slice_.alone.pop(follower, None)

    def notify(self, since: float) -> None:
        """There is more to send, and has been for some time."""
        if not self.followers:
            return
        if len(self._slices) == 1:
            self._wake(self._slices[0])
            return
        for index in range(len(self._slices)):
            self._dirty.setdefault(index, since)
        self._schedule()

    def close(self) -> None:
        self.followers.clear()
        self._congested.clear()
        self._disband()
        self._slices = [_Slice()]
        self._dirty.clear()
        self._cancel()

    def resize(self) -> None:
        """Deal the followers anew when the number of slices no longer fits; with some slack, so that it is rare."""
        wanted, present = slices_for(self.flowing, self._interval()), len(self._slices)
        if wanted == present or wanted == present - 1 > 1:
            return
        waiting_since = min(self._dirty.values(), default=None)
        self._cancel()
        self._disband()
        self._slices = [_Slice() for _ in range(wanted)]
        self._next = 0
        for position, follower in enumerate(self.followers):
            self.followers[follower] = position % wanted
            self._slices[position % wanted].alone[follower] = None
        self._dirty.clear()
        if waiting_since is None:
            return
        if wanted > 1:
            self._dirty = dict.fromkeys(range(wanted), waiting_since)
            self._schedule()
        else:
            self.notify(waiting_since)

    def _schedule(self) -> None:
        if self._dirty and self._call is None:
            self._call = self._clock.callLater(self._tick_seconds(), self._tick)

    def _tick_seconds(self) -> float:
        """The even pace, or a faster one if a slice would else be woken after its time."""
        now, interval = self._clock.seconds(), self._interval()
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
        with self._ticks():
            self._cancel()
            if self._dirty:
                index = self._in_turn()[0]
                self._next = (index + 1) % len(self._slices)
                del self._dirty[index]
                try:
                    self._wake(self._slices[index])
                finally:
                    self._schedule()

    def _wake(self, slice_: _Slice[FollowerT]) -> None:
        before = len(self._congested)
        slice_.cohorts.pump()
        for follower in list(slice_.alone):
            if follower.pump():
                self._congested.discard(follower)
            elif follower in self.followers:
                self._congested.add(follower)
            if follower in self.followers:
                self._woken(follower)
        if len(self._congested) != before:
            self._resize_all()

    def _disband(self) -> None:
        for slice_ in self._slices:
            slice_.cohorts.disband()

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():  # it is not, within a tick
            self._call.cancel()
        self._call = None


class _Slice(Generic[FollowerT]):
    """Followers that are woken together."""

    def __init__(self) -> None:
        self.alone: dict[FollowerT, None] = {}
        self.cohorts: Cohorts[FollowerT] = Cohorts(self._left)

    def __len__(self) -> int:
        return len(self.alone) + len(self.cohorts)

    def _left(self, follower: FollowerT) -> None:
        self.alone[follower] = None
