"""Refused encoders and players: foreign programs stop, and say why; those that may are let in."""

from __future__ import annotations

import io
import json
import os
import signal
from contextlib import redirect_stdout
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from relay.tiers.sign import main as sign
from tests.clients import CLIPS, looped, publish, read_clip, watch
from tests.cluster import ClusterTestCase, Program, until
from tests.interop.test_players import require_gstreamer
from tests.players import ffmpeg_play, ffmpeg_publish
from tests.programs import require_program

pytestmark = [pytest.mark.net, pytest.mark.interop]

CLIP = "h264_aac.flv"
KEY = "the-key-of-live"


class BackEnd(Resource):
    """Lets in whoever has ``token=good``."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[dict[str, Any]] = []

    def render_POST(self, request: Any) -> bytes:
        asked = json.loads(request.content.read())
        self.heard.append(asked)
        return b"0" if "token=good" in asked["param"] else b"1"


class PublishTests(ClusterTestCase):
    """Encoders at an origin that wants a key."""

    async def set_up_origin(self) -> None:
        keys = self.directory / "keys"
        keys.touch(0o600)
        keys.write_text(f"live/* {KEY}\n")
        self.origin = self.start_origin("--publish-key-file", str(keys))
        await self.normal()

    async def test_ffmpeg_stops_and_says_why(self) -> None:
        """Without a key, and with another one; with the right one it publishes.  No log has a key."""
        await self.set_up_origin()
        for query, why in (
            ("", "a key for live/show is wanted"),
            ("?key=another-key", "this is not a key for live/show"),
        ):
            encoder = self.run_program(*ffmpeg_publish(CLIP, self.origin.rtmp(f"live/show{query}")))
            self.assertNotEqual(0, await encoder.ended())
            self.assertIn(why, encoder.text)
        viewer = await watch(self, self.origin, "live/show")
        encoder = self.run_program(*ffmpeg_publish(CLIP, self.origin.rtmp(f"live/show?key={KEY}")))
        await viewer.has_frames(10)
        await encoder.kill()
        self.assertEqual(
            2, (await self.origin.text_of("/metrics")).count('relay_access_refused_total{reason="key"} 2.0') * 2
        )
        self.assertNotIn(KEY, self.origin.text)
        self.assertNotIn("another-key", self.origin.text)

    async def test_keys_are_rotated(self) -> None:
        """SIGHUP lets the node read the file again; a file with a fault changes nothing, and whoever is there stays."""
        await self.set_up_origin()
        first = self.run_program(*ffmpeg_publish(CLIP, self.origin.rtmp(f"live/show?key={KEY}")))
        viewer = await watch(self, self.origin, "live/show")
        await viewer.has_frames(10)
        keys = self.directory / "keys"
        keys.write_text("live/* short\n")
        self.origin.signal(signal.SIGHUP)
        await self.origin.said("nothing is changed: --publish-key-file")
        keys.write_text("live/* a-newer-key\n")
        self.origin.signal(signal.SIGHUP)
        await self.origin.said("the files of keys are read again")
        encoder = self.run_program(*ffmpeg_publish(CLIP, self.origin.rtmp(f"live/other?key={KEY}")))
        self.assertNotEqual(0, await encoder.ended())
        self.run_program(*ffmpeg_publish(CLIP, self.origin.rtmp("live/other?key=a-newer-key")))
        await (await watch(self, self.origin, "live/other")).has_frames(10)
        seen = len(viewer.messages)
        await viewer.has_frames(seen + 10)
        self.assertIsNone(first.status)
        self.assertNotIn("a-newer-key", self.origin.text)

    async def test_node_without_keys_outlives_a_hangup(self) -> None:
        balancer = self.start_balancer("lb1", [], "--aggregator", "agg1=tcp:127.0.0.1:9")
        await balancer.is_listening()
        balancer.signal(signal.SIGHUP)
        await balancer.said("there is nothing to be read again")
        await balancer.is_listening()

    async def test_librtmp_does_not_try_again(self) -> None:
        """OBS's library, in GStreamer's rtmpsink: it knows why, ends with an error, and was refused once."""
        await self.set_up_origin()
        launcher = require_gstreamer("flvdemux", "rtmpsink")
        pipeline = ["filesrc", f"location={CLIPS / CLIP}", "!", "rtmpsink", f"location={self.origin.rtmp('live/show')}"]
        encoder = Program([launcher, "-q", *pipeline], {**os.environ, "GST_DEBUG": "rtmp:5", "GST_DEBUG_NO_COLOR": "1"})
        encoder.start()
        self.addCleanup(encoder.kill)
        self.assertNotEqual(0, await encoder.ended())
        for words in ("NetStream.Publish.Denied", "a key for live/show is wanted"):
            self.assertIn(words, encoder.text)
        metrics = await self.origin.text_of("/metrics")
        self.assertIn('relay_access_refused_total{reason="key"} 1.0', metrics)
        self.assertIn("publish refused: a key for live/show is wanted", self.origin.text)


class PlayTests(ClusterTestCase):
    """Viewers, through a balancer, at an aggregator that wants a signature, or asks."""

    async def start_with(self, *options: str) -> None:
        self.origin = self.start_origin()
        self.a1 = self.start_distributor("a1", self.origin.endpoint)
        self.agg1 = self.start_aggregator("agg1", [self.a1], *options)
        self.balancer = self.start_balancer("lb1", [self.agg1])
        await self.normal()
        await publish(self, self.origin, "live/show", looped(read_clip(CLIP)))
        await self.agg1.stream("live/show")

    def signed(self, url: str, *options: str) -> str:
        """What relay-sign prints."""
        words = ["--key-file", str(self.keys), "--for", "1h", *options, url]
        said = io.StringIO()
        with redirect_stdout(said):
            self.assertEqual(0, sign(words))
        return said.getvalue().strip()

    async def curl(self, url: str) -> str:
        fetching = self.run_program(require_program("curl"), "-s", "-m", "2", "-w", "\n%{http_code}", url)
        await fetching.ended()
        return fetching.out.decode("latin-1")

    async def test_signed_urls_are_played(self) -> None:
        """Over RTMP and HTTP; others are told why not.  Copies, which have proved the secret, need none."""
        self.keys = self.directory / "keys"
        self.keys.touch(0o600)
        self.keys.write_text("a signing key of this test\n")
        await self.start_with("--sign-play", "--sign-key-file", str(self.keys))
        rtmp, flv = self.balancer.rtmp("live/show"), self.balancer.flv("live/show")
        playing = self.run_program(*ffmpeg_play(rtmp, 10))
        self.assertNotEqual(0, await playing.ended())
        self.assertIn("a signed URL is wanted to play live/show", playing.text)
        self.assertTrue((await self.curl(flv)).endswith("403"))
        elsewhere = self.signed(flv, "--address", "192.0.2.1")
        self.assertIn("403 Forbidden: this URL is for another address", await self.curl(elsewhere))
        playing = self.run_program(*ffmpeg_play(self.signed(rtmp), 10))
        self.assertEqual(0, await playing.ended(), playing.text)
        self.assertTrue((await self.curl(self.signed(flv, "--address", "127.0.0.1"))).startswith("FLV"))
        self.assertNotIn("sig=", self.agg1.text + self.balancer.text)

    async def test_back_end_decides_and_is_told(self) -> None:
        """By SRS's callbacks: who may, who has gone."""
        back_end = BackEnd()
        port = reactor.listenTCP(0, Site(back_end), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/"
        await self.start_with("--on-play", url, "--on-play-done", url)
        refused = await watch(self, self.balancer, "live/show", "?token=bad")
        await until(lambda: refused.outcome, "it is refused")
        self.assertEqual("NetStream.Play.Failed", refused.outcome)
        viewer = await watch(self, self.balancer, "live/show", "?token=good")
        await viewer.has_frames(10)
        await viewer.close()
        await until(lambda: len(back_end.heard) == 3, "it is told")
        self.assertEqual(["on_play", "on_play", "on_stop"], [each["action"] for each in back_end.heard])
        self.assertEqual({"show"}, {each["stream"] for each in back_end.heard})
        self.assertEqual(back_end.heard[1]["client_id"], back_end.heard[2]["client_id"])
        self.assertEqual("rtmp://127.0.0.1", back_end.heard[1]["tcUrl"].rpartition(":")[0])
        self.assertNotIn("token", self.agg1.text)
        url = self.balancer.flv("live/show") + "?token=good"
        words = ["-s", "-m", "1", "-o", "/dev/null", "-e", "http://site.example/p", url]
        await self.run_program(require_program("curl"), *words).ended()
        asked = back_end.heard[3]
        place = f"http://127.0.0.1:{self.balancer.port}/live"
        self.assertEqual((place, "http://site.example/p"), (asked["tcUrl"], asked["pageUrl"]))
