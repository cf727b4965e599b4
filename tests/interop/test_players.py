"""Players and encoders of other makers, on our port: rtmpdump, both of GStreamer's sources, and its sink."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from unittest import SkipTest

import pytest

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from tests.clients import CLIPS, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, until
from tests.players import check_run, packets_of
from tests.programs import is_ci, require_program

pytestmark = [pytest.mark.net, pytest.mark.interop]

STREAM = "live/clip"
CLIP = "h264_aac.flv"
WANTED = 60  # packets: most of a second
WANTED_BYTES = 20_000  # hold so many packets


def require_gstreamer(*elements: str) -> str:
    """The launcher; the test is skipped where an element is not installed, but not in CI."""
    inspect = require_program("gst-inspect-1.0")
    missing = [name for name in elements if subprocess.run([inspect, "--exists", name], check=False).returncode]
    if missing and not is_ci():
        raise SkipTest(f"GStreamer has no {', '.join(missing)} here")
    return require_program("gst-launch-1.0")


class PlayerTests(ClusterTestCase):
    """Each plays what an origin has, and writes an FLV file of it."""

    async def setUp(self) -> None:
        super().setUp()
        self.origin = self.start_origin()
        await self.normal()
        self.publisher = await publish(self, self.origin, STREAM, looped(read_clip(CLIP)))
        await self.origin.stream(STREAM)
        self.file = self.directory / "seen.flv"

    async def test_rtmpdump_plays(self) -> None:
        """rtmpdump plays until it is interrupted."""
        arguments = ["-q", "-r", self.origin.rtmp(STREAM), "--live", "-o", str(self.file)]
        player = self.run_program(require_program("rtmpdump"), *arguments)
        await until(lambda: self.file.exists() and self.file.stat().st_size > WANTED_BYTES, "rtmpdump has seen enough")
        player.signal(signal.SIGINT)
        await player.ended()
        self._check_file()

    async def test_gstreamer_rtmp2src_plays(self) -> None:
        """Each buffer of rtmp2src is a tag."""
        await self._gstreamer_plays("rtmp2src", f"location={self.origin.rtmp(STREAM)}", f"num-buffers={2 * WANTED}")

    async def test_gstreamer_rtmpsrc_plays(self) -> None:
        """rtmpsrc is librtmp."""
        location = f"location={self.origin.rtmp(STREAM)} live=1"
        await self._gstreamer_plays("rtmpsrc", location, f"num-buffers={2 * WANTED}", "blocksize=256")

    async def _gstreamer_plays(self, *source: str) -> None:
        sink = ["!", "filesink", f"location={self.file}"]
        player = self.run_program(require_gstreamer(source[0]), "-q", *source, *sink)
        self.assertEqual(0, await player.ended(), player.text)
        self._check_file()

    def _check_file(self) -> None:
        seen = TagReader(DEFAULT_LIMITS).feed(Path(self.file).read_bytes())
        check_run(packets_of(seen), packets_of(self.publisher.sent), WANTED)


class GStreamerPublishesTests(ClusterTestCase):
    """GStreamer as an encoder."""

    async def test_gstreamer_rtmp2sink_publishes(self) -> None:
        """What rtmp2sink publishes is played bit for bit; its muxer has its own idea of the first timestamps."""
        origin = self.start_origin()
        await self.normal()
        watcher = await watch(self, origin, STREAM)
        demuxed = ["filesrc", f"location={CLIPS / CLIP}", "!", "flvdemux", "name=demuxer"]
        muxed = ["flvmux", "name=muxer", "streamable=true", "!", "rtmp2sink", f"location={origin.rtmp(STREAM)}"]
        joined = [f"demuxer.{kind} ! queue ! muxer.{kind}".split() for kind in ("video", "audio")]
        launcher = require_gstreamer("flvdemux", "flvmux", "rtmp2sink")
        encoder = self.run_program(launcher, "-q", *demuxed, *muxed, *joined[0], *joined[1])
        await watcher.has_frames(2 * WANTED)
        self.assertEqual(0, await encoder.ended(), encoder.text)
        check_run(packets_of(watcher.messages), packets_of(read_clip(CLIP)), WANTED, has_rhythm=False)
