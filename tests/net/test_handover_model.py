"""Any order in which things arrive while one process takes over: what aggregators say is noted in the order in which
they said it, by whoever has the sessions, and answered only then."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from relay.net.backends import BackendPool
from relay.net.balancing import BalancerFactory, BalancingOptions
from relay.net.giving import Giver, Giving
from relay.net.giving import Stage as GivingStage
from relay.net.handover import VERSION, Frame, Greeting
from relay.net.ports import Ports
from relay.net.taking import Taker

SESSION = "00" * 16


@attrs.define
class Pipe:
    """One direction of the UNIX socket: what was sent, and has not been heard."""

    waiting: deque[bytes] = attrs.field(factory=deque)
    is_shut: bool = False  # for reading

    def send(self, data: bytes) -> int:
        if self.is_shut:
            raise BrokenPipeError
        self.waiting.append(data)
        return len(data)

    def shutdown(self, _how: int) -> None:
        self.is_shut = True


class Socket:
    """A process's end of the UNIX socket, as its protocol sees it."""

    dataBuffer = _tempDataBuffer = b""

    def __init__(self, out: Pipe, incoming: Pipe) -> None:
        self._out = out
        self._incoming = incoming
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        if not self._out.is_shut:
            self._out.send(data)

    def registerProducer(self, producer: Any, _streaming: bool) -> None:
        self._producer = producer
        while self._producer is not None:
            self._producer.resumeProducing()

    def startWriting(self) -> None:
        """There is always room."""

    def unregisterProducer(self) -> None:
        self._producer = None

    def abortConnection(self) -> None:
        self.is_aborted = True

    loseConnection = abortConnection

    def getHandle(self) -> Socket:
        return self

    def getsockopt(self, *_what: int) -> bytes:
        return struct.pack("3i", 1, os.geteuid(), 0)

    def send(self, data: bytes) -> int:
        return self._out.send(data)

    def shutdown(self, how: int) -> None:
        self._incoming.shutdown(how)

    def recv(self, _size: int) -> bytes:
        return self._incoming.waiting.popleft() if self._incoming.waiting else b""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """The transport has its own."""


class Reactor(Clock):
    """Time, and the one connection that the taker adopts."""

    def __init__(self, socket: Socket) -> None:
        super().__init__()
        self._socket = socket

    def adoptStreamConnection(self, _fileno: int, _family: int, factory: Any) -> None:
        factory.buildProtocol(None).makeConnection(self._socket)


@attrs.define(eq=False)
class Link:
    """A balancer process's connection to the aggregator, which says things on it."""

    name: str = "agg1"
    state: str = "up"
    since: float = 1.0
    is_heard: bool = True
    asked: deque[Any] = attrs.field(factory=deque)  # to the aggregator
    said: deque[Any] = attrs.field(factory=deque)  # by the aggregator

    @property
    def shown(self) -> str:
        return self.name

    def when_heard_all(self) -> Deferred[None]:
        echo: Deferred[None] = Deferred()
        self.asked.append(echo)
        return echo


