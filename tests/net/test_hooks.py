"""HTTP callbacks against a real HTTP server: what is yes, what is no, and what a back-end that fails costs."""

from __future__ import annotations

import json
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from relay.errors import ConfigError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.options import LogOptions
from relay.names import StreamName
from relay.net.access import AccessRefused
from relay.net.hooks import ANSWER_BYTES, Hooks, HookSettings, check_hook_url, is_yes
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.net.storing import IngestSettings, StoreSettings
from relay.rtmp.events import PublishStarted
from tests.net.driving import Player, PublishingNode
from tests.net.peers import eventually

FIELDS = {"stream": "show", "param": "?key=secret"}


class BackEndResource(Resource):
    """Answers what a test says; ``None`` is never, but for what it has ``begun`` with.

    ``heard`` is what it was asked.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status = 200
        self.answer: bytes | None = b"0"
        self.begun = b""
        self.heard: list[dict[str, Any]] = []
        self.open = 0
        self.most = 0

    def render_POST(self, request: Any) -> bytes | int:
        self.heard.append(json.loads(request.content.read()))
        request.setResponseCode(self.status)
        request.setHeader("Location", "http://127.0.0.1:9/")
        if self.answer is not None:
            return self.answer
        self.open += 1
        self.most = max(self.most, self.open)
        request.notifyFinish().addErrback(lambda _: setattr(self, "open", self.open - 1))
        if self.begun:
            request.write(self.begun)
        return NOT_DONE_YET


class HooksTestCase(TestCase):
    """A back-end on a real port."""

    def setUp(self) -> None:
        self.back_end = BackEndResource()
        site = Site(self.back_end)
        site.noisy = False
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(self.stop)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/hook?token=t0p"

    async def stop(self) -> None:
        if self.port is not None:
            port, self.port = self.port, None
            await port.stopListening()
            await eventually(lambda: not self.back_end.open)

    def hooks(self, limits: Limits = DEFAULT_LIMITS, **settings: Any) -> Hooks:
        actions = ("on_publish", "on_play", "on_play_done")
        made = Hooks(HookSettings(urls=dict.fromkeys(actions, self.url), **settings), limits, reactor)
        self.addCleanup(made.close)
        return made

    async def refused(self, hooks: Hooks) -> str:
        try:
            await hooks.ask("on_play", FIELDS)
        except AccessRefused as refusal:
            return refusal.reason
        return "not at all"


class AskTests(HooksTestCase):
    """Questions."""

    async def test_yes_lets_in(self) -> None:
        """Whatever of SRS's two forms it has."""
        hooks = self.hooks()
        for answer in (b"0", b" 0\n", b'{"code": 0, "data": null}'):
            self.back_end.answer = answer
            await hooks.ask("on_play", FIELDS)
        self.assertEqual({"action": "on_play", **FIELDS}, self.back_end.heard[0])
        self.assertEqual({"allowed": 3}, dict(hooks.outcomes))

    async def test_anything_else_does_not(self) -> None:
        hooks = self.hooks()
        for status, answer in ((200, b"1"), (200, b""), (200, b'{"code": 403}'), (403, b"0"), (302, b"0"), (500, b"0")):
            self.back_end.status, self.back_end.answer = status, answer
            self.assertEqual("back_end", await self.refused(hooks), (status, answer))

    async def test_answer_without_end_is_not_read(self) -> None:
        self.back_end.answer = b"0" + b" " * (2 * ANSWER_BYTES)
        self.assertEqual("back_end_failed", await self.refused(self.hooks()))

    async def test_silence_is_a_failure(self) -> None:
        """And what a failure means, the operator says."""
        self.back_end.answer = None
        self.assertEqual("back_end_failed", await self.refused(self.hooks(seconds=0.1)))
        self.assertEqual("not at all", await self.refused(self.hooks(seconds=0.1, lets_in_on_failure=True)))

    async def test_nobody_there_is_a_failure_that_is_said_once(self) -> None:
        """Without the URL, which has a secret in it."""
        hooks = self.hooks()
        await self.stop()
        for _ in range(3):
            self.assertEqual("back_end_failed", await self.refused(hooks))
        self.assertEqual({"failed": 3}, dict(hooks.outcomes))

    async def test_peer_that_goes_is_not_asked_about_any_more(self) -> None:
        self.back_end.answer = None
        asking = self.hooks().ask("on_play", FIELDS)
        await eventually(lambda: self.back_end.open)
        asking.cancel()
        await eventually(lambda: not self.back_end.open)
        asking.addErrback(lambda _: None)

    async def test_back_end_that_does_not_come_to_an_end_is_left(self) -> None:
        """Its connection is closed with the time that a call may take, or when the peer goes."""
        self.back_end.begun = b"0"
        self.back_end.answer = None
        hooks = self.hooks(seconds=0.1)
        self.assertEqual("back_end_failed", await self.refused(hooks))
        await eventually(lambda: not self.back_end.open)
        asking = self.hooks().ask("on_play", FIELDS)
        await eventually(lambda: self.back_end.open)
        asking.addErrback(lambda _: None).cancel()
        await eventually(lambda: not self.back_end.open)

    async def test_question_does_not_wait_for_news(self) -> None:
        """However many there are: a crowd that leaves must not keep the next viewer out."""
        self.back_end.answer = None
        hooks = self.hooks(attrs.evolve(DEFAULT_LIMITS, hook_calls=4))
        for _ in range(100):
            hooks.tell("on_play_done", FIELDS)
        await eventually(lambda: self.back_end.heard)
        self.back_end.answer = b"0"
        await hooks.ask("on_play", FIELDS)
        self.assertEqual({"allowed": 1}, dict(hooks.outcomes))

    async def test_hook_calls(self) -> None:
        """So many at once; the others wait their turn."""
        self.back_end.answer = None
        hooks = self.hooks(attrs.evolve(DEFAULT_LIMITS, hook_calls=2), seconds=1.0)
        asked = [hooks.ask("on_play", FIELDS).addErrback(lambda failure: failure.value.reason) for _ in range(5)]
        self.assertEqual(["back_end_failed"] * 5, [await each for each in asked])
        self.assertEqual(2, self.back_end.most)

    async def test_hook_queue(self) -> None:
        """One question too many is a failure at once; news too many are dropped, and counted."""
        self.back_end.answer = None
        hooks = self.hooks(attrs.evolve(DEFAULT_LIMITS, hook_calls=1, hook_queue=1), seconds=0.3)
        waiting = [hooks.ask("on_play", FIELDS).addErrback(lambda _: None) for _ in range(2)]
        self.assertEqual("back_end_failed", await self.refused(hooks))
        for _ in range(3):
            hooks.tell("on_play_done", FIELDS)
        self.assertEqual(1, hooks.outcomes["dropped"])
        for each in waiting:
            await each


