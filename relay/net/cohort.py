"""Readers in step: sockets that are all at the same byte of a rendition are sent the next ones by one loop.

Owns which readers those are, and the place that they share.  Made by :mod:`relay.net.wakeup`, one set of cohorts a
slice; the members are transports (:mod:`relay.net.following`).

Theory.  A reader that keeps up has, when it was woken, everything: it stands at the end of the log, and so does every
other one that was woken with it.  So a slice of a thousand readers has one place, not a thousand, and a wake-up is one
``sendfile`` each with the same arguments but the socket: what a loop in C would do, and does (:mod:`relay.native`).

``sendfile`` spares the copying of bytes, and pays for it with a pipe inside the kernel: for less than about 8 kB a
``write`` is cheaper, by 8 % (4 kB) to 14 % (200 bytes, a sound).  So what is short is read once and written to each.

A member whose socket does not take all of it falls out: from then on it has a place of its own again, as has whoever is
to be told something else, halts, or leaves.  It may fall in again when it has caught up.  If the bytes do not simply go
on (a hole, the end), all fall out, and each does what its form says.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.logger import Logger

from relay import native
from relay.log.cursor import Cursor, CursorState
from relay.log.rendition import Rendition

COPIED_BYTES = 6 << 10  # what `write` is cheaper for than `sendfile`
COPIED_FOR = 4  # readers for whom it is worth to read it first


class Member(Protocol):
    """A socket in step with others."""

    def fell_out(self, leader: Cursor, offset: int, error: OSError | None) -> None:
        """Go on alone from ``offset``, in the segment that ``leader`` holds.  Sending has failed if there is an error;
        ``BlockingIOError`` says that the socket is full."""


WhoT = TypeVar("WhoT")


class Cohort(Generic[WhoT]):
    """The readers at one place.

    Args:
        cursor: their place; its own, closed when the last member has left.
        left: called with whom a member was added for, when it has fallen out.
        emptied: called when nobody is left.
    """

    log = Logger()

    def __init__(self, cursor: Cursor, left: Callable[[WhoT], None], emptied: Callable[[], None]) -> None:
        self.cursor = cursor
        self._left = left
        self._emptied = emptied
        self._members: dict[int, tuple[Member, WhoT]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def add(self, fd: int, member: Member, who: WhoT) -> None:
        """One more; its next byte is ours."""
        self._members[fd] = member, who

    def leave(self, fd: int) -> None:
        """One less."""
        self._drop(fd, self.cursor.offset, None)

    def pump(self) -> None:
        """Send all that there is to all."""
        try:
            state = self._pump()
        except Exception:
            self.log.failure("sending to readers in step")
            self.disband()
            return
        if state is not CursorState.AT_END:
            self.disband()

    def disband(self) -> None:
        """Everybody goes on alone."""
        for fd in list(self._members):
            self.leave(fd)

    def _pump(self) -> CursorState:
        cursor = self.cursor
        state = CursorState.READY
        while state is CursorState.READY and self._members:
            segment, offset = cursor.segment, cursor.offset
            count = segment.end - offset
            if count:
                if count <= COPIED_BYTES and len(self._members) >= COPIED_FOR:
                    data = segment.pread(offset, count)
                    if len(data) < count:
                        raise OSError(errno.EIO, "the segment's file is shorter than it was")
                    behind = native.write_each(self._members, data)
                else:
                    behind = native.send_each(self._members, segment.fd, offset - segment.start, count)
                for socket, sent, error in behind:
                    code = error or (errno.EAGAIN if sent else errno.EIO)
                    self._drop(socket, offset + sent, OSError(code, os.strerror(code)))
                cursor.offset = offset + count
            state = cursor.advance()
        return state if self._members else CursorState.AT_END

    def _drop(self, fd: int, offset: int, error: OSError | None) -> None:
        member, who = self._members.pop(fd)
        member.fell_out(self.cursor, offset, error)
        if not self._members:
            self.cursor.close()
            self._emptied()
        self._left(who)


class Cohorts(Generic[WhoT]):
    """The cohorts of one slice: one a rendition."""

    def __init__(self, left: Callable[[WhoT], None]) -> None:
        self._left = left
        self._cohorts: dict[Rendition, Cohort[WhoT]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._cohorts.values()))

    def at(self, cursor: Cursor) -> Cohort[WhoT] | None:
        """Those who stand where ``cursor`` does, which is the end of its rendition; None if nobody can stand there.

        A member is to be added at once.
        """
        rendition, offset = cursor.rendition, cursor.offset
        if offset != rendition.end or rendition.is_abandoned:
            return None
        cohort = self._cohorts.get(rendition)
        if cohort is None:
            cohort = Cohort(rendition.cursor(offset), self._left, lambda: self._forget(rendition))
            self._cohorts[rendition] = cohort
        return cohort if cohort.cursor.offset == offset else None

    def pump(self) -> None:
        """Send all that there is to all."""
        for cohort in list(self._cohorts.values()):
            cohort.pump()

    def disband(self) -> None:
        """Everybody goes on alone."""
        for cohort in list(self._cohorts.values()):
            cohort.disband()

    def _forget(self, rendition: Rendition) -> None:
        del self._cohorts[rendition]
