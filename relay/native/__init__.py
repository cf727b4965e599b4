"""The two loops that nearly all of a node's time is spent in, in C where that was built, else in Python.

Owns what goes to how many sockets by which system call, and nothing else: a loop gives back whatever was not the
ordinary case, and whoever called it goes on from there.  Called by :mod:`relay.net.cohort` and
:mod:`relay.net.readiness`.

Theory.  A call costs the kernel 6 to 12 us, and Python about 1 us around it: a tenth.  The kernel's part can't be
helped, Python's can.  ``loops.c`` is built by pip if there is a C compiler, as a module of its own, so that it is found
from a checkout, too; ``RELAY_NATIVE=0`` does without it.
"""

from __future__ import annotations

import errno
import importlib
import os
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Protocol

MODULE = "_relay_loops"
API = 3  # what loops.c says, too: changed with what its functions take or return

Behind = tuple[int, int, int]
"""A socket that did not take all: ``(fd, bytes taken, errno)``; errno is 0 if it took some, or the file ended."""

Stuck = tuple[int, int, int]
"""A source whose sink did not take all: ``(fd, bytes left in the pipe, errno)``; errno is 0 if the sink is full."""


class PumpReady(Protocol):
    """Pass on what has come to the sockets of an epoll, in one turn."""

    def __call__(
        self,
        epoll: int,
        most: int,
        routes: array[int],
        moved: array[int],
        recent: array[int],
        pipe_out: int,
        pipe_in: int,
        size: int,
    ) -> tuple[list[tuple[int, int]], Stuck | None]:
        """Splice from each that is ready to where it goes; copy where little came the last time.

        Unless bulk comes (32 KiB from one), go on until none is ready.

        Args:
            epoll: its descriptor.
            most: times that a socket is served, of all together.
            routes: ``"i"``: by descriptor, where its bytes go; -1 where somebody else has to look.
            moved: ``"Q"``: by descriptor, to be counted on.
            recent: ``"i"``: by descriptor, bytes that came the last time.
            pipe_out, pipe_in: the ends of an empty pipe, where one reads and where one writes.
            size: bytes to pass on from each, at the most.

        Returns:
            ``(fd, events)`` of those that somebody else has to look at: no route, an end, an error, or ``size`` bytes
            were there and there may be more.  And the one that is stuck: then the pipe is not empty, and those that
            come after it are told again in the next turn.

        Raises:
            OSError: the epoll can't be asked.
        """


def _each(members: Mapping[int, Any], count: int, send: Callable[..., int], *what: Any) -> list[Behind]:
    behind: list[Behind] = []
    for socket in members:
        try:
            sent = send(socket, *what)
            if sent != count:
                behind.append((socket, sent, 0))
        except OSError as error:
            behind.append((socket, 0, error.errno or errno.EIO))
    return behind


def send_each_in_python(members: Mapping[int, Any], file: int, offset: int, count: int) -> list[Behind]:
    """``sendfile`` so many bytes of a file to each socket that is a key."""
    return _each(members, count, os.sendfile, file, offset, count)


def write_each_in_python(members: Mapping[int, Any], data: bytes) -> list[Behind]:
    """``write`` the same to each socket that is a key."""
    return _each(members, len(data), os.write, data)


send_each = send_each_in_python
write_each = write_each_in_python
pump_ready: PumpReady | None = None
"""None: not built.  What Python does in its place needs to know more, and is :mod:`relay.net.readiness`'s."""


def _built() -> Any:
    """What pip has built; None if no compiler was there, or this is no Linux, or it is another version's."""
    try:
        loops: Any = importlib.import_module(MODULE)
    except ImportError:
        return None
    return loops if getattr(loops, "API", None) == API else None


_loops = None if os.environ.get("RELAY_NATIVE") == "0" else _built()
if _loops is not None:
    send_each, write_each, pump_ready = _loops.send_each, _loops.write_each, _loops.pump_ready
