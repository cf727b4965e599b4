"""A balancer is upgraded under a crowd: how long each of its viewers waits, and whether one misses a byte.

    python benchmarks/take_over.py                       500 viewers, and three new processes one after another

A cluster of its own; the demo clip, padded to ``--kbits``, published at its origin; a balancer besides the cluster's,
whose viewers, over RTMP and HTTP-FLV, compare every byte with the stream as one of the distributors has it.  All the
time somebody connects anew each 10 ms.  See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs
from crowd import Crowd
from figures import table
from mass_failover import published, say, urls
from native import NoCompiler
from nodes import Cluster, ClusterFailed, free_ports, running_cluster, stop
from viewers import ViewerFailed, first_video_frame

from relay.tiers.supervise import TWISTD, child_environment

DOOR = "balancer.sock"  # where it runs: a whole path may have no more than 107 bytes
KNOCK_SECONDS = 0.01
TAKE_OVER_SECONDS = 30.0  # from the start of the new process to the end of the old one


class Knocker:
    """Connects again and again, and counts who is not let in."""

    def __init__(self, port: int) -> None:
        self.admitted = self.refused = 0
        self._port = port
        self._is_stopped = False
        self._thread = threading.Thread(target=self._knock, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._is_stopped = True
        self._thread.join()

    def _knock(self) -> None:
        while not self._is_stopped:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
                self.admitted += 1
            except OSError:
                self.refused += 1
            time.sleep(KNOCK_SECONDS)


class Balancer:
    """One after another, all with the same command line."""

    def __init__(self, cluster: Cluster, scratch: Path) -> None:
        (self.port,) = free_ports(1)
        self.log = scratch / "balancer.log"
        self._scratch = scratch
        self._command = [*TWISTD, "relay-balancer", "--name", "upgraded"]
        self._command += ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
        for name in ("agg1", "agg2"):
            self._command += ["--aggregator", f"{name}=tcp:127.0.0.1:{cluster.ports[name]}"]
        self._command += ["--handover", DOOR, "--take-over-from", DOOR]
        self.process = self._start()

    def upgrade(self) -> float:
        """Start the next one; the seconds until the one before has ended."""
        before, began = self.process, time.monotonic()
        self.process = self._start()
        with suppress(subprocess.TimeoutExpired):
            before.wait(TAKE_OVER_SECONDS)
        if before.returncode != 0:
            raise ClusterFailed(f"the upgrade did not come about\n{self.log.read_text()}")
        return time.monotonic() - began

    def rest_ms(self) -> int:
        """How long the viewers of the last upgrade were nobody's, as its log says."""
        return int(re.findall(r"rested for (\d+) ms", self.log.read_text())[-1])

    def stop(self) -> None:
        """End the last one."""
        if self.process.poll() is None:
            stop(self.process)

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            environment = child_environment(os.environ)
            return subprocess.Popen(
                self._command, cwd=self._scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )


def measure(viewers: int, kbits: float, seconds: float, rounds: int) -> list[dict[str, object]]:
    """All rounds, with one crowd."""
    results: list[dict[str, object]] = []
    with ExitStack() as stack:
        say("starting a cluster")
        cluster = stack.enter_context(running_cluster())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-benchmark-")))
        stack.enter_context(published(cluster, kbits, scratch))
        balancer = Balancer(cluster, scratch)
        stack.callback(balancer.stop)
        wait_for(urls(balancer.port)[1], balancer)
        crowd = stack.enter_context(Crowd(urls(cluster.ports["a2"])))
        say(f"{viewers} viewers come")
        crowd.fill(urls(balancer.port), viewers)
        for number in range(1, rounds + 1):
            before = crowd.run(seconds)
            say(f"upgrade {number}: {before.alive} viewers are there")
            knocker = Knocker(balancer.port)
            took = balancer.upgrade()
            after = crowd.run(seconds)
            knocker.stop()
            results.append(
                {
                    "round": number,
                    "viewers": before.alive,
                    "kbits": kbits,
                    "cut": after.cut - before.cut,
                    "wrong": after.wrong - before.wrong,
                    "admitted": knocker.admitted,
                    "refused": knocker.refused,
                    "seconds": round(took, 2),
                    "rest_ms": balancer.rest_ms(),
                    "pause_before_ms": attrs.asdict(before.pause_ms),
                    "pause_ms": attrs.asdict(after.pause_ms),
                    "behind": crowd.behind(),
                }
            )
    return results


def wait_for(url: str, balancer: Balancer) -> None:
    """Until it serves."""
    for attempt in itertools.count():
        try:
            first_video_frame(url)
            return
        except (ViewerFailed, OSError) as error:
            if attempt == 100 or balancer.process.poll() is not None:
                raise ClusterFailed(f"the balancer: {error}\n{balancer.log.read_text()}") from None
            time.sleep(0.1)


def as_table(results: list[dict[str, object]]) -> str:
    """For people."""
    head = ["upgrade", "viewers", "cut", "wrong", "behind", "refused", "took, s", "rest, ms"]
    rows: list[list[object]] = [[*head, "pause before, p99", "pause p50", "p99", "max, ms"]]
    for result in results:
        before, after = result["pause_before_ms"], result["pause_ms"]
        assert isinstance(before, dict) and isinstance(after, dict)
        refused = f"{result['refused']} of {result['admitted']}"
        pauses = [before["p99"], after["p50"], after["p99"], after["max"]]
        row = [*(result[name] for name in ("round", "viewers", "cut", "wrong", "behind")), refused]
        rows.append([*row, result["seconds"], result["rest_ms"], *pauses])
    return table(rows)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What a crowd of viewers sees when its balancer is upgraded.")
    parser.add_argument("--viewers", type=int, default=500, metavar="N", help="at the balancer (default: 500)")
    parser.add_argument(
        "--kbits", type=float, default=1000, metavar="K", help="the stream's rate, kbit/s (default: 1000)"
    )
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="watched before and after (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="upgrades one after another (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    results = measure(options.viewers, options.kbits, options.seconds, options.rounds)
    print(json.dumps(results, indent=2) if options.json else as_table(results))


if __name__ == "__main__":
    try:
        main()
    except (ClusterFailed, ViewerFailed, NoCompiler, OSError, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
