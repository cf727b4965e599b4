"""When a member that lives is useless, and when the preferred one may be read again.

Owns both rules, for one stream's copy.  Pure: it is told positions and the time.  Called by
:mod:`relay.net.gathering`, which hears from the control connections how far each member is.

Theory.  Only what another member *has* can be held against the one that is read: where an origin stalls, nobody is
ahead, and nobody moves.  Two signs tell that it is the member's fault:

    stuck      another has had more than we have for ``behind`` seconds, and meanwhile not one byte has come
    trailing   another is more than ``behind`` seconds of media ahead, and in as long a time we have not come a quarter
               of that nearer

A copy that catches up, after a restart say, is far behind and is in order: the distance shrinks.  A jump of the
timeline (a publisher's return) puts whoever has it first far ahead for a moment, but the bytes come.

A copy that moves for this reason again and again gains nothing by it (the node itself may be too slow, or both members
may be bad in turns): each move within ``CALM_SECONDS`` of the one before doubles what the next one takes.

The preferred member is read again when it has been well without a break for ``return`` seconds.  A return that was
followed by a failure within ``CALM_SECONDS`` doubles the time of the next, up to ``MAX_RETURN_SECONDS``.  (The rule
that balancers have for aggregators, :mod:`relay.net.returning`, differs: there, an aggregator that rises gets viewers
by and by, while a copy is read from one member or from another.)
"""

from __future__ import annotations

import math

import attrs

CALM_SECONDS = 60.0  # what goes wrong later than this has nothing to do with what was done before
MAX_RETURN_SECONDS = 60.0  # as long as its last failure counts
MAX_DOUBLINGS = 5  # of the time that a move for being behind takes: 48 s with the default


@attrs.frozen
class Place:
    """How far somebody is in the log of one epoch."""

    end: int
    time_ms: int


class BehindWatch:
    """Is the member that is read behind another?

    Args:
        seconds: the bound.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._moves = 0
        self._moved_at = -math.inf
        self._end = -1
        self._stuck_since: float | None = None
        self._lag_ms = 0
        self._trailing_since: float | None = None

    def restart(self) -> None:
        """Another member is read, or the same anew: nothing is held against it."""
        self._stuck_since = self._trailing_since = None

    def moved(self, now: float) -> None:
        """A member was left for being behind."""
        self._moves = self._moves + 1 if now - self._moved_at < CALM_SECONDS else 0
        self._moved_at = now
        self.restart()

    def why_behind(self, now: float, ours: Place, best: Place | None) -> str:
        """What is wrong, in words; "" if nothing is.

        Args:
            ours: what has come from the member that is read.
            best: of the others in the same epoch, the furthest.
        """
        if best is None or best.end <= ours.end:
            self.restart()
            return ""
        bound = self._bound(now)
        return self._why_stuck(now, ours, bound) or self._why_trailing(now, best.time_ms - ours.time_ms, bound)

    def _why_stuck(self, now: float, ours: Place, bound: float) -> str:
        if self._stuck_since is None or ours.end != self._end:
            self._stuck_since, self._end = now, ours.end
        seconds = now - self._stuck_since
        return f"nothing has come for {seconds:.1f} s" if seconds >= bound else ""

    def _why_trailing(self, now: float, lag_ms: int, bound: float) -> str:
        if lag_ms <= 1000 * bound:
            self._trailing_since = None
            return ""
        if self._trailing_since is None or lag_ms <= self._lag_ms - 250 * bound:
            self._trailing_since, self._lag_ms = now, lag_ms
        return f"{lag_ms / 1000:.1f} s behind" if now - self._trailing_since >= bound else ""

    def _bound(self, now: float) -> float:
        if now - self._moved_at >= CALM_SECONDS:
            return self._seconds
        return self._seconds * 2.0 ** min(self._moves, MAX_DOUBLINGS)


class ReturnWait:
    """When may the preferred member be read again?

    Args:
        seconds: that it must have been well for.
    """

    def __init__(self, seconds: float) -> None:
        self._least = seconds
        self._failures = 0
        self._returned_at = -math.inf
        self._well_since: float | None = None

    @property
    def seconds(self) -> float:
        """What it takes now."""
        most = max(MAX_RETURN_SECONDS, self._least)
        return min(most, self._least * 2.0 ** min(max(0, self._failures - 1), 16))

    def failed(self, now: float) -> None:
        """The preferred member was read, and had to be left."""
        self._failures = self._failures + 1 if now - self._returned_at < CALM_SECONDS else 1
        self._well_since = None

    def returned(self, now: float) -> None:
        """It is read again."""
        self._returned_at = now
        self._well_since = None

    def unwell(self) -> None:
        """It is not well now."""
        self._well_since = None

    def is_due(self, now: float, *, is_well: bool) -> bool:
        """Has it been well for long enough?  To be asked again and again."""
        if not is_well:
            self._well_since = None
        elif self._well_since is None:
            self._well_since = now
        return self._well_since is not None and now - self._well_since >= self.seconds
