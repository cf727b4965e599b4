"""The parts of a spliced pair: a leg is one watched socket, a flow is one direction through a pipe.

Owns the system calls.  What an end or a failure means is decided by the pair, in
:mod:`relay.net.splice`, where the theory is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, ITransport
from zope.interface import implementer

from relay.net.pipes import PIPE_BYTES, Pipe, PipePool
from relay.net.readiness import READABLE, SPLICE_BYTES, WRITABLE, ReadinessLoop
from relay.net.recording import ReplayDiverged
from relay.net.sockets import has_unwritten, unacknowledged

# A flow whose sink has taken as much as is moved in one turn is bulk, and moves more from then on: 26 Gbit/s in place
# of 17, at half the processor time.
BULK_BYTES = PIPE_BYTES
# A wake-up goes on while the source gives at least this much, for at most ROUNDS times: bulk needs fewer wake-ups, and
# a live viewer's 12 kB (1 Mbit/s at a rhythm of 100 ms) never costs a call that only finds an empty socket.
GREEDY_BYTES = 32 << 10
ROUNDS = 8
TAPPED_BYTES = 16 << 10  # one read of bytes that pass through Python; an empty pipe takes it whole

_splice: Callable[..., int] = getattr(os, "splice", None)  # type: ignore[assignment]  # see can_splice
_FLAGS = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


class Pair(Protocol):
    """What a leg and a flow tell the pair that they are of."""

    def leg_ready(self) -> None:
        """A transport has written all it had; its socket is ours."""

    def source_ended(self, flow: Flow) -> None:
        """The source sent FIN; all before it is with the sink's socket."""

    def source_failed(self, flow: Flow, error: int | None) -> None:
        """The source can't be read any more; all that could be is with the sink's socket."""

    def sink_failed(self, flow: Flow, error: int | None) -> None:
        """The sink can't be written to any more.  It may still have bytes to be read."""

    def settle(self) -> None:
        """A flow passed its FIN on."""

    def tapped(self) -> None:
        """Bytes have passed through a flow's tap."""

    def diverged(self, why: ReplayDiverged) -> None:
        """The backend does not repeat what the one before it said."""

    def abort(self, outcome: str) -> None:
        """End at once."""


class FlowPacer(Protocol):
    """Who pumps a flow at intervals (:mod:`relay.net.pacing`)."""

    def remove(self, flow: Flow) -> None:
        """Don't, any more."""


def can_half_close(transport: ITransport) -> bool:
    """Is this a plain stream socket?  (A TLS transport provides the same interfaces, but can't be half-closed.)"""
    return isinstance(transport, tcp.Connection) and not transport.TLS


def can_splice(transport: ITransport) -> bool:
    """Can the kernel move bytes to and from this transport?"""
    return hasattr(os, "splice") and can_half_close(transport)


def forsake(transport: Any) -> None:
    """Close our descriptor of a socket that another process has too: neither FIN nor reset, and no protocol is told."""
    transport.stopReading()
    transport.stopWriting()
    transport.connected, transport.disconnected = False, True
    transport.getHandle().close()


@implementer(IPullProducer)
class Flushing:
    """Waits until a transport has written all that it was given: then it asks a pull producer for more."""

    def __init__(self, transport: Any, flushed: Callable[[], None]) -> None:
        self._transport = transport
        self._flushed = flushed
        self._is_registered = False
        transport.registerProducer(self, False)  # asks once, whatever is buffered
        self._is_registered = True
        transport.startWriting()

    def resumeProducing(self) -> None:
        if self._is_registered:
            self._transport.unregisterProducer()
            self._flushed()

    def stopProducing(self) -> None:
        """The connection is lost; its protocol says so to the pair."""


