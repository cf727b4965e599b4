"""How long a viewer waits for the first picture.

    python benchmarks/startup.py                                        a cluster of its own, through all four tiers
    python benchmarks/startup.py --url rtmp://127.0.0.1:1935/live/demo  anything that runs already, of any make

Viewers join one after another, over RTMP and HTTP-FLV in turn.  The clock runs from the call of connect() to the last
byte of the first video frame (not the decoder's set-up message).  Between two joins is a pause of random length, so
that they fall anywhere between two frames and two keyframes.  See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence

import attrs
from figures import spread, table
from nodes import ClusterFailed, running_cluster
from viewers import Join, ViewerFailed, first_video_frame

MAX_PAUSE_SECONDS = 0.05


@attrs.define
class Row:
    """The joins of one URL."""

    url: str
    joins: list[Join] = attrs.field(factory=list)
    failures: list[str] = attrs.field(factory=list)

    def join(self) -> None:
        """One more."""
        try:
            self.joins.append(first_video_frame(self.url))
        except (ViewerFailed, OSError) as error:
            self.failures.append(str(error))

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "url": self.url,
            "joins": len(self.joins),
            "failures": self.failures,
            "connected_ms": spread([join.connected_ms for join in self.joins]),
            "first_frame_ms": spread([join.first_frame_ms for join in self.joins]),
        }


def measure(urls: Sequence[str], joins: int) -> list[Row]:
    """Join each URL so many times, in turn."""
    rows = [Row(url) for url in urls]
    for number in range(1, joins + 1):
        for row in rows:
            row.join()
            time.sleep(random.uniform(0, MAX_PAUSE_SECONDS))
        if number % max(1, joins // 10) == 0:
            print(f"{number} of {joins} joins", file=sys.stderr, flush=True)
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """For people."""
    lines: list[list[object]] = [["first video frame, ms", "joins", "failed", "connect p50", "p50", "p99", "max"]]
    for row in rows:
        connected = spread([join.connected_ms for join in row.joins]).get("p50", "-")
        first = spread([join.first_frame_ms for join in row.joins])
        figures = [first.get(key, "-") for key in ("p50", "p99", "max")]
        lines.append([row.url, len(row.joins), len(row.failures), connected, *figures])
    return table(lines)


def main() -> int:
    """Read the command line, measure, print.  The exit status is 1 if a join failed."""
    parser = argparse.ArgumentParser(description="Time from connect to the first video frame.")
    parser.add_argument("--joins", type=int, default=100, metavar="N", help="joins a URL (default: 100)")
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="rtmp://HOST[:PORT]/APP/NAME or http://HOST[:PORT]/APP/NAME.flv of something that runs; may be repeated "
        "(default: start a cluster and join at its balancer)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    if options.url:
        rows = measure(options.url, options.joins)
    else:
        print("starting a cluster", file=sys.stderr, flush=True)
        with running_cluster() as cluster:
            rows = measure(cluster.urls("lb1"), options.joins)
    print(json.dumps([row.as_dict() for row in rows], indent=2) if options.json else as_table(rows))
    failures = [failure for row in rows for failure in row.failures]
    for failure in failures[:3]:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterFailed, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
