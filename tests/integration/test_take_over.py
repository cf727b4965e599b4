"""A balancer is upgraded: a new process takes its sockets, and no viewer notices."""

from __future__ import annotations

import copy
import signal
import socket
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from tests.clients import looped, publish, watch
from tests.cluster import DEADLINE_SECONDS, HOST, Node, free_port, until
from tests.integration.audience import FRAMES, STREAM, AudienceTestCase, FlvWatcher
from tests.net.test_balancing import write_certificate

pytestmark = pytest.mark.net


class Knocker:
    """Connects again and again, as new viewers do, and counts who is not let in."""

    def __init__(self, port: int) -> None:
        self.refused: list[str] = []
        self.admitted = 0
        self._port = port
        self._loop = LoopingCall(self._knock)

    def start(self) -> None:
        self._loop.start(0.01)

    def stop(self) -> None:
        self._loop.stop()

    def _knock(self) -> None:
        try:
            socket.create_connection((HOST, self._port), timeout=1).close()
            self.admitted += 1
        except OSError as error:
            self.refused.append(str(error))


class TakeOverCase(AudienceTestCase):
    """One cluster; viewers at its balancer, which has a successor."""

    @property
    def path(self) -> str:
        """Where it listens for its successor."""
        return str(self.directory / "lb1.sock")

    def start_balancer(self, name: str, aggregators: Any, *options: str) -> Node:
        handover = ["--handover", self.path, "--take-over-from", self.path]
        return super().start_balancer(name, aggregators, *handover, *options)

    def start_successor(self, *options: str) -> Node:
        """The same command line once more, and what is new in it."""
        node = copy.copy(self.balancer)
        node.out, node.err, node.status, node._waiting = b"", b"", None, []
        node.arguments = [*node.arguments, *options]
        node.start()
        self.nodes.append(node)
        self.addCleanup(node.kill)
        return node

    async def take_over(self, *options: str) -> Node:
        """Upgrade, and wait until all is done."""
        before = self.balancer
        self.balancer = self.start_successor(*options)
        await self.balancer.said("has taken over")
        self.assertEqual(0, await before.ended())
        return self.balancer


class TakeOverTests(TakeOverCase):
    """All viewers are handed over."""

    async def test_first_process_starts_afresh(self) -> None:
        """With the options that every later one has."""
        await self.balancer.said("nobody answers")

    async def test_viewers_and_newcomers_notice_nothing(self) -> None:
        """Twice in a row; then an aggregator dies, and the sessions go on, as they would have before."""
        viewers = await self._viewers()
        knocker = Knocker(self.balancer.port)
        knocker.start()
        for _ in range(2):
            await self.take_over()
            await self.balancer.said("with 6 viewers")
            await self._go_on(viewers)
        knocker.stop()
        self.assertEqual([], knocker.refused)
        self.assertGreater(knocker.admitted, 10)
        await self.balancer.when(lambda told: told["viewers"] == len(viewers))
        await self.agg1.kill()
        await self._go_on(viewers)
        await self._check(viewers)
        self.assertEqual(3, await self.balancer.metric("relay_sessions_moved_total"))
        self.assertEqual(0, await self.balancer.metric("relay_sessions_cut_total"))

    async def test_viewers_in_their_handshake_survive(self) -> None:
        """They wait for a stream that is not there yet; then one of their aggregators dies, too."""
        name = f"{STREAM}2"
        viewers = await self._early_viewers(name)
        await self.take_over()
        await self.agg1.kill()
        await self._has_waiting(self.agg2, len(viewers))
        await publish(self, self.origin, name, looped(self.clip))
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_viewer_who_has_said_half_a_word_survives(self) -> None:
        """The other half goes to the other process."""
        with socket.create_connection((HOST, self.balancer.port)) as viewer:
            viewer.sendall(b"GET /live/sess")
            await self.balancer.when(lambda told: told["viewers"] == 1)
            await self.take_over()
            viewer.sendall(b"ion.flv HTTP/1.0\r\n\r\n")
            viewer.settimeout(DEADLINE_SECONDS)
            head = await deferToThread(viewer.recv, 15)
        self.assertEqual(b"HTTP/1.1 200 OK", head)

    async def test_viewer_who_is_held_is_served_by_the_next_process(self) -> None:
        """There is no aggregator at the time."""
        for node in (self.agg1, self.agg2):
            node.signal(signal.SIGKILL)
            await node.ended()
        await self.balancer.when(lambda told: told["state"] == "down")
        viewer = await watch(self, self.balancer, STREAM)
        await self.balancer.when(lambda told: told["viewers"] == 1)
        await self.take_over()
        await self.agg2.restart()
        await viewer.has_frames(FRAMES)

    async def test_successor_without_one_aggregator_moves_its_viewers(self) -> None:
        """Its command line has only the other."""
        viewers = await self._viewers()
        at = self.balancer.arguments.index("--aggregator")
        del self.balancer.arguments[at : at + 2]
        await self.take_over()
        await self._go_on(viewers)
        await self._check(viewers)
        await self.agg1.kill()
        await self._go_on(viewers)

    async def test_successor_dies_in_the_middle(self) -> None:
        """Twice: the first process goes on, and can still be taken over from."""
        viewers = await self._viewers()
        arguments = self.balancer.arguments
        self._lose_agg1()
        for _ in range(2):
            successor = self.start_successor()  # it waits for the aggregator
            await successor.said("agg2 is up")
            await successor.kill()
            await self._go_on(viewers)
        await until(lambda: self.balancer.text.count("nothing has changed here") == 2, "it has noticed")
        self.balancer.arguments = arguments
        await self.take_over()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_successor_of_another_name_is_refused(self) -> None:
        """Aggregators would tell it nothing; it says so and ends, and the first goes on."""
        viewers = await self._viewers()
        successor = self.start_successor("--name", "lb2")
        self.assertEqual(2, await successor.ended())
        self.assertIn("it is called lb2, this one lb1", successor.text)
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_successor_that_does_not_reach_an_aggregator_gives_up(self) -> None:
        """Rather than take viewers of whom it would be told nothing."""
        viewers = await self._viewers()
        self._lose_agg1()
        successor = self.start_successor()
        self.assertEqual(1, await successor.ended())
        self.assertIn("not reached: agg1", successor.text)
        await self.balancer.said("nothing has changed here")
        await self._go_on(viewers)
        await self._check(viewers)

    def _lose_agg1(self) -> None:
        """On the next command line, it is where nobody listens."""
        nowhere = f"agg1=tcp:{HOST}:{free_port()}"
        words = self.balancer.arguments
        self.balancer.arguments = [nowhere if word.startswith("agg1=") else word for word in words]

    async def test_process_before_hangs(self) -> None:
        """It is stopped, not dead: the successor gives up, and all goes on with the first."""
        viewers = await self._viewers()
        self.balancer.signal(signal.SIGSTOP)
        successor = self.start_successor()
        self.assertEqual(2, await successor.ended())
        self.balancer.signal(signal.SIGCONT)
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_new_command_line_listens_elsewhere(self) -> None:
        """It says so; viewers of the old address stay."""
        viewers = await self._viewers()
        old, self.balancer.port = self.balancer.port, free_port()
        self.balancer.arguments = [
            word.replace(f"tcp:{old}:", f"tcp:{self.balancer.port}:") for word in self.balancer.arguments
        ]
        await self.take_over()
        await self.balancer.said(f"has listened on tcp {HOST} {old}; this one does not")
        self.assertRaises(ConnectionRefusedError, socket.create_connection, (HOST, old))
        viewers.append(await watch(self, self.balancer, STREAM))
        await self._go_on(viewers)
        await self._check(viewers)


