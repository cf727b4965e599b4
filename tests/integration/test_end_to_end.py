"""Media published at the origin and played at the balancer, through four tiers of real processes, bit for bit.

Players are there before the publisher, so each sees the stream from its first frame on, over the place where a
timestamp needs more bits than it has.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import islice
from subprocess import PIPE, run

import pytest

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from tests.clients import MASK, Watcher, elapsed_ms, frames, is_run, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, Program
from tests.players import (
    Packet,
    check_run,
    ffmpeg_play,
    ffmpeg_publish,
    packets_of,
    pyav_play,
    pyav_publish,
    read_framecrc,
    read_pyav,
)

pytestmark = [pytest.mark.net, pytest.mark.interop]

BEFORE_MS = 1_000  # media before a timestamp boundary
WANTED = 75  # packets of each kind: three seconds of video, or one and a half of audio
LOOPS_PACKETS = 2_000  # of a looped source: more than any player gets
LOOPS_SECONDS = 40
EXTENDED = 0xFFFFFF - BEFORE_MS  # ms.  Three bytes are full soon
WRAPPING = (1 << 32) - BEFORE_MS  # ms.  Four bytes are full soon
CLIPS = ("h264_aac", "hevc_aac", "aac")


def source_packets(clip: str) -> list[Packet]:
    """What a publisher of the looped clip sends."""
    return packets_of(islice(looped(read_clip(f"{clip}.flv")), LOOPS_PACKETS))


@cache
def ffmpeg_packets(clip: str) -> list[Packet]:
    """What ffmpeg sends, whose seam between two turns is not as long as ours."""
    command = ffmpeg_publish(f"{clip}.flv", "pipe:1", is_live=False, options=["-t", str(LOOPS_SECONDS)])
    sent = run(command, stdout=PIPE, check=True, timeout=LOOPS_SECONDS)
    return packets_of(TagReader(DEFAULT_LIMITS).feed(sent.stdout))


def is_past(watcher: Watcher, timestamp: int) -> bool:
    """Has the viewer come this far?"""
    return bool(watcher.messages) and elapsed_ms(timestamp & MASK, watcher.messages[-1].timestamp) >= 0


class EndToEndTests(ClusterTestCase):
    """One cluster, all clips at once."""

    async def setUp(self) -> None:
        super().setUp()
        self.start_cluster()
        await self.normal()

    async def test_clips_from_ffmpeg_are_played_by_ffmpeg_and_pyav_bit_for_bit(self) -> None:
        """ffmpeg publishes each clip from 0 ms and from just below 0xFFFFFF ms; both players see it in both forms."""
        streams = {f"live/{clip}-{start}": (clip, start) for clip in CLIPS for start in (0, EXTENDED)}
        players = await self._start_players(list(streams))
        for stream, (clip, start) in streams.items():
            url = self.origin.rtmp(stream)
            self.run_program(*ffmpeg_publish(f"{clip}.flv", url, offset_s=start / 1000))
        seen = await self._ends(players)
        for url, packets in seen:
            clip, start = next(value for stream, value in streams.items() if stream in url)
            check_run(packets, ffmpeg_packets(clip), WANTED)
            self.assertEqual(start == EXTENDED, packets[-1].time_ms > 0xFFFFFF, url)

    async def test_pyav_publishes_and_enhanced_codecs_pass(self) -> None:
        """PyAV is an encoder too; AV1 with Opus passes as everything does that nobody here decodes."""
        clips = {"live/pyav": "h264_aac", "live/enhanced": "av1_opus"}
        players = await self._start_players(list(clips))
        self.run_program(*pyav_publish("h264_aac.flv", self.origin.rtmp("live/pyav")))
        self.run_program(*ffmpeg_publish("av1_opus.flv", self.origin.rtmp("live/enhanced"), loop=False))
        for url, packets in await self._ends(players):
            clip = next(clip for stream, clip in clips.items() if stream in url)
            check_run(packets, source_packets(clip), WANTED)

    async def test_timestamps_go_on_over_two_to_the_32(self) -> None:
        """Our client publishes from just below 2**32 ms; the foreign players and ours see it all."""
        streams = {f"live/{clip}-{start}": (clip, start) for clip in CLIPS for start in (0, EXTENDED, WRAPPING)}
        players = await self._start_players([stream for stream, (_, start) in streams.items() if start == WRAPPING])
        watchers = {stream: await watch(self, self.balancer, stream) for stream in streams}
        await self.balancer.when(lambda told: told["viewers"] == len(streams) + 4 * len(CLIPS))
        publishers = {
            stream: await publish(self, self.origin, stream, looped(read_clip(f"{clip}.flv"), start))
            for stream, (clip, start) in streams.items()
        }
        for stream, (_, start) in streams.items():
            watcher = watchers[stream]
            await watcher.when(partial(is_past, timestamp=start + 2 * BEFORE_MS), "it is past the boundary")
            self.assertTrue(is_run(frames(watcher.messages), frames(publishers[stream].sent)), stream)
            self.assertLess(elapsed_ms(start, frames(watcher.messages)[0].timestamp), BEFORE_MS)
        for url, packets in await self._ends(players):
            clip, _ = next(value for stream, value in streams.items() if stream in url)
            check_run(packets, source_packets(clip), WANTED)

    async def _start_players(self, streams: list[str]) -> list[tuple[str, Program]]:
        """Each stream over both protocols, in both players; they wait for it."""
        urls = [url for stream in streams for url in (self.balancer.rtmp(stream), self.balancer.flv(stream))]
        players = [(url, self.run_program(*ffmpeg_play(url, WANTED))) for url in urls]
        players.append(("", self.run_program(*pyav_play(urls, WANTED))))
        await self.balancer.when(lambda told: told["viewers"] == 2 * len(urls))
        return players

    async def _ends(self, players: list[tuple[str, Program]]) -> list[tuple[str, list[Packet]]]:
        seen: list[tuple[str, list[Packet]]] = []
        for url, player in players:
            self.assertEqual(0, await player.ended(40), player.text[-2000:])
            seen += [(url, read_framecrc(player.out))] if url else list(read_pyav(player.out).items())
        return seen
