"""An epoll of its own for spliced sockets, which the reactor watches as one descriptor.

Owns the registrations of legs and the order in which they are served.  Made by :class:`relay.net.joining.Splicer`.

A balancer does one short thing very often: a viewer's 12 kB, ten times a second.  Twisted's way from epoll to a
descriptor (two dictionaries, a log context, a function that judges every kind of event) costs about as much as the two
system calls themselves.  Here it is a dictionary and a call.  Linux lets an epoll be watched by another; the reactor
gets its turn after ``EVENTS_AT_ONCE``.

A source of which nothing but reading is wanted, and whose flow goes through nothing but a pipe, has a *route*: where
that is built, a loop in C serves those (:mod:`relay.native`), and tells of all others and of all that is not ordinary.
Where little came the last time, it copies: below about 12 kB that is cheaper than a pipe.

Design refused: to wait for some 0.1 ms or 1 ms more, so that a turn has more to do.  It costs more than it saves, since
by then whoever is sent to sleeps again, and must be woken.
"""

from __future__ import annotations

import select
from array import array
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relay import native
from relay.net.pipes import Pipe, PipePool

SPLICE_BYTES = 64 << 10  # in one turn; which bounds what a viewer keeps who gets stuck
EVENTS_AT_ONCE = 256  # about 5 ms of work
READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
_NOT_WRITABLE = ~select.EPOLLOUT  # errors too: whoever reads or writes is told which


class Pumped(Protocol):
    """What reads from a socket in the loop."""

    @property
    def route(self) -> int:
        """The descriptor that all bytes go to, through an empty pipe; -1 if it is not as simple as that."""

    def pump(self) -> None:
        """There are bytes, the end, or an error."""

    def count(self, moved: int) -> None:
        """So many bytes have gone by a route that has ended."""

    def stuck(self, count: int, error: int) -> None:
        """The sink did not take all, because it is full or because of an error: take the pipe at hand, which has the
        rest."""

    def fault(self) -> None:
        """It has raised: a fault of ours, which is logged."""


class Watched(Protocol):
    """A socket in the loop."""

    fd: int
    mask: int
    """What is wanted: ``READABLE``, ``WRITABLE``, both, or 0."""

    @property
    def incoming(self) -> Pumped:
        """What reads from it."""

    def writable(self) -> None:
        """There is room, or an error."""


@implementer(IReadDescriptor)
class ReadinessLoop:
    """Level-triggered, as the reactor is.

    Args:
        reactor: runs it, from now to ``close``.
        pipes: what bytes go through.
    """

    log = Logger()

    def __init__(self, reactor: Any, pipes: PipePool) -> None:
        self._reactor = reactor
        self._pipes = pipes
        self._pump_ready = native.pump_ready
        self._routes = array("i")  # by descriptor, as far as there are any
        self._moved = array("Q")  # bytes that went by them, and are not yet among the flow's own count
        self._recent = array("i")  # bytes that came the last time
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._pumped: dict[int, Pumped] = {}  # of those of which only reading is wanted, which are nearly all
        reactor.addReader(self)

    def __len__(self) -> int:
        return len(self._watched)

    def change(self, watched: Watched, mask: int) -> None:
        """Want something else of a socket."""
        fd, before, watched.mask = watched.fd, watched.mask, mask
        if mask == before or fd < 0:
            return
        if not before:
            former = self._watched.get(fd)
            if former is not None:  # it was closed by somebody else, and the number is another's now
                self._end_route(former)
            self._watched[fd] = watched
            self._epoll.register(fd, mask)
        elif self._watched.get(fd) is not watched:
            return  # the same, seen by the former one
        elif mask:
            self._end_route(watched)
            self._epoll.modify(fd, mask)
        else:
            self._end_route(watched)
            del self._watched[fd]
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # closed by somebody else, which unregisters it
        if mask == READABLE:
            self._pumped[fd] = watched.incoming
        else:
            self._pumped.pop(fd, None)
        self.reroute(watched)

    def reroute(self, watched: Watched) -> None:
        """Where its bytes go may have changed."""
        fd = watched.fd
        if self._pump_ready is None or self._watched.get(fd) is not watched:
            return
        self._end_route(watched)
        missing = fd + 1 - len(self._routes)
        if missing > 0:
            self._routes.extend([-1] * missing)
            self._moved.extend([0] * missing)
            self._recent.extend([0] * missing)
        if watched.mask == READABLE:
            self._routes[fd] = watched.incoming.route

    def moved(self, watched: Watched) -> int:
        """Bytes that have gone by its present route, and are not counted otherwise yet."""
        fd = watched.fd
        return self._moved[fd] if self._watched.get(fd) is watched and fd < len(self._moved) else 0

    def _end_route(self, watched: Watched) -> None:
        fd = watched.fd
        if 0 <= fd < len(self._routes) and self._routes[fd] >= 0:
            self._routes[fd] = -1
            moved, self._moved[fd] = self._moved[fd], 0
            watched.incoming.count(moved)

    def pump(self, pumped: Pumped) -> None:
        """Serve it now, whether its socket is ready or not."""
        try:
            pumped.pump()
        except Exception:
            self._note_fault(pumped)

    def close(self) -> None:
        """Nobody is watched any more."""
        self._reactor.removeReader(self)
        self._epoll.close()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        return "splice"

    def doRead(self) -> None:
        """THE HOT PATH of a balancer."""
        get = self._pumped.get
        for fd, event in self._poll():
            pumped = get(fd)
            if pumped is None:
                self._serve(fd, event)
                continue
            try:
                pumped.pump()
            except Exception:
                self._note_fault(pumped)

    def _poll(self) -> list[tuple[int, int]]:
        """Sockets to be served from here, and what for."""
        pipe = None if self._pump_ready is None else self._pipe_at_hand()
        if self._pump_ready is None or pipe is None:
            return self._epoll.poll(0, EVENTS_AT_ONCE)
        arrays = self._routes, self._moved, self._recent
        try:
            ready, stuck = self._pump_ready(self._epoll.fileno(), EVENTS_AT_ONCE, *arrays, *pipe, SPLICE_BYTES)
        except BaseException:
            self._pipes.drop(self._pipes.take())  # nobody knows what is in it
            raise
        if stuck is not None:
            self._stuck(*stuck)
        return ready

    def _stuck(self, fd: int, count: int, error: int) -> None:
        pumped = self._watched[fd].incoming
        try:
            pumped.stuck(count, error)
        except Exception:
            self._note_fault(pumped)

    def _pipe_at_hand(self) -> Pipe | None:
        try:
            return self._pipes.at_hand()
        except OSError:
            return None  # each flow finds out itself, and ends

    def _serve(self, fd: int, event: int) -> None:
        watched = self._watched.get(fd)
        if watched is None:
            return
        try:
            if watched.mask & READABLE and event & _NOT_WRITABLE:
                watched.incoming.pump()
            if watched.mask & WRITABLE and event & ~READABLE:
                watched.writable()
        except Exception:
            self._note_fault(watched.incoming)

    def _note_fault(self, pumped: Pumped) -> None:
        self.log.failure("serving a spliced socket")
        pumped.fault()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