class StayingTests(TakeOverCase):
    """Viewers over TLS can't be handed over."""

    async def setUp(self) -> None:
        await super().setUp()
        path = self.directory / "balancer.pem"
        write_certificate(path)
        tls = f"ssl:{{port}}:interface={HOST}:privateKey={path}:certKey={path}"
        handover = [
            "--handover",
            f"{self.path}2",
            "--take-over-from",
            f"{self.path}2",
            "--peer-listen",
            f"tcp:{free_port()}",
        ]
        named = [word for node in (self.agg1, self.agg2) for word in ("--aggregator", f"{node.name}={node.endpoint}")]
        self.balancer = self.start_node("balancer", "lb2", *named, *handover, listen=tls)
        await self.balancer.when(lambda told: told["state"] == "normal")

    async def test_viewers_over_tls_stay_with_their_process_as_long_as_they_like(self) -> None:
        """They outlive their aggregator there, too, though only the new process is told of it."""
        viewers = [await self._watch_tls() for _ in range(2)]
        await self._go_on(viewers)
        before = self.balancer
        self.balancer = self.start_successor()
        await before.said("2 who can't be (TLS) stay here")
        await self.balancer.said("has taken over, with 0 viewers")
        viewers.append(await self._watch_tls())
        await self._go_on(viewers)
        await self.agg1.kill()
        await self._go_on(viewers)
        await self._check(viewers)
        for viewer in viewers:
            await viewer.close()
        self.assertEqual(0, await before.ended())

    async def test_viewers_who_stay_too_long_are_closed(self) -> None:
        """As the option says."""
        self.balancer.signal(signal.SIGTERM)
        await self.balancer.ended()
        self.balancer = self.start_successor("--linger-seconds", "0.1")
        await self.balancer.when(lambda told: told["state"] == "normal")
        viewer = await self._watch_tls()
        await self._go_on([viewer])
        before = self.balancer
        self.balancer = self.start_successor()
        self.assertEqual(0, await before.ended())
        await until(lambda: viewer.outcome, "it is closed")

    async def _watch_tls(self) -> FlvWatcher:
        watcher = FlvWatcher(self.balancer.flv(STREAM))
        endpoint = wrapClientTLS(CertificateOptions(), HostnameEndpoint(reactor, HOST, self.balancer.port))
        await connectProtocol(endpoint, watcher)
        self.addCleanup(lambda: None if watcher.outcome else watcher.close())
        return watcher
