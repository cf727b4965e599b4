"""Rounds, medians, ratios, reports: what all benchmarks that compare have in common.

Single runs on a shared machine differ by up to 1.6 times, and a machine is faster at some times than at others.  So
contenders take turns, each in fresh processes, round after round; a figure is the median of its rounds, and what counts
is its ratio to the peer's in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from figures import table
from native import NoCompiler
from servers import ServerFailed, versions
from viewers import ViewerFailed

Figures = Mapping[str, float]


@attrs.define(kw_only=True)
class Row:
    """One contender at one point."""

    name: str
    point: Mapping[str, Any]
    rounds: list[Figures] = attrs.field(factory=list)

    def median(self, figure: str) -> float:
        """Of all rounds."""
        return statistics.median(each[figure] for each in self.rounds)


@attrs.frozen(kw_only=True)
class Column:
    """A figure as the table shows it.  ``ratio``: besides, divided by the peer's."""

    figure: str
    title: str
    digits: int = 1
    ratio: bool = False


@attrs.define(kw_only=True)
class Report:
    """What a benchmark found."""

    title: str
    columns: Sequence[Column]
    peer: str = ""
    rows: list[Row] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)

    def peer_of(self, row: Row) -> Row | None:
        """The peer's row at the same point."""
        return next((each for each in self.rows if each.name == self.peer and each.point == row.point), None)

    def ratio(self, row: Row, figure: str) -> float | None:
        """To the peer's; None if there is none."""
        peer = self.peer_of(row)
        return None if peer is None or not peer.median(figure) else row.median(figure) / peer.median(figure)

    def table(self) -> str:
        """For people."""
        points = list(dict.fromkeys(name for row in self.rows for name in row.point))
        head = ["", *points]
        for column in self.columns:
            head += [column.title, f"to {self.peer}"] if column.ratio and self.peer else [column.title]
        lines: list[list[object]] = [list(head)]
        for row in self.rows:
            cells: list[object] = [row.name, *(str(row.point.get(name, "")) for name in points)]
            for column in self.columns:
                is_there = row.rounds and column.figure in row.rounds[0]
                cells.append(f"{row.median(column.figure):.{column.digits}f}" if is_there else "-")
                if column.ratio and self.peer:
                    ratio = self.ratio(row, column.figure) if is_there else None
                    cells.append("-" if ratio is None else f"{ratio:.2f}")
            lines.append(cells)
        return "\n".join([self.title, table(lines), *self.notes])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "title": self.title,
            "peer": self.peer,
            "versions": versions(),
            "command": sys.argv,
            "notes": self.notes,
            "rows": [
                {
                    "name": row.name,
                    "point": dict(row.point),
                    "median": {figure: row.median(figure) for figure in (row.rounds[0] if row.rounds else {})},
                    "ratio": {column.figure: self.ratio(row, column.figure) for column in self.columns if column.ratio},
                    "rounds": [dict(each) for each in row.rounds],
                }
                for row in self.rows
            ],
        }

    def plot(self, path: Path) -> None:
        """A bar for each row, with a mark for each round, of the first column's figure."""
        import matplotlib  # noqa: PLC0415 (only whoever wants a picture needs it)

        matplotlib.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415

        column = self.columns[0]
        labels = [" ".join([row.name, *(f"{key}={value}" for key, value in row.point.items())]) for row in self.rows]
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.4 * len(self.rows)), layout="constrained")
        colors = ["tab:gray" if row.name == self.peer else "tab:blue" for row in self.rows]
        axes.barh(labels, [row.median(column.figure) for row in self.rows], color=colors)
        for place, row in enumerate(self.rows):
            axes.plot([each[column.figure] for each in row.rounds], [place] * len(row.rounds), "k|")
        axes.invert_yaxis()
        axes.set_xlabel(f"{column.title} (bar: median; marks: rounds)")
        axes.set_title(self.title, fontsize="medium")
        figure.savefig(path)
        pyplot.close(figure)


def hold(rounds: int, rows: Sequence[Row], measure: Callable[[Row], Figures]) -> None:
    """All rows in turn, round after round."""
    for number in range(1, rounds + 1):
        for row in rows:
            point = " ".join(f"{key}={value}" for key, value in row.point.items())
            say(f"round {number} of {rounds}: {row.name} {point}")
            row.rounds.append(measure(row))


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def parser(description: str, rounds: int = 3) -> argparse.ArgumentParser:
    """With the options that all have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds, metavar="R", help=f"of each (default: {rounds})")
    made.add_argument(
        "--settle", type=float, default=5.0, metavar="S", help="watched before it is measured (default: 5)"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, .svg; needs matplotlib)")
    return made


def publish_report(report: Report, options: argparse.Namespace) -> None:
    """Where the options say."""
    print(report.table())
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    if options.plot:
        report.plot(options.plot)


def run_program(main: Callable[[], None]) -> None:
    """Run it; what is not a fault of ours ends it with one line."""
    try:
        main()
    except (ServerFailed, ViewerFailed, NoCompiler, OSError, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
