"""How viewers come: how soon each has a picture, and how many a core can let in.

    python benchmarks/join.py                            1,000 joins at 200 a second, and 2,000 all at once; 3 minutes

Ours (relay-aggregator) over RTMP and HTTP-FLV, and nginx-rtmp, with a stream of 1 Mbit/s that has a keyframe each
second.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools

from contest import Column, Figures, Report, Row, hold, parser, publish_report, run_program
from crowd import Crowd
from servers import LOAD_CORE, Contender, all_contenders, cpu_seconds, running
from viewers import ViewerFailed

PEER = "nginx-rtmp"
AT_ONCE = 1e6  # joins a second
TICK_SECONDS = 0.01  # the kernel's unit of CPU time: a few joins may take none
COLUMNS = [
    Column(figure="first_p50_ms", title="first picture p50, ms"),
    Column(figure="first_p99_ms", title="p99, ms"),
    Column(figure="seconds", title="all there, s"),
    Column(figure="joins_per_core", title="joins a CPU-s", digits=0, ratio=True),
]


def measure(contender: Contender, joins: int, rate: float, kbits: float) -> Figures:
    """One crowd comes."""
    with running(contender, kbits) as server:
        url = server.http if contender.kind == "http" else server.rtmp
        with Crowd(core=LOAD_CORE) as crowd:
            before = cpu_seconds(server.pids)
            came = crowd.join([url], joins, rate)
            took = cpu_seconds(server.pids) - before
    if came.without_picture or came.cut:
        raise ViewerFailed(f"{contender.name}: not all viewers have joined: {came}")
    return {
        "first_p50_ms": came.first_frame_ms.p50,
        "first_p99_ms": came.first_frame_ms.p99,
        "seconds": came.seconds,
        "joins_per_core": joins / max(took, TICK_SECONDS),
    }


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("How viewers come.")
    options_parser.add_argument("--joins", type=int, default=1000, metavar="N", help="in a row (default: 1000)")
    options_parser.add_argument("--rate", type=float, default=200, metavar="R", help="of them a second (default: 200)")
    options_parser.add_argument("--storm", type=int, default=2000, metavar="N", help="all at once (default: 2000)")
    options_parser.add_argument("--kbits", type=float, default=1000, metavar="K", help="kbit/s (default: 1000)")
    options_parser.add_argument("--without-peer", action="store_true", help="no nginx-rtmp")
    options = options_parser.parse_args()
    entries = all_contenders(without_peer=options.without_peer)
    report = Report(title="viewers come", columns=COLUMNS, peer=PEER)
    by_row = {}
    for joins, rate in ((options.joins, options.rate), (options.storm, AT_ONCE)):
        for entry in entries:
            how = "all at once" if rate == AT_ONCE else f"{rate:g} a second"
            row = Row(name=entry.name, point={"joins": joins, "how": how})
            report.rows.append(row)
            by_row[id(row)] = functools.partial(measure, entry, joins, rate, options.kbits)
    hold(options.rounds, report.rows, lambda row: by_row[id(row)]())
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
