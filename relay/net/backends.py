"""The aggregators that a balancer knows, and which one a viewer gets.

Owns: each backend's state and why, its count of viewers, the health rule and the policies.  Does not own: finding the
state out (the control connection sets it; the balancer notes connects that fail), dialing, or any timer.  It is pure,
and is told the time by the function it is given.

The health rule, in :meth:`BackendPool.pick`: while all are up, any may be picked; when some are not, one that is up;
when none is, one that is degraded; when there is none of those either, none, and the viewer is held.  A viewer who is
pinned to a backend gets that one, up or degraded, or else none, or (``falls_back``) what the rule gives to anybody.

A state for the better counts only when it has lasted, and brings the full share of viewers only after a while more:
:mod:`relay.net.returning`.  All policies respect the share: in turn, less often; by address, for fewer addresses, and
one that has gone over stays; by viewers, the emptiest *for its share*.

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
from relay.net.returning import AT_ONCE, SERVING, BackendState, ReturnRule, Standing

# After the n-th failure in a row: 0.1 s, doubled up to 5 s.  The first is short since a refused connect is often an
# aggregator that restarts; the last is short since each try costs one viewer at most one connect timeout.
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0

EndpointT = TypeVar("EndpointT")

__all__ = ["SERVING", "Backend", "BackendPool", "BackendState", "Policy", "ReturnRule"]


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
    credit: float = 0.0  # what it is owed of the turns
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
        policy: how one is chosen among equals.
        rule: how one that was lost comes back.
        falls_back: a viewer whose pinned backend can't take him gets another.
    """

    def __init__(
        self,
        backends: Sequence[Backend[EndpointT]],
        now: Callable[[], float],
        policy: Policy = Policy.ANY,
        rule: ReturnRule = AT_ONCE,
        *,
        falls_back: bool = False,
    ) -> None:
        self.backends = {backend.name: backend for backend in backends}
        if len(self.backends) != len(backends):
            raise ConfigError("two aggregators have the same name")
        self.policy = policy
        self._now = now
        self.rule = rule
        self.falls_back = falls_back
        self._began = now()
        self._standings = {backend.name: Standing(rule, backend.state, self._began) for backend in backends}
        self._observers: list[Callable[[], None]] = []

    def add(self, backend: Backend[EndpointT]) -> None:
        """One more; for all we know it comes *back*, so it is given its share slowly, unless the pool is as young."""
        if backend.name in self.backends:
            raise ConfigError(f"two aggregators are called {backend.name}")
        self.backends[backend.name] = backend
        self._standings[backend.name] = Standing(self.rule, backend.state, self._began)

    def remove(self, name: str) -> None:
        """One less; nobody is there any more."""
        del self.backends[name], self._standings[name]

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
        usable = [backend for backend in self._usable(pin) if backend not in without]
        if not usable and self.falls_back:
            usable = [backend for backend in self._usable(None) if backend not in without]
        if not usable:
            return None
        orders = [self._order(backend) for backend in usable]
        best = min(orders)
        candidates = [backend for backend, order in zip(usable, orders, strict=True) if order == best]
        picked = self._choose(candidates, client_address)
        if picked.connect_failures:
            picked.retry_at = now + LAST_RETRY_SECONDS  # what this try finds out comes sooner than that
        return picked

    def has_usable(self, pin: str | None = None) -> bool:
        """Would :meth:`pick` find one now?"""
        return bool(self._usable(None if self.falls_back else pin))

    def has_proven(self, pin: str | None = None) -> bool:
        """Is one of them beyond suspicion?"""
        return any(not backend.connect_failures for backend in self._usable(None if self.falls_back else pin))

    def rises_in(self, backend: Backend[EndpointT]) -> float:
        """Seconds until what it says of itself counts; 0 if it does."""
        rises_at = self._standings[backend.name].rises_at
        return 0.0 if rises_at is None else max(0.0, rises_at - self._now())

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
            backend.credit = 0.0
            self._standings[name].told(state, self._now())
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

    def _usable(self, pin: str | None) -> list[Backend[EndpointT]]:
        now = self._now()
        wanted = [backend for backend in self.backends.values() if pin in (None, backend.name)]
        return [backend for backend in wanted if backend.is_usable(now)]

    def _order(self, backend: Backend[EndpointT]) -> int:
        return self._standings[backend.name].order(self._now())

    def _share(self, backend: Backend[EndpointT]) -> float:
        return self._standings[backend.name].share(self._now())

    def _choose(self, candidates: list[Backend[EndpointT]], client_address: str) -> Backend[EndpointT]:
        if self.policy is Policy.SOURCE_HASH:
            return max(candidates, key=lambda backend: _claim(backend.name, client_address, self._share(backend)))
        if self.policy is Policy.LEAST_VIEWERS:
            loads = [(backend.viewers + 1) / self._share(backend) for backend in candidates]
            lightest = min(loads)
            candidates = [backend for backend, load in zip(candidates, loads, strict=True) if load == lightest]
        return self._in_turn(candidates)

    def _in_turn(self, candidates: list[Backend[EndpointT]]) -> Backend[EndpointT]:
        """Each as often as its share says, evenly mixed (nginx's smooth weighted round robin)."""
        total = 0.0
        for backend in candidates:
            share = self._share(backend)
            backend.credit += share
            total += share
        picked = max(reversed(candidates), key=lambda backend: backend.credit)
        picked.credit -= total
        return picked


def _retry_seconds(failures: int) -> float:
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LAST_RETRY_SECONDS)


def _claim(name: str, client_address: str, share: float) -> float:
    """Weighted rendezvous hashing: the highest claim wins.

    A backend that is lost moves its own viewers and no others; one whose share grows only ever gains addresses.
    """
    digest = hashlib.blake2b(f"{name}\n{client_address}".encode(), digest_size=8).digest()
    uniform = ((int.from_bytes(digest) >> 12) + 0.5) / 2.0**52  # never 0, never 1
    return -share / math.log(uniform)
