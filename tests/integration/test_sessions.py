"""An aggregator dies, hangs or is stopped: its viewers stay connected, and miss and repeat nothing."""

from __future__ import annotations

import signal
from typing import Any
from urllib.parse import urlsplit

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.messages import MediaMessage
from tests.clients import Watcher, frames, is_run, looped, publish, read_clip, watch
from tests.cluster import DEADLINE_SECONDS, POLL_SECONDS, ClusterTestCase, Node, until

pytestmark = pytest.mark.net

STREAM = "live/session"
FRAMES = 40


class FlvWatcher(Protocol):
    """Watches over HTTP-FLV and keeps every message."""

    transport: Any

    def __init__(self, url: str) -> None:
        self.url = url
        self.messages: list[MediaMessage] = []
        self.outcome: str | None = None
        self._head: bytes | None = b""
        self._reader = TagReader(DEFAULT_LIMITS)

    def connectionMade(self) -> None:
        self.transport.write(f"GET {urlsplit(self.url).path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())

    def dataReceived(self, data: bytes) -> None:
        if self._head is not None:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            self._head = None
        self.messages += self._reader.feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.outcome = "cut"

    async def has_frames(self, wanted: int) -> None:
        """Wait for so many more messages."""
        wanted += len(self.messages)
        await until(lambda: self.outcome or len(self.messages) >= wanted, f"{wanted} messages came")

    async def close(self) -> None:
        """Leave."""
        self.transport.abortConnection()
        await until(lambda: self.outcome, "it is closed")


class SessionTests(ClusterTestCase):
    """One cluster; viewers at the balancer."""

    async def setUp(self) -> None:
        super().setUp()
        self.start_cluster()
        await self.normal()
        self.clip = read_clip("h264_aac.flv")
        await publish(self, self.origin, STREAM, looped(self.clip))
        for node in (self.agg1, self.agg2):
            await node.stream(STREAM)

    async def test_aggregator_is_killed(self) -> None:
        """kill -9, first the one, then, when that is back, the other: sessions that were resumed are resumed again."""
        viewers = await self._viewers()
        for victim in (self.agg1, self.agg2):
            await victim.kill()
            await self._go_on(viewers)
            await victim.restart()
            await victim.stream(STREAM)
            await self._balancer_is_normal()
        await self._check(viewers)

    async def test_aggregator_hangs(self) -> None:
        """SIGSTOP: the sockets are open, and nothing comes; found by the unanswered ping."""
        viewers = await self._viewers()
        self.agg1.signal(signal.SIGSTOP)
        await self._go_on(viewers)
        self.agg1.signal(signal.SIGCONT)
        await self._balancer_is_normal()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_aggregator_is_stopped(self) -> None:
        """SIGTERM, as for an upgrade."""
        viewers = await self._viewers()
        self.agg2.signal(signal.SIGTERM)
        await self.agg2.ended()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_distributor_and_aggregator_die_at_the_same_time(self) -> None:
        """Whom the one reads from, and who reads from the other."""
        viewers = await self._viewers()
        await self.a1.kill()
        await self.agg1.kill()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_publisher_comes_back_while_sessions_move(self) -> None:
        """Its aggregator is gone when the stream goes on: the viewer sees it on another."""
        viewers = await self._viewers()
        await self.agg1.kill()
        await publish(self, self.origin, f"{STREAM}2", looped(self.clip))
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_aggregator_is_killed_while_viewers_are_in_their_handshake(self) -> None:
        """They have spoken, and wait for a stream that is not there yet: they are repeated at the other one."""
        name = f"{STREAM}2"
        viewers: list[Any] = []
        for _ in range(3):
            viewers.append(await watch(self, self.balancer, name))
            viewers.append(await self._watch_flv(self.balancer, name))
        for node in (self.agg1, self.agg2):
            await self._has_waiting(node, len(viewers) // 2)
        await self.agg1.kill()
        await self._has_waiting(self.agg2, len(viewers))
        await publish(self, self.origin, name, looped(self.clip))
        await self._go_on(viewers)
        await self._check(viewers)

    async def _has_waiting(self, node: Node, count: int) -> None:
        for _ in range(round(DEADLINE_SECONDS / POLL_SECONDS)):
            if await node.metric("relay_viewers_waiting") == count:
                return
            await deferLater(reactor, POLL_SECONDS)
        self.fail(f"not {count} viewers wait at {node.name}")

    async def _viewers(self) -> list[Any]:
        """Three over RTMP and three over HTTP-FLV, dealt to both aggregators."""
        viewers: list[Any] = []
        for _ in range(3):
            viewers.append(await watch(self, self.balancer, STREAM))
            viewers.append(await self._watch_flv(self.balancer))
        await self._go_on(viewers)
        return viewers

    async def _watch_flv(self, node: Node, name: str = STREAM) -> FlvWatcher:
        watcher = FlvWatcher(node.flv(name))
        parts = urlsplit(watcher.url)
        await connectProtocol(HostnameEndpoint(reactor, parts.hostname, parts.port), watcher)
        self.addCleanup(lambda: Deferred.fromCoroutine(watcher.close()))
        return watcher

    async def _go_on(self, viewers: list[Any]) -> None:
        for viewer in viewers:
            await viewer.has_frames(FRAMES)

    async def _balancer_is_normal(self) -> None:
        await self.balancer.when(lambda told: told["state"] == "normal")

    async def _check(self, viewers: list[Any]) -> None:
        """Nobody was cut, and each has one unbroken run of what was published."""
        whole = [message for _, message in zip(range(20_000), frames_for_ever(self.clip), strict=False)]
        for viewer in viewers:
            self.assertIsNone(viewer.outcome)
            kind = "RTMP" if isinstance(viewer, Watcher) else "HTTP-FLV"
            self.assertTrue(is_run(frames(viewer.messages), whole), kind)


def frames_for_ever(clip: list[MediaMessage]) -> Any:
    """The audio and video frames that the publisher of the looped clip sends."""
    for message in looped(clip):
        yield from frames([message])
