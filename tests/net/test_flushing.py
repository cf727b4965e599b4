"""Reads are written at once while there are few streams, and merged for a bounded time when there are many."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.log.options import DEFAULT_OPTIONS
from relay.names import StreamName
from relay.net.flushing import AT_ONCE, BOUND, TICK, FlushQueue
from relay.net.viewer import RtmpForm, Viewer
from relay.testing import CongestibleTransport, ManualReactor, make_hub, memory_log
from tests.log.model import gops
from tests.net.driving import Recorder, log_bytes

MS = 0.001


class Stream:
    """Notes when it is flushed."""

    def __init__(self, clock: Clock) -> None:
        self.times: list[float] = []
        self.raises = False
        self._clock = clock

    def flush(self) -> None:
        self.times.append(self._clock.seconds())
        if self.raises:
            raise OSError("no memory")


class FlushQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.count = 100
        self.queue = FlushQueue(self.clock, lambda: self.count)
        self.streams = [Stream(self.clock) for _ in range(self.count)]

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / MS)):
            self.clock.advance(MS)

    def test_few_streams_are_flushed_by_each_read(self) -> None:
        """And no timer is ever set."""
        self.count = AT_ONCE
        for _ in range(3):
            self.queue.add(self.streams[0])
        self.assertEqual(([0.0] * 3, []), (self.streams[0].times, self.clock.getDelayedCalls()))

    def test_reads_of_many_streams_are_merged(self) -> None:
        """Each stream is flushed once in an interval, and never later than that."""
        for step in range(100):
            for number, stream in enumerate(self.streams):
                if (step + number) % 5 == 0:
                    self.queue.add(stream)
            self.pass_time(0.002)
        self.pass_time(BOUND + TICK)
        for stream in self.streams:
            gaps = [after - before for before, after in zip(stream.times, stream.times[1:], strict=False)]
            self.assertTrue(all(0.04 <= gap <= 0.01 + BOUND + TICK for gap in gaps[:-1]), gaps)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_interval_grows_with_the_number_of_streams(self) -> None:
        """Up to the bound."""
        intervals = []
        for self.count in (1, AT_ONCE, AT_ONCE + 1, 20, 50, 1000):
            intervals.append(self.queue.interval)
        self.assertEqual([0.0, 0.0], intervals[:2])
        self.assertEqual(sorted(intervals), intervals)
        self.assertEqual(BOUND, intervals[-1])

    def test_error_of_one_costs_the_others_nothing(self) -> None:
        """It is logged."""
        self.streams[0].raises = True
        for stream in self.streams[:3]:
            self.queue.add(stream)
        self.pass_time(BOUND + TICK)
        self.assertEqual([1, 1, 1], [len(stream.times) for stream in self.streams[:3]])
        self.assertEqual(1, len(self.flushLoggedErrors(OSError)))

    def test_close_writes_what_waits(self) -> None:
        """And one that is gone is not written."""
        for stream in self.streams[:2]:
            self.queue.add(stream)
        self.queue.discard(self.streams[1])
        self.queue.close()
        self.assertEqual([[0.0], []], [stream.times for stream in self.streams[:2]])
        self.assertEqual([], self.clock.getDelayedCalls())


class LiveStreamTests(SynchronousTestCase):
    """A hub with many streams."""

    def test_readers_get_all_that_came_in_time_and_in_order(self) -> None:
        """A little later; at once when the stream ends."""
        clock = ManualReactor()
        hub, stream = make_hub(gops(1), clock=clock)
        self.addCleanup(hub.close)
        for number in range(AT_ONCE):
            hub.add(StreamName("live", f"other{number}"), memory_log(options=DEFAULT_OPTIONS))
        transport = CongestibleTransport(clock)
        transport.connect(Recorder())
        viewer = Viewer(stream, transport, RtmpForm(), lambda outcome: None, clock.seconds())
        viewer.join(stream.log.newest_join_point())
        transport.drain()
        more = gops(2, start=1000)
        for message in more[:3]:
            stream.log.append(message)
            stream.flush_soon()
        self.assertEqual(b"", transport.drain())
        clock.advance(BOUND)
        self.assertEqual(log_bytes(more[:3]), transport.drain())
        stream.log.append(more[3])
        stream.flush_soon()
        stream.end()
        self.assertTrue(transport.drain().startswith(log_bytes(more[3:4])))
