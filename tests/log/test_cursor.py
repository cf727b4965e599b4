from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import PositionUnavailable
from relay.log.cursor import CursorState
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import ORIGIN_START, LogStart
from relay.log.segment import MemorySource
from tests.log.model import contents, drain, fill, gops, rtmp_bytes, video

SMALL = LogOptions(segment_bytes=400, keep_bytes=2900)


def make_log(options: LogOptions = SMALL, start: LogStart = ORIGIN_START, epoch: int = 1) -> StreamLog:
    return StreamLog(epoch, MemorySource(), start, options)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_reads_of_any_size_give_the_same_bytes(limits: list[int]) -> None:
    sent = gops(3)
    log = fill(make_log(LogOptions(segment_bytes=400)), sent)
    cursor = log.rtmp.cursor(0)
    read = b""
    while cursor.advance() is CursorState.READY:
        read += cursor.read(limits[len(read) % len(limits)])
    assert read == b"".join(map(rtmp_bytes, sent))
    cursor.close()
    log.close()


class CursorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = make_log()
        self.addCleanup(self.log.close)

    def test_slots(self) -> None:
        """Thousands exist at once."""
        self.assertFalse(hasattr(self.log.rtmp.cursor(0), "__dict__"))

    def test_waits_at_the_end_of_an_empty_log(self) -> None:
        cursor = self.log.rtmp.cursor(0)
        self.assertIs(CursorState.AT_END, cursor.advance())
        self.assertEqual((0, 0), (cursor.segment.start, cursor.segment.end))
        fill(self.log, [video(0, True)])
        self.assertIs(CursorState.READY, cursor.advance())
        self.assertEqual(rtmp_bytes(video(0, True)), cursor.read(1000))
        self.assertIs(CursorState.AT_END, cursor.advance())

    def test_what_is_not_flushed_is_not_there(self) -> None:
        cursor = self.log.rtmp.cursor(0)
        self.log.append(video(0, True))
        self.assertIs(CursorState.AT_END, cursor.advance())
        self.assertEqual(b"", cursor.read(100))

    def test_transport_reads_the_segments_file_itself(self) -> None:
        fill(self.log, [video(0, True)])
        cursor = self.log.rtmp.cursor(12)
        cursor.advance()
        count = cursor.segment.end - cursor.offset
        self.assertEqual(
            rtmp_bytes(video(0, True))[12:], os.pread(cursor.segment.fd, count, cursor.offset - cursor.segment.start)
        )

    def test_goes_from_segment_to_segment(self) -> None:
        sent = gops(2)
        fill(self.log, sent)
        self.assertGreater(len(self.log.rtmp.segments), 1)
        read, state = drain(self.log.rtmp.cursor(0))
        self.assertEqual(b"".join(map(rtmp_bytes, sent)), read)
        self.assertIs(CursorState.AT_END, state)

    def test_stops_at_its_stop(self) -> None:
        fill(self.log, gops(2))
        cursor = self.log.rtmp.cursor(0)
        cursor.stop = self.log.boundary_at_or_after(100)
        read, state = drain(cursor)
        self.assertEqual((cursor.stop, CursorState.AT_STOP), (len(read), state))
        cursor.stop = None
        self.assertIs(CursorState.READY, cursor.advance())

    def test_dropped_by_retention_it_finishes_its_segment_then_finds_a_gap(self) -> None:
        sent = gops(2)
        fill(self.log, sent)
        cursor = self.log.rtmp.cursor(0)
        first_end = self.log.rtmp.segments[0].end
        fill(self.log, gops(10, start=1000))
        self.assertGreater(self.log.start, first_end)
        read, state = drain(cursor)
        self.assertEqual(b"".join(map(rtmp_bytes, sent))[:first_end], read)
        self.assertIs(CursorState.GAP, state)
        cursor.move_to(self.log.newest_join_point().offset)
        self.assertIs(CursorState.READY, cursor.advance())

    def test_dropped_with_the_next_segment_still_there_it_goes_on(self) -> None:
        fill(self.log, gops(1))
        cursor = self.log.rtmp.cursor(0)
        cursor.advance()
        time = 1000
        while self.log.start == 0:
            fill(self.log, [video(time, time % 400 == 0)])
            time += 40
        self.assertIs(CursorState.AT_END, drain(cursor)[1])
        self.assertEqual(self.log.end, cursor.offset)

    def test_hole_is_a_gap(self) -> None:
        fill(self.log, [video(0, True)])
        cursor = self.log.rtmp.cursor(self.log.end)
        self.log.skip_to(LogStart(self.log.end + 500, self.log.flv_end + 500, 1000))
        self.assertIs(CursorState.GAP, cursor.advance())
        with self.assertRaises(PositionUnavailable):
            cursor.move_to(self.log.end - 10)
        cursor.move_to(self.log.end)
        self.assertIs(CursorState.AT_END, cursor.advance())

    def test_end_of_a_finished_log_and_on_in_its_successor(self) -> None:
        fill(self.log, [video(0, True)])
        cursor = self.log.rtmp.cursor(0)
        successor = fill(make_log(epoch=2), [video(50, True)])
        self.log.finish(successor)
        self.assertEqual((rtmp_bytes(video(0, True)), CursorState.ENDED), drain(cursor))
        cursor.move_to(0, cursor.rendition.log.successor.rtmp)
        self.assertEqual((rtmp_bytes(video(50, True)), CursorState.AT_END), drain(cursor))
        self.assertEqual((0, 1), (self.log.rtmp.cursors, successor.rtmp.cursors))
        cursor.close()
        successor.close()

    def test_place_that_is_not_there_leaves_it_where_it_was(self) -> None:
        fill(self.log, gops(1))
        cursor = self.log.rtmp.cursor(0)
        held = cursor.segment
        for offset in (-1, self.log.end + 1):
            with self.assertRaises(PositionUnavailable):
                cursor.move_to(offset)
        self.assertEqual((0, held, 1), (cursor.offset, cursor.segment, held.readers))

    def test_cursor_that_can_not_be_made_leaves_nothing(self) -> None:
        with self.assertRaises(PositionUnavailable):
            self.log.rtmp.cursor(5)
        self.assertEqual(0, self.log.rtmp.cursors)

    def test_close_lets_the_segment_go_once(self) -> None:
        fill(self.log, gops(1))
        cursor, other = self.log.rtmp.cursor(0), self.log.rtmp.cursor(0)
        segment = cursor.segment
        cursor.close()
        cursor.close()
        self.assertTrue(cursor.is_closed)
        self.assertEqual((1, 1), (segment.readers, self.log.rtmp.cursors))
        self.assertIs(CursorState.GAP, cursor.advance())
        self.assertEqual(b"", cursor.read(10))
        other.close()
        self.assertEqual(0, segment.readers)

    def test_every_reader_gets_the_same(self) -> None:
        fill(self.log, gops(2))
        self.assertEqual(contents(self.log.rtmp), contents(self.log.rtmp))
