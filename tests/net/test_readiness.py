"""Spliced sockets are served from an epoll of their own, and a fault at one of them is that one's."""

from __future__ import annotations

import socket

from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from relay.net.pipes import PipePool
from relay.net.readiness import EVENTS_AT_ONCE, READABLE, WRITABLE, ReadinessLoop
from tests.net.peers import eventually


class Watched:
    """Notes what it is told of one end of a socket pair."""

    def __init__(self, loop: ReadinessLoop) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.fd = self.ours.fileno()
        self.mask = 0
        self.heard: list[str] = []
        self.raises = False
        self.loop = loop

    @property
    def incoming(self) -> Watched:
        return self

    route = -1

    def pump(self) -> None:
        self.heard.append("readable")
        if self.raises:
            raise ValueError("a fault")
        self.ours.recv(1000)

    def writable(self) -> None:
        self.heard.append("writable")
        self.loop.change(self, self.mask & ~WRITABLE)

    def fault(self) -> None:
        self.heard.append("fault")
        self.loop.change(self, 0)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class ReadinessLoopTests(TestCase):
    async def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

        self.reactor = reactor
        self.pipes = PipePool()
        self.addCleanup(self.pipes.close)
        self.loop = ReadinessLoop(reactor, self.pipes)
        self.addCleanup(self.loop.close)

    def make(self) -> Watched:
        watched = Watched(self.loop)
        self.addCleanup(watched.close)
        return watched

    async def test_only_what_is_wanted_is_told(self) -> None:
        reader, writer, neither = self.make(), self.make(), self.make()
        for watched in (reader, writer, neither):
            watched.theirs.send(b"x")
        self.loop.change(reader, READABLE)
        self.loop.change(writer, WRITABLE)
        self.loop.change(neither, READABLE)
        self.loop.change(neither, 0)
        await eventually(lambda: reader.heard and writer.heard)
        self.assertEqual((["readable"], ["writable"], []), (reader.heard, writer.heard, neither.heard))
        self.assertEqual(1, len(self.loop))

    async def test_end_is_told_to_who_reads(self) -> None:
        watched = self.make()
        self.loop.change(watched, READABLE)
        watched.theirs.close()
        await eventually(lambda: watched.heard)
        self.assertEqual("readable", watched.heard[0])
        self.loop.change(watched, 0)

    async def test_fault_at_one_costs_that_one(self) -> None:
        bad, good = self.make(), self.make()
        bad.raises = True
        for watched in (bad, good):
            self.loop.change(watched, READABLE)
            watched.theirs.send(b"x")
        await eventually(lambda: good.heard and "fault" in bad.heard)
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
        good.theirs.send(b"y")
        await eventually(lambda: len(good.heard) == 2)

    async def test_crowd_does_not_keep_the_reactor(self) -> None:
        """More than its share is left for the next turn, and comes then."""
        crowd = [self.make() for _ in range(EVENTS_AT_ONCE + 10)]
        for watched in crowd:
            self.loop.change(watched, READABLE)
            watched.theirs.send(b"x")
        self.loop.doRead()
        self.assertEqual(EVENTS_AT_ONCE, sum(len(watched.heard) for watched in crowd))
        await eventually(lambda: all(watched.heard for watched in crowd))

    async def test_leg_that_is_let_go_is_not_watched(self) -> None:
        """Its descriptor's number is none any more."""
        gone = self.make()
        gone.fd = -1
        self.loop.change(gone, READABLE)
        self.loop.reroute(gone)
        self.assertEqual((0, 0), (len(self.loop), self.loop.moved(gone)))

    async def test_socket_closed_by_somebody_else_and_its_number_given_to_another(self) -> None:
        """The former one's last word does not take the new one out."""
        former = self.make()
        self.loop.change(former, READABLE)
        former.ours.close()
        newer = self.make()
        while newer.fd != former.fd:
            newer = self.make()
        self.loop.change(newer, READABLE)
        self.loop.change(former, 0)
        newer.theirs.send(b"x")
        await eventually(lambda: newer.heard)
        await deferLater(self.reactor, 0)
        self.assertEqual([], former.heard)
