"""A viewer at a balancer that another process can go on with.

Owns the halt of one viewer, the way back from it, and the beginning in the other process.  What a viewer does is
:mod:`relay.net.viewer_connection`; why, and when, is :mod:`relay.net.handover`.  Made by :mod:`relay.net.balancing`.

A viewer that looks for a backend is halted by ending its search, which is begun again by whoever has it then: what it
has said waits unread in its socket, or is recorded.  One over TLS stays where it is: its keys are in that process.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from relay.net.legs import can_splice, forsake
from relay.net.portable_pair import PortablePair
from relay.net.recording import Recording
from relay.net.sessions import ResumePoint, SessionLedger
from relay.net.viewer_connection import BackendConnection, ViewerConnection
from relay.net.viewer_state import PairState, Search, ViewerState

if TYPE_CHECKING:
    from relay.net.balancing import BalancerFactory

HALTED = "halted"  # the outcome of a viewer that rests: whatever looks at an outcome then leaves it alone


class PortableViewer(ViewerConnection):
    """Invariant: between ``halt`` and ``go_on`` or ``forsake`` nothing touches its sockets, and it starts nothing."""

    _is_taken = False

    # in the process that gives

    def halt(self, known: Container[str]) -> ViewerState | None:
        """Rest, and say all that another process must know; ``None`` if it must stay.

        Args:
            known: names of the aggregators that the other process has.  From any other, the viewer moves.
        """
        if self._outcome is not None or not can_splice(self.transport):
            return None
        backend, search = self._backend, self._search_state()
        if backend is not None and backend.name not in known:
            search = self._departure()
            if search is None:
                return None
            backend = None
        pair: PairState | None = None
        if self.pair is not None:
            pair = self.pair.halt() if isinstance(self.pair, PortablePair) else None
            if pair is None:
                return None
        self._outcome = HALTED
        self._stop_watching()
        if self._search is not None:
            self._search.cancel()
        return ViewerState(
            host=self.host,
            session_id=self.session_id,
            seed=self._seed,
            replays=self._replays,
            moves_in_vain=self._moves_in_vain,
            is_session=self._is_session,
            is_over=self._is_over,
            runs=self._ledger.to_values(),
            recording=None if self._recording.is_over else self._recording.state(),
            backend=None if backend is None else backend.name,
            search=search,
            pair=pair if pair is None or backend is not None else pair.without_backend(),
            viewer=self.transport.getHandle().fileno(),
        )

    def go_on(self) -> None:
        """The other process didn't take it: as if nothing had been."""
        self._outcome = None
        if isinstance(self.pair, PortablePair):
            self.pair.go_on()
        self._go_on_looking()

    def _go_on_looking(self) -> None:
        """Begin the search anew that was ended by the halt, if there was one."""
        if self._wanted is None:
            return
        point, lost = self._wanted
        if self.pair is None:
            self._begin()
        else:
            self._look_in_turn(point, lost)

    def forsake(self) -> None:
        """The other process has it."""
        self._leave_backend()
        if isinstance(self.pair, PortablePair):
            self.pair.forsake()
            self._balancer.splicer.forget(self.pair)
        else:
            forsake(self.transport)

    def distrust(self) -> None:
        """What is known of its session may be out of date."""
        self._is_over = True

    def _search_state(self) -> Search | None:
        if self._wanted is None:
            return None
        point, lost = self._wanted
        return Search(None if point is None else point.to_values(), None if lost is None else lost.name)

    def _departure(self) -> Search | None:
        """As :meth:`move_on`, to whatever the other process has."""
        point = self._resume_point(self.pair.to_viewer - self.pair.attached_at)
        if point is None and not self._recording.is_whole:
            return None
        if self._is_over or self.pair.has_viewer_ended:
            return None
        return Search(None if point is None else point.to_values(), None)

    # in the process that takes

    @classmethod
    def taken(cls, balancer: BalancerFactory, state: ViewerState) -> PortableViewer:
        """One that rests until :meth:`restore`."""
        viewer = cls(balancer, state.host)
        viewer._is_taken = True
        viewer.session_id, viewer._seed = state.session_id, state.seed
        viewer._replays, viewer._moves_in_vain = state.replays, state.moves_in_vain
        viewer._is_session, viewer._is_over = state.is_session, state.is_over
        viewer._ledger = SessionLedger.from_values(state.runs)
        if state.recording is None:
            viewer._recording.end()
        else:
            viewer._recording = Recording.restore(balancer.limits.replay_bytes, state.recording)
        return viewer

    def _begin(self) -> None:
        if not self._is_taken:
            super()._begin()

    def restore(self, state: ViewerState, connection: BackendConnection | None) -> None:
        """Go on where the other process has left it, now that it is connected, and so is its backend."""
        self._is_taken = False
        balancer = self._balancer
        if state.pair is not None:
            backend = None if connection is None else connection.transport
            self.join(balancer.splicer.restore(self.transport, backend, self, self._recording, state.pair))
        if connection is not None and state.backend is not None:
            self._backend = balancer.pool.backends[state.backend]
            self._backend.viewers += 1
            connection.join(self.pair)
        elif state.search is not None:
            point, lost = state.search.point, state.search.lost
            self._wanted = (
                None if point is None else ResumePoint.from_values(point),
                None if lost is None else balancer.pool.backends.get(lost),
            )
            self._go_on_looking()
