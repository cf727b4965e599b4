"""Does a viewer cost the same among thousands as among hundreds?

    python benchmarks/scale.py                           300, 1,000 and 3,000 viewers of 1 Mbit/s; 4 minutes

Ours (relay-aggregator) over RTMP and HTTP-FLV: CPU time for each delivered Gbit, and its ratio to that with the fewest
viewers.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools

from contest import Column, Report, Row, hold, parser, publish_report, run_program
from fanout import LEAST_MBIT, measure, warn
from servers import all_contenders

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
    entries = {contender.name: contender for contender in all_contenders(without_peer=True)}
    report = ScaleReport(title=f"scale, {options.kbits:g} kbit/s", columns=COLUMNS, peer="the fewest")
    report.rows = [
        Row(name=name, point={"viewers": n}) for name in entries for n in options.viewers or [300, 1000, 3000]
    ]
    settle = options.settle + LEAST_MBIT * 1000 / options.kbits
    take = functools.partial(measure, kbits=options.kbits, seconds=options.seconds, settle=settle)
    hold(options.rounds, report.rows, lambda row: take(entries[row.name], row.point["viewers"]))
    warn(report)
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
