"""Byte i of an epoch is the same everywhere: at the origin, both distributors and both aggregators, whoever dies.

And what a viewer is sent meanwhile is one run of that log: nothing missing, nothing twice.
"""

from __future__ import annotations

import signal
from itertools import pairwise
from shutil import rmtree

import pytest

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.log.files import parse_segment_name
from relay.log.record import parse, record_size
from relay.log.store import directory_name
from relay.net.timings import DEAD_SECONDS
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType
from tests.clients import Watcher, elapsed_ms, frames, is_run, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, Node, Program, until
from tests.players import ffmpeg_publish
from tests.programs import require_program

pytestmark = pytest.mark.net

STREAM = "live/one"
FRAMES = 60  # about a second: enough to see that it goes on
PAUSE_SECONDS = 1.5  # a player's buffer; on an idle machine the pauses are a tenth of it
KEPT_BYTES = 120_000  # 3 s: a busy machine must not make copies that are well miss something
KEEP = ("--keep-seconds", "600")


def parse_log(data: bytes) -> list[MediaMessage]:
    """The whole messages of a log; the last may still be being written."""
    messages, at = [], 0
    while (found := parse(data, at)) is not None:
        message, at = found
        messages.append(message)
    return messages


def first_hevc(messages: list[MediaMessage]) -> int | None:
    """Where HEVC begins."""
    return next((at for at, message in enumerate(messages) if message.payload[1:5] == b"hvc1"), None)


def first_frames(fetching: Program) -> list[MediaMessage]:
    """What an FLV viewer has seen so far, once there is a frame."""
    messages = TagReader(DEFAULT_LIMITS).feed(fetching.out)
    return messages if frames(messages) else []


class OneLogTestCase(ClusterTestCase):
    """All tiers but the balancer."""

    origin_keeps = KEEP

    async def setUp(self) -> None:
        super().setUp()
        self.origin = self.start_origin("--end-seconds", "60", *self.origin_keeps)
        self.a1 = self.start_distributor("a1", self.origin.endpoint, *KEEP)
        self.a2 = self.start_distributor("a2", self.origin.endpoint, *KEEP)
        self.agg1 = self.start_aggregator("agg1", [self.a1, self.a2], *KEEP)
        self.agg2 = self.start_aggregator("agg2", [self.a2, self.a1], *KEEP)
        await self.normal()

    def _check_viewer(self, watcher: Watcher, log: bytes) -> None:
        """Was it sent one run of the log, in growing time?"""
        seen = frames(watcher.messages)
        self.assertTrue(is_run(seen, frames(parse_log(log))), "the viewer was sent something else than the log")
        self._check_times(watcher)

    def _check_times(self, watcher: Watcher) -> None:
        seen = frames(watcher.messages)
        for kind in {message.message_type for message in seen}:
            times = [message.timestamp for message in seen if message.message_type == kind]
            steps = [elapsed_ms(earlier, later) for earlier, later in pairwise(times)]
            self.assertGreater(min(steps), 0)

    def _stored(self, node: Node, epoch: int) -> tuple[int, bytes]:
        """Where the log in the node's store begins, and its bytes."""
        segments = []
        for path in (self.directory / node.name / directory_name(STREAM)).glob("*.log"):
            place = parse_segment_name(path.name)
            if place is not None and place[0] == epoch:
                segments.append((place[1], path.read_bytes()))
        begin = end = min(segments)[0]
        data = b""
        for start, segment in sorted(segments):
            self.assertEqual(end, start, f"{node.name}: a hole before a segment")
            data += segment
            end += len(segment)
        return begin, data

    async def _replicated(self, node: Node, epoch: int, start: int, end: int) -> bytes:
        """The log as the node gives it to a neighbour, byte for byte as it came."""
        watcher = await watch(self, node, STREAM, f"?epoch={epoch}&offset={start}", self.identity())
        size = end - start
        await watcher.when(lambda _: sum(map(record_size, watcher.messages)) >= size, f"{node.name} sends its log")
        assert watcher.info is not None
        self.assertEqual((epoch, start), (watcher.info["relayEpoch"], watcher.info["relayOffset"]))
        self.assertEqual([], watcher.positions)
        return watcher.tail


