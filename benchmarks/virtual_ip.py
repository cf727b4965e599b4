"""Two balancers on one virtual IP: how long nobody is served when one fails, and when its viewers notice.

    sudo python benchmarks/virtual_ip.py

Needs root, keepalived, iproute2 and curl.  Each round is a network of its own (vip_network.py): two balancers, with
keepalived as in examples/keepalived.  One client connects anew all the time; some viewers only receive.  Then the
master fails.  See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import attrs
from figures import spread, table
from vip_network import BALANCERS, VIP, NetworkFailed, VipNetwork, running_network
from vip_viewers import Viewer, enter, is_served

PAUSE_SECONDS = 0.01  # between two connections of the client
CONNECT_SECONDS = 0.05  # it gives one up after that
ANSWER_SECONDS = 0.25  # and one that was accepted, after that
AFTER_SECONDS = 1.5  # a round goes on for so long after the address has moved
NOTICE_SECONDS = 15.0  # a viewer that has heard nothing by then hangs

FAULTS: dict[str, Callable[[VipNetwork, str], None]] = {
    "machine cut off silently": lambda network, master: network.cut(master),
    "balancer kill -9": lambda network, master: network.balancers[master].signal(signal.SIGKILL),
    "balancer SIGSTOP": lambda network, master: network.balancers[master].signal(signal.SIGSTOP),
    "keepalived kill -9": lambda network, master: network.keepaliveds[master].kill(),
    "keepalived SIGTERM": lambda network, master: network.keepaliveds[master].stop(),
}


class Client:
    """Connects anew all the time, on a thread of its own, and notes each moment at which it was sent the stream."""

    def __init__(self, namespace: str) -> None:
        self.served: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(namespace,), daemon=True)
        self._thread.start()

    def _run(self, namespace: str) -> None:
        enter(namespace)
        while not self._is_over.wait(PAUSE_SECONDS):
            if is_served(None, VIP, ANSWER_SECONDS, CONNECT_SECONDS):
                self.served.append(time.monotonic())

    def stop(self, since: float) -> float:
        """The longest time between two of them from then on, in ms."""
        self._is_over.set()
        self._thread.join()
        last = max((at for at in self.served if at < since), default=since)
        times = [last, *(at for at in self.served if at >= since)]
        return max((b - a for a, b in pairwise(times)), default=float("inf")) * 1000


class Receivers:
    """Viewers that only receive, and when each noticed that its connection was gone."""

    def __init__(self, namespace: str, count: int) -> None:
        self._viewers = [Viewer(namespace, VIP) for _ in range(count)]
        for viewer in self._viewers:
            viewer.read_some()

    def notice(self, since: float) -> list[float]:
        """Ms after ``since``, of those who noticed; returns when all have, or after ``NOTICE_SECONDS``."""
        noticed: list[float] = []
        with selectors.DefaultSelector() as waiting:
            for viewer in self._viewers:
                waiting.register(viewer.socket, selectors.EVENT_READ, viewer)
            while waiting.get_map() and (left := since + NOTICE_SECONDS - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    if self._has_ended(key.data):
                        noticed.append((time.monotonic() - since) * 1000)
                        waiting.unregister(key.fileobj)
        return noticed

    @staticmethod
    def _has_ended(viewer: Viewer) -> bool:
        try:
            return not viewer.socket.recv(1 << 16)
        except OSError:
            return True

    def close(self) -> None:
        """Leave."""
        for viewer in self._viewers:
            viewer.close()


@attrs.define
class Row:
    """What one fault did, in all its rounds."""

    fault: str
    viewers: int = 0
    silent_ms: list[float] = attrs.field(factory=list)
    noticed_ms: list[float] = attrs.field(factory=list)

    def measure(self, viewers: int, advert_seconds: float) -> None:
        """One round more."""
        with running_network(advert_seconds=advert_seconds) as network:
            client_host = network.namespace("client")
            (master,) = network.masters()
            (backup,) = set(BALANCERS) - {master}
            network.when(lambda: is_served(client_host, VIP), "a viewer is served")
            receivers = Receivers(client_host, viewers)
            network.when(lambda: network.metric(backup, "relay_peer_viewers") >= viewers, "the backup knows of all")
            client = Client(client_host)
            network.when(lambda: len(client.served) > 10, "the client is served")
            began = time.monotonic()
            fault = threading.Thread(target=FAULTS[self.fault], args=(network, master))  # some take a while
            fault.start()
            noticed = receivers.notice(began)
            fault.join()
            network.when(lambda: VIP in network.addresses(backup), "the address has moved")
            time.sleep(AFTER_SECONDS)
            self.silent_ms.append(client.stop(began))
            self.noticed_ms += noticed
            self.viewers += viewers
            receivers.close()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "fault": self.fault,
            "rounds": len(self.silent_ms),
            "not_served_ms": spread(self.silent_ms),
            "viewers": self.viewers,
            "noticed": len(self.noticed_ms),
            "noticed_ms": spread(self.noticed_ms),
        }


def as_table(rows: Sequence[Row]) -> str:
    """For people."""
    lines: list[list[object]] = [["", "not served, ms: p50", "max", "viewers", "hang", "notice, ms: p50", "max"]]
    for row in rows:
        silent, noticed = spread(row.silent_ms), spread(row.noticed_ms)
        figures = [row.viewers, row.viewers - len(row.noticed_ms), noticed.get("p50", "-"), noticed.get("max", "-")]
        lines.append([row.fault, silent["p50"], silent["max"], *figures])
    return table(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="How long nobody is served when one of two balancers fails.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each fault (default: 3)")
    parser.add_argument("--viewers", type=int, default=20, metavar="N", help="that only receive (default: 20)")
    parser.add_argument(
        "--advert", type=float, default=0.1, metavar="S", help="VRRP's interval, seconds (default: 0.1)"
    )
    parser.add_argument(
        "--fault", action="append", choices=FAULTS, metavar="FAULT", help=f"one of {', '.join(FAULTS)} (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    rows = [Row(fault) for fault in options.fault or FAULTS]
    for row in rows:
        for number in range(options.rounds):
            print(f"{row.fault}, round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            row.measure(options.viewers, options.advert)
    print(json.dumps([row.as_dict() for row in rows], indent=2) if options.json else as_table(rows))


if __name__ == "__main__":
    try:
        main()
    except (NetworkFailed, OSError, KeyboardInterrupt) as stopped:
        sys.exit(str(stopped) or "interrupted")
