"""The streams of a node: how readers wait for one, and who is told what."""

from __future__ import annotations

import attrs
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded
from relay.limits import DEFAULT_LIMITS
from relay.log.points import LogStart
from relay.names import StreamName
from relay.net.flushing import AT_ONCE
from relay.net.streams import Hub, StreamNotFound
from relay.net.viewer import RtmpForm, Viewer
from relay.net.wakeup import EAGER
from relay.testing import CongestibleTransport, ManualReactor, make_hub, memory_log, publish
from tests.log.model import gops
from tests.net.driving import Recorder

NAME, OTHER = StreamName("live", "demo"), StreamName("live", "other")
WAIT = DEFAULT_LIMITS.stream_wait_seconds


class HubTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ManualReactor()
        self.hub = Hub(self.clock, attrs.evolve(DEFAULT_LIMITS, streams=2))
        self.addCleanup(self.hub.close)
        self.told: list[tuple[str, StreamName]] = []
        self.hub.observe(lambda event, stream: self.told.append((event, stream.name)))

    def add(self, name=NAME, messages=()):
        return self.hub.add(name, memory_log(messages))

    def test_reader_of_a_live_stream_starts_at_once(self) -> None:
        stream = self.add(messages=gops(1))
        self.assertIs(stream, self.successResultOf(self.hub.when_joinable(NAME)))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_reader_that_came_first_starts_with_the_first_keyframe(self) -> None:
        """Not when the stream appears, and not at its headers."""
        waiting = self.hub.when_joinable(NAME)
        stream = self.add()
        self.assertNoResult(waiting)
        publish(stream, gops(1)[1:])
        self.assertNoResult(waiting)
        publish(stream, gops(1, start=400))
        self.assertIs(stream, self.successResultOf(waiting))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_reader_of_a_broadcast_that_is_over_waits_for_the_next(self) -> None:
        """Not its last picture and its end at once, again and again if the player tries again."""
        stream = self.add(messages=gops(1))
        stream.end()
        waiting = self.hub.when_joinable(NAME)
        self.assertNoResult(waiting)
        stream.log.reopen()
        publish(stream, gops(1, start=400))
        self.assertIs(stream, self.successResultOf(waiting))

    def test_stream_that_arrives_with_a_log_starts_those_who_wait(self) -> None:
        waiting = [self.hub.when_joinable(NAME) for _ in range(3)]
        stream = self.add(messages=gops(1))
        self.assertEqual([stream] * 3, [self.successResultOf(each) for each in waiting])

    def test_reader_waits_no_longer_than_the_limit(self) -> None:
        waiting = self.hub.when_joinable(NAME)
        self.clock.advance(WAIT - 0.1)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.failureResultOf(waiting, StreamNotFound)

    def test_reader_that_leaves_waits_no_more(self) -> None:
        gone, stays = self.hub.when_joinable(NAME), self.hub.when_joinable(NAME)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(1, len(self.clock.getDelayedCalls()))
        stream = self.add(messages=gops(1))
        self.assertIs(stream, self.successResultOf(stays))

    def test_reader_that_leaves_while_another_is_started(self) -> None:
        """The first one's start closes the second's connection: both end, none is left."""
        first, second = self.hub.when_joinable(NAME), self.hub.when_joinable(NAME)
        first.addCallback(lambda _: second.cancel())
        second.addErrback(lambda failure: failure.trap(CancelledError) and None)
        self.add(messages=gops(1))
        self.successResultOf(first)
        self.assertIsNone(self.successResultOf(second))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_closing_hub_lets_those_who_wait_go(self) -> None:
        waiting = self.hub.when_joinable(NAME)
        self.hub.close()
        self.failureResultOf(waiting, StreamNotFound)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_streams(self) -> None:
        """The limit: one stream more than ``streams`` is refused, and there is room again when one goes."""
        self.add()
        self.add(OTHER)
        third = memory_log()
        error = self.assertRaises(LimitExceeded, self.hub.add, StreamName("live", "third"), third)
        self.assertEqual("streams", error.field)
        self.hub.remove(OTHER)
        self.hub.add(StreamName("live", "third"), third)

    def test_observers_hear_of_streams_that_come_change_and_go(self) -> None:
        stream = self.add()
        self.hub.set_live(stream, True, "somebody")
        self.hub.set_live(stream, True, "somebody else")
        self.hub.set_live(stream, False, "")
        self.hub.remove(NAME)
        self.assertEqual(["appeared", "changed", "changed", "disappeared"], [event for event, _ in self.told])

    def test_bit_rate_is_measured_each_second(self) -> None:
        stream = self.add()
        self.clock.advance(5)
        self.hub.check()
        publish(stream, gops(1, size=12_500))
        self.clock.advance(1)
        self.hub.check()
        self.assertAlmostEqual(8 * stream.log.end, stream.bits_per_second)


class FakeIntake:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.bring = lambda: None

    def hold(self) -> None:
        self.told.append("hold again" if "hold" in self.told[-1:] else "hold")

    def release(self) -> None:
        self.told.append("release")

    def draw(self) -> None:
        self.told.append("draw")
        self.bring()


class LiveStreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ManualReactor()
        self.hub, self.stream = make_hub(gops(1), clock=self.clock)
        self.addCleanup(self.hub.close)

    def view(self) -> Viewer:
        transport = CongestibleTransport(self.clock)
        transport.connect(Recorder())
        viewer = Viewer(self.stream, transport, RtmpForm(), lambda outcome: None, 0.0)
        join = self.stream.log.newest_join_point()
        assert join is not None
        viewer.join(join)
        transport.drain()
        return viewer

    def test_readers_are_woken_after_the_bytes_are_there(self) -> None:
        """I5: a reader never finds less than it was told of."""
        viewer = self.view()
        publish(self.stream, gops(1, start=400))
        self.assertEqual(self.stream.log.end, viewer.offset)

    def test_flush_of_nothing_wakes_nobody(self) -> None:
        self.stream.flush()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_reached_fires_at_that_offset(self) -> None:
        end = self.stream.log.end
        reached = self.stream.when_reached(end + 1)
        self.assertNoResult(reached)
        publish(self.stream, gops(1, start=400)[:1])
        self.assertIs(self.stream, self.successResultOf(reached))

    def test_reached_fires_when_another_epoch_goes_on(self) -> None:
        """Whoever waits for a byte that will never come must look again."""
        reached = self.stream.when_reached(1 << 40)
        self.stream.succeed(memory_log(epoch=2, start=LogStart(time_ms=400)))
        self.successResultOf(reached)

    def test_reached_may_be_cancelled(self) -> None:
        reached = self.stream.when_reached(1 << 40)
        reached.cancel()
        self.failureResultOf(reached, CancelledError)
        publish(self.stream, gops(1, start=400))

    def test_waiter_that_leaves_while_another_is_told(self) -> None:
        end = self.stream.log.end
        first, second = self.stream.when_reached(end + 1), self.stream.when_reached(end + 1)
        first.addCallback(lambda _: second.cancel())
        second.addErrback(lambda failure: failure.trap(CancelledError) and None)
        publish(self.stream, gops(1, start=400))
        self.successResultOf(first)
        self.assertIsNone(self.successResultOf(second))

    def test_upstream_may_wait_while_a_crowd_does(self) -> None:
        """It is asked for what it has before some are woken, and watched again when all have been."""
        crowd = [self.view() for _ in range(EAGER + 200)]
        intake = self.feed()
        self.assertEqual("hold", intake.told[-1])
        self.clock.advance(self.hub.merge_seconds)
        self.assertEqual(["hold", "draw", "draw", "release"], [told for told in intake.told if told != "hold again"])
        self.assertEqual({self.stream.log.end}, {viewer.offset for viewer in crowd})

    def test_what_is_drawn_is_sent_at_once(self) -> None:
        """Also where many streams would have it wait to be written."""
        crowd = [self.view() for _ in range(EAGER + 200)]
        for number in range(AT_ONCE):
            self.hub.add(StreamName("live", f"other{number}"), memory_log())
        intake = self.feed()
        more = gops(1, start=800)

        def bring() -> None:
            for message in more:
                self.stream.log.append(message)
            more.clear()
            self.stream.flush_soon()

        intake.bring = bring
        end = self.stream.log.end
        self.clock.advance(self.hub.merge_seconds / 2)
        self.assertFalse(more)
        self.assertGreater(self.stream.log.end, end)
        self.assertIn(self.stream.log.end, {viewer.offset for viewer in crowd})

    def test_upstream_never_waits_for_few(self) -> None:
        self.view()
        self.assertNotIn("hold", self.feed().told)

    def test_upstream_does_not_wait_while_somebody_waits_for_an_offset(self) -> None:
        """A session that goes on here, say."""
        for _ in range(EAGER + 200):
            self.view()
        intake = self.feed()
        reached = self.stream.when_reached(1 << 40)
        self.assertEqual("release", intake.told[-1])
        publish(self.stream, gops(1, start=800))
        self.assertEqual("release", intake.told[-1])
        reached.cancel()
        self.failureResultOf(reached, CancelledError)
        publish(self.stream, gops(1, start=1200))
        self.assertEqual("hold", intake.told[-1])

    def feed(self) -> FakeIntake:
        intake = FakeIntake()
        self.stream.intakes[intake] = None
        publish(self.stream, gops(1, start=400))
        return intake

    def test_former_epochs_are_found_while_they_are_kept(self) -> None:
        old = self.stream.log
        new = memory_log(epoch=2, start=LogStart(time_ms=400))
        self.stream.succeed(new)
        self.assertEqual([old, new, None], [self.stream.find_epoch(epoch) for epoch in (1, 2, 3)])

    def test_closed_stream_leaves_no_cursor(self) -> None:
        viewer = self.view()
        self.hub.remove(self.stream.name)
        self.assertEqual(-1, viewer.offset)
