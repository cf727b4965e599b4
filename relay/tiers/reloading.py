"""What is different in a cluster file, and the order in which a running cluster follows it.

Owns the comparison and the steps; processes are the supervisor's.  Called by :mod:`relay.tiers.cluster` at SIGHUP.

Nobody who is not concerned is touched: a node whose command line is the same keeps its process.  Those that are new
are started first, so that whoever is to read from them finds them.  Those that have changed are restarted one by one,
in the order in which a stream passes them, and the next not before the last is well and, if it is an aggregator, gets
viewers again: SIGTERM drains, so viewers and copies move to the others.  Those that are gone are stopped last.

Two are left as they are, and it is said: an aggregator that is the only one, because its viewers would have nowhere to
go, and a balancer, because its viewers can go nowhere at all (``--take-over-from`` upgrades it by hand).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from relay.tiers.clusterfile import ClusterSpec, NodeSpec

WELL_SECONDS = 60.0  # a node that is not well so long after its restart keeps the next ones from theirs
LOOK_SECONDS = 0.2


@attrs.frozen(kw_only=True)
class Changes:
    """From one spec to another; each in the order in which a stream passes the nodes."""

    added: Sequence[NodeSpec] = ()
    changed: Sequence[NodeSpec] = ()
    kept: Sequence[tuple[NodeSpec, str]] = ()
    """Changed, but left as they are, and why."""
    removed: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Is all as it was?"""
        return not (self.added or self.changed or self.kept or self.removed)

    def describe(self) -> str:
        """In one line."""
        parts = [
            f"{word}: {', '.join(node.name for node in nodes)}"
            for word, nodes in (("added", self.added), ("changed", self.changed))
            if nodes
        ]
        parts += [f"removed: {', '.join(self.removed)}"] if self.removed else []
        parts += [f"{node.name} is left as it is ({why})" for node, why in self.kept]
        return "; ".join(parts) or "nothing has changed"


def compare(before: Mapping[str, Sequence[str]], new: ClusterSpec) -> Changes:
    """What has to be done.

    Args:
        before: the nodes that run, by name, with their command lines.
        new: how it is to be.
    """
    after = {node.name for node in new}
    others = [node for node in new if node.name in before and before[node.name] != new.arguments(node)]
    kept = [(node, why) for node in others if (why := _why_kept(node, new))]
    names = {node.name for node, _ in kept}
    return Changes(
        added=[node for node in new if node.name not in before],
        changed=[node for node in others if node.name not in names],
        kept=kept,
        removed=[name for name in before if name not in after],
    )


def _why_kept(node: NodeSpec, spec: ClusterSpec) -> str:
    if node.tier == "balancer":
        return "its viewers would be cut; upgrade it by hand with --take-over-from"
    if node.tier == "aggregator" and len(spec.aggregators) == 1:
        return "its viewers would be cut: it is the only aggregator"
    return ""


class Processes(Protocol):
    """What is asked of the supervisor."""

    def add_node(self, name: str, arguments: Sequence[str]) -> None:
        """Run a node."""

    def end_node(self, name: str) -> Deferred[None]:
        """Stop one, by SIGTERM; fires when it has ended."""


class Reloader:
    """Follows one set of changes.

    Args:
        processes: starts and stops nodes.
        spec: as it is to be.
        is_well: is this node, that was just started, well, and do balancers send it viewers, if it is an aggregator?
        reactor: keeps time.
    """

    log = Logger()

    def __init__(
        self, processes: Processes, spec: ClusterSpec, is_well: Callable[[NodeSpec], bool], reactor: Any
    ) -> None:
        self._processes = processes
        self._spec = spec
        self._is_well = is_well
        self._reactor = reactor

    async def follow(self, changes: Changes) -> bool:
        """Do what has to be done; false if a node did not become well, and the rest was left."""
        for node in changes.added:
            self._processes.add_node(node.name, self._spec.arguments(node))
        for node in changes.added:
            if not await self._becomes_well(node):
                return False
        for node in changes.changed:
            self.log.info("{name} is restarted: its options have changed", event="reload", name=node.name)
            await self._processes.end_node(node.name)
            self._processes.add_node(node.name, self._spec.arguments(node))
            if not await self._becomes_well(node):
                return False
        for name in changes.removed:
            await self._processes.end_node(name)
            self.log.info("{name} is stopped: it is not in the file any more", event="reload", name=name)
        return True

    async def _becomes_well(self, node: NodeSpec) -> bool:
        until = self._reactor.seconds() + WELL_SECONDS
        while not self._is_well(node):
            if self._reactor.seconds() >= until:
                self.log.error(
                    "{name} is not well {seconds:g} s after its start: the rest of the changes is left undone",
                    event="reload",
                    name=node.name,
                    seconds=WELL_SECONDS,
                )
                return False
            await deferLater(self._reactor, LOOK_SECONDS)
        return True
