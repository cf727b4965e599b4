"""What it costs to pass viewers on: our balancer beside HAProxy.

    python benchmarks/splice.py                  500 and 2,000 viewers of 1 Mbit/s; 12 minutes
    python benchmarks/splice.py --beside         ours and HAProxy at once, 200 to 1,000 viewers: finer; 11 minutes
    python benchmarks/splice.py --bulk           one connection as fast as it goes; 3 minutes

Each stands in front of a relay-aggregator, one process on one core; only that process is measured.  HAProxy runs in
each of its three ways: copying, ``splice-auto``, and splicing always (``splice-request``, ``splice-response``).  One
after another, they differ by more than they should: on a shared machine, the same server costs up to 1.3 times as much
a minute later.  Side by side, on the same core, their ratio differs by up to 8 %.

The bulk connection is a byte source in C behind HAProxy, or behind the balancer's own classes (``bulk_balancer.py``: a
balancer proper wants an aggregator), and a sink in C that throws away what it reads.  See benchmarks/README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from contest import Column, Figures, Report, Row, hold, parser, publish_report, run_program
from crowd import Crowd
from fanout import LEAST_MBIT, warn
from native import program
from nodes import free_ports
from servers import (
    LOAD_CORE,
    SERVER_CORE,
    ServerFailed,
    busy_seconds,
    cpu_seconds,
    node,
    publish,
    run,
    scratch_of,
    wait_for_picture,
)

MERGED_MS = 200  # twice what the aggregator merges for
PEER = "HAProxy, its best"
HAPROXY = """\
global
  maxconn 6000
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  {options}
listen all
  bind 127.0.0.1:{port}
  server only 127.0.0.1:{backend}
"""
WAYS = {
    "HAProxy, copying": "",
    "HAProxy, splice-auto": "option splice-auto",
    "HAProxy, splicing": "option splice-request\n  option splice-response",
}
COLUMNS = [
    Column(figure="cpu_per_gbit", title="CPU-s/Gbit", digits=3, ratio=True),
    Column(figure="lag_p99_ms", title="lag p99, ms"),
    Column(figure="load_busy", title="load's core, %", digits=0),
    Column(figure="delivered", title="delivered, %", digits=0),
]
BESIDE_COLUMNS = [
    Column(figure="ratio", title="ours to theirs", digits=2),
    Column(figure="cpu_per_gbit", title="ours, CPU-s/Gbit", digits=3),
    Column(figure="peer_cpu_per_gbit", title="theirs", digits=3),
    *COLUMNS[1:],
]
BULK_COLUMNS = [
    Column(figure="gbit_per_second", title="Gbit/s", ratio=True),
    Column(figure="cpu_per_gbit", title="CPU-s/Gbit", digits=3, ratio=True),
]

Proxy = Callable[[ExitStack, int, Path], tuple[int, int]]
"""Starts a proxy in front of a port; its process id and its port."""


def haproxy(options: str) -> Proxy:
    """In one of its ways."""

    def start(stack: ExitStack, backend: int, scratch: Path) -> tuple[int, int]:
        (port,) = free_ports(1)
        config = scratch / "haproxy.cfg"
        config.write_text(HAPROXY.format(options=options, port=port, backend=backend))
        command = ["haproxy", "-db", "-f", str(config)]
        return run(stack, command, SERVER_CORE, scratch / "haproxy.log", port).pid, port

    return start


def balancer(*options: str) -> Proxy:
    """Ours."""

    def start(stack: ExitStack, backend: int, scratch: Path) -> tuple[int, int]:
        only = f"agg1=tcp:127.0.0.1:{backend}"
        process, port = node(stack, "balancer", "lb1", SERVER_CORE, "--aggregator", only, *options, scratch=scratch)
        return process.pid, port

    return start


def bulk_balancer(stack: ExitStack, backend: int, scratch: Path) -> tuple[int, int]:
    """Our classes in front of a server that is no aggregator."""
    (port,) = free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("bulk_balancer.py")), str(port), str(backend)]
    return run(stack, command, SERVER_CORE, scratch / "balancer.log", port).pid, port


def costs(
    proxies: Sequence[Proxy], viewers: int, kbits: float, seconds: float, settle: float
) -> tuple[list[float], Figures]:
    """A crowd of so many viewers through each proxy, all at once, each in front of an aggregator of its own.

    Returns:
        CPU seconds that each took for a Gbit, and what the crowds saw.
    """
    with ExitStack() as stack:
        scratch = scratch_of(stack)
        _, origin = node(stack, "origin", "o1", LOAD_CORE, "--store", str(scratch / "o1"), scratch=scratch)
        publish(stack, origin, kbits, scratch)
        pids, urls = [], []
        for number, proxy in enumerate(proxies, 1):
            pair = f"a=tcp:127.0.0.1:{origin}"
            _, backend = node(stack, "aggregator", f"agg{number}", LOAD_CORE, "--pair", pair, scratch=scratch)
            pid, port = proxy(stack, backend, scratch)
            pids.append(pid)
            urls.append(f"rtmp://127.0.0.1:{port}/live/bench0")
            wait_for_picture(urls[-1])
        crowd = stack.enter_context(Crowd(core=LOAD_CORE))
        crowd.fill(urls, viewers * len(proxies), 300, settle + LEAST_MBIT * 1000 / kbits)
        before = [cpu_seconds([pid]) for pid in pids], busy_seconds(LOAD_CORE)
        window = crowd.run(seconds)
        took = [cpu_seconds([pid]) - since for pid, since in zip(pids, before[0], strict=True)]
        load_busy = busy_seconds(LOAD_CORE) - before[1]
    return [each * len(proxies) / (window.bytes * 8e-9) for each in took], {
        "lag_p99_ms": window.lag_ms.p99,
        "load_busy": 100 * max(load_busy, window.cpu_seconds) / window.seconds,
        "delivered": 100 * window.bytes * 8e-3 / (kbits * window.seconds * viewers * len(proxies)),
    }


def measure(proxy: Proxy, viewers: int, kbits: float, seconds: float, settle: float) -> Figures:
    """One alone."""
    (cost,), seen = costs([proxy], viewers, kbits, seconds, settle)
    return {"cpu_per_gbit": cost, **seen}


def measure_beside(peer: Proxy, viewers: int, kbits: float, seconds: float, settle: float) -> Figures:
    """Ours and a peer in the same seconds: what disturbs one disturbs the other."""
    (ours, theirs), seen = costs([balancer(), peer], viewers, kbits, seconds, settle)
    if not theirs:
        raise ServerFailed("less than a tick of processor time: more --viewers, --kbits or --seconds are wanted")
    return {"ratio": ours / theirs, "cpu_per_gbit": ours, "peer_cpu_per_gbit": theirs, **seen}


def measure_bulk(proxy: Proxy, seconds: float) -> Figures:
    """One connection, as fast as it goes."""
    with ExitStack() as stack:
        scratch = scratch_of(stack)
        (backend,) = free_ports(1)
        bulk = str(program("bulk"))
        run(stack, [bulk, "source", str(backend)], LOAD_CORE, scratch / "source.log", backend)
        pid, port = proxy(stack, backend, scratch)
        time.sleep(0.5)
        before = cpu_seconds([pid])
        sink = ["taskset", "-c", str(LOAD_CORE), bulk, "sink", str(port), str(seconds)]
        ended = subprocess.run(sink, capture_output=True, text=True, check=False, timeout=seconds + 20)
        took = cpu_seconds([pid]) - before
    if ended.returncode:
        raise ServerFailed(f"bulk: {ended.stderr.strip()}")
    told = json.loads(ended.stdout)
    gbit = told["bytes"] * 8e-9
    return {"gbit_per_second": gbit / told["seconds"], "cpu_per_gbit": took / gbit}


def add_best(
    report: Report, points: list[dict[str, object]], figure: str, best: Callable[[list[float]], float]
) -> None:
    """HAProxy's best way at each point is what we are compared with."""
    for point in points:
        rows = [row for row in report.rows if row.name in WAYS and row.point == point]
        if not rows:
            continue
        wanted = best([row.median(figure) for row in rows])
        found = next(row for row in rows if row.median(figure) == wanted)
        report.rows.append(Row(name=PEER, point=point, rounds=found.rounds))


