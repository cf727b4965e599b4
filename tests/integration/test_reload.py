"""SIGHUP: a running cluster follows its file, and viewers of what has not changed notice nothing."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tests.clients import frames, is_run, looped, publish, read_clip, watch
from tests.cluster import until
from tests.integration.audience import frames_for_ever
from tests.page.test_browser import SECOND_AGGREGATOR
from tests.tiers.test_cluster import SMALL_CLUSTER, START_SECONDS, children, free_ports
from tests.tiers.test_cluster import ClusterTestCase as RelayTestCase

pytestmark = pytest.mark.net

SECOND_PAIR = """
[[pair]]
name = "b"
streams = ["other/*"]
[[pair.distributor]]
name = "b1"
listen = "tcp:{0}:interface=127.0.0.1"
admin = "tcp:{1}:interface=127.0.0.1"
[[pair.distributor]]
name = "b2"
listen = "tcp:{2}:interface=127.0.0.1"
admin = "tcp:{3}:interface=127.0.0.1"
"""


class ReloadTests(RelayTestCase):
    """``twistd relay`` with two aggregators."""

    async def said(self, words: str) -> None:
        await until(lambda: words.encode() in self.relay.out, f"it says {words!r}", START_SECONDS)

    def place(self, number: int) -> Any:
        """A node that the file gave this port."""
        return SimpleNamespace(port=self.ports[number])

    async def test_pair_is_added_under_viewers(self) -> None:
        """Nobody is cut, misses or repeats anything; nodes that are as before keep their process; a wrong file changes
        nothing."""
        text = SMALL_CLUSTER.format(*self.ports).replace("[[balancer]]", SECOND_AGGREGATOR.format(*free_ports(2)))
        text = text.replace('name = "a"\n', 'name = "a"\nstreams = ["live/*"]\n')
        self.config.write_text(text)
        self.relay = self.run_cluster()
        await self.when(lambda nodes: all(node["state"] == "normal" for node in nodes.values()))
        clip = read_clip("h264_aac.flv")
        await publish(self, self.place(0), "live/kept", looped(clip))
        viewers = [await watch(self, self.place(8), "live/kept") for _ in range(6)]
        for viewer in viewers:
            await viewer.has_frames(20)
        before = children(self.relay.pid)

        self.config.write_text(text + "[[nonsense]]\n")
        os.kill(self.relay.pid, signal.SIGHUP)
        await self.said("nothing is changed: ")
        self.assertEqual(before, children(self.relay.pid))

        self.config.write_text(text + SECOND_PAIR.format(*free_ports(4)))
        os.kill(self.relay.pid, signal.SIGHUP)
        await self.said("the cluster file is read again: added: b1, b2; changed: agg1, agg2")
        await self.said("the cluster is as the file says")
        after = children(self.relay.pid)
        kept = {name for name in before if after[name] == before[name]}
        self.assertEqual((kept, {"b1", "b2"}), ({"o1", "a1", "a2", "lb1"}, set(after) - set(before)))

        whole = [message for _, message in zip(range(20_000), frames_for_ever(clip), strict=False)]
        for viewer in viewers:
            await viewer.has_frames(20)
            self.assertIsNone(viewer.outcome)
            self.assertTrue(is_run(frames(viewer.messages), whole))
        await publish(self, self.place(0), "other/show", looped(clip))
        await (await watch(self, self.place(8), "other/show")).has_frames(20)
