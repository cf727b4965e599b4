"""An aggregator dies under a crowd: how long each of its viewers waits, and whether one misses a byte.

    python benchmarks/mass_failover.py                       2,000 viewers, 1,000 of them at the aggregator that dies

A cluster of its own for each fault (kill -9, SIGSTOP, SIGTERM); the demo clip, padded to ``--kbits``, published at its
origin; viewers over RTMP and HTTP-FLV at its balancer, which compare every byte with the stream as one of its
distributors has it.  See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import attrs
from crowd import Crowd
from figures import table
from native import NoCompiler
from nodes import Cluster, ClusterFailed, running_cluster
from viewers import ViewerFailed, first_video_frame

from relay.demo import read_clip
from relay.flv.tags import FILE_HEADER, TagReader, tag
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType
from relay.tiers.supervise import child_environment

FAULTS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "term": signal.SIGTERM}
STREAM = "live/padded"
TIED = """\
import runpy, sys
from relay.tiers.child import die_with_parent
die_with_parent(int(sys.argv[1]))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
VICTIM = "agg1"


def padded_clip(kbits: float) -> bytes:
    """The demo clip with each picture padded by zero bytes (no decoder here looks at them) to a rate in kbit/s."""
    messages = TagReader(DEFAULT_LIMITS).feed(read_clip())
    seconds = max(message.timestamp for message in messages) / 1000
    pictures = [message for message in messages if _is_picture(message)]
    missing = kbits * 125 * seconds - sum(len(message.payload) for message in messages)
    padding = bytes(max(0, int(missing / len(pictures))))
    out = [FILE_HEADER]
    for message in messages:
        payload = message.payload + padding if _is_picture(message) else message.payload
        out.append(tag(attrs.evolve(message, payload=payload)))
    return b"".join(out)


def _is_picture(message: MediaMessage) -> bool:
    is_video = message.message_type == MessageType.VIDEO
    return is_video and not describe(message.message_type, message.payload).is_sequence_header


@contextmanager
def published(cluster: Cluster, kbits: float, scratch: Path) -> Iterator[None]:
    """Publish the padded clip at the origin, as an encoder in a process of its own."""
    clip = scratch / "padded.flv"
    clip.write_bytes(padded_clip(kbits))
    example = Path(__file__).parents[1] / "examples" / "publish_file.py"
    url = f"rtmp://127.0.0.1:{cluster.ports['o1']}/{STREAM}"
    publisher = subprocess.Popen(
        [sys.executable, "-c", TIED, str(os.getpid()), str(example), "--loop", str(clip), url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child_environment(os.environ),
    )
    try:
        for node in ("a2", "lb1"):
            first_video_frame(f"http://127.0.0.1:{cluster.ports[node]}/{STREAM}.flv")
        yield
    finally:
        publisher.kill()
        publisher.wait()


def urls(port: int) -> list[str]:
    """Of the padded stream at one node, over RTMP and over HTTP-FLV."""
    return [f"rtmp://127.0.0.1:{port}/{STREAM}", f"http://127.0.0.1:{port}/{STREAM}.flv"]


def counter(cluster: Cluster, name: str) -> int:
    """A number of the balancer's metrics."""
    with urlopen(f"http://127.0.0.1:{cluster.ports['lb1_admin']}/metrics", timeout=10) as answer:
        lines = [line.decode().split() for line in answer]
    return int(sum(float(words[-1]) for words in lines if words[0].partition("{")[0] == name))


def measure(fault: str, viewers: int, kbits: float, seconds: float) -> dict[str, object]:
    """One fault, in a cluster of its own."""
    with ExitStack() as stack:
        say(f"{fault}: starting a cluster")
        cluster = stack.enter_context(running_cluster())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-benchmark-")))
        stack.enter_context(published(cluster, kbits, scratch))
        crowd = stack.enter_context(Crowd(urls(cluster.ports["a2"])))
        say(f"{fault}: {viewers} viewers come")
        crowd.fill(urls(cluster.ports["lb1"]), viewers)
        before = crowd.run(seconds)
        say(f"{fault}: {VICTIM} is struck")
        pid = cluster.pid(VICTIM)
        os.kill(pid, FAULTS[fault])
        after = crowd.run(seconds)
        behind = crowd.behind()
        if fault == "hang":
            os.kill(pid, signal.SIGCONT)
        return {
            "fault": fault,
            "viewers": viewers,
            "kbits": kbits,
            "moved": counter(cluster, "relay_sessions_moved_total"),
            "cut_by_balancer": counter(cluster, "relay_sessions_cut_total"),
            "cut": after.cut,
            "wrong": after.wrong,
            "behind": behind,
            "pause_before_ms": attrs.asdict(before.pause_ms),
            "pause_ms": attrs.asdict(after.pause_ms),
        }


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def as_table(results: list[dict[str, object]]) -> str:
    """For people."""
    rows: list[list[object]] = [
        ["fault", "viewers", "moved", "cut", "wrong", "behind", "pause before, p99", "pause p50", "p99", "max, ms"]
    ]
    for result in results:
        before, after = result["pause_before_ms"], result["pause_ms"]
        assert isinstance(before, dict) and isinstance(after, dict)
        counts = [result[name] for name in ("fault", "viewers", "moved", "cut", "wrong", "behind")]
        rows.append([*counts, before["p99"], after["p50"], after["p99"], after["max"]])
    return table(rows)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What a crowd of viewers sees when its aggregator dies.")
    parser.add_argument("--viewers", type=int, default=2000, metavar="N", help="on both aggregators (default: 2000)")
    parser.add_argument(
        "--kbits", type=float, default=1000, metavar="K", help="the stream's rate, kbit/s (default: 1000)"
    )
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="watched before and after (default: 5)")
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS), help="may be repeated (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    results = [
        measure(fault, options.viewers, options.kbits, options.seconds) for fault in options.fault or list(FAULTS)
    ]
    print(json.dumps(results, indent=2) if options.json else as_table(results))


if __name__ == "__main__":
    try:
        main()
    except (ClusterFailed, ViewerFailed, NoCompiler, OSError, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
