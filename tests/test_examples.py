"""Every example runs as its own first lines say, against an origin in this process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from relay.demo import read_clip
from relay.flv.tags import FILE_HEADER, TagReader, tag
from relay.limits import DEFAULT_LIMITS
from relay.log.options import LogOptions
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.net.storing import IngestSettings, StoreSettings
from relay.rtmp.messages import MediaMessage, MessageType
from relay.tiers.origin import Origin

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
CLIP_MS = 400
LOOPBACK = "tcp:0:interface=127.0.0.1"


def short_clip() -> list[MediaMessage]:
    """The first messages of the demo clip: headers, a keyframe, the frames that depend on it."""
    return [message for message in TagReader(DEFAULT_LIMITS).feed(read_clip()) if message.timestamp < CLIP_MS]


def sizes(message_type: MessageType) -> list[int]:
    """Payload sizes of one kind in the short clip."""
    return [len(message.payload) for message in short_clip() if message.message_type == message_type]


def command(example: str, *arguments: str) -> list[str]:
    """What follows the interpreter's name."""
    return [str(ROOT / "examples" / example), *arguments]


@attrs.frozen
class Result:
    """How an example ended."""

    out: str
    err: str
    status: int

    def sizes(self, kind: str) -> list[int]:
        """The third column of the lines of one kind."""
        return [int(line.split()[2]) for line in self.out.splitlines() if line.split()[0] == kind]

    def times(self) -> list[int]:
        """The second column of audio and video."""
        lines = [line.split() for line in self.out.splitlines()]
        return [int(timestamp) for kind, timestamp, _ in lines if kind in ("audio", "video")]


async def run(example: str, *arguments: str) -> Result:
    """Run an example to its end."""
    out, err, status = await getProcessOutputAndValue(sys.executable, command(example, *arguments), ENVIRONMENT)
    return Result(out.decode(), err.decode(), status)


class Body(Protocol):
    """Collects an HTTP body."""

    def __init__(self) -> None:
        self.whole: Deferred[str] = Deferred()
        self._text = ""

    def dataReceived(self, data: bytes) -> None:
        self._text += data.decode()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.whole.callback(self._text)


class RunningExample(ProcessProtocol):
    """An example that runs until it is told to stop."""

    def __init__(self) -> None:
        self.out = ""
        self.err = ""
        self._wanted: tuple[int, Deferred[list[str]]] | None = None
        self._ended: Deferred[int] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.out += data.decode()
        if self._wanted is not None and self.out.count("\n") >= self._wanted[0]:
            wanted, self._wanted = self._wanted[1], None
            wanted.callback(self.out.splitlines())

    def errReceived(self, data: bytes) -> None:
        self.err += data.decode()

    def processEnded(self, reason: Failure) -> None:
        if self._wanted is not None:
            self._wanted[1].errback(AssertionError(f"it ended before it had said enough: {self.err}"))
        self._ended.callback(0 if reason.check(ProcessDone) else reason.value.exitCode)

    def when_said(self, lines: int) -> Deferred[list[str]]:
        """Fires with its output when it has printed so many lines."""
        said: Deferred[list[str]] = Deferred()
        self._wanted = (lines, said)
        return said

    async def stop(self) -> int:
        """As an operator would; returns the exit status."""
        self.transport.signalProcess(signal.SIGTERM)
        return await self._ended

    async def kill(self) -> None:
        """Whatever a failed test left running."""
        if not self._ended.called:
            self.transport.signalProcess(signal.SIGKILL)
            await self._ended


class ExampleTests(TestCase):
    """An origin waits on a free port; the examples publish to it and watch it."""

    timeout = 30

    async def setUp(self) -> None:
        settings = NodeSettings(identity=NodeIdentity(name="o1", tier="origin"))
        store, ingest = StoreSettings(keep=LogOptions()), IngestSettings(end_seconds=0.1)
        self.origin = Origin(settings, reactor, store, ingest)
        self.origin.listen(serverFromString(reactor, LOOPBACK))
        self.origin.startService()
        self.addCleanup(self.origin.stopService)
        self.port = (await self.origin.when_listening()).getHost().port
        self.rtmp = f"rtmp://127.0.0.1:{self.port}/live/demo"
        self.clip = Path(self.mktemp()).absolute()
        self.clip.write_bytes(FILE_HEADER + b"".join(tag(message) for message in short_clip()))

    async def test_viewers_print_the_file_that_is_published_after_they_came(self) -> None:
        """Both viewers wait for the stream, see every frame of the file once and in order, and end with it."""
        watching = [
            Deferred.fromCoroutine(run("watch_rtmp.py", self.rtmp)),
            Deferred.fromCoroutine(run("watch_http_flv.py", f"http://127.0.0.1:{self.port}/live/demo.flv")),
        ]
        await self._when(lambda: len(self.origin.ports.connections) == 2)
        published = await run("publish_file.py", str(self.clip), self.rtmp)
        self.assertEqual(0, published.status, published.err)
        for succeeded, seen in await DeferredList(watching):
            self.assertTrue(succeeded, seen)
            self.assertEqual((0, ""), (seen.status, seen.err))
            self.assertEqual(sizes(MessageType.VIDEO), seen.sizes("video"))
            self.assertEqual(sorted(seen.times()), seen.times())

    async def test_publish_file_in_a_loop_goes_on_over_the_seam(self) -> None:
        """A looping publisher is seen for longer than its file, with timestamps that grow."""
        publisher = self._spawn("publish_file.py", "--loop", str(self.clip), self.rtmp)
        await self._when(lambda: any(s.log.end_time_ms > 3 * CLIP_MS for s in self.origin.hub))
        await publisher.stop()
        self.assertNotIn("Traceback", publisher.err)

    async def test_watch_http_flv_says_why_it_can_not_watch(self) -> None:
        """A wrong path is answered with the server's status line and an exit status."""
        result = await run("watch_http_flv.py", f"http://127.0.0.1:{self.port}/demo.flv")
        self.assertEqual((1, "HTTP/1.1 404 Not Found\n"), (result.status, result.err))

    async def test_watch_rtmp_says_why_it_can_not_watch(self) -> None:
        """A name that no stream may have is refused with the server's words."""
        result = await run("watch_rtmp.py", f"rtmp://127.0.0.1:{self.port}/live/..")
        self.assertEqual(1, result.status)
        self.assertIn("NetStream.Play.Failed", result.err)

    async def test_embedded_origin_shows_on_its_page_what_is_live(self) -> None:
        """The application that embeds an origin takes a publisher, lists it, and stops when it is told to."""
        embedding = self._spawn("embed_origin.py", LOOPBACK, LOOPBACK)
        media, page = [line.split()[-1] for line in await embedding.when_said(lines=2)]
        self.assertIn("nothing", await self._get(page))
        publisher = self._spawn("publish_file.py", "--loop", str(self.clip), media.replace("anything", "demo"))
        while "live/demo: " not in await self._get(page):
            await deferLater(reactor, 0.02)
        await publisher.stop()
        self.assertEqual(0, await embedding.stop(), embedding.err)

    def _spawn(self, example: str, *arguments: str) -> RunningExample:
        running = RunningExample()
        reactor.spawnProcess(running, sys.executable, [sys.executable, *command(example, *arguments)], ENVIRONMENT)
        self.addCleanup(lambda: Deferred.fromCoroutine(running.kill()))
        return running

    async def _get(self, url: str) -> str:
        body = Body()
        response = await Agent(reactor).request(b"GET", url.encode())
        response.deliverBody(body)
        return await body.whole

    async def _when(self, is_so) -> None:
        while not is_so():
            await deferLater(reactor, 0.01)
