"""One row after another: break a node, watch the viewers, mend it, wait until all is normal.

Owns the order of things.  Called by :mod:`relay.drill.command`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import LoopingCall, deferLater

from relay.drill.faults import FAULTS, Fault
from relay.drill.publisher import StampedPublisher
from relay.drill.report import Promise, Row, unbroken
from relay.drill.rig import STREAMS, Rig, RigFailed
from relay.drill.viewers import Audience
from relay.errors import RelayError

START_SECONDS = 40.0  # nine processes start, on a busy machine
NORMAL_SECONDS = 30.0  # after a node was mended, until all is normal
WATCH_SECONDS = 2.0  # viewers are watched at least this long after a fault
CALM_SECONDS = 2.0  # the first row: no fault
LOOK_SECONDS = 0.05
LAG_SECONDS = 0.01  # the rhythm in which our own lateness is looked at
PROMISES: dict[str, Promise] = {"origin": "the origin's", "balancer": "served again"}


class Interrupted(RelayError):
    """Somebody wants the drill to end."""


@attrs.frozen
class Step:
    """A row to come."""

    node: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.node} {self.fault.name}"


def plan(rig: Rig, faults: Sequence[str], only: Sequence[str]) -> Iterator[Step]:
    """All rows in order: fault by fault, so that no node seems to flap; and by tier."""
    names = sorted(rig.nodes, key=lambda name: (_ORDER[rig.nodes[name].tier], name))
    for fault in faults:
        for name in names:
            if not only or name in only or rig.nodes[name].tier in only:
                yield Step(name, FAULTS[fault])


_ORDER = {"distributor": 0, "aggregator": 1, "origin": 2, "balancer": 3}


class Drill:
    """A whole drill.

    Args:
        size: viewers of each protocol for each of the two streams.
        on_begin: told what is being done; on_row: told what came of it.
    """

    def __init__(
        self, reactor: Any, rig: Rig, size: int, on_begin: Callable[[str], None], on_row: Callable[[Row], None]
    ) -> None:
        self.rig = rig
        self.rows: list[Row] = []
        self.longest_lag = 0.0  # seconds that this process itself was late
        self._reactor = reactor
        self._on_begin, self._on_row = on_begin, on_row
        balancer, origin = rig.nodes["lb1"], rig.nodes["o1"]
        self._audience = Audience(reactor, balancer.address, balancer.port, STREAMS, size)
        self._publishers = [
            StampedPublisher(reactor, origin.address, TCP4ClientEndpoint(reactor, origin.address, origin.port), stream)
            for stream in STREAMS
        ]
        self._looked_at = 0.0
        self._sleeping: Deferred[None] | None = None
        self._is_interrupted = False
        self._looking = LoopingCall(self._look_at_lag)
        self._looking.clock = reactor

    async def run(self, steps: Sequence[Step]) -> None:
        """All rows.  Ends with nothing running, whatever happens.

        Raises:
            RigFailed: the cluster does not run.
            NobodyServed: viewers can't watch although all is normal.
            Interrupted: it was.
        """
        try:
            self._on_begin("starting the cluster")
            self.rig.start()
            for publisher in self._publishers:
                publisher.startService()
            await self._until_normal(START_SECONDS)
            await self._audience.fill()
            self._looked_at = self._reactor.seconds()
            self._looking.start(LAG_SECONDS)
            await self._calm()
            for step in steps:
                await self._prepare(step)
                self._on_begin(str(step))
                self._add(await self._strike(step))
        finally:
            await self._end()

    def interrupt(self) -> None:
        """End it now."""
        self._is_interrupted = True
        if self._sleeping is not None:
            self._sleeping.cancel()

    async def _end(self) -> None:
        if self._looking.running:
            self._looking.stop()
        self._audience.empty()
        for publisher in self._publishers:
            if publisher.running:
                await publisher.stopService()
        await self.rig.stop()

    async def _calm(self) -> None:
        """How it looks when nothing is broken: what the pauses of the other rows are to be compared with."""
        self._on_begin("no fault")
        self._audience.take()
        await self._sleep(CALM_SECONDS)
        self._add(self._unbroken("none"))

    def _between(self) -> None:
        """From the end of one row to the begin of the next nothing is broken, and nothing must be seen."""
        row = self._unbroken("between")
        if row.cut or not row.found.is_clean:
            self._add(row)

    def _unbroken(self, word: str) -> Row:
        cut, found = self._audience.take()
        return unbroken(word, len(self._audience.viewers) + cut, cut, found)

    async def _prepare(self, step: Step) -> None:
        """Preferred distributors are read, viewers are in every seat and at both aggregators: each has something to
        lose."""
        self._on_begin(f"{step}: viewers take their seats")
        await self._until_normal(NORMAL_SECONDS)
        await self._until(self.rig.is_settled)
        deadline = self._reactor.seconds() + NORMAL_SECONDS
        while not await self.rig.is_balanced() and self._reactor.seconds() < deadline:
            self._between()
            self._audience.empty()
            await self._audience.fill()
        await self._audience.fill()
        self._between()

    async def _strike(self, step: Step) -> Row:
        fault, target = step.fault, self.rig.target(step.node)
        starts = self.rig.supervisor.starts[step.node]
        viewers = len(self._audience.viewers)
        began = self._reactor.seconds()
        await fault.inject(target)
        promise = PROMISES.get(self.rig.nodes[step.node].tier, "nothing is seen")
        served: Deferred[float | None] | None = None
        if promise == "served again":
            served = Deferred.fromCoroutine(self._audience.until_served(fault.seconds + NORMAL_SECONDS))
        try:
            await self._sleep(fault.seconds)
        finally:
            await fault.undo(target)
        if fault.ends_process:
            await self._until(lambda: succeed(self.rig.supervisor.starts[step.node] > starts))
        normal = await self._until_normal(NORMAL_SECONDS, is_strict=False) and await self._until_all_go_on()
        seconds = self._reactor.seconds() - began
        await self._sleep(WATCH_SECONDS - seconds)
        await self._until(self.rig.is_settled)  # the way back to the preferred distributor belongs to the row
        await self._until_all_go_on()
        cut, found = self._audience.take()
        return Row(
            node=step.node,
            fault=fault.name,
            promise=promise,
            viewers=viewers,
            cut=cut,
            found=found,
            seconds_to_normal=seconds if normal else None,
            seconds_to_served=None if served is None else await served,
        )

    async def _until_all_go_on(self) -> bool:
        """Wait until every viewer has got something more of every track."""
        now = self._reactor.seconds()
        return await self._until(lambda: succeed(self._audience.has_come_since(now)))

    async def _until(self, is_so: Callable[[], Awaitable[bool]]) -> bool:
        deadline = self._reactor.seconds() + NORMAL_SECONDS
        while not await is_so():
            if self._reactor.seconds() > deadline:
                return False
            await self._sleep(LOOK_SECONDS)
        return True

    async def _until_normal(self, seconds: float, is_strict: bool = True) -> bool:
        """Wait until all is normal, twice in a row."""
        deadline = self._reactor.seconds() + seconds
        in_a_row = 0
        while in_a_row < 2:
            in_a_row = in_a_row + 1 if await self.rig.is_normal() else 0
            if self._reactor.seconds() > deadline:
                if is_strict:
                    raise RigFailed(f"not normal within {seconds:g} s: {await self._what_is_not_normal()}")
                return False
            await self._sleep(LOOK_SECONDS)
        return True

    async def _what_is_not_normal(self) -> str:
        states = await self.rig.states()
        bad = [f"{name} {state['state']}" for name, state in states.items() if state["state"] != "normal"]
        return ", ".join(bad) or "it is now"

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._on_row(row)

    def _look_at_lag(self) -> None:
        now = self._reactor.seconds()
        self.longest_lag = max(self.longest_lag, now - self._looked_at - LAG_SECONDS)
        self._looked_at = now

    async def _sleep(self, seconds: float) -> None:
        if self._is_interrupted:
            raise Interrupted("interrupted")
        self._sleeping = deferLater(self._reactor, max(0.0, seconds))
        try:
            await self._sleeping
        except CancelledError:
            raise Interrupted("interrupted") from None
        finally:
            self._sleeping = None
