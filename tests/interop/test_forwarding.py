"""Copies pushed to other servers: what arrives is what was published, and a bad target costs nobody anything."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, Protocol

from relay.rtmp.handshake import HANDSHAKE_BYTES
from relay.rtmp.messages import MessageType
from tests.clients import Watcher, looped, publish, read_clip, watch
from tests.cluster import HOST, ClusterTestCase, Node, free_port, until
from tests.interop.test_foreign_servers import start_nginx
from tests.net.test_listening import make_certificate
from tests.players import check_run, packets_of, read_framecrc
from tests.programs import require_program

pytestmark = [pytest.mark.net, pytest.mark.interop]

CLIP = "h264_aac.flv"
KEY = "s3cret-key"
WANTED = 100  # packets
TURNS = 2_000  # messages of the looped clip: more than any test sees


class HangsUp(Protocol):
    """When it has heard all that a client says first: bytes that nobody reads would make it a reset."""

    heard = 0

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.heard += len(data)
        if self.heard == 1 + HANDSHAKE_BYTES:
            self.transport.loseConnection()


class Resets(Protocol):
    """At the first word."""

    transport: ITCPTransport

    def dataReceived(self, data: bytes) -> None:
        self.transport.abortConnection()


class ForwardTests(ClusterTestCase):
    """An origin or a distributor that forwards."""

    async def start_forwarding(self, *rules: str, first: str = "live/show") -> None:
        """With a live stream, published at the origin."""
        words = [word for rule in rules for word in ("--forward", rule)]
        self.origin = self.start_origin(*words)
        await self.normal()
        self.publisher = await publish(self, self.origin, first, looped(read_clip(CLIP)))

    async def is_sending(self, node: Node, target: str = "") -> dict[str, Any]:
        """Its first forward, when the target takes it."""
        told = await node.when(
            lambda told: any(each["state"] == "sending" and target in each["target"] for each in told["forwards"])
        )
        return next(each for each in told["forwards"] if target in each["target"])

    def check_whole(self, watcher: Watcher) -> None:
        source = [message for message, _ in zip(looped(read_clip(CLIP)), range(TURNS), strict=False)]
        check_run(packets_of(watcher.messages), packets_of(source), WANTED - 10)

    async def test_nginx_gets_what_was_published(self) -> None:
        """Packet for packet; a restarted nginx is found again, and begins at a keyframe.  The key is nowhere."""
        port, nginx = await start_nginx(self)
        await self.start_forwarding(f"live/*=rtmp://{HOST}:{port}/live/{{name}}-{KEY}")
        forward = await self.is_sending(self.origin)
        self.assertEqual(("live/show", f"rtmp://{HOST}:{port}"), (forward["stream"], forward["target"]))
        there: Any = Node("origin", "nginx", [])
        there.port = port
        watcher = await watch(self, there, f"live/show-{KEY}")
        await watcher.has_frames(WANTED + 10)
        self.check_whole(watcher)

        await nginx.kill()
        await self.origin.when(lambda told: told["forwards"][0]["reconnects"] == 1)
        await start_nginx(self, port)
        await self.is_sending(self.origin)
        again = await watch(self, there, f"live/show-{KEY}")
        await again.has_frames(WANTED + 10)
        self.check_whole(again)
        metrics = await self.origin.text_of("/metrics")
        labels = f'stream="live/show",target="rtmp://{HOST}:{port}"'
        self.assertIn(f"relay_forward_reconnects_total{{{labels}}} 1.0", metrics)
        for text in (self.origin.text, metrics, await self.origin.text_of("/api/v1/forwards")):
            self.assertNotIn(KEY, text)

    async def test_listening_ffmpeg_gets_what_was_published(self) -> None:
        """From a distributor; when the broadcast is over it is told so, and ends."""
        port = free_port()
        listener = self.run_program(
            require_program("ffmpeg"), "-v", "error", "-listen", "1", "-i", f"rtmp://{HOST}:{port}/live/x",
            "-c", "copy", "-f", "framecrc", "-",
        )  # fmt: skip
        self.origin = self.start_origin("--end-seconds", "0.5")
        distributor = self.start_distributor("a1", self.origin.endpoint, "--forward", f"*=rtmp://{HOST}:{port}/live/x")
        await self.normal()
        publisher = await publish(self, self.origin, "live/show", looped(read_clip(CLIP)))
        await self.is_sending(distributor)
        sent = len(publisher.sent)
        await until(lambda: len(publisher.sent) > sent + 2 * WANTED, "enough is sent")
        await publisher.close()
        await listener.ended()
        source = [message for message, _ in zip(looped(read_clip(CLIP)), range(TURNS), strict=False)]
        check_run(read_framecrc(listener.out), packets_of(source), WANTED)
        await distributor.when(lambda told: not told["forwards"])

    async def test_our_own_origin_as_a_target_has_the_same_headers_and_payloads(self) -> None:
        """And one that wants a key says no: the reason is shown, and it is asked less often each time."""
        keys = self.directory / "keys"
        keys.touch(0o600)
        keys.write_text(f"* {KEY}\n")
        target = self.start_origin("--publish-key-file", str(keys), name="o2")
        await target.is_listening()
        await self.start_forwarding(
            f"live/*=rtmp://{HOST}:{target.port}/copy/{{name}}?key={KEY}",
            f"live/*=rtmp://localhost:{target.port}/copy/{{name}}2?key=another-key",
        )
        await self.is_sending(self.origin, HOST)
        watcher = await watch(self, target, "copy/show")
        await watcher.has_frames(WANTED)
        self.check_whole(watcher)
        ours = [each.payload for each in read_clip(CLIP) if each.message_type == MessageType.DATA_AMF0]
        theirs = [each.payload for each in watcher.messages if each.message_type == MessageType.DATA_AMF0]
        self.assertEqual(ours[:1], theirs[:1])
        told = await self.origin.when(lambda told: any("Denied" in each["why"] for each in told["forwards"]))
        self.assertEqual({"sending", "connecting"}, {each["state"] for each in told["forwards"]})
        self.assertEqual(1, self.origin.text.count("refuses it: NetStream.Publish.Denied"))

    async def test_target_that_can_t_be_talked_to_is_said_why(self) -> None:
        """Once: one whose certificate nobody knows, one that hangs up, and one that resets."""
        certificate = self.directory / "certificate"
        make_certificate(certificate)
        listen = f"ssl:{{port}}:interface={HOST}:privateKey={certificate}:certKey={certificate}"
        target = self.start_origin(name="o2", listen=listen)
        await target.is_listening()
        urls = [f"rtmps://localhost:{target.port}"]
        for rude in (HangsUp, Resets):
            factory = Factory.forProtocol(rude)
            factory.noisy = False
            port = reactor.listenTCP(0, factory, interface=HOST)
            self.addCleanup(port.stopListening)
            urls.append(f"rtmp://{HOST}:{port.getHost().port}")
        await self.start_forwarding(*(f"live/*={url}/live/{KEY}" for url in urls))
        told = await self.origin.when(lambda told: len([each for each in told["forwards"] if each["why"]]) == 3)
        why = {each["target"]: each["why"] for each in told["forwards"]}
        self.assertEqual("closed by the target", why[urls[1]])
        self.assertEqual("reset by the target, or out of reach", why[urls[2]])
        self.assertIn("certificate", why[urls[0]])
        await self.origin.stream("live/show")
        for url in urls:
            self.assertEqual(1, self.origin.text.count(f"{url} does not take it: "), self.origin.text)
        self.assertNotIn("Traceback", self.origin.text)
        self.assertNotIn(KEY, self.origin.text)

    async def test_target_that_never_reads_costs_nobody_anything(self) -> None:
        """It holds one piece of the log; viewers go on."""
        deaf = socket.create_server((HOST, 0))
        self.addCleanup(deaf.close)
        await self.start_forwarding(f"live/*=rtmp://{HOST}:{deaf.getsockname()[1]}/live/x")
        watcher = await watch(self, self.origin, "live/show")
        await watcher.has_frames(WANTED)
        self.check_whole(watcher)
        self.assertEqual("connecting", (await self.origin.get("/api/v1/forwards"))[0]["state"])
