"""What it costs to send one stream to many: CPU time of the sending process for each delivered Gbit, and the lag.

    python benchmarks/fanout.py                  1,000 viewers of 1 Mbit/s, at several merge intervals; 10 minutes
    python benchmarks/fanout.py --viewers 2000 --viewers 3000 --interval 100

Ours (relay-aggregator, its viewers connected to it directly), nginx-rtmp, and a bare loop in C that makes the same
system calls as ours (``native/limit.c``).  nginx-rtmp sends every frame to every viewer alone, which costs the load as
much as nginx: with more than ``--peer-viewers``, it is the load that would be measured.  So those that have more are
compared with nginx-rtmp at so many.  See benchmarks/README.md.
"""

from __future__ import annotations

import functools

from contest import Column, Figures, Report, Row, hold, parser, publish_report, run_program, say
from crowd import Crowd
from servers import (
    LOAD_CORE,
    SERVER_CORE,
    Contender,
    aggregator,
    busy_seconds,
    cpu_seconds,
    limit,
    nginx_rtmp,
    running,
)

from relay.net.wakeup import slices_for

PEER = "nginx-rtmp"
PEER_VIEWERS = 1000
LEAST_MBIT = 8  # that a viewer must have had to be known to read, and be woken with the others; with some to spare
COLUMNS = [
    Column(figure="cpu_per_gbit", title="CPU-s/Gbit", digits=3, ratio=True),
    Column(figure="lag_p50_ms", title="lag p50, ms"),
    Column(figure="lag_p99_ms", title="p99"),
    Column(figure="server_busy", title="core busy, %", digits=0),
    Column(figure="load_busy", title="load's, %", digits=0),
    Column(figure="delivered", title="delivered, %", digits=0),
]


class FanoutReport(Report):
    """The peer has as many viewers, or as many as the load can bear."""

    def peer_of(self, row: Row) -> Row | None:
        peers = [each for each in self.rows if each.name == self.peer]
        return min(peers, key=lambda each: abs(each.point["viewers"] - row.point["viewers"]), default=None)


def contenders(interval_ms: int, viewers: int) -> list[Contender]:
    """All that can keep this interval; the C loop deals its viewers as ours does."""
    ours = aggregator("--merge-ms", str(interval_ms))
    slices = slices_for(viewers, interval_ms / 1000)
    return [
        Contender(name=f"relay {interval_ms} ms", start=ours),
        Contender(name=f"relay FLV {interval_ms} ms", start=ours, kind="http"),
        Contender(name=f"C loop {interval_ms} ms", start=limit(interval_ms, slices), kind="http"),
    ]


def measure(contender: Contender, viewers: int, kbits: float, seconds: float, settle: float) -> Figures:
    """One contender with one crowd."""
    with running(contender, kbits) as server:
        url = server.http if contender.kind == "http" else server.rtmp
        with Crowd(core=LOAD_CORE) as crowd:
            crowd.fill([url], viewers, settle=settle)
            before = [cpu_seconds(server.pids), busy_seconds(SERVER_CORE), busy_seconds(LOAD_CORE)]
            window = crowd.run(seconds)
            after = [cpu_seconds(server.pids), busy_seconds(SERVER_CORE), busy_seconds(LOAD_CORE)]
    took, server_busy, load_busy = (after[i] - before[i] for i in range(3))
    if window.alive < viewers:
        say(f"  {viewers - window.alive} viewers are gone")
    return {
        "cpu_per_gbit": took / (window.bytes * 8e-9),
        "lag_p50_ms": window.lag_ms.p50,
        "lag_p99_ms": window.lag_ms.p99,
        "server_busy": 100 * server_busy / window.seconds,
        "load_busy": 100 * max(load_busy, window.cpu_seconds) / window.seconds,
        "delivered": 100 * window.bytes * 8e-3 / (kbits * window.seconds * viewers),
    }


def warn(report: Report) -> None:
    """Say when it was not the server that was measured."""
    for row in report.rows:
        place = " ".join([row.name, *map(str, row.point.values())])
        if row.median("load_busy") > 85:
            report.notes.append(
                f"{place}: the load's core was busy for {row.median('load_busy'):.0f} %: not to be trusted"
            )
        if row.median("delivered") < 97:
            report.notes.append(f"{place}: only {row.median('delivered'):.0f} % of the stream was delivered")


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("What it costs to send one stream to many.")
    options_parser.add_argument("--viewers", type=int, action="append", metavar="N", help="may be repeated (1000)")
    options_parser.add_argument(
        "--interval", type=int, action="append", metavar="MS", help="merge interval, may be repeated (0, 100, 350)"
    )
    options_parser.add_argument("--kbits", type=float, default=1000, metavar="K", help="kbit/s (default: 1000)")
    options_parser.add_argument("--seconds", type=float, default=8, metavar="S", help="measured (default: 8)")
    options_parser.add_argument("--without-peer", action="store_true", help="no nginx-rtmp")
    options_parser.add_argument(
        "--peer-viewers",
        type=int,
        default=PEER_VIEWERS,
        metavar="N",
        help=f"nginx-rtmp's at the most: with more, the load's core is too busy (default: {PEER_VIEWERS})",
    )
    options = options_parser.parse_args()
    wanted = options.viewers or [1000]
    entries = [
        (viewers, contender)
        for viewers in wanted
        for interval in options.interval or [0, 100, 350]
        for contender in contenders(interval, viewers)
    ]
    if not options.without_peer:
        peer = Contender(name=PEER, start=nginx_rtmp)
        entries += [(viewers, peer) for viewers in sorted({min(each, options.peer_viewers) for each in wanted})]
    report = FanoutReport(title=f"fan-out, {options.kbits:g} kbit/s", columns=COLUMNS, peer=PEER)
    by_row = {}
    settle = options.settle + LEAST_MBIT * 1000 / options.kbits
    for viewers, entry in entries:
        row = Row(name=entry.name, point={"viewers": viewers})
        report.rows.append(row)
        by_row[id(row)] = functools.partial(measure, entry, viewers, options.kbits, options.seconds, settle)
    hold(options.rounds, report.rows, lambda row: by_row[id(row)]())
    warn(report)
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
