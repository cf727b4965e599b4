"""A cluster whose aggregator and balancer are several processes each: real ones, under ``twistd relay``."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol

from tests.cluster import free_port, until
from tests.integration.audience import FlvWatcher
from tests.tiers.test_cluster import ClusterTestCase, children

VIEWERS = 24  # the chance that the kernel gives all to one of two is one in eight million


class ProcessesTests(ClusterTestCase):
    """Two balancers on one port, two aggregators behind them."""

    def setUp(self) -> None:
        super().setUp()
        text = self.config.read_text()
        text = text.replace('name = "agg1"', 'name = "agg1"\nprocesses = 2')
        text = text.replace('name = "lb1"', 'name = "lb1"\nprocesses = 2')
        for port in (self.ports[6], self.ports[7], self.ports[9]):
            text = text.replace(f"tcp:{port}:", f"tcp:{two_in_a_row()}:")
        self.config.write_text(text)

    async def test_each_process_has_viewers_and_one_that_dies_takes_only_its_own(self) -> None:
        """The page knows each of them; the dead one is started again, and viewers come to it as before."""
        cluster = self.run_cluster()
        names = {"o1", "a1", "a2", "agg1.1", "agg1.2", "lb1.1", "lb1.2"}
        await self.when(lambda nodes: set(nodes) == names and all(is_well(node) for node in nodes.values()))
        viewers = [await self.watch() for _ in range(VIEWERS)]
        for viewer in viewers:
            await viewer.has_frames(10)
        nodes = await self.when(lambda nodes: nodes["lb1.1"]["viewers"] + nodes["lb1.2"]["viewers"] == VIEWERS)
        for name in ("agg1.1", "agg1.2", "lb1.1", "lb1.2"):
            self.assertLess(0, nodes[name]["viewers"], name)
        os.kill(children(cluster.pid)["lb1.1"], signal.SIGKILL)
        await until(lambda: sum(viewer.outcome == "cut" for viewer in viewers) == nodes["lb1.1"]["viewers"], "its own")
        left = [viewer for viewer in viewers if viewer.outcome is None]
        self.assertEqual(nodes["lb1.2"]["viewers"], len(left))
        for viewer in left:
            await viewer.has_frames(10)
        await (await self.watch()).has_frames(10)
        await self.when(lambda nodes: nodes["lb1.1"]["restarts"] == 1 and is_well(nodes["lb1.1"]))

    async def watch(self) -> FlvWatcher:
        """One more viewer of the demo."""
        viewer = FlvWatcher(f"http://127.0.0.1:{self.ports[8]}/live/demo.flv")
        parts = urlsplit(viewer.url)
        await connectProtocol(HostnameEndpoint(reactor, parts.hostname, parts.port), viewer)
        self.addCleanup(viewer.transport.abortConnection)
        return viewer


def two_in_a_row() -> int:
    """A port that nobody listens on, and neither on the one after it."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port


def is_well(node: dict[str, Any]) -> bool:
    """And, if it is one that has it, with the test stream."""
    is_carrying = not node["tier"].startswith("agg") or any(stream["is_live"] for stream in node["streams"])
    return node["state"] == "normal" and is_carrying
