"""What viewers that never read cost a server, and those who do read.

    python benchmarks/slow_viewers.py                        a cluster of its own; the viewers join its first aggregator
    python benchmarks/slow_viewers.py --pid PID --url URL    a server that runs already

One viewer reads all the time, in a process of its own.  After a while 200 others join, over RTMP and HTTP-FLV, with a
small receive buffer, and never read again.  One that the server closes joins anew, so there are always 200.  At last
they go.  The server's memory is noted once a second; the reader's lag is compared with and without them, in the same
run.  See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

import attrs
from figures import spread, table
from nodes import ClusterFailed, running_cluster
from resident import Memory, memory_of
from viewers import Viewer, ViewerFailed

RECEIVE_BUFFER = 4096  # bytes; the kernel doubles it: about 0.2 s of the demo
SETTLE_SECONDS = 2.0  # a viewer begins at the last keyframe, so its first frames are old: they don't count
MB = 1 << 20


@attrs.define
class Phase:
    """A part of the run, and how long each frame that the reader got in it was late."""

    name: str
    began_at: float
    ended_at: float = 0.0
    lags_ms: list[float] = attrs.field(factory=list)


def read_all(url: str, report: Connection) -> None:
    """The reader's process: note (arrival, timestamp) of each video frame until told to stop, then send all.

    What it sends instead when it fails is a string.
    """
    frames: list[tuple[float, int]] = []
    try:
        with Viewer(url) as viewer:
            for arrival in viewer.arrivals():
                if arrival.is_video_frame:
                    frames.append((arrival.at, arrival.message.timestamp))
                if report.poll():
                    report.send(frames)
                    return
        report.send("the stream ended")
    except (ViewerFailed, OSError) as error:
        report.send(str(error))


class Reader:
    """The viewer that reads, seen from this process."""

    def __init__(self, url: str) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=read_all, args=(url, theirs), daemon=True)
        self._process.start()

    def check(self) -> None:
        """Raise :class:`ViewerFailed` if it has ended."""
        if self._ours.poll():
            raise ViewerFailed(f"the reader failed: {self._ours.recv()}")

    def stop(self) -> list[tuple[float, int]]:
        """What it saw."""
        self.check()
        self._ours.send(None)
        if not self._ours.poll(30):
            raise ViewerFailed("the reader hangs")
        frames = self._ours.recv()
        if isinstance(frames, str):
            raise ViewerFailed(f"the reader failed: {frames}")
        return list(frames)

    def kill(self) -> None:
        """Leave no process."""
        self._process.kill()
        self._process.join()


class Crowd:
    """Viewers that ask for a stream and never read what they are sent."""

    def __init__(self, urls: Sequence[str], size: int) -> None:
        self.closed = 0
        self._urls = urls
        self._size = size
        self._viewers: dict[int, Viewer] = {}
        self._hung_up = select.epoll()

    def __len__(self) -> int:
        return len(self._viewers)

    def fill(self) -> Iterator[int]:
        """Join until all are there; the number is yielded after each."""
        while len(self) < self._size:
            self._join(self._urls[len(self) % len(self._urls)])
            yield len(self)

    def replace(self, seconds: float) -> None:
        """For so long, let each one that the server closed join anew."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for fileno, _ in self._hung_up.poll(left):
                viewer = self._viewers.pop(fileno)
                viewer.socket.close()
                self.closed += 1
                self._join(viewer.url)

    def leave(self) -> None:
        """All go."""
        for viewer in self._viewers.values():
            viewer.socket.close()
        self._viewers.clear()
        self._hung_up.close()

    def _join(self, url: str) -> None:
        viewer = Viewer(url, RECEIVE_BUFFER)
        next(viewer.arrivals())  # the server has begun to send; nobody asks for more
        self._viewers[viewer.socket.fileno()] = viewer
        self._hung_up.register(viewer.socket.fileno(), select.EPOLLRDHUP)  # errors are told anyway; data is not


