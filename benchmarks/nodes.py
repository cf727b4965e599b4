"""A whole cluster on free ports of this machine, for as long as a benchmark runs.

Owns the cluster file, the process that runs it, and its end.  Called by the benchmarks when they are not given the URL
of something that runs already.

The cluster is ``twistd -n relay`` with one pair of distributors: origin, a1 and a2, agg1 and agg2, balancer, each a
process of its own, and the demo clip published as ``live/demo``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import attrs
from viewers import ViewerFailed, first_video_frame

from relay.tiers.supervise import TWISTD, child_environment

START_SECONDS = 30  # from starting the first process to the first frame at the balancer, on a busy machine
STOP_SECONDS = 20  # a node gives its viewers 5 s

CLUSTER = """\
demo = "live/demo"
store = "store"

[[origin]]
name = "o1"
listen = "tcp:{o1}:interface=127.0.0.1"

[[pair]]
name = "a"
[[pair.distributor]]
name = "a1"
listen = "tcp:{a1}:interface=127.0.0.1"
[[pair.distributor]]
name = "a2"
listen = "tcp:{a2}:interface=127.0.0.1"

[[aggregator]]
name = "agg1"
listen = "tcp:{agg1}:interface=127.0.0.1"
[[aggregator]]
name = "agg2"
listen = "tcp:{agg2}:interface=127.0.0.1"

[[balancer]]
name = "lb1"
listen = "tcp:{lb1}:interface=127.0.0.1"
admin = "tcp:{lb1_admin}:interface=127.0.0.1"
"""

PORTS = ("o1", "a1", "a2", "agg1", "agg2", "lb1", "lb1_admin")


class ClusterFailed(Exception):
    """It did not start; the message ends with the last lines of its log."""


@attrs.frozen
class Cluster:
    """A running cluster."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    log: Path

    def urls(self, node: str) -> list[str]:
        """Where ``node`` serves the demo, over RTMP and over HTTP-FLV."""
        place = f"127.0.0.1:{self.ports[node]}/live/demo"
        return [f"rtmp://{place}", f"http://{place}.flv"]

    def pid(self, node: str) -> int:
        """The process of ``node``: the child of the cluster's own process that was given this name."""
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                command = (directory / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            if parent == self.process.pid and node.encode() in command:
                return int(directory.name)
        raise ClusterFailed(f"{node} does not run\n{self.last_lines()}")

    def last_lines(self) -> str:
        """The end of the log, for error messages."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster, wait until the demo plays at its balancer, and end it."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-benchmark-")))
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        config = directory / "cluster.toml"
        config.write_text(CLUSTER.format(**ports))
        log = stack.enter_context((directory / "log").open("wb"))
        process = start(config, log)
        stack.callback(stop, process)
        cluster = Cluster(process, ports, directory / "log")
        wait_until_live(cluster)
        yield cluster


def start(config: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Run ``twistd -n relay`` on a file, as a cluster runs its nodes: it ends with us, however we end."""
    return subprocess.Popen(
        [*TWISTD, "relay", "--config", str(config), "--admin", "tcp:0:interface=127.0.0.1"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=child_environment(os.environ),
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """As an operator would; by force if that does not end it.  Its nodes end with it either way."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_live(cluster: Cluster) -> None:
    """Return when a viewer of the balancer, and of each aggregator, gets a frame."""
    deadline = time.monotonic() + START_SECONDS
    for node in ("lb1", "agg1", "agg2"):
        while True:
            try:
                first_video_frame(cluster.urls(node)[1])
                break
            except (ViewerFailed, OSError) as error:
                if cluster.process.poll() is not None or time.monotonic() > deadline:
                    raise ClusterFailed(f"{node}: {error}\n{cluster.last_lines()}") from None
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