def main() -> None:
    """Read the command line, measure, print."""
    options_parser = parser("What it costs to pass viewers on.")
    options_parser.add_argument(
        "--viewers",
        type=int,
        action="append",
        metavar="N",
        help="of each proxy, may be repeated (500, 2000; --beside: 200, 500, 1000)",
    )
    options_parser.add_argument("--kbits", type=float, default=1000, metavar="K", help="kbit/s (default: 1000)")
    options_parser.add_argument("--seconds", type=float, default=8, metavar="S", help="measured (default: 8)")
    kinds = options_parser.add_mutually_exclusive_group()
    kinds.add_argument("--bulk", action="store_true", help="one connection, as fast as it goes")
    kinds.add_argument("--beside", action="store_true", help="ours and one HAProxy at once, on the same core")
    options_parser.add_argument("--without-peer", action="store_true", help="no HAProxy")
    options = options_parser.parse_args()
    ways: dict[str, Proxy] = {} if options.without_peer else {name: haproxy(way) for name, way in WAYS.items()}
    if options.beside and not ways:
        options_parser.error("--beside --without-peer: there is nobody to be beside")
    usual = [200, 500, 1000] if options.beside else [500, 2000]
    points: list[dict[str, object]] = [{"viewers": count} for count in options.viewers or usual]
    take = {"kbits": options.kbits, "seconds": options.seconds, "settle": options.settle}
    if options.bulk:
        report = Report(title="splice, one bulk connection", columns=BULK_COLUMNS, peer=PEER)
        proxies = {"relay": bulk_balancer, **ways}
        report.rows = [Row(name=name, point={}) for name in proxies]
        hold(options.rounds, report.rows, lambda row: measure_bulk(proxies[row.name], options.seconds))
        add_best(report, [{}], "gbit_per_second", max)
    elif options.beside:
        report = Report(title=f"splice, {options.kbits:g} kbit/s, relay beside HAProxy", columns=BESIDE_COLUMNS)
        report.rows = [Row(name=name, point=point) for point in points for name in ways]
        hold(options.rounds, report.rows, lambda row: measure_beside(ways[row.name], row.point["viewers"], **take))
        warn(report)
    else:
        report = Report(title=f"splice, {options.kbits:g} kbit/s", columns=COLUMNS, peer=PEER)
        proxies = {"relay": balancer(), f"relay, {MERGED_MS} ms": balancer("--merge-ms", str(MERGED_MS)), **ways}
        report.rows = [Row(name=name, point=point) for point in points for name in proxies]
        hold(options.rounds, report.rows, lambda row: measure(proxies[row.name], row.point["viewers"], **take))
        add_best(report, points, "cpu_per_gbit", min)
        warn(report)
    publish_report(report, options)


if __name__ == "__main__":
    run_program(main)
