"""Real processes for tests: nodes of a cluster, and foreign programs; each ended by its own pid, nothing left behind.

Owns: starting, watching and ending processes, ports for them, questions to their admin pages, and waiting with a
deadline.  What is asked of a cluster is the tests' business.  The reactor must run: tests are ``async`` methods of a
trial ``TestCase``.

A node is ``python -m relay.tiers.child``, which is ``twistd`` that ends with its parent: a test run that is killed
leaves none.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from inspect import isawaitable
from itertools import count
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from relay.net.identity import NodeIdentity, read_secret_file

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
HOST = "127.0.0.1"
LISTEN = f"tcp:{{port}}:interface={HOST}"
POLL_SECONDS = 0.02
DEADLINE_SECONDS = 20.0  # for anything that a healthy cluster does at once; a slow CI machine starts ten processes
PORTS = range(20_000, 32_000)  # below the ephemeral range, so that no client socket takes a killed node's port


def free_ports() -> Iterator[int]:
    """Ports that nobody listens on now, in an order of this process's own."""
    order = list(PORTS)
    Random(os.getpid()).shuffle(order)
    for port in order:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        yield port


_PORTS = free_ports()


def free_port() -> int:
    """A port that nobody listens on."""
    return next(_PORTS)


async def until(is_so: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait until ``is_so()``, which may be a coroutine function, gives something true, and return it.

    Raises:
        AssertionError: not within ``seconds``.
    """
    deadline = reactor.seconds() + seconds
    while True:
        answer = is_so()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if reactor.seconds() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await deferLater(reactor, POLL_SECONDS)


class Body(Protocol):
    """Collects the body of an HTTP answer."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred()
        self._data = b""

    def dataReceived(self, data: bytes) -> None:
        self._data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.whole.callback(self._data)


class Program(ProcessProtocol):
    """A process that runs.  ``out`` and ``err`` are what it has printed; ``status`` is set when it has ended."""

    def __init__(self, arguments: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        self.out = b""
        self.err = b""
        self.status: int | None = None
        self.arguments = [str(argument) for argument in arguments]
        self._environment = environment or ENVIRONMENT
        self._waiting: list[Deferred[int]] = []

    def start(self) -> None:
        """Run it."""
        reactor.spawnProcess(self, self.arguments[0], self.arguments, self._environment)

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Failure) -> None:
        killed_by = reason.value.signal if reason.check(ProcessTerminated) else None
        self.status = -killed_by if killed_by else reason.value.exitCode
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(self.status)

    @property
    def text(self) -> str:
        """Everything it has printed, standard output first."""
        return (self.out + self.err).decode(errors="replace")

    async def ended(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end; the exit status, or minus the signal that ended it."""
        if self.status is not None:
            return self.status
        ending: Deferred[int] = Deferred()
        self._waiting.append(ending)
        ending.addTimeout(
            seconds, reactor, lambda _, __: Failure(AssertionError(f"still runs: {self.arguments}\n{self.text}"))
        )
        return await ending

    async def said(self, words: str, seconds: float = DEADLINE_SECONDS) -> None:
        """Wait until it has printed ``words``."""
        await until(lambda: words in self.text, f"{self.arguments[:4]} said {words!r}; it said:\n{self.text}", seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing if it has ended."""
        if self.status is None:
            self.transport.signalProcess(number)

    async def kill(self) -> None:
        """End it as ``kill -9`` does, if it has not ended."""
        self.signal(signal.SIGKILL)
        await self.ended()


class Node(Program):
    """One node of a cluster, that can be killed and started again at the same place."""

    def __init__(self, tier: str, name: str, options: Sequence[str], listen: str = LISTEN) -> None:
        self.name = name
        self.tier = tier
        self.port = free_port()
        self.admin_port = free_port()
        arguments = [sys.executable, "-m", "relay.tiers.child", "-n", "--pidfile=", f"relay-{tier}"]
        arguments += ["--name", name, "--listen", listen.format(port=self.port)]
        arguments += ["--admin", LISTEN.format(port=self.admin_port)]
        super().__init__([*arguments, *options], {**ENVIRONMENT, "RELAY_PARENT_PID": str(os.getpid())})

    @property
    def endpoint(self) -> str:
        """Where others connect to, as a client endpoint string."""
        return f"tcp:{HOST}:{self.port}"

    def rtmp(self, stream: str, scheme: str = "rtmp") -> str:
        """A viewer's or publisher's URL."""
        return f"{scheme}://{HOST}:{self.port}/{stream}"

    def flv(self, stream: str, scheme: str = "http") -> str:
        """A viewer's URL."""
        return f"{scheme}://{HOST}:{self.port}/{stream}.flv"

    async def restart(self) -> None:
        """Start again after an end."""
        assert self.status is not None
        self.status = None
        self.start()
        await self.is_listening()

    async def is_listening(self) -> None:
        """Wait until its admin page answers: its media port was opened before."""
        await self.when(lambda _: True)

    async def when(self, is_so: Callable[[dict[str, Any]], Any], seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """Wait until what ``/api/v1/node`` says is as wanted, and return it."""
        deadline = reactor.seconds() + seconds
        told: dict[str, Any] | None = None
        while told is None or not is_so(told):
            if reactor.seconds() > deadline or self.status is not None:
                raise AssertionError(f"{self.name} (exit status {self.status}) last told {told}; it said:\n{self.text}")
            await deferLater(reactor, POLL_SECONDS)
            told = await self._ask() or told
        return told

    async def stream(
        self, name: str, is_so: Callable[[dict[str, Any]], Any] = lambda stream: stream["is_live"]
    ) -> dict[str, Any]:
        """Wait until it has a stream that is as wanted (live, by default), and return what it says of it."""
        told = await self.when(lambda told: any(is_so(stream) for stream in told["streams"] if stream["name"] == name))
        return next(stream for stream in told["streams"] if stream["name"] == name)

    async def metric(self, name: str) -> float:
        """A number of its ``/metrics`` that has no label."""
        lines = [line.split() for line in (await self._get("/metrics")).decode().splitlines()]
        return next(float(line[1]) for line in lines if line and line[0] == name)

    async def get(self, path: str) -> Any:
        """The JSON at a path of its admin site."""
        return json.loads(await self._get(path))

    async def text_of(self, path: str) -> str:
        """The text at a path of its admin site."""
        return (await self._get(path)).decode()

    async def ask(self, method: str, path: str) -> int:
        """The status that its admin site answers."""
        url = f"http://{HOST}:{self.admin_port}{path}"
        response = await Agent(reactor).request(method.encode(), url.encode())
        response.deliverBody(Body())
        return int(response.code)

    async def _get(self, path: str) -> bytes:
        response = await Agent(reactor).request(b"GET", f"http://{HOST}:{self.admin_port}{path}".encode())
        body = Body()
        response.deliverBody(body)
        return await body.whole

    async def _ask(self) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = json.loads(await self._get("/api/v1/node"))
        except Exception:  # not there yet, or just killed: whoever asks has a deadline
            return None
        return told


class ClusterTestCase(TestCase):
    """A test with processes, and a directory of its own; all gone when it is over."""

    timeout = 100

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relay-test-"))
        self.addCleanup(rmtree, self.directory)
        self.nodes: list[Node] = []
        self.secret_file = self.directory / "secret"
        self.secret_file.touch(0o600)
        self.secret_file.write_text("a secret that only this test knows")
        self._numbers = count(1)

    def run_program(self, *arguments: str | Path) -> Program:
        """Start a program that is ended with the test."""
        program = Program(arguments)
        program.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(program.kill()))
        return program

    def start_node(self, tier: str, name: str, *options: str, listen: str = LISTEN) -> Node:
        """Start a node that is ended with the test."""
        node = Node(tier, name, ["--secret-file", str(self.secret_file), *options], listen)
        node.start()
        self.nodes.append(node)
        self.addCleanup(lambda: Deferred.fromCoroutine(node.kill()))
        return node

    def start_origin(self, *options: str, name: str = "o1", listen: str = LISTEN) -> Node:
        """With a store."""
        return self.start_node("origin", name, "--store", str(self.directory / name), *options, listen=listen)

    def start_distributor(self, name: str, upstream: str, *options: str) -> Node:
        """With a store."""
        store = str(self.directory / name)
        return self.start_node("distributor", name, "--store", store, "--upstream", upstream, *options)

    def start_aggregator(self, name: str, pair: Sequence[Node], *options: str) -> Node:
        """Of one pair, the preferred distributor first."""
        members = ",".join(node.endpoint for node in pair)
        return self.start_node("aggregator", name, "--pair", f"a={members}", *options)

    def start_balancer(self, name: str, aggregators: Sequence[Node], *options: str) -> Node:
        """Of all these."""
        named = [word for node in aggregators for word in ("--aggregator", f"{node.name}={node.endpoint}")]
        return self.start_node("balancer", name, *named, *options)

    def start_cluster(self, *origin_options: str, aggregator_options: Sequence[str] = ()) -> None:
        """Every tier: one origin, a pair, two aggregators, a balancer."""
        self.origin = self.start_origin(*origin_options)
        self.a1 = self.start_distributor("a1", self.origin.endpoint)
        self.a2 = self.start_distributor("a2", self.origin.endpoint)
        self.agg1 = self.start_aggregator("agg1", [self.a1, self.a2], *aggregator_options)
        self.agg2 = self.start_aggregator("agg2", [self.a2, self.a1], *aggregator_options)
        self.balancer = self.start_balancer("lb1", [self.agg1, self.agg2])

    async def normal(self) -> None:
        """Wait until every node says that it is."""
        for node in self.nodes:
            await node.when(lambda told: told["state"] == "normal")

    def identity(self) -> NodeIdentity:
        """For clients of this test that are to be believed to be nodes."""
        return NodeIdentity(name="test", tier="aggregator", secret=read_secret_file(str(self.secret_file)))
