"""A distributor that lives, answers, and brings nothing: it is left, and returned to when it has caught up."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.clients import frames, is_run, looped, publish, read_clip, watch
from tests.cluster import HOST, ClusterTestCase, until
from tests.integration.audience import frames_for_ever

pytestmark = pytest.mark.net


class FarSide(Protocol):
    """The proxy's connection to the origin."""

    transport: Any

    def __init__(self, near: NearSide) -> None:
        self._near = near

    def connectionMade(self) -> None:
        self.transport.write(self._near.early)
        if self._near.is_held:
            self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self._near.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._near.transport.abortConnection()


class NearSide(Protocol):
    """The proxy's connection from the distributor: the first is the control connection, the others bring media."""

    transport: Any

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.is_media = bool(proxy.sides)
        self.early = b""
        self.far: FarSide | None = None
        proxy.sides.append(self)

    @property
    def is_held(self) -> bool:
        return self.is_media and self._proxy.is_holding

    def connectionMade(self) -> None:
        endpoint = TCP4ClientEndpoint(reactor, HOST, self._proxy.port)
        connectProtocol(endpoint, FarSide(self)).addCallbacks(
            self._connected, lambda _: self.transport.abortConnection()
        )

    def _connected(self, far: FarSide) -> None:
        self.far = far

    def dataReceived(self, data: bytes) -> None:
        if self.far is None:
            self.early += data
        else:
            self.far.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._proxy.sides.remove(self)
        if self.far is not None:
            self.far.transport.abortConnection()


class Proxy(Factory):
    """Between a distributor and its origin: passes everything on, or holds media back while it lets control through."""

    noisy = False

    def __init__(self, port: int) -> None:
        self.port = port
        self.sides: list[NearSide] = []
        self.is_holding = False

    def buildProtocol(self, addr: object) -> NearSide:
        return NearSide(self)

    def hold(self, is_holding: bool) -> None:
        """Media back, or let it flow again."""
        self.is_holding = is_holding
        for side in self.sides:
            if side.is_media and side.far is not None:
                if is_holding:
                    side.far.transport.pauseProducing()
                else:
                    side.far.transport.resumeProducing()


class BehindTests(ClusterTestCase):
    """Origin, a proxy before one distributor, an aggregator that prefers this one."""

    async def test_member_that_brings_nothing_is_left_and_returned_to(self) -> None:
        """Neither is noticed."""
        origin = self.start_origin()
        await origin.is_listening()
        proxy = Proxy(origin.port)
        port = reactor.listenTCP(0, proxy, interface=HOST)
        self.addCleanup(port.stopListening)
        a1 = self.start_distributor("a1", f"tcp:{HOST}:{port.getHost().port}")
        a2 = self.start_distributor("a2", origin.endpoint)
        for distributor in (a1, a2):
            await distributor.is_listening()  # so that the preferred one is read from the beginning
        agg1 = self.start_aggregator("agg1", [a1, a2], "--return-seconds", "1")
        await self.normal()
        clip = read_clip("h264_aac.flv")
        await publish(self, origin, "live/behind", looped(clip))
        viewer = await watch(self, agg1, "live/behind")
        await viewer.has_frames(20)

        proxy.hold(True)
        await agg1.said("live/behind: reading from a2 now: a1 is behind")
        await agg1.when(lambda told: told["state"] == "degraded")
        self.assertEqual("normal", (await a1.get("/api/v1/node"))["state"])
        await viewer.has_frames(20)

        proxy.hold(False)
        await agg1.said("live/behind: back to a1")
        await agg1.when(lambda told: told["state"] == "normal")
        await viewer.has_frames(20)
        whole = [message for _, message in zip(range(20_000), frames_for_ever(clip), strict=False)]
        self.assertIsNone(viewer.outcome)
        self.assertTrue(is_run(frames(viewer.messages), whole))
        metrics = await agg1.text_of("/metrics")
        for cause in ("behind", "return"):
            self.assertIn(f'relay_failovers_total{{cause="{cause}"}} 1.0', metrics)
        for node in (a1, a2):
            await node.kill()
        await until(lambda: not proxy.sides, "the proxy is empty")
