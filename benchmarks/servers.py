"""Servers for the benchmarks: ours, and the peers that they are compared with, each fresh, on a core of its own.

Owns how each is started, told to serve one stream, and ended, and the reading of what it has cost.  Called by
everything that compares.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
from mass_failover import padded_clip
from native import program
from nodes import free_ports, stop
from viewers import ViewerFailed, first_video_frame

from relay import __version__
from relay.tiers.supervise import TWISTD, child_environment

SERVER_CORE, LOAD_CORE = 0, 1  # the server is alone on the first; the load, and what feeds it, is on the other
START_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")
NGINX_RTMP = """\
load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;
daemon off; worker_processes 1; error_log {scratch}/error.log error; pid {scratch}/pid;
events {{ worker_connections 20000; }}
rtmp {{ server {{ listen 127.0.0.1:{port}; chunk_size 4096;
  application live {{ live on; wait_key on; wait_video on; }} }} }}
"""


class ServerFailed(Exception):
    """It did not start, or is not installed; the message says what it said last."""


@attrs.frozen(kw_only=True)
class Server:
    """One that serves a stream."""

    pids: Sequence[int]  # of all processes whose CPU time counts
    rtmp: str = ""
    http: str = ""


Start = Callable[[ExitStack, float], Server]
"""Starts a server of one stream of so many kbit/s, until the stack is closed."""


@attrs.frozen(kw_only=True)
class Contender:
    """A server under a name that tells it from the others in a table."""

    name: str
    start: Start
    kind: str = "rtmp"


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time that processes have taken."""
    total = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(words[11]) + int(words[12])
    return total / TICKS


def busy_seconds(core: int) -> float:
    """How long a core has been busy, for whatever reason."""
    for line in Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0] == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
            return (user + nice + system + irq + softirq + steal) / TICKS
    raise ServerFailed(f"this machine has no core {core}: the benchmarks need two")


def run(
    stack: ExitStack, command: Sequence[str], core: int | None, log: Path, until: int = 0
) -> subprocess.Popen[bytes]:
    """A process, until the stack is closed.

    Args:
        core: where it is to stay; None lets the kernel decide.
        until: wait until something listens on this port.
    """
    path = _which(command[0])
    if path is None:
        raise ServerFailed(f"{command[0]} is not installed")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*(() if core is None else ("taskset", "-c", str(core))), path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(os.environ),
        )
    stack.callback(stop, process)
    deadline = time.monotonic() + START_SECONDS
    while until and not _listens(until):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"{command[0]} does not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
    return process


def _which(name: str) -> str | None:
    """Debian keeps servers where an ordinary user's PATH is not."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def scratch_of(stack: ExitStack) -> Path:
    """A directory that goes with the stack."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-benchmark-")))


