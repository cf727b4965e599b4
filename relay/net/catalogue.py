"""What a node says of a stream to a neighbour: one entry of its catalogue.

Owns the record and its form on the wire, an AMF0 object {name, epoch, start, end, time, live}; and how far a stream has
come, {name, epoch, end, time}, which is said often.  Said by :mod:`relay.net.control`, heard by :mod:`relay.net.links`.
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


def place_of(stream: LiveStream) -> dict[str, Any]:
    """How far the stream is."""
    log = stream.log
    return {
        "name": str(stream.name),
        "epoch": float(log.epoch),
        "end": float(log.end),
        "time": float(log.end_time_ms),
    }


def progressed(value: Any, catalogue: Mapping[StreamName, CatalogueEntry]) -> CatalogueEntry | None:
    """What the neighbour's entry is now, by what :func:`place_of` made; None if it has told of no such stream.

    Raises:
        RemoteProtocolError: nobody made that.
    """
    try:
        entry = catalogue.get(StreamName.parse(value["name"]))
        if entry is None:
            return None
        return attrs.evolve(entry, epoch=int(value["epoch"]), end=int(value["end"]), time_ms=int(value["time"]))
    except (NameRefused, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
