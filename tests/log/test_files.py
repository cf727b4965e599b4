from __future__ import annotations

import os
import zlib

from twisted.trial.unittest import SynchronousTestCase

from relay.log.directory import Directory
from relay.log.files import FileSegment, FileSource, index_name, parse_segment_name, segment_name
from relay.log.index import END, JOIN, START, decode_entries
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import JoinPoint, LogStart
from tests.log.model import audio, contents, drain, fill, gops, rtmp_bytes
from tests.log.test_segment import is_open
from tests.wire import aac_header


class NameTests(SynchronousTestCase):
    def test_name_comes_back(self) -> None:
        for epoch, start in ((1, 0), ((1 << 53) - 1, 1 << 62)):
            self.assertEqual((epoch, start), parse_segment_name(segment_name(epoch, start)))

    def test_names_of_an_epoch_sort_by_offset(self) -> None:
        names = [segment_name(7, start) for start in (0, 9, 10, 12345, 1 << 40)]
        self.assertEqual(names, sorted(names))

    def test_other_names_are_no_segments(self) -> None:
        for name in (
            "meta",
            "1-0.log",
            "0-00000000000000000000.log",
            f"x{segment_name(1, 0)}",
            index_name(segment_name(1, 0)),
        ):
            self.assertIsNone(parse_segment_name(name), name)


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.directory = Directory.at(self.path)
        self.addCleanup(self.directory.close)
        self.name = segment_name(5, 100)

    def make(self, first: LogStart = LogStart(100, 200, 300)) -> FileSegment:  # noqa: B008
        segment = FileSource(self.directory, 5).open(first)
        self.addCleanup(segment.close_fd)
        return segment

    def entries(self) -> list[object]:
        return decode_entries(self.directory.read(index_name(self.name), 1 << 20))

    def test_index_begins_with_the_state_at_the_start(self) -> None:
        self.make()
        (start,) = self.entries()
        self.assertEqual((START, LogStart(100, 200, 300)), (start.kind, start.point))

    def test_marks_have_the_crc_of_the_bytes_before(self) -> None:
        segment = self.make()
        segment.append([b"abc", b"de"])
        segment.mark(JoinPoint(105, 210, 1000))
        segment.append([b"fgh"])
        segment.seal(LogStart(108, 220, 1100))
        _, join, end = self.entries()
        self.assertEqual((JOIN, zlib.crc32(b"abcde")), (join.kind, join.crc))
        self.assertEqual((END, zlib.crc32(b"fgh"), LogStart(108, 220, 1100)), (end.kind, end.crc, end.point))

    def test_segment_that_starts_at_a_join_point_marks_it(self) -> None:
        self.make(JoinPoint(100, 200, 300))
        self.assertEqual([START, JOIN], [entry.kind for entry in self.entries()])

    def test_sealed_it_is_open_only_while_it_has_readers(self) -> None:
        segment = self.make()
        segment.append([b"abc"])
        segment.acquire()
        fd = segment.fd
        segment.seal(LogStart(103))
        self.assertTrue(is_open(fd))
        segment.release()
        self.assertEqual((False, -1), (is_open(fd), segment.fd))
        segment.acquire()
        self.assertEqual(b"abc", segment.pread(100, 3))
        segment.release()
        self.assertEqual(-1, segment.fd)

    def test_retired_its_names_go_at_once_and_its_reader_reads_on(self) -> None:
        segment = self.make()
        segment.append([b"abc"])
        segment.acquire()
        segment.retire()
        self.assertEqual([], self.directory.names())
        self.assertEqual(b"abc", segment.pread(100, 3))
        segment.release()
        self.assertEqual(-1, segment.fd)

    def test_file_that_is_there_already_is_not_written_to(self) -> None:
        self.make().append([b"abc"])
        with self.assertRaises(OSError):
            self.make()
        self.assertEqual(b"abc", self.directory.read(self.name, 10))

    def test_index_that_can_not_be_made_leaves_nothing(self) -> None:
        os.mkdir(os.path.join(self.path, index_name(self.name)))
        with self.assertRaises(OSError):
            self.make()
        self.assertEqual([index_name(self.name)], self.directory.names())

    def test_index_that_can_not_be_written_is_left_and_the_bytes_stay(self) -> None:
        segment = self.make()
        segment.append([b"abc"])
        os.close(segment._index_fd)
        segment._index_fd = os.open("/dev/full", os.O_WRONLY)
        with self.assertRaises(OSError):
            segment.mark(JoinPoint(103, 206, 1000))
        self.assertFalse(segment.is_mark_due(JoinPoint(103, 206, 9000)))
        segment.append([b"d"])
        segment.seal(LogStart(104))
        self.assertEqual(1, len(self.entries()))
        self.assertEqual(b"abcd", self.directory.read(self.name, 10))

    def test_removed_behind_our_back_a_new_reader_finds_a_gap(self) -> None:
        log = StreamLog(5, FileSource(self.directory, 5), options=LogOptions(segment_bytes=500))
        self.addCleanup(log.discard)
        fill(log, gops(3))
        os.unlink(os.path.join(self.path, segment_name(5, log.rtmp.segments[1].start)))
        cursor = log.rtmp.cursor(0)
        read, state = drain(cursor)
        self.assertEqual((log.rtmp.segments[0].end, "gap"), (len(read), state.value))
        cursor.close()


class LogTests(SynchronousTestCase):
    """A log in files: as in memory, and with few descriptors."""

    def setUp(self) -> None:
        self.directory = Directory.at(os.path.abspath(self.mktemp()))
        self.addCleanup(self.directory.close)

    def test_descriptors_of_sealed_segments_are_closed(self) -> None:
        log = fill(StreamLog(5, FileSource(self.directory, 5), options=LogOptions(segment_bytes=500)), gops(9))
        self.addCleanup(log.discard)
        self.assertEqual(1, sum(segment.fd >= 0 for segment in log.rtmp.segments))
        self.assertEqual(b"".join(map(rtmp_bytes, gops(9))), contents(log.rtmp))
        self.assertEqual(1, sum(segment.fd >= 0 for segment in log.rtmp.segments))

    def test_audio_only_stream_marks_twice_a_second(self) -> None:
        log = fill(StreamLog(5, FileSource(self.directory, 5)), [aac_header(), *(audio(at * 20) for at in range(200))])
        self.addCleanup(log.discard)
        self.assertEqual(200, len(log.join_points))
        entries = decode_entries(self.directory.read(index_name(segment_name(5, 0)), 1 << 20))
        self.assertEqual([0, *range(0, 4000, 500)], [entry.point.time_ms for entry in entries])

    def test_retention_removes_the_files(self) -> None:
        log = StreamLog(5, FileSource(self.directory, 5), options=LogOptions(segment_bytes=500, keep_bytes=2000))
        self.addCleanup(log.discard)
        fill(log, gops(30))
        self.assertEqual(2 * len(log.rtmp.segments), len(self.directory.names()))
        log.discard()
        self.assertEqual([], self.directory.names())
