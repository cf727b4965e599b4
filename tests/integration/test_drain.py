"""Planned work: a node is stopped, or drained, and no viewer notices."""

from __future__ import annotations

import signal
from typing import Any
from urllib.parse import urlsplit

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol

from tests.clients import Watcher, frames, is_run, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, Node
from tests.integration.test_sessions import FlvWatcher, frames_for_ever

pytestmark = pytest.mark.net

STREAM = "live/drain"
FRAMES = 40


class DrainTests(ClusterTestCase):
    """One cluster; viewers at the balancer."""

    async def setUp(self) -> None:
        super().setUp()
        self.start_cluster()
        await self.normal()
        self.clip = read_clip("h264_aac.flv")
        await publish(self, self.origin, STREAM, looped(self.clip))
        for node in (self.agg1, self.agg2):
            await node.stream(STREAM)

    async def test_aggregator_that_is_stopped_has_its_viewers_moved_first(self) -> None:
        viewers = await self._viewers()
        self.agg1.signal(signal.SIGTERM)
        self.assertEqual(0, await self.agg1.ended())
        self.assertIn("agg1 stops: 3 of 3 sessions and copies have moved", self.agg1.text)
        await self.agg2.when(lambda told: told["viewers"] == len(viewers))
        await self._check(viewers)

    async def test_distributor_that_is_stopped_is_left_by_its_readers_first(self) -> None:
        viewers = await self._viewers()
        self.a1.signal(signal.SIGTERM)
        self.assertEqual(0, await self.a1.ended())
        print(self.balancer.text)
        print(self.balancer.text)
        self.assertIn("a1 stops: 1 of 1 sessions and copies have moved", self.a1.text)
        await self.agg1.when(lambda told: told["state"] == "degraded")
        await self._check(viewers)
        for node in (self.agg1, self.agg2):
            self.assertEqual(0, await node.metric("relay_missing_bytes_total"))

    async def _viewers(self) -> list[Any]:
        """Three over RTMP and three over HTTP-FLV, dealt to both aggregators."""
        viewers: list[Any] = []
        for _ in range(3):
            viewers.append(await watch(self, self.balancer, STREAM))
            viewers.append(await self._watch_flv(self.balancer))
        for node in (self.agg1, self.agg2):
            await node.when(lambda told: told["viewers"] == 3)
        await self._go_on(viewers)
        return viewers

    async def _watch_flv(self, node: Node) -> FlvWatcher:
        watcher = FlvWatcher(node.flv(STREAM))
        parts = urlsplit(watcher.url)
        await connectProtocol(HostnameEndpoint(reactor, parts.hostname, parts.port), watcher)
        self.addCleanup(lambda: Deferred.fromCoroutine(watcher.close()))
        return watcher

    async def _go_on(self, viewers: list[Any]) -> None:
        for viewer in viewers:
            await viewer.has_frames(FRAMES)

    async def _check(self, viewers: list[Any]) -> None:
        """Nobody was cut, and each goes on with one unbroken run of what was published."""
        await self._go_on(viewers)
        whole = [message for _, message in zip(range(20_000), frames_for_ever(self.clip), strict=False)]
        for viewer in viewers:
            self.assertIsNone(viewer.outcome)
            kind = "RTMP" if isinstance(viewer, Watcher) else "HTTP-FLV"
            self.assertTrue(is_run(frames(viewer.messages), whole), kind)
