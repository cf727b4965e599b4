"""The index file beside each stored segment: lines of text that say where its join points are.

Owns the form of a line.  Called by :mod:`relay.log.files` (writing) and :mod:`relay.log.recovery` (reading).

A line is the CRC-32 of the rest, a space, and JSON::

    5d1c0a3e {"kind":"join","offset":81234,"flv_offset":81533,"time_ms":2000,"crc":3735928559,"headers":["v0:FwA…"]}

``start`` is the first line and has the log's state where the segment begins; ``join`` is a join point; ``end`` is the
last of a sealed segment.  ``crc`` is that of the log's bytes since the line before.  ``headers`` is left out when they
are the line before's.  A line that does not match its own CRC ends the index: all after it is found by scanning.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

import attrs

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.headers import HeadersInForce
from relay.log.points import JoinPoint, LogStart

START, JOIN, END = "start", "join", "end"

MARK_MS = 500
"""ms of media between two marks.  Where each frame is a join point (audio only), not each is worth a line."""

MAX_INDEX_BYTES = 64 << 20
"""Bytes of an index that are read; one of ours is under 1 MB."""


@attrs.frozen
class Entry:
    """One line: a place whose state is known, and the CRC-32 of the bytes that end there."""

    kind: str
    point: LogStart
    crc: int = 0


def encode_entry(entry: Entry, headers_before: HeadersInForce | None) -> bytes:
    """The line, ``headers_before`` being the line before's."""
    point = entry.point
    values: dict[str, object] = {
        "kind": entry.kind,
        "offset": point.offset,
        "flv_offset": point.flv_offset,
        "time_ms": point.time_ms,
        "crc": entry.crc,
    }
    if point.headers != headers_before:
        values["headers"] = point.headers.to_wire()
    return encode_line(values)


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """A whole index."""
    before: HeadersInForce | None = None
    lines: list[bytes] = []
    for entry in entries:
        lines.append(encode_entry(entry, before))
        before = entry.point.headers
    return b"".join(lines)


def decode_entries(data: bytes, limits: Limits = DEFAULT_LIMITS) -> list[Entry]:
    """The entries up to the first line that can't be believed."""
    entries: list[Entry] = []
    for line in data.split(b"\n")[:-1]:
        entry = _decode_entry(line, entries[-1].point if entries else None, limits)
        if entry is None:
            break
        entries.append(entry)
    return entries


def _decode_entry(line: bytes, before: LogStart | None, limits: Limits) -> Entry | None:
    values = decode_line(line)
    if values is None or (before is None) != (values.get("kind") == START):
        return None
    try:
        if "headers" in values:
            headers = HeadersInForce.from_wire(values["headers"], limits)
        elif before is not None:
            headers = before.headers
        else:
            return None
        make = JoinPoint if values["kind"] == JOIN else LogStart
        point = make(int(values["offset"]), int(values["flv_offset"]), int(values["time_ms"]), headers)
        entry = Entry(str(values["kind"]), point, int(values["crc"]))
    except (KeyError, TypeError, ValueError, RemoteProtocolError):
        return None
    return None if before is not None and point.offset < before.offset else entry


def encode_line(values: dict[str, object]) -> bytes:
    """JSON on one line, after its CRC-32."""
    text = json.dumps(values, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """What :func:`encode_line` was given; None: the line is damaged."""
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if crc != b"%08x" % zlib.crc32(text):
        return None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