@attrs.define
class Run:
    """One measurement, from an empty server to an empty server."""

    urls: Sequence[str]
    pid: int
    viewers: int
    seconds: float
    phases: list[Phase] = attrs.field(factory=list)
    memory: list[tuple[str, Memory]] = attrs.field(factory=list)
    highest: Memory = attrs.field(default=Memory(0, 0, 0))
    closed: int = 0

    def measure(self) -> None:
        """All phases, one after another."""
        with ExitStack() as stack:
            reader = Reader(self.urls[0])
            stack.callback(reader.kill)
            crowd = Crowd(self.urls, self.viewers)
            stack.callback(crowd.leave)
            self._wait(SETTLE_SECONDS, reader)
            with self._phase("before"):
                self._wait(self.seconds / 4, reader)
            self._note("before them")
            with self._phase("joining"):
                for number in crowd.fill():
                    if number % 50 == 0:
                        say(f"{number} slow viewers are there")
            self._note("all there")
            with self._phase("with"):
                self._wait(self.seconds, reader, crowd)
                self._note(f"{self.seconds:g} s later")
            self.closed = crowd.closed
            crowd.leave()
            with self._phase("after"):
                self._wait(self.seconds / 4, reader)
            self._note("they are gone")
            self._sort(reader.stop())

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        phase = Phase(name, time.monotonic())
        yield
        phase.ended_at = time.monotonic()
        self.phases.append(phase)

    def _wait(self, seconds: float, reader: Reader, crowd: Crowd | None = None) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if crowd is None:
                time.sleep(min(1, left))
            else:
                crowd.replace(min(1, left))
            reader.check()
            self._look()
            if left >= 1 and int(left) % 10 == 0:
                say(f"{int(left)} s to go, {len(crowd) if crowd else 0} slow viewers")

    def _look(self) -> Memory:
        memory = memory_of(self.pid)
        pairs = zip(attrs.astuple(self.highest), attrs.astuple(memory), strict=True)
        self.highest = Memory(*(max(pair) for pair in pairs))
        return memory

    def _note(self, when: str) -> None:
        self.memory.append((when, self._look()))

    def _sort(self, frames: Sequence[tuple[float, int]]) -> None:
        """Deal the reader's frames to the phases.

        A frame's lag is its arrival minus its timestamp, less the smallest such difference of the whole run.
        """
        delays = [(at, at * 1000 - timestamp) for at, timestamp in frames]
        least = min((delay for _, delay in delays), default=0.0)
        for phase in self.phases:
            phase.lags_ms = [delay - least for at, delay in delays if phase.began_at <= at < phase.ended_at]

    def lags(self, *names: str) -> dict[str, float]:
        """The spread of the lags in some phases together."""
        return spread([lag for phase in self.phases if phase.name in names for lag in phase.lags_ms])

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "viewers": self.viewers,
            "seconds": self.seconds,
            "urls": list(self.urls),
            "memory_bytes": {when: attrs.asdict(memory) for when, memory in self.memory},
            "highest_bytes": attrs.asdict(self.highest),
            "closed_by_server": self.closed,
            "reader_lag_ms": {
                "before": self.lags("before"),
                "joining": self.lags("joining"),
                "with": self.lags("with"),
                "after": self.lags("after"),
                "without": self.lags("before", "after"),
            },
        }

    def as_tables(self) -> str:
        """For people."""
        memory: list[list[object]] = [["server's memory, MB", "resident", "log (memfd)", "all TCP buffers"]]
        for when, seen in [*self.memory, ("highest seen", self.highest)]:
            memory.append([when, *(value / MB for value in attrs.astuple(seen))])
        joining = self.lags("joining")
        without, slow = self.lags("before", "after"), self.lags("with")
        keys = ("p50", "p99", "max")
        ratios = [f"{slow[key] / without[key]:.2f}" if key in slow and without.get(key) else "-" for key in keys]
        lag: list[list[object]] = [
            ["reader's lag, ms", *keys],
            ["without slow viewers", *(without.get(key, "-") for key in keys)],
            ["while they join", *(joining.get(key, "-") for key in keys)],
            [f"with {self.viewers} of them", *(slow.get(key, "-") for key in keys)],
            ["ratio", *ratios],
        ]
        closed = f"closed by the server for reading nothing, and joined anew: {self.closed}"
        return "\n\n".join([table(memory), table(lag), closed])


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What viewers that never read cost a server, and those who do read.")
    parser.add_argument("--viewers", type=int, default=200, metavar="N", help="that never read (default: 200)")
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="S", help="they stay; the run takes 1.5 times that (default: 60)"
    )
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="rtmp://HOST[:PORT]/APP/NAME or http://HOST[:PORT]/APP/NAME.flv of something that runs; may be repeated: "
        "slow viewers are dealt to all, the reader reads the first (default: start a cluster, join its aggregator)",
    )
    parser.add_argument("--pid", type=int, help="the process at that URL, whose memory counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args()
    if (options.url is None) != (options.pid is None):
        parser.error("--url and --pid go together")
    with ExitStack() as stack:
        urls, pid = options.url, options.pid
        if urls is None:
            say("starting a cluster")
            cluster = stack.enter_context(running_cluster())
            urls, pid = cluster.urls("agg1"), cluster.pid("agg1")
        run = Run(urls, pid, options.viewers, options.seconds)
        run.measure()
    print(json.dumps(run.as_dict(), indent=2) if options.json else run.as_tables())


if __name__ == "__main__":
    try:
        main()
    except (ClusterFailed, ViewerFailed, OSError, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
