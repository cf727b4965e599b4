"""Python's garbage collector, told that this process has thousands of connections and a rhythm to keep.

Called by :mod:`relay.tiers.options` once the reactor runs.

The collector looks at every object that may be part of a cycle: at the young ones after each 700 new ones, and now and
then at all.  That is right for scripts.  In a node whose viewers all move at once, one look at all in the middle was a
third of the time that the move took (73 of 220 ms for 1,000 viewers).  What is there when a node has started stays
until it ends, so it need not be looked at again; and a storm of a thousand connections is less than one young
generation.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 20_000  # a connection is about 20; looking at so many takes 1 ms
GENERATIONS = (10, 10)  # Python's own: how many looks at the younger ones come before a look at the next older ones


def settle_memory() -> None:
    """Never look again at what is there now, and seldom at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *GENERATIONS)