class World:
    """Two processes and an aggregator; each ``step`` lets one thing arrive."""

    def __init__(self) -> None:
        down, up = Pipe(), Pipe()
        self.down, self.up = down, up
        self.ours, self.theirs = Socket(up, down), Socket(down, up)
        self.old, self.new = Link(), Link(is_heard=False)
        self.newest = self.old
        self.words = 0
        self.noted: list[float] = []  # by the giver
        self.answered: list[float] = []
        self.noted_at_halt: int | None = None
        self.given: list[int] = []
        self.taken: list[int] = []
        self.failed: list[str] = []
        reactor = Reactor(self.ours)
        self.giver = Giver(reactor, "lb1", self._factory(reactor), [self.old], Ports(reactor), self.given.append)  # type: ignore[list-item]
        self.giver.factory.elsewhere = lambda backend, name, values: self.noted.append(values[1])
        self.giving = Giving(self.giver)
        self.giving.makeConnection(self.theirs)  # type: ignore[arg-type]
        self.giving.dataReceived(Frame("hello", {"version": VERSION, "name": "lb1", "aggregators": ["agg1"]}).encode())
        down.waiting.clear()  # its answer, which greet has read
        hello = Frame("hello", {"version": VERSION, "ports": [], "links": ["agg1"]})
        factory = self._factory(reactor)
        self.taker = Taker(
            reactor,
            Greeting(self.ours, hello, -1),  # type: ignore[arg-type]
            factory,
            [self.new],  # type: ignore[list-item]
            Ports(reactor),
            self.taken.append,
            self.failed.append,
        )
        factory.elsewhere = self.taker.pass_on
        self.taker.start()
        self.new.asked.append("hello")

    def _factory(self, reactor: Any) -> BalancerFactory:
        return BalancerFactory(
            reactor, BackendPool([], reactor.seconds), options=BalancingOptions(name="lb1"), clock=reactor
        )

    def choices(self) -> dict[str, Callable[[], None]]:
        """What can happen now."""
        can: dict[str, Callable[[], None]] = {"aggregator says a word": self._say}
        for link in (self.old, self.new):
            name = "old" if link is self.old else "new"
            if link.asked:
                can[f"aggregator hears {name}"] = lambda link=link: self._ask(link)
            if link.said:
                can[f"{name} link is heard"] = lambda link=link: self._hear(link)
        if self.up.waiting and not self.up.is_shut:
            can["giver hears"] = lambda: self.giving.dataReceived(self.up.waiting.popleft())
        if self.down.waiting and not self.ours.is_aborted:
            can["taker hears"] = lambda: self.taker.dataReceived(self.down.waiting.popleft())
        return can

    def call_off(self) -> None:
        """The giver is tired of waiting."""
        if self.giver.current is not None:
            self.giver.current.call_off("time is over")

    def kill_taker(self) -> None:
        """All that it has sent is heard; then its sockets are closed, and the aggregator has one link of us."""
        while self.up.waiting and not self.up.is_shut:
            self.giving.dataReceived(self.up.waiting.popleft())
        self.giving.connectionLost()
        self.new.said.clear()
        self.newest = self.old
        self.down.waiting.clear()

    def check(self) -> None:
        assert self.noted == sorted(set(self.noted)), "not in the order in which they were said (H3)"
        assert set(self.answered) <= set(self.noted), "answered before it was noted (I3)"
        if self.giving.stage is GivingStage.HALTED:
            self.noted_at_halt = len(self.noted) if self.noted_at_halt is None else self.noted_at_halt
            assert self.noted_at_halt == len(self.noted), "the session is on its way to the taker, who is not told"
        if self.taken:
            assert self.up.waiting or self.given, "the giver doesn't know, and can't (H1)"

    def _say(self) -> None:
        self.words += 1
        self.newest.said.append(float(self.words))

    def _ask(self, link: Link) -> None:
        question = link.asked.popleft()
        if question == "hello":
            self.newest = link
            link.said.append("health")
        else:
            link.said.append(question)  # an echo

    def _hear(self, link: Link) -> None:
        said = link.said.popleft()
        if isinstance(said, Deferred):
            said.callback(None)
        elif said == "health":
            link.is_heard = True
            self.taker.links_changed()
        else:
            side: Any = self.giver if link is self.old else self.taker
            noted = side.said("agg1", "relaySuspend", [SESSION, said])
            if noted is None:
                self.answered.append(said)
            else:
                noted.addCallback(lambda _: self.answered.append(said))


ENDS = st.sampled_from(["none", "none", "call off", "kill"])


SLOW = st.sampled_from(["", "old link is heard", "new link is heard", "giver hears", "taker hears", "aggregator hears"])


@settings(deadline=None)
@given(data=st.data(), end=ENDS, slow=SLOW, steps=st.integers(0, 50))
def test_words_are_noted_in_order_and_then_answered(data: Any, end: str, slow: str, steps: int) -> None:
    world = World()
    for _ in range(steps):
        can = world.choices()
        can = {name: act for name, act in can.items() if not slow or not name.startswith(slow)}  # that comes at the end
        can[data.draw(st.sampled_from(sorted(can)))]()
        world.check()
    if end == "call off":
        world.call_off()
    elif end == "kill":
        world.kill_taker()
    world.check()
    has_ended = end == "kill"
    while len(can := world.choices()) > 1:  # let everything arrive, and nothing more be said
        arrivals = sorted(name for name in can if name != "aggregator says a word")
        if has_ended:
            arrivals = [name for name in arrivals if "new" not in name and "taker" not in name]
        if not arrivals:
            break
        can[data.draw(st.sampled_from(arrivals))]()
        world.check()
    if end == "none":
        assert (world.given, world.taken, world.failed) == ([0], [0], [])
        said = [float(number + 1) for number in range(world.words)]
        assert world.noted == said
        assert sorted(world.answered) == said