class TellTests(HooksTestCase):
    """News."""

    async def test_news_have_srs_words(self) -> None:
        """And nobody cares what is answered."""
        self.back_end.status = 500
        self.hooks().tell("on_play_done", FIELDS)
        await eventually(lambda: self.back_end.heard)
        self.assertEqual("on_stop", self.back_end.heard[0]["action"])

    async def test_end_waits_for_what_is_still_to_be_told(self) -> None:
        hooks = self.hooks()
        for _ in range(20):
            hooks.tell("on_play_done", FIELDS)
        await hooks.close()
        self.assertEqual((20, 20), (len(self.back_end.heard), hooks.outcomes["told"]))


class NodeTests(HooksTestCase):
    """A whole node that asks."""

    async def test_publisher_that_leaves_while_the_back_end_thinks_publishes_nothing(self) -> None:
        """The call is given up, and the next encoder finds the name free."""
        urls = dict.fromkeys(("on_publish", "on_publish_done"), self.url)
        identity = NodeIdentity(name="o1", tier="origin", secret=None)
        settings = NodeSettings(identity=identity, hooks=HookSettings(urls=urls, seconds=60.0))
        store = StoreSettings(directory=None, keep=LogOptions(keep_ms=3_600_000))
        node = PublishingNode(settings, reactor, store, IngestSettings())
        node.listen(serverFromString(reactor, "tcp:0:interface=127.0.0.1"))
        node.startService()
        self.addCleanup(node.stopService)
        at = TCP4ClientEndpoint(reactor, "127.0.0.1", (await node.when_listening()).getHost().port)
        self.back_end.answer = None
        first = Player(publish="show")
        await at.connect(Factory.forProtocol(lambda: first))
        await eventually(lambda: self.back_end.open)
        first.transport.abortConnection()
        await eventually(lambda: not self.back_end.open)
        self.assertIsNone(node.ingest(StreamName("live", "show")).publisher)
        self.back_end.answer = b"0"
        second = Player(publish="show")
        await at.connect(Factory.forProtocol(lambda: second))
        await eventually(lambda: second.has(PublishStarted))
        second.transport.abortConnection()
        await eventually(lambda: len(self.back_end.heard) == 3)
        self.assertEqual(["on_publish", "on_publish", "on_unpublish"], [each["action"] for each in self.back_end.heard])


class FormTests(SynchronousTestCase):
    """URLs and answers."""

    def test_only_http_urls_are_taken(self) -> None:
        for good in ("http://127.0.0.1:8085/api/v1/streams", "https://auth.example/hook?token=t"):
            self.assertEqual(good, check_hook_url("--on-play", good))
        for bad in (
            "",
            "ftp://host/",
            "http://",
            "host/path",
            "http://host:0/",
            "http://host:99999999/",
            "http://[/",
            "http://a:b@c/",
        ):
            error = self.assertRaises(ConfigError, check_hook_url, "--on-play", bad)
            self.assertTrue(str(error).startswith("--on-play"))


@given(st.binary(max_size=50))
def test_only_two_forms_are_yes(body: bytes) -> None:
    """Whatever else a back-end says, nobody is let in by accident, and nothing is raised."""
    if is_yes(body):
        content = json.loads(body)
        assert content == 0 or content["code"] == 0
