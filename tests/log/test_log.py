from __future__ import annotations

import gc
import tracemalloc

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LogDiverged, LogError, PositionUnavailable
from relay.log import log as log_module
from relay.log.cursor import CursorState
from relay.log.headers import HeadersInForce
from relay.log.log import COPY_BACK_MS, StreamLog
from relay.log.options import LogOptions
from relay.log.points import ORIGIN_START, LogStart
from relay.log.segment import MemorySource
from relay.rtmp.messages import MediaMessage
from tests.log.model import audio, contents, drain, fill, flv_bytes, gops, rtmp_bytes, video
from tests.log.test_segment import is_open
from tests.wire import aac_header, avc_header, h264_aac_stream, metadata

SMALL = LogOptions(segment_bytes=600)


class LogTestCase(SynchronousTestCase):
    def make(
        self, options: LogOptions = SMALL, start: LogStart = ORIGIN_START, epoch: int = 1, sent: list[MediaMessage] = ()
    ) -> StreamLog:
        log = StreamLog(epoch, MemorySource(), start, options)
        self.addCleanup(log.discard)
        return fill(log, sent)


class WritingTests(LogTestCase):
    def test_log_is_the_messages_chunks(self) -> None:
        sent = h264_aac_stream(2)
        self.assertEqual(b"".join(map(rtmp_bytes, sent)), contents(self.make(sent=sent).rtmp))

    def test_nothing_is_seen_before_the_flush(self) -> None:
        """I5."""
        log = self.make()
        log.append(video(0, True))
        self.assertEqual((0, 0, None), (log.end, log.flv_end, log.newest_join_point()))
        size = len(rtmp_bytes(video(0, True)))
        self.assertEqual(size, log.flush())
        self.assertEqual((size, 0), (log.end, log.flush()))

    def test_a_flush_of_many_and_many_flushes_write_the_same(self) -> None:
        sent = h264_aac_stream(3)
        one = fill(StreamLog(1, MemorySource(), options=SMALL), sent, is_flushed_each=False)
        self.addCleanup(one.discard)
        many = self.make(sent=sent)
        self.assertEqual(contents(many.rtmp), contents(one.rtmp))
        self.assertEqual(many.join_points, one.join_points)
        self.assertEqual([segment.start for segment in many.rtmp.segments], [s.start for s in one.rtmp.segments])

    def test_headers_in_force(self) -> None:
        log = self.make(sent=h264_aac_stream(1))
        expected = HeadersInForce(metadata().payload, ((0, avc_header().payload),), ((0, aac_header().payload),))
        self.assertEqual(expected, log.headers)

    def test_replica_that_starts_in_the_middle_has_its_upstreams_offsets(self) -> None:
        first = 2**32 - 1500
        sent = [avc_header(first), *gops(8, start=first)]
        origin = self.make(sent=sent)
        self.assertEqual([first + at * 400 for at in range(8)], [point.time_ms for point in origin.join_points])
        for number, point in enumerate(origin.join_points):
            replica = self.make(start=point, sent=sent[1 + number * 10 :])
            self.assertEqual(origin.end_point(), replica.end_point())
            self.assertEqual(origin.join_points[number:], replica.join_points)
            self.assertEqual(contents(origin.rtmp, point.offset), contents(replica.rtmp))
            at = point.flv_offset
            self.assertEqual(contents(origin.open_flv(at), at), contents(replica.open_flv(at), at))

    def test_rolls_at_a_join_point_once_large_enough(self) -> None:
        log = self.make(sent=gops(5))
        joins = {point.offset for point in log.join_points}
        self.assertEqual({segment.start for segment in log.rtmp.segments}, joins)

    def test_rolls_at_a_join_point_once_long_enough(self) -> None:
        log = self.make(LogOptions(segment_ms=800), sent=gops(5))
        self.assertEqual([0, 800, 1600], [segment.first.time_ms for segment in log.rtmp.segments])

    def test_rolls_anywhere_at_twice_the_size(self) -> None:
        """A stream with one keyframe an hour."""
        log = self.make(sent=gops(1, frames=100))
        self.assertGreater(len(log.rtmp.segments), 3)
        for segment in log.rtmp.segments:
            self.assertLessEqual(segment.size, 2 * SMALL.segment_bytes + len(rtmp_bytes(video(0))))

    def test_segments_are_a_part_of_what_is_kept(self) -> None:
        log = self.make(LogOptions(keep_bytes=2000), sent=gops(10))
        self.assertLessEqual(log.held_bytes, 2000)

    def test_options_must_be_positive(self) -> None:
        for field in attrs.fields(LogOptions):
            with self.assertRaises(ValueError):
                LogOptions(**{field.name: 0})


