"""How much later a viewer behind all four tiers sees a picture than one at the origin.

    python benchmarks/chain.py                           100 viewers of one stream, and of 50 streams; 2 minutes

An origin, a pair of distributors, an aggregator and a balancer.  A reference at the origin, and the viewers at the
balancer, are in one process with one clock; lag is arrival minus timestamp, less the smallest such difference of all,
so it is the whole way from the encoder's socket but for the quickest picture's way to the reference (under 1 ms).
All share the machine's cores.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack

from contest import Column, Figures, Report, Row, hold, parser, publish_report, run_program
from crowd import Crowd
from servers import cpu_seconds, node, publish, scratch_of, wait_for_picture
from viewers import ViewerFailed

COLUMNS = [
    Column(figure="lag_p50_ms", title="lag p50, ms"),
    Column(figure="lag_p99_ms", title="p99"),
    Column(figure="lag_max_ms", title="max"),
    Column(figure="nodes_busy", title="CPU of all nodes, %", digits=0),
    Column(figure="load_busy", title="of the viewers, %", digits=0),
]
URLS = 8  # that the crowd takes at once


def measure(viewers: int, streams: int, kbits: float, seconds: float, settle: float) -> Figures:
    """One chain."""
    with ExitStack() as stack:
        scratch = scratch_of(stack)
        start = functools.partial(node, stack, scratch=scratch)
        processes = []
        process, origin = start("origin", "o1", None, "--store", str(scratch / "o1"))
        processes.append(process)
        members = []
        for name in ("a1", "a2"):
            process, port = start("distributor", name, None, "--upstream", f"tcp:127.0.0.1:{origin}")
            processes.append(process)
            members.append(f"tcp:127.0.0.1:{port}")
        process, aggregator = start("aggregator", "agg1", None, "--pair", f"a={','.join(members)}")
        processes.append(process)
        process, balancer = start("balancer", "lb1", None, "--aggregator", f"agg1=tcp:127.0.0.1:{aggregator}")
        processes.append(process)
        publish(stack, origin, kbits, scratch, streams)
        wait_for_picture(f"rtmp://127.0.0.1:{balancer}/live/bench{streams - 1}")
        crowd = stack.enter_context(Crowd([f"rtmp://127.0.0.1:{origin}/live/bench0"], is_judge=False))
        for first in range(0, streams, URLS):
            some = range(first, min(first + URLS, streams))
            urls = [f"rtmp://127.0.0.1:{balancer}/live/bench{number}" for number in some]
            crowd.join(urls, max(len(urls), viewers * len(urls) // streams))
        crowd.run(settle)
        pids = [process.pid for process in processes]
        before = cpu_seconds(pids)
        window = crowd.run(seconds)
        took = cpu_seconds(pids) - before
    if window.cut or window.wrong:
        raise ViewerFailed(f"viewers were lost: {window}")
    return {
        "lag_p50_ms": window.lag_ms.p50,
        "lag_p99_ms": window.lag_ms.p99,
        "lag_max_ms": window.lag_ms.max,
        "nodes_busy": 100 * took / window.seconds,
        "load_busy": 100 * window.cpu_seconds / window.seconds,
    }


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("How much later a viewer behind all four tiers sees a picture.")
    options_parser.add_argument("--viewers", type=int, default=100, metavar="N", help="(default: 100)")
    options_parser.add_argument("--streams", type=int, action="append", metavar="N", help="may be repeated (1, 50)")
    options_parser.add_argument("--kbits", type=float, default=1000, metavar="K", help="of each (default: 1000)")
    options_parser.add_argument("--seconds", type=float, default=8, metavar="S", help="measured (default: 8)")
    options = options_parser.parse_args()
    report = Report(title="through four tiers", columns=COLUMNS)
    report.rows = [
        Row(name="relay", point={"streams": count, "viewers": max(count, options.viewers)})
        for count in options.streams or [1, 50]
    ]
    take = functools.partial(
        measure, options.viewers, kbits=options.kbits, seconds=options.seconds, settle=options.settle
    )
    hold(options.rounds, report.rows, lambda row: take(row.point["streams"]))
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