class Leg:
    """One socket of a pair, watched in the place of its transport."""

    __slots__ = ("fd", "incoming", "is_ready", "loop", "mask", "outgoing", "pair", "transport")

    def __init__(self, pair: Pair, transport: Any, *, loop: ReadinessLoop, incoming: Flow, outgoing: Flow) -> None:
        self.loop = loop
        self.pair = pair
        self.transport = transport
        self.incoming = incoming
        self.outgoing = outgoing
        self.fd: int = transport.getHandle().fileno()
        self.mask = 0
        self.is_ready = False

    def begin(self) -> None:
        """Take the socket over, at once or when the transport has written what it was given."""
        if has_unwritten(self.transport):
            Flushing(self.transport, self.flushed)
        else:
            self.flushed()

    def flushed(self) -> None:
        """The transport has nothing left to write: from here on the socket is ours."""
        if self.fd < 0:
            return
        self.transport.stopReading()
        self.transport.stopWriting()
        self.is_ready = True
        self.pair.leg_ready()

    def writable(self) -> None:
        self.outgoing.drain()

    def watch_reading(self, wanted: bool) -> None:
        self.loop.change(self, self.mask | READABLE if wanted else self.mask & ~READABLE)

    def watch_writing(self, wanted: bool) -> None:
        self.loop.change(self, self.mask | WRITABLE if wanted else self.mask & ~WRITABLE)

    def forsake(self) -> None:
        """Another process goes on with the socket: close our descriptor, which sends nothing, and tell nobody."""
        self.loop.change(self, 0)
        self._let_go()
        forsake(self.transport)

    def send_fin(self) -> None:
        try:
            self.transport.getHandle().shutdown(socket.SHUT_WR)
        except OSError as error:  # reset while we were busy with the other leg
            self.pair.sink_failed(self.outgoing, error.errno)

    @property
    def is_open(self) -> bool:
        """Is the transport alive, as far as its protocol has said?"""
        return self.fd >= 0 and bool(self.transport.connected)

    def has_unsent(self) -> bool:
        """Are there bytes that the peer has not taken?"""
        return self.outgoing.held > 0 or unacknowledged(self.transport.getHandle()) > 0

    def close(self, is_abort: bool) -> None:
        """Give the socket back to its transport, to be closed."""
        if self.fd < 0:
            return
        self.loop.change(self, 0)
        is_open = self.is_open
        self._let_go()
        if is_open:
            (self.transport.abortConnection if is_abort else self.transport.loseConnection)()

    def _let_go(self) -> None:
        """The descriptor's number may soon be another connection's."""
        self.incoming.source = self.outgoing.sink = None
        self.fd = -1


