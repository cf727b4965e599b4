"""The splice: a viewer's connection and an aggregator's, joined in the kernel.

Owns: the two sockets' readiness while they are joined, the counts of bytes, half-close, and every order in which they
can end.  Does not own: which backend, the PROXY header, or the sockets themselves.  Closing goes through the Twisted
transports, whose protocols get their ``connectionLost`` once, as always.  Called by :mod:`relay.net.joining`, which
takes :mod:`relay.net.copying` for transports without a kernel socket of their own (TLS).

Theory.  A pair has two flows, ``source socket -> pipe -> sink socket``.  One rule makes the rest simple:

    A source is read only while its pipe is empty.

So a flow is always in one of three states:

    open, empty     the source is watched for reading; a wake-up is one splice in and, nearly always, one splice out
                    (or one receive and one send, of what is little: relay.net.readiness)
    open, holding   the sink was full: the sink is watched for writing, the source is not watched
    ended           the source said FIN or failed, the pipe is empty, and the sink was told FIN

and when the end of a source is seen, the sink's socket has accepted every byte before it: a FIN is passed on at once,
and ``to_viewer`` is all that a backend which ended had sent.

A flow that holds nothing needs no pipe: one is borrowed for each wake-up and given back.  So all pairs of a process use
the same few pipes, whose pages stay warm, and a pair costs two descriptors, not six.  A flow that holds bytes, at most
64 KiB, keeps its pipe.  A pipe that is not empty when its flow ends is closed, never given back.

The lifetimes of the legs are separate.  When the backend's bytes end, the owner is asked (``backend_lost``).  It closes
the viewer (:meth:`SplicePair.finish`), or keeps it and brings another backend (:meth:`SplicePair.attach_backend`).
While there is no backend, what the viewer sends is read and thrown away, so that its FIN is still seen.

A backend that can no longer be written to may have sent its last bytes before: it is read until that ends too.  A
viewer that can no longer be written to ends the pair.  A pair that finishes sends the viewer FIN, and gives it
``limits.close_seconds`` *without progress* to take what the kernel holds for it, so that a slow viewer gets its last
bytes and a dead one costs nothing; closing at once, with its words unread, would reset it.
"""

from __future__ import annotations

import errno
from typing import Protocol

from twisted.internet.interfaces import ITransport

from relay.limits import Limits
from relay.net.legs import Flow, Leg
from relay.net.pacing import Pacer
from relay.net.pipes import PipePool
from relay.net.readiness import ReadinessLoop
from relay.net.recording import Recording, ReplayDiverged
from relay.net.sockets import acknowledge_late, has_peer_ended, unacknowledged

STREAMS_FROM = 1 << 20  # bytes from one backend: about what a newcomer is sent at once, of 1 Mbit/s
_TIMED_OUT = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class SpliceOwner(Protocol):
    """What the balancer does when a pair changes."""

    def backend_lost(self, pair: JoinedPair, reason: str) -> None:
        """The backend sends no more.  Call ``pair.finish(reason)``, or find another backend."""

    def replay_diverged(self, pair: JoinedPair, why: ReplayDiverged) -> None:
        """The backend does not repeat what the one before it said.  The pair finishes."""

    def splice_ended(self, pair: JoinedPair, outcome: str) -> None:
        """Both transports are being closed.  Called once."""


class JoinedPair(Protocol):
    """What owners, protocols and the sweep use of a pair, spliced or copied."""

    @property
    def to_viewer(self) -> int:
        """Bytes that the viewer's transport accepted since the pair began, from all its backends."""

    @property
    def to_backend(self) -> int:
        """Bytes that backends' transports accepted."""

    @property
    def attached_at(self) -> int:
        """``to_viewer`` when the present backend came: a session's F counts from there."""

    @property
    def has_viewer_ended(self) -> bool:
        """Has the viewer sent FIN?"""

    # What the protocols must say.  They name the transport, since the last word of a backend that was let go may come
    # when the next one is there.

    def received(self, transport: ITransport, data: bytes) -> None:
        """Bytes came."""

    def read_ended(self, transport: ITransport) -> None:
        """The peer's FIN came."""

    def lost(self, transport: ITransport) -> None:
        """The connection is lost."""

    def attach_backend(self, backend: ITransport, is_replay: bool = False) -> None:
        """Join another backend; the one before is gone or is let go.  A replay counts from the first byte again."""

    def detach_backend(self) -> None:
        """Let the backend go, with a reset."""

    def finish(self, outcome: str = "backend_closed") -> None:
        """No more comes from a backend: the viewer gets what is on the way to it, then FIN."""

    def abort(self, outcome: str) -> None:
        """End at once, with resets."""

    def check(self, now: float) -> None:
        """Called about once a second: end what has not moved for too long."""


