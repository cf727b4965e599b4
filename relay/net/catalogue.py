"""What a node says of a stream to a neighbour: one entry of its catalogue.

Owns the record and its form on the wire, an AMF0 object {name, epoch, start, end, time, live}; and how far a stream has
come, a line of text that is said often.  Said by :mod:`relay.net.control`, heard by :mod:`relay.net.links`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from relay.errors import NameRefused, RemoteProtocolError
from relay.names import StreamName
from relay.net.streams import LiveStream


@attrs.frozen(kw_only=True)
class CatalogueEntry:
    """One stream of a neighbour, as it was when it told."""

    name: StreamName
    epoch: int
    start: int
    end: int
    time_ms: int
    is_live: bool

    def to_wire(self) -> dict[str, Any]:
        """AMF0 object."""
        return {
            "name": str(self.name),
            "epoch": float(self.epoch),
            "start": float(self.start),
            "end": float(self.end),
            "time": float(self.time_ms),
            "live": self.is_live,
        }

    @classmethod
    def from_wire(cls, value: Any) -> CatalogueEntry:
        """Raises :class:`RemoteProtocolError` if it is no entry."""
        try:
            return cls(
                name=StreamName.parse(value["name"]),
                epoch=int(value["epoch"]),
                start=int(value["start"]),
                end=int(value["end"]),
                time_ms=int(value["time"]),
                is_live=bool(value["live"]),
            )
        except (NameRefused, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RemoteProtocolError(f"not a catalogue entry: {error}") from None


def place_of(stream: LiveStream) -> str:
    """How far the stream is, on a line: names have no spaces.  An AMF0 object would take ten times as long to read."""
    log = stream.log
    return f"{stream.name} {log.epoch} {log.end} {log.end_time_ms}"


def progressed(place: str, catalogue: Mapping[StreamName, CatalogueEntry]) -> CatalogueEntry | None:
    """What the neighbour's entry is now, by what :func:`place_of` made; None if it has told of no such stream.

    Raises:
        RemoteProtocolError: nobody made that.
    """
    try:
        name, epoch, end, time_ms = place.split(" ")
        entry = catalogue.get(StreamName.parse(name))
        if entry is None:
            return None
        return CatalogueEntry(
            name=entry.name,
            epoch=int(epoch),
            start=entry.start,
            end=int(end),
            time_ms=int(time_ms),
            is_live=entry.is_live,
        )
    except (NameRefused, ValueError) as error:
        raise RemoteProtocolError(f"not a stream's progress: {error}") from None


def entry_of(stream: LiveStream) -> CatalogueEntry:
    """What is told of a stream."""
    log = stream.log
    return CatalogueEntry(
        name=stream.name,
        epoch=log.epoch,
        start=log.start,
        end=log.end,
        time_ms=log.end_time_ms,
        is_live=stream.is_live,
    )
