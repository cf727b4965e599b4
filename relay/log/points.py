"""Places in a log where its state is known: where it starts, and where a newcomer can join.

Owns the two records.  :mod:`relay.log.state` makes them.
"""

from __future__ import annotations

import attrs

from relay.log.headers import NO_HEADERS, HeadersInForce


@attrs.frozen
class LogStart:
    """All that must be known at a message boundary to go on from there exactly as every other node does.

    ``offset`` and ``flv_offset`` are the place in the two renditions.  ``time_ms`` is an unwrapped media time from
    which the next message's is reckoned: at a join point its own, elsewhere that of the message before.  ``headers``
    are those in force just before the place.  An origin's log starts at all zeros, a replica's where its upstream says.
    """

    offset: int = 0
    flv_offset: int = 0
    time_ms: int = 0
    headers: HeadersInForce = NO_HEADERS

    @property
    def timestamp(self) -> int:
        """``time_ms`` as messages carry it: 32 bits."""
        return self.time_ms & 0xFFFFFFFF


@attrs.frozen
class JoinPoint(LogStart):
    """A place where a newcomer can start: a video keyframe, or an audio message where there is no video."""


ORIGIN_START = LogStart()
"""Where the first epoch of a stream begins."""
