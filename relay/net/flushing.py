"""When what has come for a stream is written and shown to its readers.

Owns the rhythm, of all streams of a node; knows nothing of bytes.  Called by :class:`relay.net.streams.LiveStream`
after each read from whoever feeds it.

Theory.  A message costs about as much to write and to announce (a ``pwritev``, a wake-up, a ``sendfile`` for each copy)
as to read.  While a node has few streams each read is written at once: no lag is added.  As the number grows, reads of
a stream are merged: it is flushed at most once in an *interval*, which grows with the number of streams up to a bound.
So the next node gets fewer and larger reads, and is spared as well.  What is merged has been given to nobody (I5): if
the process dies then, it is as if it had died a moment before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

AT_ONCE = 8  # streams up to which each read is flushed: their messages come farther apart than they take
PER_STREAM = 0.0004  # seconds of interval for each stream
BOUND = 0.04  # seconds: one picture at 25 a second, and about three messages of a stream with sound
TICK = 0.004  # seconds between two looks at the queue


class Flushed(Protocol):
    """A stream, as the queue sees it."""

    def flush(self) -> None:
        """Write what was appended, and tell the readers."""


class FlushQueue:
    """The streams of a node that have something to write.

    Invariant: each is flushed within :attr:`interval` of its first unwritten message (of an idle reactor's time).

    Args:
        clock: the reactor.
        count: how many streams there are.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, count: Callable[[], int]) -> None:
        self._clock = clock
        self._count = count
        self._due: dict[Flushed, float] = {}  # when, the first at the front
        self._call: IDelayedCall | None = None

    @property
    def interval(self) -> float:
        """Seconds that reads are merged for at present."""
        count = self._count()
        return 0.0 if count <= AT_ONCE else min(BOUND, PER_STREAM * count)

    def add(self, stream: Flushed) -> None:
        """It has something to write."""
        wait = self.interval
        if not wait:
            self._due.pop(stream, None)
            stream.flush()
        elif stream not in self._due:
            self._due[stream] = self._clock.seconds() + wait
            if self._call is None:
                self._call = self._clock.callLater(wait, self._run)

    def hurry(self, stream: Flushed) -> None:
        """Don't let it wait any longer, if it does."""
        if stream in self._due:
            self._flush(stream)

    def discard(self, stream: Flushed) -> None:
        """It is gone."""
        self._due.pop(stream, None)

    def close(self) -> None:
        """Write all that waits, and stop the clock."""
        for stream in list(self._due):
            self._flush(stream)
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _run(self) -> None:
        self._call = None
        soon = self._clock.seconds() + TICK / 2
        for stream, due in list(self._due.items()):
            if due > soon:
                break
            self._flush(stream)
        if self._due:
            first = next(iter(self._due.values()))
            self._call = self._clock.callLater(max(TICK, first - self._clock.seconds()), self._run)

    def _flush(self, stream: Flushed) -> None:
        """An error costs this stream's last messages, and nobody else anything."""
        self._due.pop(stream, None)
        try:
            stream.flush()
        except Exception:
            self.log.failure("writing {stream!r}", stream=stream)
