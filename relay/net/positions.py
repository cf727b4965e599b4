"""How a position travels between nodes: keys of a status object.

Owns the keys.  Written by :mod:`relay.net.control`, read by :mod:`relay.net.replication`.

    relayEpoch, relayOffset                          where the bytes that follow stand
    relayFlvOffset, relayTime, relayHeaders          what else a log that begins there must know; absent where the
                                                     reader asked for exactly this position: it knows them itself
    relayEnd                                         how far the log went then, if the bytes begin before that
"""

from __future__ import annotations

import math
from typing import Any

import attrs

from relay.errors import RemoteProtocolError
from relay.log.headers import HeadersInForce
from relay.log.points import LogStart

EPOCH, OFFSET = "relayEpoch", "relayOffset"
FLV_OFFSET, TIME, HEADERS, END = "relayFlvOffset", "relayTime", "relayHeaders", "relayEnd"
MAX_EXACT = 1 << 53  # integers up to here are exact in an AMF0 number


@attrs.frozen
class ToldPosition:
    """What an upstream says of the bytes that follow.

    ``start`` is None where they go on exactly as asked.  Up to ``end`` they are those that it had already.
    """

    epoch: int
    offset: int
    start: LogStart | None
    end: int = 0


def position_info(epoch: int, offset: int) -> dict[str, Any]:
    """The bytes go on exactly as asked."""
    return {EPOCH: float(epoch), OFFSET: float(offset)}


def start_info(epoch: int, start: LogStart, end: int = 0) -> dict[str, Any]:
    """The bytes begin here, and up to ``end`` they come at once."""
    info = position_info(epoch, start.offset) | {
        FLV_OFFSET: float(start.flv_offset),
        TIME: float(start.time_ms),
        HEADERS: start.headers.to_wire(),
    }
    return info | {END: float(end)} if end > start.offset else info


def read_position(info: dict[str, Any]) -> ToldPosition | None:
    """The position in a status object; None if there is none: a plain RTMP server.

    Raises:
        RemoteProtocolError: there is one, but it is no position.
    """
    if EPOCH not in info:
        return None
    epoch, offset = _integer(info, EPOCH), _integer(info, OFFSET)
    if HEADERS not in info:
        return ToldPosition(epoch, offset, None)
    try:
        headers = HeadersInForce.from_wire(info[HEADERS])
    except (ValueError, TypeError) as error:
        raise RemoteProtocolError(f"{HEADERS}: {error}") from None
    start = LogStart(offset, _integer(info, FLV_OFFSET), _integer(info, TIME), headers)
    return ToldPosition(epoch, offset, start, _integer(info, END) if END in info else 0)


def _integer(info: dict[str, Any], key: str) -> int:
    value = info.get(key)
    if isinstance(value, float) and math.isfinite(value) and 0 <= value < MAX_EXACT and value == int(value):
        return int(value)
    raise RemoteProtocolError(f"{key} is not a position: {value!r:.64}")
