"""How much of a log is kept.

Owns the numbers, their units and defaults; :mod:`relay.log.log` enforces them.
"""

from __future__ import annotations

import attrs


def _positive(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value <= 0:
        raise ValueError(f"{attribute.name} must be positive, not {value}")


@attrs.frozen(kw_only=True)
class LogOptions:
    """How much of a log is kept, and in pieces of what size."""

    segment_bytes: int = attrs.field(default=8 << 20, validator=_positive)
    """Bytes; a quarter of ``keep_bytes`` if that is less.  A drop is one unlink, a recovery scans one segment."""
    segment_ms: int = attrs.field(default=10_000, validator=_positive)
    """ms of media; a few GOPs, so that retention by seconds is not coarser than that."""
    keep_ms: int = attrs.field(default=60_000, validator=_positive)
    """ms of media; twice the lag at which a viewer is closed."""
    keep_bytes: int = attrs.field(default=256 << 20, validator=_positive)
    """Bytes of the log and of what is remembered of its messages; 60 s at 34 Mbit/s."""
    memory_bytes: int = attrs.field(default=64 << 20, validator=_positive)
    """Bytes of the FLV rendition, and of a log whose store has failed."""


DEFAULT_OPTIONS = LogOptions()