class DeathTests(OneLogTestCase):
    """Servers are killed, and a publisher comes back."""

    async def test_bytes_are_the_same_on_every_node_after_one_of_each_tier_was_killed(self) -> None:
        """Origin, a distributor and an aggregator are killed and come back; then every node has the same bytes."""
        publisher = await publish(self, self.origin, STREAM, looped(read_clip("h264_aac.flv")))
        for node in self.nodes:
            await node.stream(STREAM)
        watcher = await watch(self, self.agg2, STREAM)
        for victim in (self.a1, self.agg1, self.a2):
            await watcher.has_frames(FRAMES)
            await victim.kill()
            await watcher.has_frames(FRAMES)
            await victim.restart()
            await victim.stream(STREAM)
        await self.origin.kill()
        self.assertIsNotNone(await until(lambda: publisher.outcome, "the publisher is cut"))
        await self.origin.restart()
        publisher = await publish(self, self.origin, STREAM, looped(read_clip("hevc_aac.flv")))
        await watcher.has_frames(FRAMES)
        await publisher.close()

        told = await self.origin.stream(STREAM, lambda stream: not stream["is_live"])
        epoch, end = told["epoch"], told["end"]
        start, whole = self._stored(self.origin, epoch)
        self.assertEqual((0, end), (start, len(whole)))
        for node in self.nodes:
            copied = await node.stream(STREAM, lambda stream: (stream["epoch"], stream["end"]) == (epoch, end))
            self.assertEqual(whole[copied["start"] :], await self._replicated(node, epoch, copied["start"], end))
        for node in (self.a1, self.a2):
            start, stored = self._stored(node, epoch)
            self.assertEqual(whole[start:], stored)
        await watcher.when(lambda _: watcher.messages[-1] == parse_log(whole)[-1], "the viewer has seen the last")
        self._check_viewer(watcher, whole)

    async def test_origin_killed_while_ffmpeg_publishes_goes_on_in_the_same_epoch(self) -> None:
        """ffmpeg publishes, the origin is killed and comes back, ffmpeg publishes again: no viewer is cut."""
        balancer = self.start_balancer("lb1", [self.agg1, self.agg2])
        await self.normal()
        watchers = [await watch(self, node, STREAM) for node in (balancer, self.agg1)]
        fetching = self.run_program(require_program("curl"), "-sN", balancer.flv(STREAM))
        await balancer.when(lambda told: told["viewers"] == 2)
        first = self.run_program(*ffmpeg_publish("h264_aac.flv", self.origin.rtmp(STREAM)))
        for watcher in watchers:
            await watcher.has_frames(FRAMES)
        epoch = (await self.origin.stream(STREAM))["epoch"]
        await self.origin.kill()
        self.assertNotEqual(0, await first.ended())
        await self.origin.restart()
        self.run_program(*ffmpeg_publish("h264_aac.flv", self.origin.rtmp(STREAM)))
        for watcher in watchers:
            await watcher.has_frames(FRAMES)
        self.assertEqual(epoch, (await self.origin.stream(STREAM))["epoch"])
        for watcher in watchers:
            self._check_viewer(watcher, self._stored(self.origin, epoch)[1])
        fetched = TagReader(DEFAULT_LIMITS).feed(fetching.out)
        self.assertTrue(is_run(frames(fetched), frames(parse_log(self._stored(self.origin, epoch)[1]))))
        self.assertGreater(len(frames(fetched)), FRAMES)

    async def test_origin_that_lost_its_store_begins_an_epoch_that_viewers_cross_into(self) -> None:
        """What the copies had is served to its end, then the new log, later in media time."""
        watcher, former = await self._lose_the_store()
        await self.origin.restart()
        for node in (self.a1, self.a2):
            await node.when(lambda told: told["links"][0]["state"] == "up")
        await publish(self, self.origin, STREAM, looped(read_clip("hevc_aac.flv")))
        await self._check_crossing(watcher, former)

    async def test_copies_that_report_after_the_publisher_is_back_still_move_the_clock(self) -> None:
        """A publisher quicker than the distributors finds an origin that does not know how late it is."""
        watcher, former = await self._lose_the_store()
        for node in (self.a1, self.a2):
            node.signal(signal.SIGSTOP)
        await self.origin.restart()
        await publish(self, self.origin, STREAM, looped(read_clip("hevc_aac.flv")))
        await self.origin.stream(STREAM, lambda stream: stream["end"] > 0)
        for node in (self.a1, self.a2):
            node.signal(signal.SIGCONT)
        await self._check_crossing(watcher, former)

    async def _lose_the_store(self) -> tuple[Watcher, int]:
        """Publish, watch, and kill the origin with all that it has; the watcher, and the epoch that was."""
        publisher = await publish(self, self.origin, STREAM, looped(read_clip("h264_aac.flv")))
        await self.agg1.stream(STREAM)
        watcher = await watch(self, self.agg1, STREAM)
        self.fetching = self.run_program(require_program("curl"), "-sN", self.agg1.flv(STREAM))
        await watcher.has_frames(FRAMES)
        await until(lambda: first_frames(self.fetching), "the FLV viewer sees it, too")
        former = (await self.origin.stream(STREAM))["epoch"]
        await self.origin.kill()
        await until(lambda: publisher.outcome, "the publisher is cut")
        rmtree(self.directory / "o1")
        return watcher, former

    async def _check_crossing(self, watcher: Watcher, former: int) -> None:
        """Viewers have read the old epoch to its end, then HEVC from its header on, and no time went back."""
        await watcher.when(lambda _: first_hevc(watcher.messages) is not None, "the new epoch is seen")
        await watcher.has_frames(FRAMES)
        epoch = (await self.agg1.stream(STREAM, lambda stream: stream["epoch"] != former))["epoch"]
        await until(lambda: first_hevc(first_frames(self.fetching)) is not None, "the FLV viewer has crossed, too")
        fetched = TagReader(DEFAULT_LIMITS).feed(self.fetching.out)
        old, new = (
            frames(parse_log(self._stored(node, number)[1]))
            for node, number in ((self.a1, former), (self.origin, epoch))
        )
        for seen in (watcher.messages, fetched):
            crossed = first_hevc(seen)
            header = describe(MessageType.VIDEO, seen[crossed].payload)
            self.assertTrue(header.is_sequence_header, "the new epoch's frames come before their header")
            self.assertTrue(is_run(frames(seen[:crossed]), old))
            self.assertTrue(is_run(frames(seen[crossed:]), new))
        self._check_times(watcher)

    async def test_preferred_distributor_killed_or_stopped_costs_the_viewer_nothing(self) -> None:
        """Its viewers read on at the other distributor, and at the preferred one again when that is well.

        Viewers of an aggregator that merges both don't even pause.
        """
        merging = self.start_aggregator("agg3", [self.a1, self.a2], "--read", "merge")
        await self.normal()
        await publish(self, self.origin, STREAM, looped(read_clip("h264_aac.flv")))
        await self.agg1.stream(STREAM, lambda stream: stream["source"] == "a1")
        await merging.stream(STREAM)
        watcher, merged = await watch(self, self.agg1, STREAM), await watch(self, merging, STREAM)
        await watcher.has_frames(FRAMES)
        await self.a1.kill()
        await self.agg1.stream(STREAM, lambda stream: stream["source"] == "a2")
        await watcher.has_frames(FRAMES)
        self.assertLess(watcher.longest_pause, PAUSE_SECONDS, "after a kill")
        await self.a1.restart()
        await self.agg1.stream(STREAM, lambda stream: stream["source"] == "a1")
        await watcher.has_frames(FRAMES)
        self.a1.signal(signal.SIGSTOP)
        await self.agg1.stream(STREAM, lambda stream: stream["source"] == "a2")
        await watcher.has_frames(FRAMES)
        self.a1.signal(signal.SIGCONT)
        await watcher.has_frames(FRAMES)
        self.assertLess(watcher.longest_pause, DEAD_SECONDS + PAUSE_SECONDS, "after a stop")
        self.assertLess(merged.longest_pause, PAUSE_SECONDS, "while both were read")
        epoch = (await self.origin.stream(STREAM))["epoch"]
        log = self._stored(self.origin, epoch)[1]
        self._check_viewer(watcher, log)
        self._check_viewer(merged, log)


