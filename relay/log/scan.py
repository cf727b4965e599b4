"""Reading a segment back as messages.

Owns the loop over records, for the FLV rendition, for states between join points, and for recovery.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.errors import StoreDamaged
from relay.log.record import NotARecord, parse
from relay.log.segment import Segment
from relay.rtmp.messages import MediaMessage


def read_between(segment: Segment, begin: int, end: int) -> bytes:
    """Bytes ``begin`` to ``end`` of a segment; fewer if it has fewer.

    Raises:
        OSError: it can't be read.
    """
    pieces: list[bytes] = []
    segment.acquire()
    try:
        while begin < end:
            piece = segment.pread(begin, end - begin)
            if not piece:
                break
            pieces.append(piece)
            begin += len(piece)
    finally:
        segment.release()
    return b"".join(pieces)


def messages_between(segment: Segment, begin: int, end: int) -> Iterator[MediaMessage]:
    """The messages from the one that begins at ``begin`` to the one that ends at ``end``, or before.

    Raises:
        OSError: the segment can't be read.
        StoreDamaged: there is something else than a message.
    """
    data = read_between(segment, begin, end)
    at = 0
    while at < len(data):
        try:
            found = parse(data, at)
        except NotARecord as error:
            raise StoreDamaged(f"offset {begin + at}: {error}") from error
        if found is None:
            return
        message, at = found
        yield message
