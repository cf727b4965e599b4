"""Rows of a drill, their table, their verdict.

Owns the words and columns.  Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs

from relay.drill.judge import Findings

Promise = Literal["nothing is seen", "the origin's", "served again", "none"]
"""What the row must show: nothing at all (a server with a backup); no cut and nothing twice (the origin, whose encoder
is cut off); that a viewer who comes again is served (the balancer); or it is only shown."""

COLUMNS = (
    ("node", 6),
    ("fault", 7),
    ("viewers", 7),
    ("cut", 4),
    ("missing", 7),
    ("twice", 5),
    ("disorder", 8),
    ("pause p99", 10),
    ("max", 7),
    ("normal after", 12),
)
_RED, _GREEN, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"


@attrs.frozen(kw_only=True)
class Row:
    """One fault at one node."""

    node: str
    fault: str
    promise: Promise
    viewers: int
    cut: int
    found: Findings
    seconds_to_normal: float | None  # None: not within the time there was
    seconds_to_served: float | None = None  # until a viewer who came again had a frame, where viewers are cut

    @property
    def is_kept(self) -> bool:
        """Did the promise hold?"""
        found = self.found
        if self.promise == "none":
            return True
        if self.seconds_to_normal is None:
            return False
        if self.promise == "served again":
            return self.seconds_to_served is not None
        is_clean = found.is_clean or (self.promise == "the origin's" and attrs.evolve(found, missing=0).is_clean)
        return self.cut == 0 and is_clean and found.messages > 0

    @property
    def pause_p99(self) -> float:
        """Seconds: the longest time without a message, of the viewer who waited longest but one in a hundred."""
        ordered = sorted(self.found.pauses)
        return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)] if ordered else 0.0

    @property
    def pause_max(self) -> float:
        """Seconds."""
        return max(self.found.pauses, default=0.0)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        found = self.found
        return {
            "node": self.node,
            "fault": self.fault,
            "promise": self.promise,
            "kept": self.is_kept,
            "viewers": self.viewers,
            "cut": self.cut,
            "missing": found.missing,
            "repeated": found.repeated,
            "out_of_order": found.out_of_order,
            "timestamps_back": found.backwards,
            "messages": found.messages,
            "pause_p99_ms": round(self.pause_p99 * 1000),
            "pause_max_ms": round(self.pause_max * 1000),
            "normal_after_s": None if self.seconds_to_normal is None else round(self.seconds_to_normal, 2),
            "served_again_after_s": None if self.seconds_to_served is None else round(self.seconds_to_served, 2),
        }


def unbroken(fault: str, viewers: int, cut: int, found: Findings) -> Row:
    """A row of no node: nothing is broken, or its operator breaks it; nothing must be seen."""
    return Row(
        node="-",
        fault=fault,
        promise="nothing is seen",
        viewers=viewers,
        cut=cut,
        found=found,
        seconds_to_normal=0.0,
    )


def heading() -> str:
    """The names of the columns."""
    return _line([name for name, _ in COLUMNS])


def line(row: Row, colour: bool = False) -> str:
    """A row for people; what is not promised stands in brackets."""
    found = row.found
    is_judged = row.promise == "nothing is seen"
    cells = [
        row.node,
        row.fault,
        str(row.viewers),
        _count(row.cut, row.promise != "served again"),
        _count(found.missing, is_judged),
        str(found.repeated),
        str(found.out_of_order + found.backwards),
        f"{row.pause_p99 * 1000:.0f} ms",
        f"{row.pause_max * 1000:.0f} ms",
        "never" if row.seconds_to_normal is None else f"{row.seconds_to_normal:.1f} s",
    ]
    text = _line(cells)
    if row.promise == "served again" and row.seconds_to_served is not None:
        text += f"   served again after {row.seconds_to_served:.1f} s"
    if not row.is_kept:
        text += "   BROKEN"
    if colour and row.promise != "none":
        text = f"{_GREEN if row.is_kept else _RED}{text}{_PLAIN}"
    return text


def total(rows: Sequence[Row]) -> Row:
    """All rows of servers that have a backup, as one."""
    judged = [row for row in rows if row.promise == "nothing is seen"]
    found = Findings()
    for row in judged:
        found.add(row.found)
    times = [row.seconds_to_normal for row in judged]
    return Row(
        node="total",
        fault=str(len(judged)),
        promise="none",
        viewers=max((row.viewers for row in judged), default=0),
        cut=sum(row.cut for row in judged),
        found=found,
        seconds_to_normal=None if None in times else max((time for time in times if time is not None), default=0.0),
    )


def verdict(rows: Sequence[Row]) -> tuple[bool, str]:
    """Did it hold, and the sentence that says so."""
    broken = [f"{row.node} {row.fault}" for row in rows if not row.is_kept]
    if broken:
        return False, f"BROKEN: {', '.join(broken)}"
    return True, "the promise held"


def _count(count: int, is_promised: bool) -> str:
    return str(count) if is_promised or not count else f"({count})"


def _line(cells: Sequence[str]) -> str:
    padded = [
        cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, (_, width)) in enumerate(_columns(cells))
    ]
    return "  ".join(padded).rstrip()


def _columns(cells: Sequence[str]) -> list[tuple[str, tuple[str, int]]]:
    return list(zip(cells, COLUMNS, strict=True))
