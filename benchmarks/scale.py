"""Does a viewer cost the same among thousands as among hundreds?

    python benchmarks/scale.py                           300, 1,000 and 3,000 viewers of 1 Mbit/s; 4 minutes

Ours (relay-aggregator) over RTMP and HTTP-FLV: CPU time for each delivered Gbit, and its ratio to that with the fewest
viewers.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools
import sys

from contest import Column, Report, Row, hold, parser, publish_report
from fanout import READING_SECONDS, measure, warn
from native import NoCompiler
from servers import Contender, ServerFailed, aggregator
from viewers import ViewerFailed

COLUMNS = [
    Column(figure="cpu_per_gbit", title="CPU-s/Gbit", digits=3, ratio=True),
    Column(figure="lag_p99_ms", title="lag p99, ms"),
    Column(figure="load_busy", title="load's core, %", digits=0),
    Column(figure="delivered", title="delivered, %", digits=0),
]


class ScaleReport(Report):
    """The peer is the same server, with the fewest viewers."""

    def peer_of(self, row: Row) -> Row | None:
        fewest = min(each.point["viewers"] for each in self.rows)
        return next(each for each in self.rows if each.name == row.name and each.point["viewers"] == fewest)


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("Does a viewer cost the same among thousands as among hundreds?")
    options_parser.add_argument(
        "--viewers", type=int, action="append", metavar="N", help="may be repeated (300, 1000, 3000)"
    )
    options_parser.add_argument("--kbits", type=float, default=1000, metavar="K", help="kbit/s (default: 1000)")
    options_parser.add_argument("--seconds", type=float, default=8, metavar="S", help="measured (default: 8)")
    options = options_parser.parse_args()
    entries = {
        "relay": Contender(name="relay", start=aggregator()),
        "relay FLV": Contender(name="relay FLV", start=aggregator(), kind="http"),
    }
    report = ScaleReport(title=f"scale, {options.kbits:g} kbit/s", columns=COLUMNS, peer="the fewest")
    report.rows = [
        Row(name=name, point={"viewers": n}) for name in entries for n in options.viewers or [300, 1000, 3000]
    ]
    settle = READING_SECONDS * 1000 / options.kbits
    take = functools.partial(measure, kbits=options.kbits, seconds=options.seconds, settle=settle)
    hold(options.rounds, report.rows, lambda row: take(entries[row.name], row.point["viewers"]))
    warn(report)
    publish_report(report, options)


if __name__ == "__main__":
    try:
        main()
    except (ServerFailed, ViewerFailed, NoCompiler, OSError, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