class RetentionTests(LogTestCase):
    def test_by_seconds(self) -> None:
        log = self.make(LogOptions(segment_ms=400, keep_ms=2000), sent=gops(20))
        self.assertLessEqual(log.end_time_ms - log.rtmp.segments[0].first.time_ms, 2000 + 400)
        self.assertGreaterEqual(log.end_time_ms - log.rtmp.segments[0].first.time_ms, 2000)
        self.assertEqual(log.start, log.join_points[0].offset)

    def test_by_seconds_keeps_the_newest_join_point(self) -> None:
        log = self.make(LogOptions(segment_bytes=700, keep_ms=1000), sent=gops(1, frames=100))
        self.assertEqual((0, 0), (log.start, log.newest_join_point().offset))

    def test_by_bytes_drops_even_that(self) -> None:
        log = self.make(LogOptions(segment_bytes=700, keep_bytes=3000), sent=gops(1, frames=100))
        self.assertGreater(log.start, 0)
        self.assertLessEqual(log.held_bytes, 3000)
        self.assertIsNone(log.newest_join_point())
        self.assertEqual([], log.join_points)

    def test_index_of_tiny_messages_counts(self) -> None:
        """One byte a message, each a join point: to remember them takes ten times what they are."""
        options = LogOptions(keep_bytes=1 << 20, keep_ms=10**9)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        log = self.make(options)
        for first in range(0, 40_000, 100):
            fill(log, [MediaMessage(8, time_ms, b"\x2e") for time_ms in range(first, first + 100)])
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        self.assertGreater(len(log.join_points), 1000)
        self.assertLess(log.held_bytes + after - before, 1.1 * options.keep_bytes)

    def test_index_of_the_flv_rendition_counts(self) -> None:
        log = self.make(LogOptions(memory_bytes=64 << 10, segment_bytes=16 << 10, keep_ms=10**9))
        cursor = log.open_flv().cursor(0)
        for first in range(0, 20_000, 100):
            fill(log, [MediaMessage(8, time_ms, b"\x2e") for time_ms in range(first, first + 100)])
        index = sum(len(segment.boundaries) + len(segment.times) for segment in log.flv.segments) * 8
        self.assertLess(log.flv.size + index, (64 + 16 + 4) << 10)
        cursor.close()

    def test_flv_is_dropped_with_the_log(self) -> None:
        log = self.make(LogOptions(segment_ms=400, keep_ms=2000), sent=gops(2))
        cursor = log.open_flv(0).cursor(0)
        fill(log, gops(18, start=800))
        self.assertGreater(log.flv.start, 0)
        self.assertLessEqual(log.flv.start, log.rtmp.segments[0].first.flv_offset)
        cursor.close()

    def test_flv_is_bounded_by_itself(self) -> None:
        log = self.make(LogOptions(segment_bytes=700, memory_bytes=4000), sent=gops(1))
        cursor = log.open_flv().cursor(log.flv.start)
        fill(log, gops(20, start=400))
        self.assertLessEqual(log.flv.size, 4000)
        self.assertEqual(0, log.start)
        cursor.close()


