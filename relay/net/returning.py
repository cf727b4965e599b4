"""How soon a backend that was lost is trusted again, and how fast.

Owns the rule of return for one backend.  Pure: it is told each new state and the time.  Called by
:mod:`relay.net.backends`.

Theory.  A turn for the worse counts at once.  A turn for the better counts when it has lasted for ``rise_seconds``;
until then the backend *counts* as what it was before, though it may be used if there is no other.  So what restarts, or
is not yet sure of its own upstreams, does not get viewers that it loses again.

    counts as UP ──worse──> counts as DOWN ──better──> rising ──rise time without a change──> counts as UP
                                  ^                      │                                  (its share grows)
                                  └────────worse─────────┘

Each fall within ``FLAPPING_SECONDS`` of the one before doubles the rise time, up to ``MAX_RISE_SECONDS``: what falls
every few seconds is left alone until it has been well for longer than it ever was, and new viewers do not swing to and
fro.  A fall costs nothing after a minute of good behaviour.

One that has risen gets a tenth of its share of new viewers at first and all of it after ``slow_start_seconds``
(HAProxy's slowstart, nginx's slow_start): a crowd must not meet it in its first second.

Two turns for the better count at once.  A backend that was drained has not failed: its operator says when it is ready.
And while the balancer itself starts (as long as a slow start takes), all backends come up, and none comes *back*.
"""

from __future__ import annotations

import enum
import math

import attrs

FLAPPING_SECONDS = 60.0  # falls this near to each other are one bout of flapping
MAX_RISE_SECONDS = 30.0  # half of the above: a backend that is mended is used again while its falls still count
FIRST_SHARE = 0.1  # of its full share, at the beginning of a slow start; some viewers must come, or nothing is tried


class BackendState(enum.Enum):
    """What is known of an aggregator."""

    UP = "up"  # it runs, and every distributor that it gathers runs
    DEGRADED = "degraded"  # it runs, a distributor is lost
    PARTIAL = "partial"  # it runs, a whole pair is lost: better than nothing, for the streams of the others
    DOWN = "down"  # no viewer is sent there
    DRAINING = "draining"  # no new viewer is sent there, and those that are there move when another can take them


SERVING = (BackendState.UP, BackendState.DEGRADED, BackendState.PARTIAL)
"""Those that viewers are sent to, the best first: one of the next kind only if there is none of the one before."""


def rank(state: BackendState) -> int:
    """0 is the best; all that serve nobody are equal."""
    return SERVING.index(state) if state in SERVING else len(SERVING)


@attrs.frozen(kw_only=True)
class ReturnRule:
    """What an operator sets.  Zeros: everything counts at once, and in full."""

    rise_seconds: float = 0.0
    slow_start_seconds: float = 0.0


AT_ONCE = ReturnRule()


class Standing:
    """What one backend counts as.

    Args:
        rule: see there.
        state: at the beginning; it counts.
        now: monotonic seconds.
    """

    def __init__(self, rule: ReturnRule, state: BackendState, now: float) -> None:
        self.falls = 0
        self.rises_at: float | None = None  # when the state that it was told counts, if it goes on
        self._rule = rule
        self._told = self._counted = state
        self._began = now
        self._fell_at = -math.inf
        self._returned_at = -math.inf

    def told(self, state: BackendState, now: float) -> None:
        """A new state."""
        self._settle(now)
        is_worse = rank(state) > rank(self._told) and state is not BackendState.DRAINING
        if is_worse and not self._is_starting(now):
            self.falls = 1 if now - self._fell_at > FLAPPING_SECONDS else self.falls + 1
            self._fell_at = now
        was_drained = self._told is BackendState.DRAINING
        self._told = state
        if rank(state) >= rank(self._counted):
            self._counted, self.rises_at = state, None
        else:
            is_starting = self._is_starting(now)
            self.rises_at = now if was_drained or is_starting else now + self._rise_seconds()
            self._settle(now, is_return=not is_starting)

    def order(self, now: float) -> int:
        """The lower, the better: first by what it counts as; those that are rising come after all that count."""
        self._settle(now)
        counted = rank(self._counted)
        return counted if counted < len(SERVING) else len(SERVING) + rank(self._told)

    def share(self, now: float) -> float:
        """Of what an equal gets, above 0 and up to 1."""
        self._settle(now)
        seconds = self._rule.slow_start_seconds
        if now - self._returned_at >= seconds:
            return 1.0
        return max(FIRST_SHARE, (now - self._returned_at) / seconds)

    def _settle(self, now: float, *, is_return: bool = True) -> None:
        """Has it been well for long enough?"""
        if self.rises_at is not None and now >= self.rises_at:
            self._counted = self._told
            if is_return:
                self._returned_at = self.rises_at
            self.rises_at = None

    def _is_starting(self, now: float) -> bool:
        return now - self._began < self._rule.slow_start_seconds

    def _rise_seconds(self) -> float:
        longest = max(MAX_RISE_SECONDS, self._rule.rise_seconds)
        return min(longest, self._rule.rise_seconds * 2.0 ** min(max(0, self.falls - 1), 16))
