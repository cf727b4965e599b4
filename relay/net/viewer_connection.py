"""One viewer at a balancer: its search for a backend, its session, its moves, its end.

Owns the two protocols of a pair and the coroutine that finds a backend.  Does not own the set of viewers or any policy
(:mod:`relay.net.balancing`), which backend (:mod:`relay.net.backends`), or the bytes once joined
(:mod:`relay.net.joining`).

A viewer's life, each step in :class:`ViewerConnection`:

    admitted -> paused -> [ dialing <-> held ] -> joined -> gone, with one outcome word

It is paused from its first moment, so what it says waits in its socket until there is somebody to hear it, and nothing
is ever written to it but a backend's bytes.  A paused socket is deaf to its own end too: ``DepartureWatch`` listens for
that alone.  A dial that fails goes on with the next backend.  When none is left the viewer is held, in the order of
arrival, until the pool says that one may be usable, or for ``hold_seconds``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.net.backends import Backend, BackendState
from relay.net.holding import DepartureWatch
from relay.net.legs import can_half_close
from relay.net.proxy import TLV_BALANCER, TLV_RESUME, TLV_SEED, ProxyAddress, make_header
from relay.net.recording import Recording, ReplayDiverged
from relay.net.sessions import ResumePoint, SessionLedger, byte_count
from relay.net.sockets import NODE_TIMEOUT_MS, NOTSENT_LOWAT, tune, viewer_timeout_ms, write_now

if TYPE_CHECKING:
    from relay.net.balancing import BalancerFactory

MAX_MOVES_IN_VAIN = 4  # backends that end a resumed session without having sent a byte of it
MAX_REPLAYS = 1  # of one handshake: words that kill a node are not to kill them all


@implementer(IHalfCloseableProtocol)
class LegProtocol(Protocol):
    """Either side of a pair, as Twisted sees it: paused until joined, then a messenger to the pair."""

    transport: Any
    pair: Any = None

    def connectionMade(self) -> None:
        self.transport.pauseProducing()
        self._early: list[bytes] = []

    def join(self, pair: Any) -> None:
        """Pass everything on to ``pair`` from here."""
        self.pair = pair
        early, self._early = self._early, []
        for data in early:
            pair.received(self.transport, data)

    def dataReceived(self, data: bytes) -> None:
        if self.pair is None:
            self._early.append(data)  # what a TLS transport had decrypted when it was paused, one read at most
        else:
            self.pair.received(self.transport, data)

    def readConnectionLost(self) -> None:
        if self.pair is None:
            self.transport.loseConnection()
        else:
            self.pair.read_ended(self.transport)

    def writeConnectionLost(self) -> None:
        """Our own FIN is out: nothing to do."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.pair is not None:
            self.pair.lost(self.transport)