class SplicePair:
    """A viewer's leg, a backend's leg, and what flows between them.

    Args:
        viewer, backend: connected transports for which ``can_splice`` holds.  What they have yet to write goes first.
            Without a backend the pair is between two.
            Their protocols must tell the pair when they lose the connection (:meth:`lost`).
        loop: watches the sockets.
        now: the clock that :meth:`check` is called with.
        recording: what the first bytes pass through, both ways, until it is over.
        pacer: gathers what streams to the viewer, if the operator wants that.
    """

    def __init__(
        self,
        viewer: ITransport,
        backend: ITransport | None,
        owner: SpliceOwner,
        *,
        loop: ReadinessLoop,
        limits: Limits,
        pipes: PipePool,
        now: float,
        recording: Recording | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self.attached_at = 0
        self.outcome: str | None = None  # the first reason, which stays
        self.is_over = False
        self._loop = loop
        self._limits = limits
        self._owner = owner
        self._pacer = pacer
        self._down = Flow(self, pipes)  # backend to viewer
        self._up = Flow(self, pipes)  # viewer to backend
        self._recording = recording
        if recording is not None and not recording.is_over:
            self._up.tap, self._down.tap = recording.heard, recording.said
        self._is_finishing = False
        self._finish_by: float | None = None
        self._progress: int | None = None
        self._progress_at = now
        self._backend: Leg | None = None
        self._viewer = Leg(self, viewer, loop=loop, incoming=self._up, outgoing=self._down)
        self._up.source = self._down.sink = self._viewer
        self._viewer.begin()
        if backend is None:
            self._drop_backend()
        else:
            self.attach_backend(backend)

    @property
    def to_viewer(self) -> int:
        return self._down.moved

    @property
    def to_backend(self) -> int:
        return self._up.moved

    @property
    def has_viewer_ended(self) -> bool:
        return self._up.is_ended

    @property
    def held(self) -> int:
        """Bytes in the pipes, on their way in either direction."""
        return self._down.held + self._up.held

    # the owner's side

    def attach_backend(self, backend: ITransport, is_replay: bool = False) -> None:
        """Join another backend.  Bytes of the last one still in a pipe are forgotten: F tells where to go on."""
        assert not self.is_over
        self.detach_backend()
        if not is_replay:
            self.attached_at = self.to_viewer
        self._down.is_source_done = False
        self._backend = Leg(self, backend, loop=self._loop, incoming=self._down, outgoing=self._up)
        self._backend.begin()
        if not self._backend.is_ready:
            self._viewer.watch_reading(False)  # until the backend is ready to hear it

    def detach_backend(self) -> None:
        self._down.empty()
        self._viewer.watch_writing(False)
        self._drop_backend()

    def finish(self, outcome: str = "backend_closed") -> None:
        if self.is_over or self._is_finishing:
            return
        self._is_finishing = True
        self._progress = None  # the time to close counts from here
        self.outcome = self.outcome or outcome
        if not self._down.is_source_done:
            self._drop_backend()
        if not self._viewer.is_ready:
            self._end(is_clean=True)
            return
        self._down.end()
        self.settle()

    def abort(self, outcome: str) -> None:
        self.outcome = self.outcome or outcome
        for leg in (self._viewer, self._backend):
            if leg is not None:
                leg.close(is_abort=True)
        self._end(is_clean=False)

    def check(self, now: float) -> None:
        """A pair may rest for ``splice_idle_seconds``; one that is to end, for ``close_seconds``."""
        to_viewer = self.to_viewer
        if self._backend is not None and to_viewer - self.attached_at > STREAMS_FROM and not self._is_finishing:
            acknowledge_late(self._backend.transport.getHandle())
            if self._pacer is not None:
                self._pacer.add(self._down)
        progress = to_viewer + self.to_backend
        if self._is_finishing or self._down.held:  # the socket may take no more for long while the viewer takes a lot
            progress -= unacknowledged(self._viewer.transport.getHandle())
        if self._is_finishing:
            self._finish_by = self._finish_by or now + self._limits.splice_idle_seconds
            if now >= self._finish_by:  # a viewer that takes its last bytes one by one
                self._end(is_clean=False)
                return
        if progress != self._progress:
            self._progress, self._progress_at = progress, now
            return
        quiet = now - self._progress_at
        if quiet >= self._limits.splice_idle_seconds:
            self.outcome = self.outcome or "idle"
            self._end(is_clean=False)
        elif quiet >= self._limits.close_seconds and (reason := self._unseen_end()):
            self.outcome = self.outcome or reason
            self._end(is_clean=False)

    # the protocols' side: a spliced transport reads nothing itself, so only a lost connection is news

    def received(self, transport: ITransport, data: bytes) -> None:
        """Read by the transport after we gave it back for closing; nobody waits for it."""

    def read_ended(self, transport: ITransport) -> None:
        """As with :meth:`received`."""

    def lost(self, transport: ITransport) -> None:
        """News when somebody else closed the transport."""
        if self.is_over:
            return
        if transport is self._viewer.transport:
            self.source_failed(self._up, errno.ECONNRESET)
        elif self._backend is not None and transport is self._backend.transport:
            self.source_failed(self._down, errno.ECONNRESET)

    # the flows' side

    def tapped(self) -> None:
        if self._recording is not None and self._recording.is_over:
            self._recording = self._up.tap = self._down.tap = None

    def diverged(self, why: ReplayDiverged) -> None:
        self._owner.replay_diverged(self, why)
        self.finish("replay_diverged")

    def leg_ready(self) -> None:
        backend = self._backend
        if backend is None or not (backend.is_ready and self._viewer.is_ready):
            return
        self._down.source = self._up.sink = backend
        backend.watch_reading(True)
        if self._up.is_ended:
            backend.send_fin()
        else:
            self._viewer.watch_reading(True)

    def source_ended(self, flow: Flow) -> None:
        if flow is self._up:
            self.outcome = self.outcome or "viewer_closed"
            flow.end()
            self.settle()
        elif self._backend is not None:
            flow.is_source_done = True
            self._backend.watch_reading(False)
            self._owner.backend_lost(self, "backend_closed")

    def source_failed(self, flow: Flow, error: int | None) -> None:
        if flow is self._up:
            self._viewer_failed(error)
            return
        self._drop_backend()
        if not self._is_finishing:
            self._owner.backend_lost(self, "backend_timed_out" if error in _TIMED_OUT else "backend_reset")

    def sink_failed(self, flow: Flow, error: int | None) -> None:
        """A backend that takes no more may have sent its last bytes before: they are read until that fails too."""
        if flow is self._down:
            self._viewer_failed(error)
            return
        self._stop_up()
        if self._down.is_source_done:
            self._drop_backend()
            self.settle()

    def settle(self) -> None:
        if self._up.is_ended and self._down.is_ended and not self._down.held:
            self._end(is_clean=True)

    def _viewer_failed(self, error: int | None) -> None:
        self.outcome = self.outcome or ("viewer_timed_out" if error in _TIMED_OUT else "viewer_reset")
        self._end(is_clean=False)

    def _unseen_end(self) -> str | None:
        """Why a pair at rest has no future: a source is not watched while its sink is stuck, and may be gone."""
        backend = self._backend
        if self._is_finishing:
            return self.outcome
        if self._down.held and backend is not None and has_peer_ended(backend.transport.getHandle()):
            return "backend_closed"
        if self._up.held and has_peer_ended(self._viewer.transport.getHandle()):
            return "viewer_closed"
        return None

    def _stop_up(self) -> None:
        """What the viewer sends from now on is thrown away."""
        if self._backend is not None:
            self._backend.watch_writing(False)
        self._up.empty()
        self._up.sink = None
        if self._viewer.is_ready and not self._up.is_ended and not self.is_over:
            self._viewer.watch_reading(True)

    def _drop_backend(self) -> None:
        self._stop_up()
        self._down.source = None
        self._down.is_source_done = True
        leg, self._backend = self._backend, None
        if leg is not None:
            leg.close(is_abort=True)

    def _end(self, is_clean: bool) -> None:
        if self.is_over:
            return
        self.is_over = True
        for leg in (self._viewer, self._backend):
            if leg is not None and leg.is_open:
                leg.close(is_abort=not is_clean and leg.has_unsent())
        self._down.empty()
        self._up.empty()
        self._owner.splice_ended(self, self.outcome or "aborted")
