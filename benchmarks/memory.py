"""What viewers and streams cost in memory.

    python benchmarks/memory.py                          3,000 viewers, 100 streams; 4 minutes

Resident memory (VmRSS) of relay-aggregator and of nginx-rtmp, before and after: divided by the number of viewers that
came meanwhile and watch, or by the number of streams.  The logs themselves are in memfds, which are no part of it: they
are in a column of their own.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack

from contest import Column, Figures, Report, Row, hold, parser, publish_report, run_program
from crowd import Crowd
from resident import memory_of
from servers import (
    LOAD_CORE,
    SERVER_CORE,
    Contender,
    all_contenders,
    node,
    publish,
    running,
    scratch_of,
    wait_for_picture,
)

PEER = "nginx-rtmp"
COLUMNS = [
    Column(figure="kib_each", title="resident, KiB each", ratio=True),
    Column(figure="log_kib_each", title="log (memfd), KiB each", digits=0),
    Column(figure="resident_mb", title="all, MB"),
]


def figures(before: tuple[int, int], after: tuple[int, int], count: int) -> Figures:
    """What so many have added."""
    return {
        "kib_each": (after[0] - before[0]) / 1024 / count,
        "log_kib_each": (after[1] - before[1]) / 1024 / count,
        "resident_mb": after[0] / 1e6,
    }


def held(pids: list[int]) -> tuple[int, int]:
    """Resident memory and memfds of all of them."""
    each = [memory_of(pid) for pid in pids]
    return sum(one.resident for one in each), sum(one.log for one in each)


def of_viewers(contender: Contender, viewers: int, kbits: float, settle: float) -> Figures:
    """Viewers that watch."""
    with running(contender, kbits) as server, Crowd(core=LOAD_CORE) as crowd:
        url = server.http if contender.kind == "http" else server.rtmp
        crowd.fill([url], 10, settle=settle)  # what the first ones need is not theirs alone
        before = held(list(server.pids))
        crowd.fill([url], viewers, settle=2 * settle)
        after = held(list(server.pids))
    return figures(before, (after[0], before[1]), viewers)


def of_streams(streams: int, kbits: float, seconds: float) -> Figures:
    """Streams that nobody watches."""
    with ExitStack() as stack:
        scratch = scratch_of(stack)
        _, origin = node(stack, "origin", "o1", LOAD_CORE, "--store", str(scratch / "o1"), scratch=scratch)
        pair = f"a=tcp:127.0.0.1:{origin}"
        process, port = node(stack, "aggregator", "agg1", SERVER_CORE, "--pair", pair, scratch=scratch)
        publish(stack, origin, kbits, scratch)
        wait_for_picture(f"rtmp://127.0.0.1:{port}/live/bench0")
        before = held([process.pid])
        more = scratch_of(stack)
        publish(stack, origin, kbits, more, streams, "more")
        wait_for_picture(f"rtmp://127.0.0.1:{port}/live/more{streams - 1}")
        with Crowd(core=LOAD_CORE) as crowd:
            crowd.run(seconds)
        return figures(before, held([process.pid]), streams)


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("What viewers and streams cost in memory.", rounds=1)
    options_parser.add_argument("--viewers", type=int, default=3000, metavar="N", help="(default: 3000)")
    options_parser.add_argument("--streams", type=int, default=100, metavar="N", help="(default: 100)")
    options_parser.add_argument("--kbits", type=float, default=300, metavar="K", help="of each (default: 300)")
    options_parser.add_argument("--without-peer", action="store_true", help="no nginx-rtmp")
    options = options_parser.parse_args()
    entries = all_contenders(without_peer=options.without_peer)
    report = Report(title="memory", columns=COLUMNS, peer=PEER)
    by_row = {}
    for entry in entries:
        row = Row(name=entry.name, point={"of": f"{options.viewers} viewers"})
        report.rows.append(row)
        by_row[id(row)] = functools.partial(of_viewers, entry, options.viewers, options.kbits, options.settle)
    row = Row(name="relay", point={"of": f"{options.streams} streams"})
    report.rows.append(row)
    by_row[id(row)] = functools.partial(of_streams, options.streams, options.kbits, 2 * options.settle)
    hold(options.rounds, report.rows, lambda row: by_row[id(row)]())
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