class PlaceTests(LogTestCase):
    def setUp(self) -> None:
        self.sent = h264_aac_stream(4)
        self.log = self.make(sent=self.sent)

    def offsets(self) -> list[int]:
        offset, found = 0, []
        for message in self.sent:
            found.append(offset)
            offset += len(rtmp_bytes(message))
        return found

    def test_newest_join_point(self) -> None:
        self.assertEqual(3000, self.log.newest_join_point().time_ms)
        self.assertIsNone(self.make().newest_join_point())

    def test_copy_of_a_log_that_runs_for_long_starts_a_little_back(self) -> None:
        log = self.make(sent=h264_aac_stream(20))
        start = log.copy_start()
        self.assertIn(start, log.join_points)
        self.assertLessEqual(start.time_ms, log.end_time_ms - COPY_BACK_MS)
        self.assertGreater(start.time_ms, log.end_time_ms - COPY_BACK_MS - 1001)

    def test_copy_of_a_young_log_starts_at_its_first_byte(self) -> None:
        """Its headers come before its first join point."""
        for seconds in (0, 1, 2):
            self.assertEqual(LogStart(), self.make(sent=h264_aac_stream(seconds)).copy_start())

    def test_copy_starts_after_a_hole(self) -> None:
        log = self.make(sent=h264_aac_stream(20))
        after = LogStart(log.end + 1000, log.flv_end + 1100, 60_000, log.headers)
        log.skip_to(after)
        self.assertEqual(after, log.copy_start())
        fill(log, gops(2, start=60_000))
        self.assertEqual(after, log.copy_start())

    def test_copy_starts_at_what_retention_has_left(self) -> None:
        log = self.make(options=LogOptions(segment_bytes=1000, keep_ms=1), sent=h264_aac_stream(20))
        self.assertGreater(log.start, 0)
        self.assertEqual(log.start, log.copy_start().offset)

    def test_copy_starts_no_further_back_than_it_may(self) -> None:
        """A publisher whose clock stands still makes no copy of all that is kept."""
        log = self.make(sent=[video(0, at % 10 == 0, 1000) for at in range(100)])
        self.assertEqual(0, log.copy_start().offset)
        self.patch(log_module, "COPY_BACK_BYTES", 25_000)
        self.assertEqual(log.join_points[-2], log.copy_start())
        self.patch(log_module, "COPY_BACK_BYTES", 5000)
        self.assertEqual(log.join_points[-1], log.copy_start())

    def test_join_point_at_or_before(self) -> None:
        one, two = self.log.join_points[:2]
        asked = (one.offset, one.offset + 1, two.offset - 1, two.offset, self.log.end)
        expected = [one, one, one, two, self.log.join_points[-1]]
        self.assertEqual(expected, [self.log.join_point_at_or_before(offset) for offset in asked])
        self.assertIsNone(self.log.join_point_at_or_before(one.offset - 1))
        self.assertIsNone(self.log.join_point_at_or_before(self.log.end + 1))

    def test_log_that_starts_at_any_boundary_goes_on_as_the_whole_one(self) -> None:
        for number, offset in enumerate(self.offsets()):
            start = self.log.start_at(offset)
            self.assertEqual(offset, start.offset)
            replica = StreamLog(1, MemorySource(), start, SMALL)
            fill(replica, self.sent[number:], is_flushed_each=False)
            self.assertEqual(self.log.end_point(), replica.end_point())
            self.assertEqual([p for p in self.log.join_points if p.offset >= offset], replica.join_points)
            replica.discard()
        self.assertEqual(self.log.end_point(), self.log.start_at(self.log.end))

    def test_start_at_anywhere_else(self) -> None:
        for offset in (1, self.log.end - 1, self.log.end + 1, -1):
            with self.assertRaises(PositionUnavailable):
                self.log.start_at(offset)

    def test_check_compares_with_what_is_here(self) -> None:
        offset = 0
        for message in self.sent:
            offset = self.log.check(offset, message)
        self.assertEqual(self.log.end, offset)

    def test_check_finds_every_difference(self) -> None:
        first = self.sent[0]
        for other in (
            attrs.evolve(first, timestamp=1),
            attrs.evolve(first, payload=first.payload + b"x"),
            attrs.evolve(first, payload=first.payload[:-1]),
            self.sent[1],
        ):
            with self.assertRaises(LogDiverged):
                self.log.check(0, other)
        with self.assertRaises(LogDiverged):
            self.log.check(self.offsets()[-1], attrs.evolve(self.sent[-1], payload=bytes(1000)))

    def test_check_of_what_is_dropped_compares_nothing(self) -> None:
        log = self.make(LogOptions(segment_bytes=700, keep_bytes=3000), sent=gops(20))
        self.assertEqual(len(rtmp_bytes(video(5))), log.check(0, video(5)))


