"""What an operator sees of the people who are connected, and does to one of them, by the admin sites of real nodes."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest

from tests.clients import watch
from tests.cluster import Node, until
from tests.integration.audience import AudienceTestCase
from tests.programs import require_program

pytestmark = pytest.mark.net


class OperatorTests(AudienceTestCase):
    """One cluster; viewers at the balancer."""

    stream = "live/operated"

    async def _listed(self, node: Node, what: str, count: int, is_so: Any = lambda entry: True) -> list[Any]:
        """All of a list, when it has so many of a kind."""
        found: list[Any] = []

        async def look() -> bool:
            found[:] = [entry for entry in (await node.get(f"/api/v1/{what}"))[what] if is_so(entry)]
            return len(found) == count

        await until(look, f"{node.name} lists {count} {what}")
        return found

    async def test_viewers_and_sessions_are_listed_and_one_is_kicked(self) -> None:
        """At its balancer or at its aggregator: it is closed, not moved, and nobody else notices."""
        viewers = await self._viewers()
        there = await self._listed(self.balancer, "viewers", len(viewers), lambda entry: entry["stream"] == self.stream)
        sessions = await self._listed(
            self.balancer, "sessions", len(viewers), lambda entry: entry["state"] == "resumable"
        )
        self.assertEqual({entry["session"] for entry in there}, {entry["id"] for entry in sessions})
        ports = {viewer.transport.getHost().port: viewer for viewer in viewers}
        behind = [
            entry for node in (self.agg1, self.agg2) for entry in await self._listed(node, "viewers", len(viewers) // 2)
        ]
        self.assertEqual(set(ports), {int(entry["address"].rpartition(":")[2]) for entry in behind})
        self.assertEqual({"lb1"}, {entry["at"] for entry in behind})

        first = there[0]
        self.assertEqual(200, await self.balancer.ask("DELETE", f"/api/v1/viewers/{first['id']}"))
        kicked = [ports[int(first["address"].rpartition(":")[2])]]
        (second, *_) = (await self.agg1.get("/api/v1/viewers"))["viewers"]
        self.assertEqual(200, await self.agg1.ask("DELETE", f"/api/v1/viewers/{second['id']}"))
        kicked.append(ports[int(second["address"].rpartition(":")[2])])
        for viewer in kicked:
            await until(lambda viewer=viewer: viewer.outcome, "it is closed")
        rest = [viewer for viewer in viewers if viewer not in kicked]
        await self._go_on(rest)
        await self._check(rest)
        self.assertEqual(0, await self.balancer.metric("relay_sessions_cut_total"))
        self.assertEqual(404, await self.balancer.ask("DELETE", f"/api/v1/viewers/{first['id']}"))
        self.assertEqual(404, await self.agg1.ask("DELETE", f"/api/v1/viewers/{'9' * 5_000}"))

    async def test_publisher_is_sent_away_and_its_viewers_stay(self) -> None:
        """Until another one publishes; what was done stands in the list of events."""
        viewer = await watch(self, self.balancer, self.stream)
        await viewer.has_frames(5)
        ((publisher,),) = ((await self.origin.get("/api/v1/publishers"))["publishers"],)
        self.assertEqual(self.stream, publisher["name"])
        self.assertEqual(200, await self.origin.ask("DELETE", f"/api/v1/publishers/{self.stream}"))
        await self._listed(self.origin, "publishers", 0)
        kinds = [event["kind"] for event in (await self.origin.get("/api/v1/events"))["events"]]
        self.assertEqual(["publish", "unpublish", "kick"], kinds[-3:])
        self.assertIsNone(viewer.outcome)
        self.assertEqual(404, await self.origin.ask("DELETE", f"/api/v1/publishers/{self.stream}"))

    async def test_metrics_are_as_prometheus_wants_them(self) -> None:
        """Of every tier: names, units and help, by Prometheus's own judge."""
        command = [require_program("promtool"), "check", "metrics"]
        await self._go_on(await self._viewers())
        for node in self.nodes:
            text = await node.text_of("/metrics")
            judge = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            self.assertEqual((0, "", ""), (judge.returncode, judge.stdout, judge.stderr), node.name)
            self.assertIn("relay_viewers", text)

    async def test_failover_is_an_event_where_it_happens(self) -> None:
        """With the reason, as the log has it."""
        self.a1.signal(signal.SIGKILL)

        async def is_told() -> bool:
            told = (await self.agg1.get("/api/v1/events"))["events"]
            return {"failover", "state"} <= {event["kind"] for event in told if "a1" in event["text"]}

        await until(is_told, "agg1 tells that it reads from a2 now, and that it is degraded")
