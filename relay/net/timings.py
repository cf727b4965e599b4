"""How patient a node is with its upstreams: all that an operator may set, in one record.

Owns the defaults and why they are what they are.  Made by the tiers' options, read by gatherers, links and factories.
"""

from __future__ import annotations

import attrs

DEAD_SECONDS = 0.6  # silence with a ping unanswered; a stopped process is found in this time
CONNECT_SECONDS = 3.0  # then the next member is asked; the kernel alone would try for two minutes
RETURN_SECONDS = 5.0  # a server that crashes at its start has done so by then
BEHIND_SECONDS = 1.5  # half of what players hold back; well over the 0.35 s that reports and merged wake-ups differ by
RETRY_SECONDS = 5.0  # between two attempts when nobody is there: an origin that comes back is read within this time


@attrs.frozen(kw_only=True)
class Timings:
    """Seconds, each.

    Args:
        dead: a neighbour that is silent and leaves a ping unanswered for so long is dead.
        connect: an attempt to connect is given up after this.
        return_: the preferred member must have been well, and no further behind than the others, for so long.
        behind: a member that lives is left when another has had more for so long.
        retry: the longest wait between two rounds of attempts.
    """

    dead: float = DEAD_SECONDS
    connect: float = CONNECT_SECONDS
    return_: float = RETURN_SECONDS
    behind: float = BEHIND_SECONDS
    retry: float = RETRY_SECONDS


DEFAULT_TIMINGS = Timings()