class GapTests(LogTestCase):
    def test_missing_bytes_are_counted(self) -> None:
        log = self.make(sent=gops(1))
        start = LogStart(log.end + 1000, log.flv_end + 1100, 5000, log.headers)
        self.assertEqual(1000, log.skip_to(start))
        self.assertEqual((1000, start.offset, start.flv_offset), (log.missing_bytes, log.end, log.flv_end))
        self.assertEqual(start, log.end_point())

    def test_newcomers_wait_for_a_join_point_after_it(self) -> None:
        log = self.make(sent=gops(1))
        log.skip_to(LogStart(log.end + 1000, log.flv_end + 1100, 5000, log.headers))
        self.assertIsNone(log.newest_join_point())
        fill(log, [video(5000), video(5040, True)])
        self.assertEqual(5040, log.newest_join_point().time_ms)
        self.assertIsNone(log.join_point_at_or_before(log.end - len(rtmp_bytes(video(0, True))) - 1))

    def test_both_renditions_have_the_hole(self) -> None:
        log = self.make(sent=gops(1))
        cursor = log.open_flv(0).cursor(0)
        drain(cursor)
        start = LogStart(log.end + 1000, log.flv_end + 1100, 5000)
        log.skip_to(start)
        after = gops(2, start=5000)
        fill(log, after)
        self.assertIs(CursorState.GAP, cursor.advance())
        cursor.move_to(start.flv_offset)
        self.assertEqual(b"".join(map(flv_bytes, after)), drain(cursor)[0])
        cursor.close()
        again = log.open_flv(start.flv_offset)
        self.assertEqual(b"".join(map(flv_bytes, after)), contents(again, start.flv_offset))

    def test_flv_opened_from_before_the_hole(self) -> None:
        before, after = gops(1), gops(1, start=5000)
        log = self.make(sent=before)
        end = log.flv_end
        log.skip_to(LogStart(log.end + 1000, end + 1100, 5000))
        fill(log, after)
        flv = log.open_flv(0)
        self.assertEqual(b"".join(map(flv_bytes, before)), contents(flv, 0))
        self.assertEqual(b"".join(map(flv_bytes, after)), contents(log.open_flv(0), end + 1100))
        with self.assertRaises(PositionUnavailable):
            log.open_flv(0).cursor(end + 10)

    def test_an_empty_log_misses_nothing(self) -> None:
        log = self.make()
        self.assertEqual(0, log.skip_to(LogStart(1000, 1100, 5000)))
        fill(log, gops(1, start=5000))
        self.assertEqual((1000, 0), (log.start, log.missing_bytes))

    def test_back_is_refused(self) -> None:
        log = self.make(sent=gops(1))
        with self.assertRaises(PositionUnavailable):
            log.skip_to(LogStart(log.end - 1))

    def test_to_where_it_is_changes_nothing(self) -> None:
        log = self.make(sent=gops(1))
        self.assertEqual(0, log.skip_to(log.end_point()))
        self.assertIsNotNone(log.newest_join_point())

    def test_what_was_appended_is_written_first(self) -> None:
        log = self.make()
        log.append(video(0, True))
        log.skip_to(LogStart(5000, 5000, 5000))
        self.assertEqual(rtmp_bytes(video(0, True)), contents(log.rtmp, 0))


