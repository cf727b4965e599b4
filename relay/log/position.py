"""A place in a stream's log that means the same on every node.

Owns the value and its text form.  Who may choose an epoch, and where a position is found, is not decided here.
"""

from __future__ import annotations

import re

import attrs

from relay.errors import PositionUnavailable

MAX_EPOCH = (1 << 53) - 1
"""Epochs travel as AMF0 numbers, which are doubles: whole up to 2**53."""

_TEXT = re.compile(r"([0-9]{1,16}):([0-9]{1,19})\Z", re.ASCII)


@attrs.frozen(order=True)
class Position:
    """Byte ``offset`` of the log's life ``epoch``.  The order is only meaningful within one epoch."""

    epoch: int = attrs.field()
    offset: int = attrs.field()

    @epoch.validator
    def _check_epoch(self, _: object, value: int) -> None:
        if not 1 <= value <= MAX_EPOCH:
            raise PositionUnavailable(f"epoch {value} is not between 1 and 2**53 - 1")

    @offset.validator
    def _check_offset(self, _: object, value: int) -> None:
        if value < 0:
            raise PositionUnavailable(f"offset {value} is negative")

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """``"7:4096"`` to a position.

        Raises:
            PositionUnavailable: the text is not EPOCH:OFFSET.
        """
        match = _TEXT.match(text)
        if match is None:
            raise PositionUnavailable(f"{text[:64]!r} is not EPOCH:OFFSET")
        return cls(int(match[1]), int(match[2]))
