"""The cluster that is broken: every node a process of its own, each with an address of its own on the loopback device.

Owns the processes and the question whether all is normal.  Nodes listen on, and connect from, ``127.0.0.11`` and up,
so that one can be cut off by its address.  The supervisor is the one of ``twistd -n relay``: what it starts ends with
this process, however that ends.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint

from relay.admin.fetch import fetch
from relay.drill.faults import Target
from relay.errors import RelayError
from relay.names import StreamName
from relay.tiers.supervise import Supervisor

ASK_SECONDS = 1.0
RESTART_SECONDS = 0.2  # as systemd does it; the drill is long enough
FIRST_ADDRESS = 11

PAIRS = {"a": ("a1", "a2"), "b": ("b1", "b2")}
AGGREGATORS = ("agg1", "agg2")
STREAMS = tuple(StreamName(pair, "drill") for pair in PAIRS)
"""One of each pair."""


class RigFailed(RelayError):
    """The cluster does not run."""


@attrs.frozen
class RigNode:
    """One node."""

    name: str
    tier: str
    address: str
    port: int
    admin_port: int

    def reached_from(self, other: RigNode) -> str:
        """The client endpoint that ``other`` is told."""
        return f"tcp:{self.address}:{self.port}:bindAddress={other.address}"


class Rig:
    """An origin, two pairs, two aggregators, a balancer.

    Args:
        directory: for stores and the secret.
        read_mode: the aggregators' ``--read``.
    """

    def __init__(self, reactor: Any, directory: Path, read_mode: str) -> None:
        self._reactor = reactor
        self._directory = directory
        self._read_mode = read_mode
        self._refused = ""
        self.supervisor = Supervisor(reactor, self._node_refused, RESTART_SECONDS)
        tiers = {"o1": "origin", **{name: "distributor" for pair in PAIRS.values() for name in pair}}
        tiers |= {**dict.fromkeys(AGGREGATORS, "aggregator"), "lb1": "balancer"}
        self.nodes = {
            name: _make_node(name, tier, f"127.0.0.{FIRST_ADDRESS + number}")
            for number, (name, tier) in enumerate(tiers.items())
        }

    def start(self) -> None:
        """Run all nodes."""
        secret = self._directory / "secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_hex(16))
        for node in self.nodes.values():
            self.supervisor.add_node(node.name, self._arguments(node, secret))
        self.supervisor.startService()

    def stop(self) -> Deferred[None]:
        """End all; fires when none is left."""
        return self.supervisor.stopService()

    def target(self, name: str) -> Target:
        """The node as it runs now.

        Raises:
            RigFailed: it does not.
        """
        protocol = self.supervisor.protocols.get(name)
        if protocol is None or protocol.transport is None:
            raise RigFailed(f"{name} does not run")
        return Target(protocol.transport.pid, self.nodes[name].address)

    async def states(self) -> dict[str, dict[str, Any]]:
        """What every node says of itself; one that says nothing is "down".

        Raises:
            RigFailed: a node can't run at all.
        """
        if self._refused:
            raise RigFailed(self._refused)
        asking = [self._ask(node) for node in self.nodes.values()]
        answers = await DeferredList(asking)
        return dict(zip(self.nodes, (answer for _, answer in answers), strict=True))

    async def is_normal(self) -> bool:
        """Does every node run, and say that all is well?"""
        return all(state["state"] == "normal" for state in (await self.states()).values())

    async def is_settled(self) -> bool:
        """Does each aggregator read the distributors that it prefers?"""
        states = await self.states()
        return self._read_mode == "merge" or all(
            stream["source"] == _preferred(name, stream["name"])
            for name in AGGREGATORS
            for stream in states[name].get("streams", [])
        )

    async def is_balanced(self) -> bool:
        """Has each aggregator a good part of the viewers?"""
        states = await self.states()
        counts: list[int] = [states[name].get("viewers", 0) for name in AGGREGATORS]
        return 4 * min(counts) >= sum(counts) > 0

    def _ask(self, node: RigNode) -> Deferred[dict[str, Any]]:
        endpoint = TCP4ClientEndpoint(self._reactor, node.address, node.admin_port)
        asking: Deferred[Any] = fetch(self._reactor, endpoint, "/api/v1/node", ASK_SECONDS)
        asking.addCallbacks(json.loads, lambda failure: {"state": "down"})
        return asking

    def _node_refused(self, name: str, why: str) -> None:
        self._refused = f"{name} can't start: {why}"

    def _arguments(self, node: RigNode, secret: Path) -> Sequence[str]:
        listen, admin = (f"tcp:{port}:interface={node.address}" for port in (node.port, node.admin_port))
        common = [f"relay-{node.tier}", "--name", node.name, "--listen", listen, "--admin", admin]
        common += ["--secret-file", str(secret)]
        own = {"origin": self._origin, "distributor": self._distributor, "aggregator": self._aggregator}
        return [*common, *own.get(node.tier, self._balancer)(node)]

    def _origin(self, node: RigNode) -> list[str]:
        return ["--store", str(self._directory / node.name)]

    def _distributor(self, node: RigNode) -> list[str]:
        upstream = self.nodes["o1"].reached_from(node)
        pair = next(pair for pair, names in PAIRS.items() if node.name in names)
        return ["--store", str(self._directory / node.name), "--upstream", upstream, "--streams", f"{pair}/*"]

    def _aggregator(self, node: RigNode) -> list[str]:
        # Each row begins with everybody at the preferred distributor, so it is returned to soon: the
        # wait doubles with each fault that follows.
        arguments = ["--read", self._read_mode, "--return-seconds", "0.25"]
        for pair, names in PAIRS.items():
            order = _in_order(node.name, names)
            arguments += ["--pair", f"{pair}={','.join(self.nodes[name].reached_from(node) for name in order)}"]
        return arguments

    def _balancer(self, node: RigNode) -> list[str]:
        # New viewers are to be at both aggregators for the next row; this is not about who is there already.
        arguments = ["--rise-seconds", "0.1", "--slow-start-seconds", "0"]
        for name in AGGREGATORS:
            arguments += ["--aggregator", f"{name}={self.nodes[name].reached_from(node)}"]
        return arguments


def _in_order(aggregator: str, pair: tuple[str, str]) -> tuple[str, ...]:
    """The first one prefers the first of every pair, the second one the second."""
    return pair if aggregator == AGGREGATORS[0] else pair[::-1]


def _preferred(aggregator: str, stream: str) -> str:
    return _in_order(aggregator, PAIRS[stream.partition("/")[0]])[0]


def _make_node(name: str, tier: str, address: str) -> RigNode:
    """With ports that nobody uses at that address."""
    ports = []
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind((address, 0))
            ports.append(each.getsockname()[1])
    return RigNode(name, tier, address, *ports)