class BackendConnection(LegProtocol):
    """Our connection to an aggregator, for one viewer."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def connectionMade(self) -> None:
        super().connectionMade()
        tune(self.transport, NODE_TIMEOUT_MS)
        write_now(self.transport, self._header)


class BackendFactory(Factory):
    """Makes the one connection of one dial."""

    noisy = False

    def __init__(self, header: bytes) -> None:
        self._header = header

    def buildProtocol(self, addr: IAddress | None) -> BackendConnection:
        return BackendConnection(self._header)


class ViewerConnection(LegProtocol):
    """One viewer.  Its search for a backend is a coroutine that ends with it."""

    def __init__(self, balancer: BalancerFactory, host: str) -> None:
        self.host = host
        self.number = balancer.next_number()
        self.came_at = balancer.clock.seconds()
        self.session_id = b""  # of the present backend connection
        self._ends: tuple[ProxyAddress | None, ProxyAddress | None] | None = None
        self._seed = balancer.make_session_id()
        self._recording = Recording(balancer.limits.replay_bytes)
        if not balancer.options.name:
            self._recording.end()  # nobody will say when a session begins, or that it is over
        self._replays = 0
        self._balancer = balancer
        self._backend: Backend[IStreamClientEndpoint] | None = None
        self._search: Deferred[None] | None = None
        self._watch: DepartureWatch | None = None
        self._outcome: str | None = None
        self._ledger = SessionLedger()
        self._is_session = False  # has an aggregator ever said what its bytes are?
        self._is_over = False  # the aggregator ends the session by its own decision
        self._moves_in_vain = 0
        self._wanted: tuple[ResumePoint | None, Backend[IStreamClientEndpoint] | None] | None = None  # while it looks

    def connectionMade(self) -> None:
        super().connectionMade()
        tune(self.transport, viewer_timeout_ms(self._balancer.limits), NOTSENT_LOWAT)
        self._balancer.viewer_made(self)
        self._begin()

    def _begin(self) -> None:
        """Look for the first backend."""
        handle = self.transport.getHandle()
        if can_half_close(self.transport) and handle.family in (socket.AF_INET, socket.AF_INET6):
            self._watch = DepartureWatch(self._balancer.reactor, handle, self._leave)
        self._look(None, None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_watching()
        if self._outcome is None and self.pair is None:
            self._outcome = "viewer_closed"
        if self._search is not None:
            self._search.cancel()
        super().connectionLost(reason)
        self._leave_backend()
        self._balancer.viewer_gone(self, self._outcome or "viewer_closed")

    def close(self, outcome: str) -> None:
        """End now, with a reset."""
        if self.pair is not None:
            self.pair.abort(outcome)
        self._outcome = self._outcome or outcome
        self._stop_watching()
        self.transport.abortConnection()

    # the pair's owner

    def backend_lost(self, pair: Any, reason: str) -> None:
        """Go on at another backend if it is known exactly where; else the viewer is closed too."""
        lost = self._backend
        if lost is None:
            return  # it is on the move already: a death is seen twice
        if self._is_over or pair.has_viewer_ended:
            pair.finish(reason)
            return
        received = pair.to_viewer - pair.attached_at
        self._moves_in_vain = 0 if received else self._moves_in_vain + 1
        point = self._resume_point(received)
        can_go_on = point is not None or (self._recording.is_whole and self._replays < MAX_REPLAYS)
        if not can_go_on or self._moves_in_vain > MAX_MOVES_IN_VAIN:
            if self._is_session or self._recording.is_whole:
                self._balancer.sessions_cut += 1
            pair.finish(reason)
            return
        self._move(point, lost)

    @property
    def backend(self) -> Backend[IStreamClientEndpoint] | None:
        """Who serves it now."""
        return self._backend

    @property
    def is_over(self) -> bool:
        """Is its end decided?"""
        return self._outcome is not None

    @property
    def newest_point(self) -> ResumePoint | None:
        """Where its newest run of a stream began; None if it had none yet."""
        return self._ledger.newest_point

    @property
    def resume_point(self) -> ResumePoint | None:
        """Where it could go on elsewhere now; None if that is not known exactly."""
        if self.pair is None or self._backend is None:
            return None
        return self._resume_point(self.pair.to_viewer - self.pair.attached_at)

    @property
    def is_moving(self) -> bool:
        """Has it left a backend, and no byte from the next one yet?"""
        if self._outcome is not None or self.pair is None:
            return False
        return self._backend is None or self.pair.to_viewer == self.pair.attached_at

    def aggregator_lost(self, backend: Backend[IStreamClientEndpoint]) -> None:
        """The control connection says so, which is sooner than the data connection if it hangs."""
        if self._backend is backend and self.pair is not None and self._outcome is None:
            self.backend_lost(self.pair, "backend_dead")

    def move_on(self, backend: Backend[IStreamClientEndpoint]) -> bool:
        """Leave a backend that is well, if it is known exactly where to go on.

        False: not now (it is in its handshake, or between two runs, or behind a checkpoint): ask again a little later.
        The event that would tell is a count of bytes which moves in the hot path, and tells nobody.
        """
        pair = self.pair
        if self._backend is not backend or pair is None or self._outcome is not None or pair.is_over:
            return True
        if self._is_over or pair.has_viewer_ended:
            return True
        point = self._resume_point(pair.to_viewer - pair.attached_at)
        if point is None:
            return False
        self._move(point, backend)
        return True

    def replay_diverged(self, pair: Any, why: ReplayDiverged) -> None:
        self._balancer.sessions_cut += 1
        self._balancer.log.warn(
            "{host}: its handshake can't be repeated elsewhere: {why}", host=self.host, why=str(why)
        )

    def _resume_point(self, received: int) -> ResumePoint | None:
        """Where to go on with one that has ``received`` bytes of the present backend connection."""
        return None if self._recording.is_repeating else self._ledger.resume_point(received)

    def _move(self, point: ResumePoint | None, lost: Backend[IStreamClientEndpoint]) -> None:
        """Go on elsewhere when it is this viewer's turn: at ``point``, or from the first byte again."""
        self._leave_backend()
        self.pair.detach_backend()
        self._wanted = point, lost
        self._balancer.sessions_moved += 1
        self._look_in_turn(point, lost)

    def _look_in_turn(self, point: ResumePoint | None, lost: Backend[IStreamClientEndpoint] | None) -> None:
        """Those who are furthest behind go first, and before them those who have no position yet."""
        self._balancer.moves.add(lambda: self._resume(point, lost), -1 if point is None else point.offset)

    def said(self, backend: str, name: str, values: list[Any]) -> None:
        """The aggregator says something of this session (:mod:`relay.net.sessions`).

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        if self._backend is None or self._backend.name != backend:
            return
        if name == "relayOver":
            self._is_over = True
            return
        at = byte_count(values)
        if name == "relaySuspend":
            self._ledger.suspend(at)
        else:
            self._ledger.checkpoint(at, ResumePoint.from_values(values[1:]))
            self._is_session = True
            self._recording.end()

    def splice_ended(self, pair: Any, outcome: str) -> None:
        self._outcome = self._outcome or outcome

    # the search

    def _resume(self, point: ResumePoint | None, lost: Backend[IStreamClientEndpoint] | None) -> None:
        is_looking = self._search is not None and not self._search.called
        if self._outcome is None and self._wanted is not None and not is_looking:
            self._look(point, lost)

    def _look(self, point: ResumePoint | None, lost: Backend[IStreamClientEndpoint] | None) -> None:
        self._wanted = point, lost
        self._search = Deferred.fromCoroutine(self._find_backend(point, lost))
        self._search.addErrback(self._search_failed)

    async def _find_backend(
        self, point: ResumePoint | None = None, lost: Backend[IStreamClientEndpoint] | None = None
    ) -> None:
        balancer = self._balancer
        hold_until: float | None = None
        tried = [] if lost is None else [lost]
        while self._outcome is None:
            backend = balancer.pool.pick(self.host, balancer.options.pin, without=tried)
            if backend is not None:
                if await self._try(backend, point):
                    return
                tried.append(backend)
                continue
            # Nobody else is to be had: one that was left for the viewer's good serves on.
            left = [backend for backend in tried if backend is lost and backend.state is BackendState.DRAINING]
            if left and await self._try(left[0], point):
                return
            tried.clear()
            hold_until = hold_until or balancer.clock.seconds() + balancer.options.hold_seconds
            await self._wait(hold_until)

    async def _wait(self, until: float) -> None:
        """Until a backend may be usable, or close the viewer."""
        if self._watch is not None:
            self._watch.be_impatient()
        if self._outcome is None and not await self._balancer.waiting.wait(until):
            self.close("no_backend")

    async def _try(self, backend: Backend[IStreamClientEndpoint], point: ResumePoint | None) -> bool:
        """Join this backend if it can be had."""
        connection = await self._dial(backend, point)
        if connection is None:
            return False
        if self._outcome is not None:  # it came in the very turn in which the viewer left
            connection.transport.abortConnection()
            return False
        self._join(backend, connection, point)
        return True

    async def _dial(
        self, backend: Backend[IStreamClientEndpoint], point: ResumePoint | None
    ) -> BackendConnection | None:
        """A connection to this backend, or ``None`` when it can't be had or the viewer has left."""
        balancer = self._balancer
        began = balancer.clock.seconds()
        dialing = backend.endpoint.connect(BackendFactory(self._header(point)))
        if not dialing.called:
            dialing.addTimeout(balancer.options.connect_seconds, balancer.clock)
        try:
            connection: Any = await dialing
        except Exception as error:  # endpoints fail in many ways; each means that this backend is not to be had
            if self._outcome is None and balancer.pool.note_failure(backend, began):
                balancer.log.warn("can't connect to {name}: {error!r}", name=backend.name, error=error)
            return None
        balancer.pool.note_success(backend)
        assert isinstance(connection, BackendConnection)
        return connection

    def _header(self, point: ResumePoint | None) -> bytes:
        """Each backend connection is a session id of its own: what is said of the former is then not taken for it."""
        balancer = self._balancer
        self.session_id = balancer.new_session_id(self)
        if self._ends is None:
            self._ends = _proxy_address(self.transport.getPeer()), _proxy_address(self.transport.getHost())
        tlvs = {TLV_SEED: self._seed}
        if balancer.options.name:
            tlvs[TLV_BALANCER] = balancer.options.name.encode()
        if point is not None:
            tlvs[TLV_RESUME] = point.to_bytes()
        return make_header(*self._ends, self.session_id, balancer.options.secret, tlvs)

    def _join(
        self, backend: Backend[IStreamClientEndpoint], connection: BackendConnection, point: ResumePoint | None
    ) -> None:
        self._stop_watching()
        self._wanted = None
        self._backend = backend
        backend.viewers += 1
        if self.pair is None:
            self.join(self._balancer.splicer.join(self.transport, connection.transport, self, self._recording))
        elif point is None:
            self._replay(connection)
        else:
            self._ledger.attach(point)
            self.pair.attach_backend(connection.transport)
        connection.join(self.pair)

    def _replay(self, connection: BackendConnection) -> None:
        """Say to another backend what the viewer has said; what it answers is compared with what the viewer has."""
        self._replays += 1
        self._ledger = SessionLedger()
        self._recording.repeat(self.pair.to_viewer - self.pair.attached_at)
        write_now(connection.transport, bytes(self._recording.from_viewer))
        self.pair.attach_backend(connection.transport, is_replay=True)

    def _leave_backend(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.viewers -= 1

    def _search_failed(self, failure: Failure) -> None:
        """A viewer who left has cancelled it; anything else is a fault of ours, and costs this viewer alone."""
        if self._outcome is None:
            self._balancer.log.failure("looking for a backend", failure)
            self.close("fault")

    def _leave(self) -> None:
        self.close("viewer_closed")

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()


def _proxy_address(address: Any) -> ProxyAddress | None:
    """A Twisted address for the header, if it is an IP address."""
    try:
        return ProxyAddress.make(address.host, address.port)
    except (AttributeError, ValueError):
        return None
