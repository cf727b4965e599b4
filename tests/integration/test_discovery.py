"""Aggregators and origins found by DNS: a real name server whose zone changes under viewers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients import frames, is_run, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, Node, Program, free_port, until
from tests.integration.audience import frames_for_ever
from tests.programs import require_program

pytestmark = pytest.mark.net

VIEWERS = 50
SERVICE = "_relay._tcp.example.test"
UPSTREAM = "_origin._tcp.example.test"


class DiscoveryTests(ClusterTestCase):
    """dnsmasq with a zone of one second."""

    async def zone(self, *records: tuple[str, str, Node]) -> None:
        """A name server that says (service, host, node); it takes the place of the one before."""
        await self.no_zone()
        words = [f"--port={self.dns}", "--listen-address=127.0.0.1", "--bind-interfaces", "--no-daemon", "--no-hosts"]
        words += ["--no-resolv", "--local-ttl=1", "--user=root", "--conf-file=/dev/null", "--log-facility=-"]
        for service, host, node in records:
            words += [
                f"--srv-host={service},{host}.example.test,{node.port}",
                f"--address=/{host}.example.test/127.0.0.1",
            ]
        self.server = self.run_program(require_program("dnsmasq"), *words)
        await self.server.said("started")

    async def no_zone(self) -> None:
        """The name server dies."""
        if self.server is not None:
            await self.server.kill()
            self.server = None

    async def set_up_nodes(self) -> None:
        """One origin, and all that is told of DNS."""
        self.server: Program | None = None
        self.dns = free_port()
        self.origin = self.start_origin()
        await self.origin.is_listening()
        await self.zone((UPSTREAM, "o1", self.origin))
        self.a1 = self.start_distributor("a1", f"srv:{UPSTREAM}", "--dns", f"127.0.0.1:{self.dns}")
        self.agg1 = self.start_aggregator("agg1", [self.a1])
        self.agg2 = self.start_aggregator("agg2", [self.a1])
        await self.zone((UPSTREAM, "o1", self.origin), (SERVICE, "agg1", self.agg1))
        told = ["--aggregator", f"srv:{SERVICE}", "--dns", f"127.0.0.1:{self.dns}", "--slow-start-seconds", "0"]
        self.balancer = self.start_node("balancer", "lb1", *told)
        await self.normal()
        self.clip = read_clip("h264_aac.flv")
        await publish(self, self.origin, "live/found", looped(self.clip))

    async def watch_all(self, count: int) -> list[Any]:
        viewers = [await watch(self, self.balancer, "live/found") for _ in range(count)]
        for viewer in viewers:
            await viewer.has_frames(5)
        return viewers

    async def test_members_are_added_and_removed_under_viewers(self) -> None:
        """New ones are used, removed ones drained, nobody is cut; a name server that is down changes nothing."""
        await self.set_up_nodes()
        viewers = await self.watch_all(VIEWERS // 2)
        await self.agg1.when(lambda told: told["viewers"] == VIEWERS // 2)

        both = (SERVICE, "agg1", self.agg1), (SERVICE, "agg2", self.agg2)
        await self.zone((UPSTREAM, "o1", self.origin), (UPSTREAM, "other", self.origin), *both)
        await self.balancer.when(
            lambda told: (
                [link["state"] for link in told["links"]] == ["up", "up"]
                and not any(link["why"] for link in told["links"])
            )
        )
        viewers += await self.watch_all(VIEWERS // 2)
        await self.agg2.when(lambda told: told["viewers"] >= VIEWERS // 8)

        await self.zone((UPSTREAM, "other", self.origin), both[1])
        await self.agg2.when(lambda told: told["viewers"] == VIEWERS)
        await self.balancer.when(lambda told: len(told["links"]) == 1)
        await self.a1.when(lambda told: [link["streams"] for link in told["links"]] == [1])
        self.assertEqual(["other"], [link["endpoint"].split(".")[0] for link in (await self.a1.get("/api/v1/links"))])

        await self.no_zone()

        async def has_failed() -> bool:
            return "relay_service_lookup_failures_total" in await self.balancer.text_of("/metrics") and (
                "no members to be had" in self.balancer.text
            )

        await until(has_failed, "the outage is noticed")
        whole = [message for _, message in zip(range(20_000), frames_for_ever(self.clip), strict=False)]
        for viewer in viewers:
            await viewer.has_frames(5)
            self.assertIsNone(viewer.outcome)
            self.assertTrue(is_run(frames(viewer.messages), whole))
        self.assertEqual(0, await self.balancer.metric("relay_sessions_cut_total"))
        self.assertEqual(0, await self.a1.metric("relay_missing_bytes_total"))
