"""An epoll of its own for spliced sockets, which the reactor watches as one descriptor.

Owns the registrations of legs and the order in which they are served.  Made by :class:`relay.net.joining.Splicer`.

A balancer does one short thing very often: a viewer's 12 kB, ten times a second.  Twisted's way from epoll to a
descriptor (two dictionaries, a log context, a function that judges every kind of event) costs about as much as the two
system calls themselves.  Here it is a dictionary and a call.  Linux lets an epoll be watched by another; the reactor
gets its turn after ``EVENTS_AT_ONCE``.
"""

from __future__ import annotations

import select
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

EVENTS_AT_ONCE = 256  # about 5 ms of work
READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
_NOT_WRITABLE = ~select.EPOLLOUT  # errors too: whoever reads or writes is told which


class Pumped(Protocol):
    """What reads from a socket in the loop."""

    def pump(self) -> None:
        """There are bytes, the end, or an error."""

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
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._pumped: dict[int, Pumped] = {}  # of those of which only reading is wanted, which are nearly all
        reactor.addReader(self)

    def __len__(self) -> int:
        return len(self._watched)

    def change(self, watched: Watched, mask: int) -> None:
        """Want something else of a socket."""
        fd, before, watched.mask = watched.fd, watched.mask, mask
        if mask == before:
            return
        if not before:
            self._watched[fd] = watched
            self._epoll.register(fd, mask)
        elif self._watched.get(fd) is not watched:
            return  # it was closed by somebody else, and the number is another's now
        elif mask:
            self._epoll.modify(fd, mask)
        else:
            del self._watched[fd]
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # closed by somebody else, which unregisters it
        if mask == READABLE:
            self._pumped[fd] = watched.incoming
        else:
            self._pumped.pop(fd, None)

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
        for fd, event in self._epoll.poll(0, EVENTS_AT_ONCE):
            pumped = get(fd)
            if pumped is None:
                self._serve(fd, event)
                continue
            try:
                pumped.pump()
            except Exception:
                self._note_fault(pumped)

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
