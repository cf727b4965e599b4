"""Accepting viewers at a balancer: who is let in, who waits, who is moved, and how each connection ended.

Owns: admission, viewers that are held because there is no backend, the queue of moves, and the count of outcomes.  Does
not own: one viewer's way (:mod:`relay.net.viewer_connection`), which backend (:mod:`relay.net.backends`), the bytes
once joined (:mod:`relay.net.joining`), or the listening port.  Built by the balancer tier.

Outcomes: ``viewer_closed``, ``viewer_reset``, ``viewer_timed_out``, ``backend_closed``, ``backend_reset``,
``backend_timed_out``, ``idle``, ``no_pipe``, ``no_backend``, ``stopped``, ``fault``, and the refusals of
:mod:`relay.net.admission`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from zope.interface import implementer

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.net.admission import Admission
from relay.net.backends import Backend, BackendPool
from relay.net.departing import Departures
from relay.net.holding import WaitingRoom
from relay.net.joining import Splicer
from relay.net.moving import MoveQueue
from relay.net.portable_viewer import PortableViewer
from relay.net.proxy import SESSION_ID_BYTES
from relay.net.viewer_connection import ViewerConnection
from relay.net.viewer_state import ViewerState

CONNECT_SECONDS = 2.0  # for one backend to accept; then the next is tried, while the viewer's patience lasts


@attrs.frozen(kw_only=True)
class BalancingOptions:
    """What an operator sets."""

    connect_seconds: float = CONNECT_SECONDS
    hold_seconds: float = 10.0  # a viewer waits for a backend; 0 holds nobody
    held_viewers: int = 4096  # at once
    merge_seconds: float = 0.0  # that bytes for viewers may be gathered for; 0: each is passed on at once
    pin: str | None = None  # the name of the one backend to use
    secret: bytes = attrs.field(default=b"", repr=False)  # proves the PROXY header
    name: str = ""  # of this balancer, as its control connections say it; without it aggregators report no sessions


class ViewerObserver(Protocol):
    """Who wants to know which viewers there are (:class:`relay.net.neighbours.Neighbourhood`)."""

    def viewer_made(self, viewer: ViewerConnection, transport: Any) -> None:
        """One is connected."""

    def viewer_gone(self, viewer: ViewerConnection) -> None:
        """Its connection is closed; also of one that was never told as made."""


@implementer(IProtocolNegotiationFactory)
class BalancerFactory(ServerFactory):
    """All viewers of one balancer.

    ``outcomes`` counts how connections ended, those that were refused included.
    """

    log = Logger()
    noisy = False

    def __init__(
        self,
        reactor: Any,
        pool: BackendPool[IStreamClientEndpoint],
        *,
        limits: Limits = DEFAULT_LIMITS,
        options: BalancingOptions | None = None,
        splicer: Splicer | None = None,
        clock: IReactorTime | None = None,
        make_session_id: Callable[[], bytes] = lambda: os.urandom(SESSION_ID_BYTES),
    ) -> None:
        self.reactor = reactor
        self.pool = pool
        self.limits = limits
        self.options = options if options is not None else BalancingOptions()
        self.clock: IReactorTime = clock if clock is not None else reactor
        merge_seconds = self.options.merge_seconds
        self.splicer = splicer or Splicer(reactor, limits, clock=self.clock, merge_seconds=merge_seconds)
        self.make_session_id = make_session_id
        self.admission = Admission(limits, self.clock, self._descriptors)
        self.waiting = WaitingRoom(self.clock, pool, self.options.held_viewers, self.options.pin)
        self.viewers: set[PortableViewer] = set()
        self.observers: list[ViewerObserver] = []
        self.outcomes: Counter[str] = Counter()
        self.moves = MoveQueue(self.clock)
        self.departures = Departures(self.clock, pool, self._viewers_of, self.options.pin)
        self.sessions_moved = 0
        self.sessions_cut = 0  # the aggregator was lost, and where to go on was not known exactly
        self.elsewhere: Callable[[str, str, list[Any]], Deferred[None] | None] = lambda backend, name, values: None
        self._sessions: dict[bytes, PortableViewer] = {}
        self._last_number = 0
        self._halted: dict[PortableViewer, ViewerState] = {}
        self._lost_meanwhile: list[str] = []
        self._when_empty: list[Deferred[None]] = []

    def acceptableProtocols(self) -> list[bytes]:
        """For TLS: as at the nodes behind (:mod:`relay.net.sniffing`)."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> PortableViewer | None:
        host = getattr(addr, "host", "") or ""
        refusal = self.admission.admit(host)
        if refusal is not None:
            self.outcomes[refusal] += 1
            return None
        viewer = PortableViewer(self, host)
        self.viewers.add(viewer)
        return viewer

    def viewer_made(self, viewer: ViewerConnection) -> None:
        """Called once by each viewer, when it is connected."""
        for observer in self.observers:
            observer.viewer_made(viewer, viewer.transport)

    def next_number(self) -> int:
        """For a viewer: the first of this process is 1."""
        self._last_number += 1
        return self._last_number

    def viewer_gone(self, viewer: Any, outcome: str) -> None:
        """Called once by each viewer, when its socket is closed."""
        self.viewers.remove(viewer)
        for observer in self.observers:
            observer.viewer_gone(viewer)
        self._sessions.pop(viewer.session_id, None)
        self.admission.leave(viewer.host)
        self.outcomes[outcome] += 1
        self._look_if_empty()

    def new_session_id(self, viewer: Any) -> bytes:
        """The viewer's session has a new backend connection."""
        self._sessions.pop(viewer.session_id, None)
        session_id = self.make_session_id()
        self._sessions[session_id] = viewer
        return session_id

    def session_said(self, backend: str, name: str, values: list[Any]) -> Deferred[None] | None:
        """An aggregator says something of a session; of one that is gone, it is forgotten.

        ``None`` when it is noted; else a Deferred that fires when another process, which may have it, has noted it.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        try:
            session_id = bytes.fromhex(values[0])
        except (IndexError, TypeError, ValueError):
            raise RemoteProtocolError(f"{name} without a session id") from None
        viewer = self._sessions.get(session_id)
        if viewer is None:
            return self.elsewhere(backend, name, values)
        viewer.said(backend, name, values[1:])
        return None

    def session_said_late(self, backend: str, name: str, values: list[Any], noted: Deferred[None]) -> None:
        """As :meth:`session_said`, for what has waited somewhere: ``noted`` fires when it is."""
        try:
            answer = self.session_said(backend, name, values)
        except RemoteProtocolError as error:
            self.log.warn("{backend}: {error}", backend=backend, error=str(error))
            answer = None
        if answer is None:
            noted.callback(None)
        else:
            answer.chainDeferred(noted)

    def aggregator_lost(self, name: str) -> None:
        """An aggregator is dead: its sessions go on elsewhere."""
        if self._halted:
            self._lost_meanwhile.append(name)
        backend = self.pool.backends[name]
        for viewer in list(self.viewers):
            viewer.aggregator_lost(backend)

    def when_empty(self) -> Deferred[None]:
        """Fires when no viewer is connected."""
        if not self.viewers:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._when_empty.append(waiting)
        return waiting

    def close(self) -> Deferred[None]:
        """End every viewer (the port no longer listens); fires when all are gone."""
        self.waiting.close()
        self.moves.close()
        self.departures.close()
        for viewer in list(self.viewers):
            viewer.close("stopped")
        self.splicer.close()
        return self.when_empty()

    # another process

    def halt(self, known: Container[str]) -> list[ViewerState]:
        """Let everybody rest who can be handed over, and say how each stands (:mod:`relay.net.handover`)."""
        for viewer in self.viewers:
            state = viewer.halt(known)
            if state is not None:
                self._halted[viewer] = state
        return list(self._halted.values())

    def go_on(self) -> None:
        """The other process did not take them: as if nothing had been."""
        halted, self._halted = self._halted, {}
        for viewer in halted:
            viewer.go_on()
        lost, self._lost_meanwhile = self._lost_meanwhile, []
        for name in lost:
            self.aggregator_lost(name)

    def forsake(self) -> int:
        """The other process has them; how many there were."""
        halted, self._halted = self._halted, {}
        for viewer in halted:
            viewer.forsake()
            self.viewers.remove(viewer)
            self._sessions.pop(viewer.session_id, None)
            self.admission.leave(viewer.host)
        self._look_if_empty()
        return len(halted)

    def expect(self, viewer: PortableViewer) -> None:
        """Another process's viewer is one of ours now; its transport is about to be made."""
        self.admission.recount(viewer.host)
        self.viewers.add(viewer)
        if viewer.session_id:
            self._sessions[viewer.session_id] = viewer

    def distrust(self) -> None:
        """What aggregators say of our viewers does not come here any more: none of them is to be resumed."""
        for viewer in self.viewers:
            viewer.distrust()

    def counts(self) -> dict[str, Any]:
        """What is counted for as long as there is a balancer, whichever process that is."""
        return {
            "outcomes": dict(self.outcomes),
            "sessions_moved": self.sessions_moved,
            "sessions_cut": self.sessions_cut,
        }

    def add_counts(self, counts: dict[str, Any]) -> None:
        """Go on counting where another process has stopped."""
        self.outcomes.update({str(outcome): int(count) for outcome, count in counts["outcomes"].items()})
        self.sessions_moved += int(counts["sessions_moved"])
        self.sessions_cut += int(counts["sessions_cut"])

    def _look_if_empty(self) -> None:
        if not self.viewers:
            waiting, self._when_empty = self._when_empty, []
            for deferred in waiting:
                deferred.callback(None)

    def _viewers_of(self, backend: Backend[IStreamClientEndpoint]) -> list[PortableViewer]:
        return [viewer for viewer in self.viewers if viewer.backend is backend]

    def _descriptors(self) -> int:
        """Two a viewer, and two more for each pipe."""
        return 2 * (self.admission.connections + self.splicer.pipes.open_pipes)
