"""What a cluster's child process runs: ``python -m relay.tiers.child`` is ``twistd``, tied to the life of its parent.

Owns the tie, and the form of a child's log lines.  Started by :mod:`relay.tiers.supervise`.

A parent that is killed can't end its children, and a relay that nobody supervises goes on answering on its ports.  So
each child asks the kernel to be killed when its parent dies.  Nothing is lost by that: what a viewer or a replica was
sent is in the page cache, which outlives the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TextIO

from twisted.logger import ILogObserver, LogEvent, eventAsText
from twisted.scripts.twistd import run
from zope.interface import implementer

PARENT_VARIABLE = "RELAY_PARENT_PID"
"""In the child's environment: the process that it must not outlive."""

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent: int) -> None:
    """Be killed when the process ``parent`` ends; end now if it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the kernel was asked
        raise SystemExit(f"process {parent}, whose child this is, has ended")


@implementer(ILogObserver)
class LineObserver:
    """Writes an event as text without its time: the parent puts time and node name before it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: LogEvent) -> None:
        text = eventAsText(event, includeTimestamp=False)
        if text:
            self._out.write(text + "\n")
            self._out.flush()


def make_observer() -> LineObserver:
    """For ``twistd --logger``."""
    return LineObserver(sys.stdout)


def main() -> None:
    """Run ``twistd`` with the arguments of this process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the node can do something with it
    die_with_parent(int(os.environ.pop(PARENT_VARIABLE)))
    sys.argv[0] = "twistd"
    run()


if __name__ == "__main__":
    main()
