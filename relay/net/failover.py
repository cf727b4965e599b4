"""Which upstream a connection goes to, and when it is tried again.

Owns the choice and the waiting; what is said on the connection is the protocol's matter.  Called by replicas and
pulls, one factory each.

Theory.  The members are ordered: the first is preferred.  A *round* tries each usable member once, in order, without
waiting: when one dies, the next is asked at once.  Only when a whole round has brought no media does the factory
wait, longer each time (``Backoff``), with jitter, so that a restarted server does not meet everybody at the same
moment.  Media, and media alone, ends a round: an upstream that accepts connections and drops them never resets the
wait.

    start ─> connecting ──> connected ──media──> reading
               │ fails          │ lost              │ lost: a new round that begins with the *next* member
               └────────────────┴──> next member, or wait and begin a new round

``turn_to(member)`` leaves the present member for another (the preferred one is well again, or the present one is
behind); what is read goes on from the log's end, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import random

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.net.rtmp_client import RtmpClientProtocol
from relay.net.timings import CONNECT_SECONDS, RETRY_SECONDS

RETURN = "return"  # why a member is left that is as well as the preferred one


@attrs.define(kw_only=True)
class Backoff:
    """Seconds to wait, doubling; Twisted's 1.5 s at first is a long time for a live stream."""

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = RETRY_SECONDS
    _next: float = attrs.field(default=0.0, init=False)

    def __call__(self) -> float:
        """The next wait."""
        wait = self._next or self.initial
        self._next = min(self.maximum, wait * self.factor)
        return wait * (0.5 + random() / 2)

    def reset(self) -> None:
        """Media came: the next failure is a first one."""
        self._next = 0.0


@attrs.define(eq=False, kw_only=True)
class Upstream:
    """One server that a stream can be read from.  ``is_usable`` is set by whoever watches it (the control link)."""

    name: str
    endpoint: IStreamClientEndpoint
    is_usable: bool = True
    is_draining: bool = False
    """It runs, and wants to be left: not to be asked just because nobody else is there."""
    title: str = ""
    """What the node calls itself, once it has said so."""

    @property
    def shown(self) -> str:
        """For people."""
        return self.title or self.name


class FailoverFactory(Factory):
    """Keeps one connection to the best of an ordered row of upstreams.

    Args:
        members: in order of preference.
        build: makes the protocol for a connection to a member; it tells the factory ``lost`` and ``media_arrived``.
        clock: the reactor.
        backoff: how long is waited after a round in vain.
        connect_seconds: for an attempt.
        on_wait: called when a round was in vain.
    """

    log = Logger()
    noisy = False

    def __init__(
        self,
        members: Sequence[Upstream],
        build: Callable[[Upstream], RtmpClientProtocol],
        clock: IReactorTime,
        backoff: Backoff | None = None,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.current: Upstream | None = None
        self.failovers = 0
        self.members = members
        self._build = build
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._connect_seconds = connect_seconds
        self._on_wait = on_wait
        self._tried: set[str] = set()
        self._complaints: dict[str, str] = {}
        self._connecting: Deferred[IProtocol] | None = None
        self._protocol: RtmpClientProtocol | None = None
        self._retry: IDelayedCall | None = None
        self._next: Upstream | None = None
        self._running = False
        self._is_proven = False  # has the present connection brought media?
        self._when_idle: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin."""
        if not self._running:
            self._running = True
            self._attempt()

    def stop(self) -> Deferred[None]:
        """End; fires when no connection is left."""
        idle = self.finish()
        if self._protocol is not None:
            self._protocol.give_up("stopped")
        return idle

    def finish(self) -> Deferred[None]:
        """Connect no more; fires when the present connection, which ends by itself, is gone."""
        self._running = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._protocol is None:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._when_idle.append(idle)
        return idle

    def media_arrived(self) -> None:
        """The present upstream does what it is for."""
        if not self._is_proven:
            self._is_proven = True
            self._tried.clear()
            self._backoff.reset()

    def wake(self) -> None:
        """An upstream became usable: don't wait any longer."""
        if self._running and self._retry is not None:
            self._retry.cancel()
            self._retry = None
            self._tried.clear()
            self._attempt()

    def leave(self, outcome: str) -> None:
        """The present upstream is known to be dead or useless: go on at the next."""
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._protocol is not None:
            self._protocol.give_up(outcome)

    def turn_to(self, member: Upstream, outcome: str = RETURN) -> bool:
        """Leave the present upstream for ``member``; false if that can't be now."""
        if not self._running or self.current is member or self._protocol is None:
            return False
        self._next = member
        self._protocol.give_up(outcome)
        return True

    def lost(self, outcome: str) -> None:
        """The connection is over (called by the protocol)."""
        left, self._protocol = self.current, None
        self.current = None
        self._is_proven = False
        if not self._running:
            idle, self._when_idle = self._when_idle, []
            for deferred in idle:
                deferred.callback(None)
            return
        if left is not None and outcome != RETURN:
            self._tried.add(left.name)
            self.failovers += 1
        self._attempt()

    def complaint(self, member: Upstream) -> str:
        """Why it could not be reached; empty if it could, last time."""
        return self._complaints.get(member.name, "")

    def _choose(self) -> Upstream | None:
        if self._next is not None:
            chosen, self._next = self._next, None
            return chosen
        fresh = [member for member in self.members if member.name not in self._tried]
        return next((member for member in fresh if member.is_usable), None)

    def _attempt(self) -> None:
        member = self._choose()
        if member is None:
            self._tried.clear()
            self._retry = self._clock.callLater(self._backoff(), self._again)
            self._on_wait()
            return
        self.current = member
        self._connecting = member.endpoint.connect(self).addTimeout(self._connect_seconds, self._clock)
        self._connecting.addCallbacks(self._connected, self._failed, callbackArgs=(member,), errbackArgs=(member,))

    def _again(self) -> None:
        self._retry = None
        # Nobody may be known to be usable yet; then the order decides.
        if not any(member.is_usable for member in self.members):
            self._next = next((member for member in self.members if not member.is_draining), None)
        self._attempt()

    def buildProtocol(self, addr: object) -> RtmpClientProtocol:
        assert self.current is not None
        protocol = self._build(self.current)
        protocol.factory = self
        return protocol

    def _connected(self, protocol: IProtocol, member: Upstream) -> None:
        self._connecting = None
        self._complaints.pop(member.name, None)
        assert isinstance(protocol, RtmpClientProtocol)
        self._protocol = protocol

    def _failed(self, failure: Failure, member: Upstream) -> None:
        self._connecting = None
        self.current = None
        if not self._running:
            return
        error = failure.getErrorMessage()
        if failure.check(CancelledError) is None and self._complaints.get(member.name) != error:
            self._complaints[member.name] = error  # said once, not at each attempt
            self.log.info("can't reach {name}: {error}", name=member.shown, error=error)
        self._tried.add(member.name)
        self._attempt()
