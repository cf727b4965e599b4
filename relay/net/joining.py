"""Joins transports, by splice where both have a kernel socket, by copying where not, and watches over all pairs.

Owns the set of open pairs, the pool of pipes, and the one timer that ends pairs which have been idle for too long: each
sweep compares counters, so that a read costs no timer.  Called by :mod:`relay.net.balancing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITransport

from relay.limits import DEFAULT_LIMITS, Limits
from relay.net.copying import CopyPair
from relay.net.legs import can_splice
from relay.net.pacing import Pacer
from relay.net.pipes import PipePool
from relay.net.portable_pair import PortablePair
from relay.net.readiness import ReadinessLoop
from relay.net.recording import Recording, ReplayDiverged
from relay.net.splice import JoinedPair, SpliceOwner
from relay.net.viewer_state import PairState

SWEEPS_PER_CLOSE = 5  # so a limit is kept to within a fifth of close_seconds: 1 s
SWEPT_AT_ONCE = 100  # pairs: half a millisecond; one by one, each would find the processor's caches cold


class Splicer:
    """All the pairs of one balancer.

    Args:
        reactor: runs the loop that watches the sockets.
        clock: measures the limits; the reactor, but for tests.
        merge_seconds: how long bytes for viewers may be gathered (:mod:`relay.net.pacing`); 0: not at all.
        can_splice: whether the kernel may move a transport's bytes; if not, they are copied.
    """

    def __init__(
        self,
        reactor: Any,
        limits: Limits = DEFAULT_LIMITS,
        *,
        clock: IReactorTime | None = None,
        pipes: PipePool | None = None,
        merge_seconds: float = 0.0,
        can_splice: Callable[[ITransport], bool] = can_splice,
    ) -> None:
        self.pipes = pipes if pipes is not None else PipePool()
        self.pairs: set[JoinedPair] = set()
        self._reactor = reactor
        self._clock: IReactorTime = clock if clock is not None else reactor
        self._limits = limits
        self.merge_seconds = merge_seconds
        self._pacer: Pacer | None = None
        self._can_splice = can_splice
        self._closed_bytes = [0, 0]
        self._loop: ReadinessLoop | None = None
        self._sweeping: IDelayedCall | None = None
        self._unswept: list[JoinedPair] = []

    @property
    def bytes_to_viewers(self) -> int:
        """By all pairs, those that are over included."""
        return self._closed_bytes[0] + sum(pair.to_viewer for pair in self.pairs)

    @property
    def bytes_to_backends(self) -> int:
        """By all pairs, those that are over included."""
        return self._closed_bytes[1] + sum(pair.to_backend for pair in self.pairs)

    def join(
        self, viewer: ITransport, backend: ITransport, owner: SpliceOwner, recording: Recording | None = None
    ) -> JoinedPair:
        """Make a pair of two connected transports.  It is open until the owner's ``splice_ended``."""
        pair: JoinedPair
        if self._can_splice(viewer) and self._can_splice(backend):
            pair = self._splice(viewer, backend, owner, recording)
        else:
            now, watched = self._clock.seconds(), _Watched(self, owner)
            pair = CopyPair(viewer, backend, watched, limits=self._limits, now=now, recording=recording)
        self._watch(pair)
        return pair

    def restore(
        self,
        viewer: ITransport,
        backend: ITransport | None,
        owner: SpliceOwner,
        recording: Recording | None,
        state: PairState,
    ) -> JoinedPair:
        """As :meth:`join`, for a pair that another process had."""
        pair = self._splice(viewer, backend, owner, recording)
        pair.restore(state)
        self._watch(pair)
        return pair

    def forget(self, pair: JoinedPair) -> None:
        """Another process has this one, and its counts."""
        self.pairs.discard(pair)
        self._stop_when_empty()

    def close(self) -> None:
        """Abort every pair, and close the pipes."""
        for pair in list(self.pairs):
            pair.abort("stopped")
        self.pipes.close()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def pair_ended(self, pair: JoinedPair) -> None:
        """Forget a pair, but for its bytes."""
        self.pairs.discard(pair)
        self._closed_bytes[0] += pair.to_viewer
        self._closed_bytes[1] += pair.to_backend
        self._stop_when_empty()

    def _splice(
        self, viewer: ITransport, backend: ITransport | None, owner: SpliceOwner, recording: Recording | None
    ) -> PortablePair:
        if self._loop is None:
            self._loop = ReadinessLoop(self._reactor, self.pipes)
            self._pacer = Pacer(self._clock, self.merge_seconds, self._loop.pump) if self.merge_seconds else None
        return PortablePair(
            viewer,
            backend,
            _Watched(self, owner),
            loop=self._loop,
            limits=self._limits,
            pipes=self.pipes,
            now=self._clock.seconds(),
            recording=recording,
            pacer=self._pacer,
        )

    def _watch(self, pair: JoinedPair) -> None:
        self.pairs.add(pair)
        if self._sweeping is None:
            self._sweep_later()

    def _stop_when_empty(self) -> None:
        if not self.pairs and self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
            self._unswept.clear()

    def _sweep_later(self) -> None:
        parts = max(1, math.ceil(len(self.pairs) / SWEPT_AT_ONCE))
        self._sweeping = self._clock.callLater(self._limits.close_seconds / SWEEPS_PER_CLOSE / parts, self._sweep)

    def _sweep(self) -> None:
        """Check the next part of the pairs."""
        self._sweep_later()
        if not self._unswept:
            self._unswept = list(self.pairs)
        now = self._clock.seconds()
        for _ in range(min(len(self._unswept), SWEPT_AT_ONCE)):
            pair = self._unswept.pop()
            if pair in self.pairs:
                pair.check(now)


class _Watched:
    """Between a pair and its owner: tells the splicer, too, that the pair is over."""

    def __init__(self, splicer: Splicer, owner: SpliceOwner) -> None:
        self._splicer = splicer
        self._owner = owner

    def backend_lost(self, pair: JoinedPair, reason: str) -> None:
        self._owner.backend_lost(pair, reason)

    def replay_diverged(self, pair: JoinedPair, why: ReplayDiverged) -> None:
        self._owner.replay_diverged(pair, why)

    def splice_ended(self, pair: JoinedPair, outcome: str) -> None:
        self._splicer.pair_ended(pair)
        self._owner.splice_ended(pair, outcome)
