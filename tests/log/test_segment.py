from __future__ import annotations

import os
import resource
from array import array

from twisted.trial.unittest import SynchronousTestCase

from relay.log.points import LogStart
from relay.log.segment import MemorySegment, MemorySource, NoSegment, Segment, write_all


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class WriteAllTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.fd = os.memfd_create("test")
        self.addCleanup(os.close, self.fd)

    def test_everything_is_written_in_order(self) -> None:
        self.assertEqual(6, write_all(self.fd, [b"a", b"", b"bcd", b"ef"], 2))
        self.assertEqual(b"\0\0abcdef", os.pread(self.fd, 100, 0))

    def test_more_buffers_than_one_call_takes(self) -> None:
        buffers = [b"%04d" % number for number in range(2500)]
        self.assertEqual(10_000, write_all(self.fd, buffers, 0))
        self.assertEqual(b"".join(buffers), os.pread(self.fd, 20_000, 0))

    def test_nothing(self) -> None:
        self.assertEqual(0, write_all(self.fd, [], 0))
        self.assertEqual(0, write_all(self.fd, [b"", b""], 0))

    def test_write_that_the_kernel_does_in_part_goes_on_where_it_stopped(self) -> None:
        """At the file size limit the first call writes what fits; the second tells the error."""
        path = self.mktemp()
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, fd)
        with file_size_limit(10), self.assertRaises(OSError):
            write_all(fd, [b"abcdef", b"ghijkl"], 0)
        self.assertEqual(b"abcdefghij", os.pread(fd, 100, 0))


class file_size_limit:
    """No file of this process grows past so many bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class MemorySegmentTests(SynchronousTestCase):
    def segment(self, start: int = 100) -> Segment:
        segment = MemorySource().open(LogStart(start))
        self.addCleanup(segment.close_fd)
        return segment

    def test_bytes_are_found_by_offset(self) -> None:
        segment = self.segment()
        self.assertEqual((100, 100, 0), (segment.start, segment.end, segment.size))
        segment.append([b"abc", b"def"])
        self.assertEqual((106, 6), (segment.end, segment.size))
        self.assertEqual(b"cde", segment.pread(102, 3))
        self.assertEqual(b"ef", segment.pread(104, 100))

    def test_end_moves_only_when_all_is_written(self) -> None:
        """I5, with a write that fails in the middle."""
        segment = self.segment()
        segment.append([b"x" * 8000])
        with file_size_limit(8192), self.assertRaises(OSError):
            segment.append([b"y" * 100, b"z" * 1000])
        self.assertEqual(8100, segment.end)
        self.assertEqual(8000, os.fstat(segment.fd).st_size)
        segment.append([b"w"])
        self.assertEqual(b"xw", segment.pread(8099, 10))

    def test_message_index(self) -> None:
        segment = self.segment()
        segment.note(array("Q", [100, 103]), array("q", [5, 9]))
        self.assertEqual(([100, 103], [5, 9], 9), (*map(list, segment.message_index()), segment.latest_ms))

    def test_it_stays_open_while_a_reader_is_inside(self) -> None:
        segment = self.segment()
        segment.append([b"abc"])
        segment.acquire()
        segment.acquire()
        segment.retire()
        segment.release()
        self.assertEqual(b"abc", segment.pread(100, 3))
        fd = segment.fd
        segment.release()
        self.assertFalse(is_open(fd))
        self.assertEqual(-1, segment.fd)

    def test_without_readers_it_is_closed_at_once(self) -> None:
        segment = self.segment()
        fd = segment.fd
        segment.retire()
        self.assertFalse(is_open(fd))
        with self.assertRaises(OSError):
            segment.acquire()
        self.assertEqual(0, segment.readers)

    def test_sealed_memory_stays(self) -> None:
        segment = self.segment()
        segment.append([b"abc"])
        segment.seal(LogStart(103))
        self.assertTrue(segment.is_sealed)
        self.assertEqual(b"abc", segment.pread(100, 3))

    def test_it_is_not_inherited_by_child_processes(self) -> None:
        self.assertFalse(os.get_inheritable(self.segment().fd))

    def test_it_is_not_stored(self) -> None:
        self.assertFalse(MemorySegment.is_stored)


class NoSegmentTests(SynchronousTestCase):
    def test_it_has_no_bytes_and_nothing_to_hold(self) -> None:
        segment = NoSegment(50)
        segment.acquire()
        segment.release()
        self.assertEqual((50, 50, -1), (segment.start, segment.end, segment.fd))
