"""The splice for transports without a kernel socket of their own (TLS): the same pair, copying in Python.

Owns back-pressure between the two transports and the ends of a pair; the interface and the meaning of its words are
those of :mod:`relay.net.splice`.  Called by :mod:`relay.net.joining`.

Each transport is the push producer of the other: Twisted pauses the source while the sink has over 64 KiB to write.
The order that matters at the end is ``unregisterProducer`` before ``loseConnection``: a transport that has a producer
never closes.  A viewer's FIN is passed on; a backend's ends the pair, unless the owner finds another.

``to_viewer`` counts what the viewer's transport was given.  The transport outlives any backend and delivers what it was
given, so this is the F that a resumed session goes on from, though the peer may not have it yet.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer, ITransport
from zope.interface import implementer

from relay.limits import Limits
from relay.net.legs import can_half_close
from relay.net.recording import Recording, ReplayDiverged
from relay.net.sockets import unacknowledged
from relay.net.splice import SpliceOwner


@implementer(IPushProducer)
class _Source:
    """A transport as the other's producer.

    The transport itself won't do: one that is lost stops its producer, and stopping a transport closes it.  That would
    take the viewer along with its backend, whatever the owner wants.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def pauseProducing(self) -> None:
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The sink is lost; its protocol says so to the pair."""


class CopyPair:
    """Two transports, whose protocols pass their events on to :meth:`received`, :meth:`read_ended` and :meth:`lost`.

    Invariant: a transport has the other as its producer exactly while both are joined and the other may still send.
    The pair is over when the viewer's connection is lost, so that one which never takes its last bytes is seen by the
    sweep.
    """

    def __init__(
        self,
        viewer: ITransport,
        backend: ITransport,
        owner: SpliceOwner,
        *,
        limits: Limits,
        now: float,
        recording: Recording | None = None,
    ) -> None:
        self.to_viewer = 0
        self.to_backend = 0
        self.attached_at = 0
        self.outcome: str | None = None
        self.is_over = False
        self.has_viewer_ended = False
        self._owner = owner
        self._recording = recording
        self._limits = limits
        self._is_finishing = False
        self._progress: int | None = None
        self._progress_at = now
        self._viewer: Any = viewer
        self._backend: Any = None
        self.attach_backend(backend)

    def attach_backend(self, backend: ITransport, is_replay: bool = False) -> None:
        self.detach_backend()
        self._backend = backend
        if not is_replay:
            self.attached_at = self.to_viewer
        self._viewer.registerProducer(_Source(backend), True)
        self._backend.registerProducer(_Source(self._viewer), True)
        self._viewer.resumeProducing()
        self._backend.resumeProducing()
        if self.has_viewer_ended:
            self._end_writing(backend)

    def detach_backend(self) -> None:
        backend = self._part()
        if backend is not None:
            backend.abortConnection()

    def received(self, transport: ITransport, data: bytes) -> None:
        if self._recording is not None:
            try:
                data = self._pass_through(transport, data)
            except ReplayDiverged as why:
                self._owner.replay_diverged(self, why)
                self.finish("replay_diverged")
                return
        if transport is self._backend:
            self.to_viewer += len(data)
            self._viewer.write(data)
        elif transport is self._viewer and self._backend is not None:
            self.to_backend += len(data)
            self._backend.write(data)

    def _pass_through(self, transport: ITransport, data: bytes) -> bytes:
        assert self._recording is not None
        if transport is self._viewer:
            data = self._recording.heard(data)
        elif transport is self._backend:
            data = self._recording.said(data)
        if self._recording.is_over:
            self._recording = None
        return data

    def read_ended(self, transport: ITransport) -> None:
        if transport is self._backend:
            self._viewer.unregisterProducer()
            self._owner.backend_lost(self, "backend_closed")
        elif transport is self._viewer:
            self.outcome = self.outcome or "viewer_closed"
            self.has_viewer_ended = True
            if self._is_finishing:
                self._viewer.loseConnection()
            elif self._backend is not None:
                self._end_writing(self._backend)

    def lost(self, transport: ITransport) -> None:
        if transport is self._viewer:
            self.outcome = self.outcome or "viewer_closed"
            backend = self._part()
            if backend is not None:
                backend.loseConnection()  # with the viewer's last words; the user timeout between nodes bounds it
            self._end()
        elif transport is self._backend:
            self._part()
            self._owner.backend_lost(self, "backend_closed")

    def finish(self, outcome: str = "backend_closed") -> None:
        if self.is_over or self._is_finishing:
            return
        self._is_finishing = True
        self._progress = None  # the time to close counts from here
        self.outcome = self.outcome or outcome
        self.detach_backend()
        if self.has_viewer_ended or not can_half_close(self._viewer):
            self._viewer.loseConnection()
        else:
            self._viewer.loseWriteConnection()

    def abort(self, outcome: str) -> None:
        if self.is_over:
            return
        self.outcome = self.outcome or outcome
        self.detach_backend()
        self._viewer.abortConnection()
        self._end()

    def check(self, now: float) -> None:
        progress = self.to_viewer + self.to_backend
        if self._is_finishing:
            progress -= unacknowledged(self._viewer.getHandle())
        if progress != self._progress:
            self._progress, self._progress_at = progress, now
            return
        quiet = now - self._progress_at
        if quiet >= self._limits.splice_idle_seconds:
            self.abort("idle")
        elif self._is_finishing and quiet >= self._limits.close_seconds:
            self.abort("backend_closed")

    def _end_writing(self, transport: Any) -> None:
        """Pass the viewer's FIN on, as far as the backend's transport knows of such a thing."""
        transport.unregisterProducer()
        if can_half_close(transport):
            transport.loseWriteConnection()

    def _part(self) -> Any:
        """The backend, which is one no more."""
        backend, self._backend = self._backend, None
        if backend is not None:
            self._viewer.unregisterProducer()
            backend.unregisterProducer()
            self._viewer.resumeProducing()
        return backend

    def _end(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._owner.splice_ended(self, self.outcome or "aborted")
