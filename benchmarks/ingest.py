"""How many streams a core can take from encoders, and copy.

    python benchmarks/ingest.py                          50 and 200 streams of 1 Mbit/s; 3 minutes

An origin that stores, and one distributor that copies all of it and stores that; nobody watches.  nginx-rtmp takes the
same streams, and stores nothing.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack

from contest import Column, Figures, Report, Row, hold, parser, publish_report, run_program
from servers import (
    LOAD_CORE,
    SERVER_CORE,
    cpu_seconds,
    nginx_on,
    node,
    publish,
    scratch_of,
    wait_for_picture,
)

PEER = "nginx-rtmp"
COLUMNS = [
    Column(figure="busy", title="of a core, %"),
    Column(figure="streams_per_core", title="streams a core", digits=0),
    Column(figure="cpu_per_gbit", title="CPU-s/Gbit", digits=2, ratio=True),
]


def measure(who: str, streams: int, kbits: float, seconds: float, settle: float) -> Figures:
    """One server under so many encoders."""
    with ExitStack() as stack:
        scratch = scratch_of(stack)
        if who == PEER:
            pids, port = nginx_on(stack, SERVER_CORE, scratch)
            watched = port
        else:
            cores = (SERVER_CORE, LOAD_CORE) if who == "relay-origin" else (LOAD_CORE, SERVER_CORE)
            origin, port = node(stack, "origin", "o1", cores[0], "--store", str(scratch / "o1"), scratch=scratch)
            upstream = f"tcp:127.0.0.1:{port}"
            store = str(scratch / "a1")
            options = ("--store", store, "--upstream", upstream)
            copier, watched = node(stack, "distributor", "a1", cores[1], *options, scratch=scratch)
            pids = [origin.pid if who == "relay-origin" else copier.pid]
        publish(stack, port, kbits, scratch, streams)
        wait_for_picture(f"rtmp://127.0.0.1:{watched}/live/bench{streams - 1}")
        time.sleep(settle)
        before, began = cpu_seconds(pids), time.monotonic()
        time.sleep(seconds)
        took, lasted = cpu_seconds(pids) - before, time.monotonic() - began
    return {
        "busy": 100 * took / lasted,
        "streams_per_core": streams * lasted / max(took, 0.01),  # the kernel's unit of CPU time
        "cpu_per_gbit": took / (streams * kbits * lasted * 1e-6),
    }


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("How many streams a core can take from encoders, and copy.")
    options_parser.add_argument("--streams", type=int, action="append", metavar="N", help="may be repeated (50, 200)")
    options_parser.add_argument("--kbits", type=float, default=1000, metavar="K", help="of each (default: 1000)")
    options_parser.add_argument("--seconds", type=float, default=8, metavar="S", help="measured (default: 8)")
    options_parser.add_argument("--without-peer", action="store_true", help="no nginx-rtmp")
    options = options_parser.parse_args()
    names = ["relay-origin", "relay-distributor", *([] if options.without_peer else [PEER])]
    report = Report(title=f"ingest, {options.kbits:g} kbit/s each", columns=COLUMNS, peer=PEER)
    report.rows = [Row(name=name, point={"streams": count}) for count in options.streams or [50, 200] for name in names]
    take = functools.partial(measure, kbits=options.kbits, seconds=options.seconds, settle=options.settle)
    hold(options.rounds, report.rows, lambda row: take(row.name, row.point["streams"]))
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
