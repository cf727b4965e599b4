from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import StoreDamaged
from relay.log.points import LogStart
from relay.log.scan import messages_between, read_between
from relay.log.segment import MemorySegment
from tests.log.model import gops, rtmp_bytes


class ScanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.segment = MemorySegment(100, LogStart(100))
        self.addCleanup(self.segment.close_fd)
        self.sent = gops(1)
        self.segment.append([rtmp_bytes(message) for message in self.sent])

    def test_messages_come_back(self) -> None:
        self.assertEqual(self.sent, list(messages_between(self.segment, 100, self.segment.end)))

    def test_from_a_boundary_to_one_that_is_not_whole(self) -> None:
        first = len(rtmp_bytes(self.sent[0]))
        self.assertEqual(self.sent[1:-1], list(messages_between(self.segment, 100 + first, self.segment.end - 1)))

    def test_bytes_past_the_end_are_not_invented(self) -> None:
        self.assertEqual(self.segment.size, len(read_between(self.segment, 100, self.segment.end + 1000)))

    def test_something_else_is_damage(self) -> None:
        self.segment.append([b"\xff" * 20])
        with self.assertRaises(StoreDamaged):
            list(messages_between(self.segment, 100, self.segment.end))

    def test_reading_holds_the_segment_and_lets_go(self) -> None:
        list(messages_between(self.segment, 100, self.segment.end))
        self.assertEqual(0, self.segment.readers)
