"""Every server that has a backup dies, one after another and in three ways; no viewer of the balancer notices.

The order is drawn by lot, the same each time; ``RELAY_LOT`` draws another, ``RELAY_DEATHS`` makes it longer.
"""

from __future__ import annotations

import os
import signal
from random import Random

import pytest

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.log.files import parse_segment_name
from relay.log.store import directory_name
from relay.rtmp.messages import MediaMessage
from tests.clients import Publisher, Watcher, frames, is_run, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, Node, until
from tests.integration.test_one_log import parse_log
from tests.programs import require_program

pytestmark = pytest.mark.net

STREAM = "live/one"
LOT = int(os.environ.get("RELAY_LOT", "1"))
DEATHS = int(os.environ.get("RELAY_DEATHS", "7"))
WAYS = ("killed", "hung", "stopped")
VIEWERS = 4
FRAMES = 40  # between two deaths: more than half a second
HANG_FRAMES = 60  # seen while a server hangs: longer than it takes to find out


class OneAfterAnotherTests(ClusterTestCase):
    """The whole cluster, with an origin that keeps everything."""

    timeout = 60 + 15 * DEATHS

    async def test_no_viewer_notices(self) -> None:
        """Viewers over RTMP and HTTP-FLV get one run of the log, from the first frame that they saw on."""
        self.start_cluster("--end-seconds", "60")
        await self.normal()
        publisher = await self._publish()
        for node in (self.agg1, self.agg2):
            await node.stream(STREAM)
        watchers = [await watch(self, self.balancer, STREAM) for _ in range(VIEWERS)]
        fetching = self.run_program(require_program("curl"), "-sN", self.balancer.flv(STREAM))
        lot = Random(LOT)
        for _ in range(DEATHS):
            await watchers[0].has_frames(FRAMES)
            victim = lot.choice([self.a1, self.a2, self.agg1, self.agg2, self.origin])
            if victim is self.origin:
                await victim.kill()
                await until(lambda publisher=publisher: publisher.outcome, "the publisher is cut")
                await victim.restart()
                publisher = await self._publish()
            else:
                await self._hurt(victim, lot.choice(WAYS), watchers[0])
            await self.normal()
        for watcher in watchers:
            await watcher.has_frames(FRAMES)
        await publisher.close()
        await self.origin.stream(STREAM, lambda stream: not stream["is_live"])
        log = self._log()
        for watcher in watchers:
            await watcher.when(lambda watcher: watcher.messages[-1] == log[-1], "the last frame is seen")
            self.assertTrue(is_run(frames(watcher.messages), log), "the viewer was sent something else than the log")
        self.assertTrue(is_run(frames(TagReader(DEFAULT_LIMITS).feed(fetching.out)), log))
        self.assertIsNone(fetching.status)

    async def _hurt(self, victim: Node, way: str, watcher: Watcher) -> None:
        if way == "hung":
            victim.signal(signal.SIGSTOP)
            await watcher.has_frames(HANG_FRAMES)
            victim.signal(signal.SIGCONT)
            return
        victim.signal(signal.SIGKILL if way == "killed" else signal.SIGTERM)
        await victim.ended()
        await watcher.has_frames(FRAMES)
        await victim.restart()

    async def _publish(self) -> Publisher:
        return await publish(self, self.origin, STREAM, looped(read_clip("h264_aac.flv")))

    def _log(self) -> list[MediaMessage]:
        """The frames in the origin's store, which is of one epoch."""
        paths = sorted((self.directory / "o1" / directory_name(STREAM)).glob("*.log"))
        places = [parse_segment_name(path.name) for path in paths]
        self.assertEqual(1, len({place[0] for place in places if place is not None}))
        return frames(parse_log(b"".join(path.read_bytes() for path in paths)))
