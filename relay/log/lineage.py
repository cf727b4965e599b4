"""A stream's epochs, oldest first, and the small file that keeps them.

Owns the record and the form of ``meta``.  Called by :mod:`relay.log.stored`.
"""

from __future__ import annotations

import attrs

from relay.errors import PositionUnavailable, StoreDamaged
from relay.log.index import decode_line, encode_line
from relay.log.position import Position

META = "meta"
MAX_META_BYTES = 64 << 10
"""Bytes; ours has a few dozen for each epoch."""

MAX_LINEAGE = 16
"""Epochs remembered without any bytes.  A viewer's buffer spans one change of epoch, hardly two."""


@attrs.frozen
class Epoch:
    """One life of a log: which one it is, and where the one before ended."""

    epoch: int
    predecessor: Position | None = None
    time_ms: int = 0
    """Media time of its first byte."""


def encode_meta(boot_id: str, name: str, lineage: list[Epoch]) -> bytes:
    """The one line of ``meta``."""
    epochs = [
        {"epoch": known.epoch, "predecessor": str(known.predecessor or ""), "time_ms": known.time_ms}
        for known in lineage
    ]
    return encode_line({"version": 1, "name": name, "boot_id": boot_id, "epochs": epochs})


def decode_meta(data: bytes) -> tuple[str, str, list[Epoch]]:
    """``(boot_id, name, lineage)``.

    Raises:
        StoreDamaged: it is not what :func:`encode_meta` makes.
    """
    values = decode_line(data)
    if values is None or values.get("version") != 1:
        raise StoreDamaged("meta is damaged, or of another version")
    try:
        lineage = [
            Epoch(
                int(known["epoch"]),
                Position.parse(known["predecessor"]) if known["predecessor"] else None,
                int(known["time_ms"]),
            )
            for known in values["epochs"]
        ]
        return str(values["boot_id"]), str(values["name"]), lineage
    except (KeyError, TypeError, ValueError, PositionUnavailable) as error:
        raise StoreDamaged(f"meta lacks something: {error!r}") from error