class EndTests(LogTestCase):
    def test_finished_log_takes_no_more(self) -> None:
        log = self.make(sent=gops(1))
        log.finish()
        log.append(video(500))
        with self.assertRaises(LogError):
            log.flush()

    def test_finish_writes_what_was_appended(self) -> None:
        log = self.make()
        log.append(video(0, True))
        log.finish()
        self.assertEqual(rtmp_bytes(video(0, True)), contents(log.rtmp))

    def test_reopened_log_goes_on_in_the_same_epoch(self) -> None:
        log = self.make(sent=gops(1))
        cursor = log.rtmp.cursor(log.end)
        log.finish()
        self.assertIs(CursorState.ENDED, cursor.advance())
        log.reopen()
        self.assertIs(CursorState.AT_END, cursor.advance())
        fill(log, gops(1, start=400))
        self.assertEqual(b"".join(map(rtmp_bytes, gops(1, start=400))), drain(cursor)[0])

    def test_successor_gives_up_the_epoch_before_when_it_has_enough(self) -> None:
        options = LogOptions(keep_ms=2000)
        old, new = self.make(options, sent=gops(1)), self.make(options, LogStart(time_ms=400), epoch=2)
        old.finish(new)
        self.assertIs(old, new.predecessor)
        fill(new, gops(5, start=400))
        self.assertEqual(0, old.start)
        fill(new, gops(1, start=2400))
        self.assertIsNone(new.predecessor)
        self.assertEqual((old.end, 0, [], None), (old.start, old.held_bytes, old.join_points, old.newest_join_point()))

    def test_closing_lets_go_of_the_epoch_before_too(self) -> None:
        old, new = self.make(sent=gops(1)), self.make(epoch=2)
        old.finish(new)
        new.close()
        self.assertEqual([-1], [segment.fd for segment in old.rtmp.segments])

    def test_successor_gives_it_up_by_bytes_too(self) -> None:
        options = LogOptions(keep_bytes=2000, segment_bytes=400)
        old, new = self.make(options, sent=gops(2)), self.make(options, epoch=2)
        old.finish(new)
        fill(new, gops(2, start=800))
        self.assertEqual((0, None), (old.held_bytes, new.predecessor))

    def test_reader_of_a_discarded_epoch_finds_a_gap_or_the_end(self) -> None:
        old, new = self.make(sent=gops(5)), self.make(epoch=2)
        behind, done = old.rtmp.cursor(0), old.rtmp.cursor(old.end)
        old.finish(new)
        old.discard()
        self.assertIs(CursorState.GAP, drain(behind)[1])
        self.assertIs(CursorState.ENDED, done.advance())

    def test_close_lets_go_of_everything(self) -> None:
        log = self.make(sent=gops(3))
        log.open_flv()
        fds = [segment.fd for segment in [*log.rtmp.segments, *log.flv.segments]]
        log.close()
        log.close()
        self.assertEqual([], [fd for fd in fds if is_open(fd)])


