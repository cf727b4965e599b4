"""Streams taken from servers that are no nodes of ours: nginx-rtmp, and ffmpeg as a listener."""

from __future__ import annotations

from pathlib import Path
from unittest import SkipTest

import pytest

from tests.clients import Watcher, looped, read_clip, watch
from tests.cluster import HOST, ClusterTestCase, Program, free_port, until
from tests.players import check_run, ffmpeg_publish, packets_of
from tests.programs import is_ci, require_program

pytestmark = [pytest.mark.net, pytest.mark.interop]

CLIP = "h264_aac.flv"
WANTED = 100  # packets: more than a second
TURNS = 2_000  # messages of the looped clip: more than any test sees
NGINX_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
NGINX_CONFIGURATION = """
load_module {module};
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ }}
rtmp {{
    server {{
        listen {host}:{port};
        application live {{ live on; }}
    }}
}}
"""


async def start_nginx(case: ClusterTestCase, port: int = 0) -> tuple[int, Program]:
    """nginx-rtmp with an application ``live``; ended with the test."""
    nginx = require_program("nginx")
    if not NGINX_MODULE.exists():
        if is_ci():
            raise AssertionError(f"{NGINX_MODULE} is missing, and in CI it must be there")
        raise SkipTest("libnginx-mod-rtmp is not installed")
    port = port or free_port()
    configuration, pid_file = case.directory / "nginx.conf", case.directory / "nginx.pid"
    pid_file.unlink(missing_ok=True)
    configuration.write_text(
        NGINX_CONFIGURATION.format(module=NGINX_MODULE, directory=case.directory, host=HOST, port=port)
    )
    server = case.run_program(nginx, "-p", case.directory, "-e", "stderr", "-c", configuration)
    await until(lambda: server.status is not None or pid_file.exists(), "nginx runs")
    case.assertIsNone(server.status, server.text)
    return port, server


class PullTests(ClusterTestCase):
    """Our nodes as viewers of others."""

    async def test_origin_and_distributor_take_a_stream_from_nginx(self) -> None:
        """An origin with ``--pull``, and a distributor whose upstream it is, have what was published there."""
        port, _ = await start_nginx(self)
        origin = self.start_origin("--pull", f"live/pulled=rtmp://{HOST}:{port}/live/foreign")
        distributor = self.start_distributor("a1", f"tcp:{HOST}:{port}", "--streams", "live/foreign")
        aggregator = self.start_aggregator("agg1", [distributor])
        await origin.is_listening()
        await aggregator.when(lambda told: told["links"][0]["state"] == "up")
        watchers = [await watch(self, origin, "live/pulled"), await watch(self, aggregator, "live/foreign")]
        self.run_program(*ffmpeg_publish(CLIP, f"rtmp://{HOST}:{port}/live/foreign"))
        for watcher in watchers:
            await self._check(watcher)

    async def test_origin_takes_a_stream_from_an_ffmpeg_that_listens_and_from_the_next_one(self) -> None:
        """ffmpeg serves one viewer, once.  When it is gone and another listens, our viewers have noticed nothing."""
        port = free_port()
        serving = self._listen(port)
        origin = self.start_origin("--pull", f"live/pulled=rtmp://{HOST}:{port}/live/x")
        await origin.is_listening()
        watcher = await watch(self, origin, "live/pulled")
        await self._check(watcher)
        epoch = (await origin.stream("live/pulled"))["epoch"]
        await serving.kill()
        await origin.stream("live/pulled", lambda stream: not stream["is_live"])
        before = len(watcher.messages)
        self._listen(port)
        await watcher.has_frames(WANTED)
        self._check_packets(watcher, before)
        self.assertEqual(epoch, (await origin.stream("live/pulled"))["epoch"])

    def _listen(self, port: int) -> Program:
        return self.run_program(*ffmpeg_publish(CLIP, f"rtmp://{HOST}:{port}/live/x", options=["-listen", "1"]))

    async def _check(self, watcher: Watcher) -> None:
        await watcher.has_frames(WANTED)
        self._check_packets(watcher, 0)

    def _check_packets(self, watcher: Watcher, begin: int) -> None:
        source = looped(read_clip(CLIP))
        check_run(packets_of(watcher.messages[begin:]), packets_of(next(source) for _ in range(TURNS)), WANTED - 10)