class RetentionTests(OneLogTestCase):
    """An origin that keeps about four seconds."""

    origin_keeps = ("--keep-mbytes", str(KEPT_BYTES / (1 << 20)))

    async def test_distributor_that_was_away_for_longer_than_the_origin_keeps_jumps_and_counts(self) -> None:
        """What is gone is counted in bytes; what comes after it is the log's, at its own offsets."""
        await publish(self, self.origin, STREAM, looped(read_clip("h264_aac.flv")))
        await self.a2.stream(STREAM)
        await self.a1.stream(STREAM, lambda stream: stream["end"] > KEPT_BYTES)
        await self.a1.kill()
        left = (await self.origin.stream(STREAM))["end"]
        await self.origin.stream(STREAM, lambda stream: stream["start"] > left)
        await self.a1.restart()
        told = await self.a1.stream(STREAM, lambda stream: stream["is_live"] and stream["end"] > left + KEPT_BYTES)
        missing = await self.a1.metric("relay_missing_bytes_total")
        self.assertGreater(missing, 0)
        watcher = await watch(self, self.a1, STREAM)
        await watcher.has_frames(FRAMES)
        await watcher.close()
        end = (await self.a1.stream(STREAM))["end"]
        await self.a2.stream(STREAM, lambda stream: stream["end"] >= end)  # it need not be the faster of the two
        self.assertEqual(0, await self.a2.metric("relay_missing_bytes_total"))
        self._check_viewer(watcher, self._stored(self.a2, told["epoch"])[1])
