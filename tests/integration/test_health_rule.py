"""The health rule with real processes: B1 dies, new viewers go to aggregator 2; it is mended, 1 serves again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients import Watcher, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase

pytestmark = pytest.mark.net

STREAMS = ("live/a", "live/b")  # one on each pair
CROWD = 6


def is_rising(told: dict[str, Any]) -> bool:
    """Is an aggregator well, and not yet for long enough?"""
    return any("again if it stays" in link["why"] for link in told["links"])


class HealthRuleTests(ClusterTestCase):
    """Two pairs, two aggregators, one balancer.  It has no slow start, so that shares are exact."""

    async def setUp(self) -> None:
        super().setUp()
        self.origin = self.start_origin()
        members = {}
        for pair in "ab":
            for number in "12":
                name = f"{pair}{number}"
                members[name] = self.start_distributor(name, self.origin.endpoint, "--streams", f"live/{pair}")
        self.b1, self.b2 = members["b1"], members["b2"]
        ends = {name: member.endpoint for name, member in members.items()}
        self.agg1 = self.start_node(
            "aggregator", "agg1", "--pair", f"a={ends['a1']},{ends['a2']}", "--pair", f"b={ends['b1']},{ends['b2']}"
        )
        self.agg2 = self.start_node(
            "aggregator", "agg2", "--pair", f"a={ends['a2']},{ends['a1']}", "--pair", f"b={ends['b2']},{ends['b1']}"
        )
        self.balancer = self.start_balancer(
            "lb1", [self.agg1, self.agg2], "--slow-start-seconds", "0", "--rise-seconds", "2"
        )
        await self.normal()
        for stream in STREAMS:
            await publish(self, self.origin, stream, looped(read_clip("h264_aac.flv")))
            for node in (self.agg1, self.agg2):
                await node.stream(stream)
        await self.balancer.when(lambda told: not is_rising(told))

    async def test_new_viewers_avoid_an_aggregator_that_has_lost_a_distributor_until_it_is_mended(self) -> None:
        before = await self._crowd()
        await self._have(CROWD // 2, CROWD // 2)
        await self.b1.kill()
        await self.balancer.when(lambda told: any("agg1 is degraded: pair b: b1 is down" in why for why in told["why"]))
        during = await self._crowd()
        await self._have(CROWD // 2, CROWD // 2 + CROWD)
        await self.b1.restart()
        await self.balancer.when(lambda told: told["state"] == "normal" and is_rising(told))
        await self.balancer.when(lambda told: not is_rising(told))
        after = await self._crowd()
        await self._have(CROWD, 2 * CROWD)
        for viewer in before + during + after:
            self.assertIsNone(viewer.outcome)

    async def _crowd(self) -> list[Watcher]:
        """New viewers, of both streams, who see something."""
        viewers = [await watch(self, self.balancer, STREAMS[number % 2]) for number in range(CROWD)]
        for viewer in viewers:
            await viewer.has_frames(10)
        return viewers

    async def _have(self, one: int, two: int) -> None:
        """So many viewers are at each aggregator."""
        for node, wanted in ((self.agg1, one), (self.agg2, two)):
            self.assertEqual(wanted, (await node.when(lambda _: True))["viewers"], node.name)