def node(
    stack: ExitStack, tier: str, name: str, core: int | None, *options: str, scratch: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """One of ours; its process and its port."""
    (port,) = free_ports(1)
    listen = f"tcp:{port}:interface=127.0.0.1"
    command = [*TWISTD, f"relay-{tier}", "--name", name, "--listen", listen, *options]
    return run(stack, command, core, scratch / f"{name}.log", port), port


def publish(stack: ExitStack, port: int, kbits: float, scratch: Path, count: int = 1, name: str = "bench") -> None:
    """The padded demo clip as live/bench0, live/bench1, …, over and over."""
    clip = scratch / "clip.flv"
    clip.write_bytes(padded_clip(kbits))
    command = [str(program("publisher")), str(clip), str(count), "200", f"rtmp://127.0.0.1:{port}/live/{name}"]
    log = scratch / "publisher.log"
    publisher = run(stack, command, LOAD_CORE, log)
    deadline = time.monotonic() + START_SECONDS + count / 100
    while "ready" not in log.read_text():
        if publisher.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(log.read_text().strip() or "publishing takes too long")
        time.sleep(0.05)


def wait_for_picture(url: str) -> None:
    """Until the stream can be watched there."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            first_video_frame(url)
            return
        except (ViewerFailed, OSError) as error:
            if time.monotonic() > deadline:
                raise ServerFailed(f"{url}: {error}") from None
            time.sleep(0.1)


def aggregator(*options: str) -> Start:
    """An origin, and an aggregator of ours whose CPU time counts."""

    def start(stack: ExitStack, kbits: float) -> Server:
        scratch = scratch_of(stack)
        _, origin = node(stack, "origin", "o1", LOAD_CORE, "--store", str(scratch / "o1"), scratch=scratch)
        pair = f"a=tcp:127.0.0.1:{origin}"
        process, port = node(stack, "aggregator", "agg1", SERVER_CORE, "--pair", pair, *options, scratch=scratch)
        publish(stack, origin, kbits, scratch)
        rtmp, http = f"rtmp://127.0.0.1:{port}/live/bench0", f"http://127.0.0.1:{port}/live/bench0.flv"
        wait_for_picture(rtmp)
        return Server(pids=[process.pid], rtmp=rtmp, http=http)

    return start


def nginx_rtmp(stack: ExitStack, kbits: float) -> Server:
    """nginx with its RTMP module, one worker; as users run it."""
    scratch = scratch_of(stack)
    pids, port = nginx_on(stack, SERVER_CORE, scratch)
    publish(stack, port, kbits, scratch)
    url = f"rtmp://127.0.0.1:{port}/live/bench0"
    wait_for_picture(url)
    return Server(pids=pids, rtmp=url)


def nginx_on(stack: ExitStack, core: int, scratch: Path) -> tuple[list[int], int]:
    """Its processes and its port."""
    (port,) = free_ports(1)
    config = scratch / "nginx.conf"
    config.write_text(NGINX_RTMP.format(scratch=scratch, port=port))
    process = run(stack, ["nginx", "-c", str(config)], core, scratch / "nginx.log", port)
    return [process.pid, *children(process.pid)], port


def all_contenders(*, without_peer: bool) -> list[Contender]:
    """Ours, in both forms, and the peer."""
    ours = [
        Contender(name="relay", start=aggregator()),
        Contender(name="relay FLV", start=aggregator(), kind="http"),
    ]
    return ours if without_peer else [*ours, Contender(name="nginx-rtmp", start=nginx_rtmp)]


def limit(interval_ms: int, slices: int) -> Start:
    """The bare loop in C."""

    def start(stack: ExitStack, kbits: float) -> Server:
        scratch = scratch_of(stack)
        (port,) = free_ports(1)
        command = [str(program("limit")), str(port), str(kbits), str(interval_ms), str(slices)]
        process = run(stack, command, SERVER_CORE, scratch / "limit.log")
        deadline = time.monotonic() + START_SECONDS
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(command[0].encode()):
            if time.monotonic() > deadline:
                raise ServerFailed("the C loop does not start")
            time.sleep(0.01)
        time.sleep(0.2)  # it listens as its first act; a connection of ours would be a viewer
        return Server(pids=[process.pid], http=f"http://127.0.0.1:{port}/live/bench0.flv")

    return start


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def versions() -> dict[str, str]:
    """What is compared, and on what."""
    found = {"relay": __version__, "kernel": os.uname().release, "cores": str(os.cpu_count())}
    for name, command in (("nginx", ["nginx", "-v"]), ("haproxy", ["haproxy", "-v"]), ("cc", ["cc", "--version"])):
        if path := _which(command[0]):
            said = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
            found[name] = (said.stdout or said.stderr).splitlines()[0].strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            found["processor"] = line.partition(":")[2].strip()
            break
    return found


@contextmanager
def running(contender: Contender, kbits: float) -> Iterator[Server]:
    """It runs meanwhile."""
    with ExitStack() as stack:
        yield contender.start(stack, kbits)
