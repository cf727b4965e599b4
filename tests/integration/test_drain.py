"""Planned work: a node is stopped, or drained, and no viewer notices."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from tests.clients import looped, publish, watch
from tests.cluster import Node, until
from tests.integration.audience import FRAMES, AudienceTestCase

pytestmark = pytest.mark.net

STREAM = "live/drain"
LONG_DRAIN_SECONDS = 60  # of the aggregators: no test waits so long
LATER = 24  # viewers after one is back: even a tenth of its share is more than one of them


class DrainTests(AudienceTestCase):
    """One cluster; viewers at the balancer."""

    stream = STREAM
    aggregator_options = ("--drain-seconds", str(LONG_DRAIN_SECONDS))

    async def test_aggregator_that_is_stopped_has_its_viewers_moved_first(self) -> None:
        viewers = await self._viewers()
        there, _ = await self._dealt(len(viewers))
        self.agg1.signal(signal.SIGTERM)
        self.assertEqual(0, await self.agg1.ended())
        self.assertIn(f": {there} of {there} sessions and copies have moved", self.agg1.text)
        await self.agg2.when(lambda told: told["viewers"] == len(viewers))
        await self._check(viewers)

    async def test_distributor_that_is_stopped_is_left_by_its_readers_first(self) -> None:
        viewers = await self._viewers()
        for node, preferred in ((self.agg1, "a1"), (self.agg2, "a2")):  # which may not have been there at first
            await node.stream(STREAM, lambda stream, preferred=preferred: stream["source"] == preferred)
        self.a1.signal(signal.SIGTERM)
        self.assertEqual(0, await self.a1.ended())
        self.assertIn(": 1 of 1 sessions and copies have moved", self.a1.text)
        await self.agg1.when(lambda told: told["state"] == "degraded")
        await self._check(viewers)
        for node in (self.agg1, self.agg2):
            self.assertEqual(0, await node.metric("relay_missing_bytes_total"))

    async def test_aggregator_that_is_stopped_does_not_wait_for_viewers_who_can_t_be_moved(self) -> None:
        """They came to it directly."""
        direct = await watch(self, self.agg1, STREAM)
        await direct.has_frames(FRAMES)
        self.agg1.signal(signal.SIGTERM)
        self.assertEqual(0, await self.agg1.ended(LONG_DRAIN_SECONDS / 2))

    async def test_second_signal_is_waited_for_by_nobody(self) -> None:
        """The viewer's balancer has no other aggregator, so it stays until the end."""
        await self.agg2.kill()
        await self.balancer.when(lambda told: told["state"] == "degraded")
        await (await watch(self, self.balancer, STREAM)).has_frames(FRAMES)
        self.agg1.signal(signal.SIGTERM)
        await self.agg1.said("agg1 drains: it is stopped")
        self.agg1.signal(signal.SIGTERM)
        self.assertEqual(0, await self.agg1.ended(LONG_DRAIN_SECONDS / 2))
        self.assertNotIn("Traceback", self.agg1.text)

    async def test_aggregator_is_drained_and_undrained_by_command(self) -> None:
        viewers = await self._viewers()
        there, _ = await self._dealt(len(viewers))
        out = await self._admin(0, "drain", self.agg1)
        self.assertIn("agg1 can be stopped", out)
        self.assertEqual([0, len(viewers)], await self._dealt(len(viewers)))
        self.assertIn("agg1 (aggregator) is down, 0 viewers", await self._admin(1, "status", self.agg1))
        newcomers = [await watch(self, self.balancer, STREAM) for _ in range(4)]
        await self._go_on(newcomers)
        self.assertEqual(len(viewers) + 4, (await self.agg2.when(lambda _: True))["viewers"])
        await self._admin(0, "undrain", self.agg1)
        await self.balancer.when(lambda told: told["state"] == "normal")
        newcomers += [await watch(self, self.balancer, STREAM) for _ in range(LATER)]
        await self._check(viewers + newcomers)
        self.assertGreater((await self.agg1.when(lambda _: True))["viewers"], 0)
        self.assertEqual(there, await self.balancer.metric("relay_sessions_drained_total"))

    async def test_distributor_is_drained_and_undrained_by_command(self) -> None:
        viewers = await self._viewers()
        await self._admin(0, "drain", self.a1)
        for node in (self.agg1, self.agg2):
            self.assertEqual("a2", (await node.stream(STREAM))["source"])
        self.assertEqual("degraded", (await self.agg1.when(lambda _: True))["state"])
        await self._admin(0, "undrain", self.a1)
        await self.agg1.stream(STREAM, lambda stream: stream["source"] == "a1")
        await self.agg1.when(lambda told: told["state"] == "normal")
        await self._check(viewers)

    async def test_viewers_stay_where_they_are_when_nobody_else_takes_them(self) -> None:
        """And move as soon as somebody does."""
        await self.agg2.kill()
        await self.balancer.when(lambda told: told["state"] == "degraded")
        viewers = [await watch(self, self.balancer, STREAM) for _ in range(2)]
        await self._go_on(viewers)
        self.assertIn("2 sessions left", await self._admin(1, "drain", self.agg1, "--seconds", "1"))
        await self._go_on(viewers)
        await self.agg2.restart()
        await self.agg2.when(lambda told: told["viewers"] == 2)
        await self._check(viewers)

    async def test_origin_that_drains_takes_no_new_broadcast(self) -> None:
        """The one that is here goes on, and its copies too."""
        await self._admin(0, "drain", self.origin, "--no-wait")
        other = await publish(self, self.origin, f"{STREAM}2", looped(self.clip))
        await until(lambda: other.outcome, "the publisher is refused")
        self.assertEqual("NetStream.Publish.Denied", other.outcome)
        await self._check(await self._viewers())
        self.assertEqual("a1", (await self.agg1.stream(STREAM))["source"])

    async def test_balancer_says_that_it_can_t_be_drained(self) -> None:
        self.assertIn("lb1 is a balancer", await self._admin(1, "drain", self.balancer))

    async def _admin(self, status: int, command: str, node: Node, *options: str) -> str:
        """Run ``relay-admin``; what it prints."""
        url = f"http://127.0.0.1:{node.admin_port}"
        program = self.run_program(sys.executable, "-m", "relay.admin", command, *options, url)
        self.assertEqual(status, await program.ended(), program.text)
        return program.text

    async def _viewers(self) -> list[Any]:
        """Half over RTMP and half over HTTP-FLV, some of them at each aggregator."""
        viewers: list[Any] = []
        while len(viewers) < 6 or 0 in await self._dealt(len(viewers)):
            viewers.append(await watch(self, self.balancer, STREAM))
            viewers.append(await self._watch_flv(self.balancer))
        await self._go_on(viewers)
        return viewers

    async def _dealt(self, wanted: int) -> list[int]:
        """How many of so many viewers each aggregator has."""
        while True:
            dealt = [(await node.when(lambda _: True))["viewers"] for node in (self.agg1, self.agg2)]
            if sum(dealt) == wanted:
                return dealt

    async def _check(self, viewers: list[Any]) -> None:
        """All go on, too."""
        await self._go_on(viewers)
        await super()._check(viewers)
