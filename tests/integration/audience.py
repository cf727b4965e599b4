"""Viewers over RTMP and HTTP-FLV at a cluster's balancer, and the judgement of what they see.

Owns the test case that sessions, drains and take-overs are tested in: one cluster, one stream, viewers who must notice
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

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


class AudienceTestCase(ClusterTestCase):
    """One cluster with a live stream; viewers at the balancer."""

    stream = STREAM
    aggregator_options: Sequence[str] = ()

    async def setUp(self) -> None:
        super().setUp()
        self.start_cluster(aggregator_options=self.aggregator_options)
        await self.normal()
        self.clip = read_clip("h264_aac.flv")
        await publish(self, self.origin, self.stream, looped(self.clip))
        for node in (self.agg1, self.agg2):
            await node.stream(self.stream)

    async def _has_waiting(self, node: Node, count: int) -> None:
        for _ in range(round(DEADLINE_SECONDS / POLL_SECONDS)):
            if await node.metric("relay_viewers_waiting") == count:
                return
            await deferLater(reactor, POLL_SECONDS)
        self.fail(f"not {count} viewers wait at {node.name}")

    async def _viewers(self) -> list[Any]:
        """Three over RTMP and three over HTTP-FLV, dealt to both aggregators."""
        viewers = await self._new_viewers(self.stream)
        await self._go_on(viewers)
        return viewers

    async def _early_viewers(self, name: str) -> list[Any]:
        """As many, who have spoken, and wait for a stream that is not there yet."""
        viewers = await self._new_viewers(name)
        for node in (self.agg1, self.agg2):
            await self._has_waiting(node, len(viewers) // 2)
        return viewers

    async def _new_viewers(self, name: str) -> list[Any]:
        viewers: list[Any] = []
        for _ in range(3):
            viewers.append(await watch(self, self.balancer, name))
            viewers.append(await self._watch_flv(self.balancer, name))
        return viewers

    async def _watch_flv(self, node: Node, name: str | None = None) -> FlvWatcher:
        watcher = FlvWatcher(node.flv(name or self.stream))
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