class FlvTests(LogTestCase):
    """The FLV rendition is there while somebody reads it, with the offsets it would always have had."""

    def test_made_from_the_newest_join_point(self) -> None:
        sent = h264_aac_stream(3)
        log = self.make(sent=sent)
        flv = log.open_flv()
        self.assertEqual(log.newest_join_point().flv_offset, flv.start)
        everything = b"".join(map(flv_bytes, sent))
        self.assertEqual((len(everything), everything[flv.start :]), (log.flv_end, contents(flv)))

    def test_grows_with_the_log(self) -> None:
        sent = h264_aac_stream(2)
        log = self.make(sent=sent[:50])
        cursor = log.open_flv(0).cursor(0)
        fill(log, sent[50:])
        self.assertEqual(b"".join(map(flv_bytes, sent)), drain(cursor)[0])
        cursor.close()

    def test_shared_by_its_readers_and_gone_with_the_last(self) -> None:
        log = self.make(sent=gops(2))
        one, other = log.open_flv().cursor(log.flv.start), log.open_flv().cursor(log.flv.end)
        self.assertIs(one.rendition, other.rendition)
        fds = [segment.fd for segment in log.flv.segments]
        one.close()
        self.assertIsNotNone(log.flv)
        other.close()
        self.assertIsNone(log.flv)
        self.assertEqual([], [fd for fd in fds if is_open(fd)])

    def test_resume_further_back_extends_it(self) -> None:
        sent = h264_aac_stream(3)
        log = self.make(sent=sent)
        everything = b"".join(map(flv_bytes, sent))
        newest = log.open_flv().cursor(log.flv.start)
        middle = log.join_points[1].flv_offset + 7
        self.assertIs(newest.rendition, log.open_flv(middle))
        self.assertEqual(everything[middle:], contents(log.flv, middle))
        self.assertEqual(everything[log.join_points[1].flv_offset :], contents(log.flv))
        self.assertEqual(everything[0:], contents(log.open_flv(0)))
        newest.close()

    def test_in_an_empty_log_it_waits_for_the_first_byte(self) -> None:
        log = self.make(start=LogStart(100, 200, 5))
        cursor = log.open_flv().cursor(200)
        self.assertIs(CursorState.AT_END, cursor.advance())
        fill(log, gops(1))
        self.assertEqual(b"".join(map(flv_bytes, gops(1))), drain(cursor)[0])
        cursor.close()

    def test_place_that_is_not_there(self) -> None:
        log = self.make(LogOptions(segment_bytes=700, keep_bytes=3000), sent=gops(20))
        for offset in (0, log.flv_end + 1, -1):
            with self.assertRaises(PositionUnavailable):
                log.open_flv(offset)
        self.assertIsNone(log.flv)

    def test_further_back_than_memory_may_hold_is_refused(self) -> None:
        log = self.make(LogOptions(memory_bytes=2000), sent=gops(5))
        with self.assertRaises(PositionUnavailable):
            log.open_flv(0)
        self.assertGreater(log.open_flv(log.flv_end - 1500).end, 0)

    def test_resume_at_the_very_end(self) -> None:
        log = self.make(sent=gops(2))
        cursor = log.open_flv(log.flv_end).cursor(log.flv_end)
        self.assertIs(CursorState.AT_END, cursor.advance())
        cursor.close()

    def test_finished_log_ends_it_too(self) -> None:
        log = self.make(sent=gops(1))
        cursor = log.open_flv().cursor(log.flv_end)
        log.finish()
        self.assertIs(CursorState.ENDED, cursor.advance())
        cursor.close()

    def test_given_up_its_readers_find_a_gap(self) -> None:
        log = self.make(sent=gops(1))
        cursor = log.open_flv().cursor(log.flv_end)
        log.discard_flv()
        self.assertIs(CursorState.GAP, cursor.advance())
        cursor.move_to(log.flv_end, log.open_flv())
        self.assertIs(CursorState.AT_END, cursor.advance())
        cursor.close()


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_flv_from_anywhere_has_the_same_bytes(count: int, later: int, data: st.DataObject) -> None:
    sent = [*gops(6, frames=10)[:count]]
    more = [audio(count * 40 + at * 20) for at in range(later)]
    log = fill(StreamLog(1, MemorySource(), options=LogOptions(segment_bytes=500)), sent)
    everything = b"".join(map(flv_bytes, [*sent, *more]))
    offset = data.draw(st.integers(0, log.flv_end))
    cursor = log.open_flv(offset).cursor(offset)
    fill(log, more)
    assert drain(cursor, data.draw(st.integers(1, 100)))[0] == everything[offset:]
    cursor.close()
    log.discard()
