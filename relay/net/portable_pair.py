"""A spliced pair that another process can go on with.

Owns the halt, and the way back from it.  What a pair does is :mod:`relay.net.splice`; why, and when, is
:mod:`relay.net.handover`.  Made by :mod:`relay.net.joining`.

All that a pair is made of can be given away: two sockets, the pipes that hold bytes (with their bytes, which nobody
reads in between), three counts and two flags.  A pair that is about to end, or whose transport has yet to write, is
not given away: it is done soon.
"""

from __future__ import annotations

from relay.net.legs import Flow, Leg
from relay.net.splice import SplicePair
from relay.net.viewer_state import Held, PairState


class PortablePair(SplicePair):
    """Invariant: between ``halt`` and ``go_on`` or ``forsake``, no socket and no pipe of it is touched."""

    _halted: tuple[tuple[Leg, int], ...] = ()  # legs, and what was wanted of each

    def halt(self) -> PairState | None:
        """Touch nothing until :meth:`go_on`, and say all that another process must know to go on itself.

        None: it can't; nothing is changed.
        """
        legs = [leg for leg in (self._viewer, self._backend) if leg is not None]
        if self.is_over or self._is_finishing or not all(leg.is_ready for leg in legs):
            return None
        self._down.leave_pacer()  # the low-water mark is the socket's, in whatever process
        self._halted = tuple((leg, leg.mask) for leg in legs)
        for leg in legs:
            leg.loop.change(leg, 0)
        return PairState(
            viewer=self._viewer.fd,
            backend=None if self._backend is None else self._backend.fd,
            to_viewer=self.to_viewer,
            to_backend=self.to_backend,
            attached_at=self.attached_at,
            has_viewer_ended=self.has_viewer_ended,
            down=_held(self._down),
            up=_held(self._up),
        )

    def go_on(self) -> None:
        """As if nothing had been."""
        halted, self._halted = self._halted, ()
        for leg, mask in halted:
            leg.loop.change(leg, mask)

    def forsake(self) -> None:
        """Another process goes on: close our descriptors, and tell nobody."""
        self.is_over = True
        for leg, _ in self._halted:
            leg.forsake()
        self._down.empty()
        self._up.empty()

    def restore(self, state: PairState) -> None:
        """Called at once after it was made: go on as another process left it."""
        self.attached_at = state.attached_at
        self._down.moved, self._up.moved = state.to_viewer, state.to_backend
        for flow, held in ((self._down, state.down), (self._up, state.up)):
            if held is not None:
                flow.hold(held.pipe, held.count)
        if state.has_viewer_ended:
            self._up.end()

    def check(self, now: float) -> None:
        if not self._halted:
            super().check(now)


def _held(flow: Flow) -> Held | None:
    return None if flow.pipe is None else Held(flow.pipe, flow.held)
