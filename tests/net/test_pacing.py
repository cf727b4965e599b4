"""What is gathered arrives whole, in time, and nothing else waits for it."""

from __future__ import annotations

import functools
import socket
from collections import Counter

from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from relay.net import pacing
from relay.net.joining import Splicer
from relay.net.legs import Flow
from relay.net.pacing import EAGER, HELD_BYTES, SLICES, TICK, Pacer
from relay.net.splice import STREAMS_FROM
from tests.net.peers import eventually
from tests.net.test_splice import LIMITS, SpliceTestCase

INTERVAL = 0.2
MANY = 1000
TURNS = 0.05  # seconds in which the reactor would have passed on what it is told of


class FakeFlow:
    """A flow from a socket that notes its low-water mark; notes when it is pumped."""

    def __init__(self, clock: Clock) -> None:
        self.pacer = None
        self.source = self.transport = self
        self.is_watched = True
        self.low_water = 1
        self.times: list[float] = []
        self._clock = clock

    def getHandle(self) -> FakeFlow:
        return self

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.low_water = value

    def pump(self) -> None:
        self.times.append(self._clock.seconds())


class PacerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pacer = Pacer(self.clock, INTERVAL, FakeFlow.pump)

    def add(self, count: int) -> list[FakeFlow]:
        flows = [FakeFlow(self.clock) for _ in range(count)]
        for flow in flows:
            self.pacer.add(flow)
        return flows

    def test_few_flows_wait_for_nothing(self) -> None:
        flows = self.add(EAGER)
        self.assertEqual({1}, {flow.low_water for flow in flows})
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_many_flows_are_each_pumped_once_an_interval(self) -> None:
        """A tenth of them at a time."""
        flows = self.add(MANY)
        self.assertEqual({HELD_BYTES}, {flow.low_water for flow in flows})
        self.clock.pump([INTERVAL / SLICES] * SLICES)
        for flow in flows:
            flow.times.clear()
        self.clock.pump([INTERVAL / SLICES] * SLICES * 3)
        self.assertEqual({3}, {len(flow.times) for flow in flows})
        self.assertEqual({MANY // SLICES}, set(Counter(flow.times[0] for flow in flows).values()))

    def test_late_ticks_don_t_make_the_interval_longer(self) -> None:
        flows = self.add(EAGER + 1)
        for _ in range(100):
            self.clock.advance(INTERVAL / SLICES + TICK)
        expected = 100 * (INTERVAL / SLICES + TICK) / INTERVAL
        self.assertLessEqual(expected - 2, min(len(flow.times) for flow in flows))

    def test_shortest_intervals_cost_no_more_ticks_than_there_may_be(self) -> None:
        for interval, expected in ((TICK / 5, 12), (TICK, 12), (3 * TICK, 4)):
            self.pacer = Pacer(self.clock, interval, FakeFlow.pump)
            flows = self.add(EAGER + 1)
            self.clock.pump([TICK / 5] * 5 * 12)
            self.assertIn(len(flows[-1].times), range(expected - 1, expected + 2))
            for flow in flows:
                self.pacer.remove(flow)

    def test_flows_that_are_left_when_the_others_have_gone_wait_for_nothing(self) -> None:
        flows = self.add(MANY)
        for flow in flows[EAGER // 2 :]:
            self.pacer.remove(flow)
        self.assertEqual({1}, {flow.low_water for flow in flows})
        self.assertEqual(([], {None}), (self.clock.getDelayedCalls(), {flow.pacer for flow in flows[EAGER // 2 :]}))
        self.assertEqual(EAGER // 2, len(self.pacer))

    def test_flow_that_is_added_again_is_pumped_once(self) -> None:
        flows = self.add(MANY)
        for flow in flows:
            self.pacer.add(flow)
        self.assertEqual(MANY, len(self.pacer))

    def test_flow_whose_source_is_not_watched_rests(self) -> None:
        """Its sink is full, or another process is about to have it."""
        flows = self.add(MANY)
        flows[0].times.clear()
        flows[0].is_watched = False
        self.clock.pump([INTERVAL / SLICES] * SLICES * 2)
        self.assertEqual([], flows[0].times)

    def test_flows_that_end_while_others_are_pumped(self) -> None:
        """One flow's end may be that of any other."""
        flows = self.add(MANY)

        def end(_: FakeFlow) -> None:
            for flow in flows:
                if flow.pacer is not None:
                    flow.is_watched = False
                    self.pacer.remove(flow)

        self.pacer._pump = end
        self.clock.advance(INTERVAL / SLICES)
        self.assertEqual((0, []), (len(self.pacer), self.clock.getDelayedCalls()))


class PacedPairTests(SpliceTestCase):
    """A pair on real sockets; the reactor is real, the pacer's clock is not."""

    async def setUp(self) -> None:
        await super().setUp()
        self.patch(pacing, "EAGER", 0)
        self.splicer = Splicer(self.reactor, LIMITS, clock=self.clock, merge_seconds=INTERVAL)

    async def stream(self):
        """A pair that has moved what makes it stream."""
        pair, viewer, backend = await self.join()
        await self.move(viewer, backend, STREAMS_FROM + 1)
        self.clock.pump([0.1] * 15)
        return pair, viewer, backend

    async def move(self, viewer, backend, count: int) -> None:
        """So many bytes, a few at a time, whether they wait or not."""
        step = 16 << 10
        for first in range(0, count, step):
            part = bytes([first // step % 251]) * min(step, count - first)
            await backend.send(part)
            await eventually(functools.partial(self.tick_until, viewer, len(part)))
            self.assertEqual(part, await viewer.read(len(part)))

    def tick_until(self, viewer, count: int) -> bool:
        self.clock.advance(INTERVAL / SLICES)
        return viewer.has(count)

    async def test_bytes_are_gathered(self) -> None:
        pair, viewer, backend = await self.stream()
        at = pair.to_viewer
        for part in (b"one", b"two"):
            await backend.send(part)
            await deferLater(self.reactor, TURNS)
        self.assertEqual(at, pair.to_viewer)
        self.clock.pump([INTERVAL / SLICES] * SLICES)
        self.assertEqual(at + 6, pair.to_viewer)
        self.assertEqual(b"onetwo", await viewer.read(6))
        pair.abort("done")
        await self.expect_end("done")

    async def test_newcomer_waits_for_nothing(self) -> None:
        pair, viewer, backend = await self.join()
        self.clock.pump([0.1] * 15)
        await backend.send(b"first picture")
        self.assertEqual(b"first picture", await viewer.read(13))
        pair.abort("done")
        await self.expect_end("done")

    async def test_what_the_viewer_says_waits_for_nothing(self) -> None:
        pair, viewer, backend = await self.stream()
        await viewer.send(b"pause")
        self.assertEqual(b"pause", await backend.read(5))
        pair.abort("done")
        await self.expect_end("done")

    async def test_many_bytes_wait_for_nothing(self) -> None:
        pair, viewer, backend = await self.stream()
        await backend.send(bytes(3 * HELD_BYTES))
        await viewer.read(2 * HELD_BYTES)
        pair.abort("done")
        await self.expect_end("done")

    async def test_end_is_passed_on_at_once_with_all_before_it(self) -> None:
        _pair, viewer, backend = await self.stream()
        await backend.send(b"last words")
        backend.close()
        self.assertEqual((b"last words", "fin"), (await viewer.read_to_end(), viewer.end))
        viewer.close()
        await self.expect_end("backend_closed")

    async def test_backend_that_comes_after_another_waits_for_nothing(self) -> None:
        """What it says first is an answer that somebody waits for."""
        self.owner.keeps_viewer = True
        pair, viewer, backend = await self.stream()
        backend.close()
        await eventually(lambda: self.owner.lost)
        protocol, other = await self.dial_backend()
        protocol.join(pair)
        pair.attach_backend(protocol.transport)
        self.clock.pump([0.1] * 15)
        await other.send(b"more")
        self.assertEqual(b"more", await viewer.read(4))
        pair.abort("done")
        await self.expect_end("done")

    async def test_socket_that_is_given_away_is_as_it_was(self) -> None:
        """Another process would wait for ever for what is less than the mark; and this one goes on if it must."""
        pair, viewer, backend = await self.stream()
        state = pair.halt()
        assert state is not None and state.backend is not None
        with socket.socket(fileno=socket.dup(state.backend)) as same:
            self.assertEqual(1, same.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))
        at = pair.to_viewer
        await backend.send(b"later")
        self.clock.pump([0.1] * 15)
        await deferLater(self.reactor, TURNS)
        self.assertEqual(at, pair.to_viewer)
        pair.go_on()
        self.assertEqual(b"later", await viewer.read(5))
        pair.abort("done")
        await self.expect_end("done")

    async def test_fault_in_one_pair_ends_that_one_alone(self) -> None:
        other, other_viewer, other_backend = await self.stream()
        pair, viewer, _backend = await self.stream()
        pump = Flow.pump
        self.patch(Flow, "pump", lambda flow: 1 // 0 if flow is pair._down else pump(flow))
        await other_backend.send(b"more")
        await deferLater(self.reactor, TURNS)
        self.clock.pump([INTERVAL / SLICES] * SLICES)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        await viewer.read_to_end()
        self.assertEqual((["fault"], b"more"), (self.owner.outcomes, await other_viewer.read(4)))
        self.owner.outcomes.clear()
        other.abort("done")
        await self.expect_end("done")
        self.assertEqual([], self.clock.getDelayedCalls())
