"""The aggregators that a balancer knows, and which one a viewer gets.

Owns: each backend's state and why, its count of viewers, the health rule and the policies.  Does not own: finding the
state out (the control connection sets it; the balancer notes connects that fail), dialing, or any timer.  It is pure,
and is told the time by the function it is given.

The health rule, in :meth:`BackendPool.pick`: while all are up, any may be picked; when some are not, one that is up;
when none is, one that is degraded; when there is none of those either, none, and the viewer is held.  A viewer who is
pinned to a backend gets that one, up or degraded, or none.

A backend whose connect failed is *suspect*, whatever its state says.  It is left out for a time that doubles with every
failure.  When the time is over, one viewer tries it and the others go on leaving it out until he knows, so a crowd
never dials a dead machine together.  A connect that succeeds, or word of a new state from outside, clears it.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

import attrs

from relay.errors import ConfigError

# After the n-th failure in a row: 0.1 s, doubled up to 5 s.  The first is short since a refused connect is often an
# aggregator that restarts; the last is short since each try costs one viewer at most one connect timeout.
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0

EndpointT = TypeVar("EndpointT")


class BackendState(enum.Enum):
    """What is known of an aggregator."""

    UP = "up"  # it runs, and every distributor that it gathers runs
    DEGRADED = "degraded"  # it runs, a distributor is lost
    PARTIAL = "partial"  # it runs, a whole pair is lost: better than nothing, for the streams of the others
    DOWN = "down"  # no viewer is sent there
    DRAINING = "draining"  # as down, but the viewers that are there may stay


SERVING = (BackendState.UP, BackendState.DEGRADED, BackendState.PARTIAL)
"""Those that viewers are sent to, the best first: one of the next kind only if there is none of the one before."""


class Policy(enum.Enum):
    """How one is chosen among equally healthy backends."""

    ANY = "any"  # each in turn
    SOURCE_HASH = "source-hash"  # by the viewer's address: the same one as long as it stays healthy
    LEAST_VIEWERS = "least-viewers"


@attrs.define(eq=False)
class Backend(Generic[EndpointT]):
    """One aggregator.  ``endpoint`` is the balancer's business; the pool never looks at it."""

    name: str
    endpoint: EndpointT
    state: BackendState = BackendState.UP
    reason: str = ""
    viewers: int = 0
    connect_failures: int = 0  # in a row
    failed_at: float = -math.inf
    retry_at: float = 0.0

    def is_usable(self, now: float) -> bool:
        """May a new viewer be sent here?"""
        if self.state not in SERVING:
            return False
        return not self.connect_failures or now >= self.retry_at


class BackendPool(Generic[EndpointT]):
    """All backends of one balancer.

    Args:
        backends: in the order of the configuration; names differ.
        now: monotonic seconds (``reactor.seconds``).
    """

    def __init__(
        self, backends: Sequence[Backend[EndpointT]], now: Callable[[], float], policy: Policy = Policy.ANY
    ) -> None:
        self.backends = {backend.name: backend for backend in backends}
        if len(self.backends) != len(backends):
            raise ConfigError("two aggregators have the same name")
        self.policy = policy
        self._now = now
        self._turn = 0
        self._observers: list[Callable[[], None]] = []

    def pick(
        self, client_address: str, pin: str | None = None, without: Collection[Backend[EndpointT]] = ()
    ) -> Backend[EndpointT] | None:
        """The backend for a new viewer, or ``None`` when no backend may take one now.

        Args:
            client_address: the viewer's host, no port.
            pin: name of the one backend to use.
            without: those that this viewer has just tried.
        """
        now = self._now()
        usable = [backend for backend in self._pinned(pin) if backend.is_usable(now) and backend not in without]
        if not usable:
            return None
        best = min(SERVING.index(backend.state) for backend in usable)
        candidates = [backend for backend in usable if SERVING.index(backend.state) == best]
        picked = self._choose(candidates, client_address)
        if picked.connect_failures:
            picked.retry_at = now + LAST_RETRY_SECONDS  # what this try finds out comes sooner than that
        return picked

    def has_usable(self, pin: str | None = None) -> bool:
        """Would :meth:`pick` find one now?"""
        now = self._now()
        return any(backend.is_usable(now) for backend in self._pinned(pin))

    def has_proven(self, pin: str | None = None) -> bool:
        """Is one of them beyond suspicion?"""
        now = self._now()
        return any(backend.is_usable(now) and not backend.connect_failures for backend in self._pinned(pin))

    def next_retry(self) -> float | None:
        """When the first suspect backend may be tried again, if any waits for that."""
        waiting = [
            backend.retry_at
            for backend in self.backends.values()
            if backend.connect_failures and backend.state in SERVING
        ]
        return min(waiting, default=None)

    def set_state(self, name: str, state: BackendState, reason: str = "") -> None:
        """Word from outside.  A new state also ends a suspicion.  Any change is told to the observers."""
        backend = self.backends[name]
        if backend.state is state and backend.reason == reason:
            return
        if backend.state is not state:
            backend.connect_failures = 0
        backend.state, backend.reason = state, reason
        self._notify()

    def note_failure(self, backend: Backend[EndpointT], dialed_at: float) -> bool:
        """A connect failed.  One that began before the last known failure says nothing new: false."""
        if dialed_at <= backend.failed_at:
            return False
        backend.failed_at = self._now()
        backend.connect_failures += 1
        backend.retry_at = backend.failed_at + _retry_seconds(backend.connect_failures)
        return True

    def note_success(self, backend: Backend[EndpointT]) -> None:
        """A connect succeeded."""
        if backend.connect_failures:
            backend.connect_failures = 0
            self._notify()

    def add_observer(self, observer: Callable[[], None]) -> None:
        """Call ``observer`` after each change that may have made a backend usable."""
        self._observers.append(observer)

    def remove_observer(self, observer: Callable[[], None]) -> None:
        """Stop calling it."""
        self._observers.remove(observer)

    def _notify(self) -> None:
        for observer in list(self._observers):
            observer()

    def _pinned(self, pin: str | None) -> Collection[Backend[EndpointT]]:
        if pin is None:
            return self.backends.values()
        return [self.backends[pin]] if pin in self.backends else []

    def _choose(self, candidates: list[Backend[EndpointT]], client_address: str) -> Backend[EndpointT]:
        if self.policy is Policy.SOURCE_HASH:
            return max(candidates, key=lambda backend: _weight(backend.name, client_address))
        self._turn += 1
        if self.policy is Policy.LEAST_VIEWERS:
            fewest = min(backend.viewers for backend in candidates)
            candidates = [backend for backend in candidates if backend.viewers == fewest]
        return candidates[self._turn % len(candidates)]


def _retry_seconds(failures: int) -> float:
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LAST_RETRY_SECONDS)


def _weight(name: str, client_address: str) -> bytes:
    """Rendezvous hashing: the highest weight wins, so a lost backend moves its own viewers and no others."""
    return hashlib.blake2b(f"{name}\n{client_address}".encode(), digest_size=8).digest()