class Flow:
    """One direction.  ``source`` or ``sink`` is ``None`` while there is no backend.

    While there is a ``tap``, bytes pass through it, in Python; it says what goes on.
    """

    __slots__ = (
        "_in_fd",
        "_moved",
        "_out_fd",
        "_sink",
        "_size",
        "_source",
        "_tap",
        "held",
        "is_ended",
        "is_source_done",
        "pacer",
        "pair",
        "pipe",
        "pipes",
    )

    def __init__(self, pair: Pair, pipes: PipePool) -> None:
        self.pair = pair
        self.pipes = pipes
        self.pipe: Pipe | None = None
        self.pacer: FlowPacer | None = None  # pumps it, besides its source's readiness
        self.held = 0
        self._moved = 0
        self._size = SPLICE_BYTES
        self.is_source_done = False  # its peer sends no more
        self.is_ended = False  # and the sink is to be told, or was
        self._source: Leg | None = None
        self._sink: Leg | None = None
        self._tap: Callable[[bytes], bytes] | None = None
        self._in_fd = self._out_fd = -1  # to splice between; -1 while bytes are copied

    @property
    def source(self) -> Leg | None:
        return self._source

    @source.setter
    def source(self, leg: Leg | None) -> None:
        former, self._source = self._source, leg
        self._route()
        if former is not None:
            former.loop.reroute(former)

    @property
    def sink(self) -> Leg | None:
        return self._sink

    @sink.setter
    def sink(self, leg: Leg | None) -> None:
        self._sink = leg
        self._route()

    @property
    def tap(self) -> Callable[[bytes], bytes] | None:
        return self._tap

    @tap.setter
    def tap(self, tap: Callable[[bytes], bytes] | None) -> None:
        self._tap = tap
        self._route()

    @property
    def moved(self) -> int:
        """Bytes that sinks have taken."""
        source = self._source
        return self._moved if source is None else self._moved + source.loop.moved(source)

    @moved.setter
    def moved(self, count: int) -> None:
        self._moved = count

    @property
    def route(self) -> int:
        return self._out_fd

    @property
    def is_watched(self) -> bool:
        """Is it to be pumped when its source has something?"""
        return self._source is not None and bool(self._source.mask & READABLE)

    def leave_pacer(self) -> None:
        """Be pumped as soon as there is something, again."""
        if self.pacer is not None:
            self.pacer.remove(self)

    def _route(self) -> None:
        self.leave_pacer()
        source, sink = self._source, self._sink
        if source is None or sink is None or self._tap is not None:
            self._in_fd = self._out_fd = -1
        else:
            self._in_fd, self._out_fd = source.fd, sink.fd
        if source is not None:
            source.loop.reroute(source)

    def pump(self) -> None:
        """The source is readable, and the pipe is empty.  THE HOT PATH of a balancer."""
        in_fd, idle = self._in_fd, self.pipes.idle
        if in_fd < 0:
            self._copy()
            return
        rounds, size = ROUNDS, self._size
        while rounds:
            try:
                pipe = idle[-1] if idle else self.pipes.at_hand()
            except OSError:
                self.pair.abort("no_pipe")
                return
            try:
                count = _splice(in_fd, pipe[1], size, None, None, _FLAGS)
            except BlockingIOError:
                return
            except OSError as error:
                self.pair.source_failed(self, error.errno)
                return
            if not count:
                self.pair.source_ended(self)
                return
            try:
                sent = _splice(pipe[0], self._out_fd, count, None, None, _FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._sink_failed(error.errno)
                return
            self._moved += sent
            if sent < count:
                self._hold(count - sent)
                return
            if count < GREEDY_BYTES:
                if size != SPLICE_BYTES:
                    self._size = SPLICE_BYTES
                return
            rounds -= 1
            size = self._size = BULK_BYTES

    def count(self, moved: int) -> None:
        self._moved += moved

    def stuck(self, count: int, error: int) -> None:
        """As :meth:`pump` finds out itself, where no loop in C does it."""
        if error:
            self._sink_failed(error)
        else:
            self._hold(count)

    def _sink_failed(self, error: int | None) -> None:
        """Nobody gets what is in the pipe at hand."""
        self.pipes.drop(self.pipes.take())
        self.pair.sink_failed(self, error)

    def _hold(self, count: int) -> None:
        """The sink is full: the pipe at hand, with what is in it, is ours until it takes more."""
        self.pipe, self.held = self.pipes.take(), count
        assert self._source is not None and self._sink is not None
        self._source.watch_reading(False)
        self._sink.watch_writing(True)

    def fault(self) -> None:
        """Serving the source has raised."""
        self.pair.abort("fault")

    def drain(self) -> None:
        """The sink is writable, and the pipe is not empty."""
        sink, pipe = self.sink, self.pipe
        assert sink is not None and pipe is not None
        try:
            sent = _splice(pipe[0], sink.fd, self.held, None, None, _FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            self.pair.sink_failed(self, error.errno)
            return
        self._moved += sent
        self.held -= sent
        if self.held:
            return
        self.pipes.give(pipe)
        self.pipe = None
        sink.watch_writing(False)
        if self.is_ended:
            sink.send_fin()
            self.pair.settle()
        elif self.source is not None:
            self.source.watch_reading(True)

    def hold(self, pipe: Pipe, count: int) -> None:
        """Go on with what a pipe holds that another process has filled."""
        self.pipes.adopt(pipe)
        self.pipe, self.held = pipe, count
        if self.source is not None:
            self.source.watch_reading(False)
        if self.sink is not None:
            self.sink.watch_writing(True)

    def end(self) -> None:
        """No more comes from the source: the sink is told once the pipe is empty."""
        if self.is_ended:
            return
        self.is_ended = True
        if self.source is not None:
            self.source.watch_reading(False)
        if self.sink is not None and not self.held:
            self.sink.send_fin()

    def empty(self) -> None:
        """Forget what the pipe holds."""
        if self.pipe is not None:
            self.pipes.drop(self.pipe)
        self.pipe, self.held = None, 0

    def _copy(self) -> None:
        """As :meth:`pump`, for the first bytes of a connection, and for a viewer that has no backend."""
        source, sink = self.source, self.sink
        assert source is not None
        try:
            data = source.transport.getHandle().recv(TAPPED_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.pair.source_failed(self, error.errno)
            return
        if not data:
            self.pair.source_ended(self)
            return
        if self.tap is not None:
            try:
                data = self.tap(data)
            except ReplayDiverged as why:
                self.pair.diverged(why)
                return
            self.pair.tapped()
        if sink is not None and data:
            self._send(source, sink, data)

    def _send(self, source: Leg, sink: Leg, data: bytes) -> None:
        try:
            sent = sink.transport.getHandle().send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.pair.sink_failed(self, error.errno)
            return
        self._moved += sent
        if sent == len(data):
            return
        try:
            self.pipe = self.pipes.take()
        except OSError:
            self.pair.abort("no_pipe")
            return
        self.held = os.write(self.pipe[1], data[sent:])
        if self.held < len(data) - sent:  # a user with very many pipes gets small ones
            self.pair.abort("no_pipe")
            return
        source.watch_reading(False)
        sink.watch_writing(True)
