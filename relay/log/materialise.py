"""Reading a log's segments as the messages of an FLV rendition that is to be made.

Owns where to begin and how to cut.  Called by :mod:`relay.log.log` when the first FLV viewer comes, or one that wants
older bytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from relay.log.points import JoinPoint, LogStart
from relay.log.scan import messages_between
from relay.log.segment import Segment
from relay.rtmp.messages import MediaMessage


def known_before(segments: Sequence[Segment], points: Sequence[JoinPoint], flv_offset: int) -> LogStart | None:
    """The last place at or before ``flv_offset`` whose state is known: a join point or a segment's start."""
    at = bisect_right(segments, flv_offset, key=lambda segment: segment.first.flv_offset) - 1
    if at < 0:
        return None
    first = segments[at].first
    found = bisect_right(points, flv_offset, key=lambda point: point.flv_offset) - 1
    return points[found] if found >= 0 and points[found].offset >= first.offset else first


def pieces(
    segments: Sequence[Segment], known: LogStart, until: int
) -> Iterator[tuple[LogStart, list[MediaMessage], array[int]]]:
    """The messages from ``known`` to offset ``until`` with their times, a piece for each segment; holes are left out.

    Raises:
        OSError: a segment can't be read.
        StoreDamaged: a segment does not read back as messages.
    """
    for segment in segments:
        if segment.end <= known.offset or segment.start >= until:
            continue
        first = known if segment.start <= known.offset else segment.first
        boundaries, times = segment.message_index()
        begin, end = bisect_left(boundaries, first.offset), bisect_left(boundaries, until)
        yield first, list(messages_between(segment, first.offset, min(until, segment.end))), times[begin:end]
