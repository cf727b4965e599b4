from __future__ import annotations

import ctypes
import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import attrs
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from relay.log.cursor import CursorState
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.segment import MemorySegment, MemorySource, Segment
from relay.log.store import Store
from relay.rtmp.messages import MediaMessage
from tests.log.model import contents, die, drain, fill, flv_bytes, gops, rtmp_bytes
from tests.programs import is_ci

OPTIONS = LogOptions(segment_bytes=700, keep_bytes=100_000, memory_bytes=4000)


class Disk:
    """Segments that count as stored, on a disk whose room and health the test decides."""

    is_stored = True

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.used = 0
        self.error: int | None = None
        self.can_open = True
        self.opened: list[DiskSegment] = []

    def open(self, start: LogStart) -> Segment:
        if not self.can_open:
            raise OSError(errno.EROFS, "read-only")
        segment = DiskSegment(self, start)
        self.opened.append(segment)
        return segment


class DiskSegment(MemorySegment):
    is_stored = True

    def __init__(self, disk: Disk, start: LogStart) -> None:
        super().__init__(start.offset, start)
        self.disk = disk
        self.marks_fail = False
        self.is_removed = False

    def append(self, buffers: Sequence[bytes]) -> int:
        size = sum(map(len, buffers))
        if self.disk.error is not None:
            raise OSError(self.disk.error, os.strerror(self.disk.error))
        if self.disk.used + size > self.disk.room:
            raise OSError(errno.ENOSPC, "full")
        self.disk.used += size
        return super().append(buffers)

    def retire(self) -> None:
        if not self.is_removed:
            self.disk.used -= self.size
        self.is_removed = True
        super().retire()


class StorageTests(SynchronousTestCase):
    """A disk that fails never stops the stream, and every byte stays what and where it was."""

    def make(self, disk: Disk, options: LogOptions = OPTIONS) -> StreamLog:
        log = StreamLog(1, disk, options=options)
        self.addCleanup(log.discard)
        return log

    def test_full_disk_drops_the_oldest_half_and_goes_on_storing(self) -> None:
        disk = Disk(room=5000)
        log = self.make(disk)
        sent = gops(12)
        fill(log, sent[:70])
        self.assertEqual((0, 0), (log.start, log.storage_errors))
        count = len(log.rtmp.segments)
        fill(log, sent[70:80])
        self.assertEqual((True, 1), (log.is_storing, log.storage_errors))
        self.assertLess(len(log.rtmp.segments), count)
        everything = b"".join(map(rtmp_bytes, sent[:80]))
        self.assertEqual(everything[log.start :], contents(log.rtmp))
        self.assertGreaterEqual(log.join_points[0].offset, log.start)
        self.assertEqual(log.held_bytes, log.rtmp.size)

    def test_disk_that_stays_broken_is_left_for_memory(self) -> None:
        disk = Disk()
        log = self.make(disk)
        sent = gops(4)
        fill(log, sent[:25])
        disk.error = errno.EIO
        fill(log, sent[25:])
        self.assertFalse(log.is_storing)
        self.assertGreaterEqual(log.storage_errors, 2)
        everything = b"".join(map(rtmp_bytes, sent))
        self.assertEqual(len(everything), log.end)
        self.assertEqual(everything[log.start :], contents(log.rtmp))
        self.assertFalse(log.rtmp.segments[-1].is_stored)

    def test_nobody_who_reads_meanwhile_sees_anything(self) -> None:
        disk = Disk(room=2000)
        log = self.make(disk)
        sent = gops(4)
        cursor = log.rtmp.cursor(0)
        flv = log.open_flv().cursor(0)
        read = read_flv = b""
        for message in sent:
            disk.room = 0 if message.timestamp > 800 else disk.room
            fill(log, [message])
            read += drain(cursor)[0]
            read_flv += drain(flv)[0]
        self.assertFalse(log.is_storing)
        self.assertEqual(b"".join(map(rtmp_bytes, sent)), read)
        self.assertEqual(b"".join(map(flv_bytes, sent)), read_flv)
        cursor.close()
        flv.close()

    def test_disk_that_comes_back_is_used_from_the_next_roll_on(self) -> None:
        disk = Disk()
        log = self.make(disk)
        fill(log, gops(2))
        disk.error = errno.EIO
        fill(log, gops(2, start=800))
        dropped_by = log.start
        disk.error = None
        fill(log, gops(2, start=1600))
        self.assertTrue(log.is_storing)
        self.assertEqual(dropped_by, log.start)
        self.assertEqual(log.end - log.start, len(contents(log.rtmp)))

    def test_tries_at_each_roll_drop_nothing(self) -> None:
        disk = Disk()
        log = self.make(disk)
        fill(log, gops(6))
        disk.error = errno.EIO
        fill(log, gops(1, start=2400))
        start = log.start
        self.assertGreater(start, 0)
        fill(log, gops(2, start=2800))
        self.assertEqual(start, log.start)

    def test_memory_used_in_its_place_is_bounded(self) -> None:
        disk = Disk()
        log = self.make(disk)
        disk.error = errno.EIO
        fill(log, gops(40))
        in_memory = sum(segment.size for segment in log.rtmp.segments if not segment.is_stored)
        self.assertLessEqual(in_memory, OPTIONS.memory_bytes + 2 * OPTIONS.segment_bytes)
        self.assertEqual(log.end - log.start, len(contents(log.rtmp)))

    def test_segment_that_can_not_be_made(self) -> None:
        disk = Disk()
        disk.can_open = False
        log = fill(self.make(disk), gops(1))
        self.assertEqual((False, 1, 0), (log.is_storing, log.storage_errors, log.start))

    def test_what_can_not_be_removed_is_given_up_and_counted(self) -> None:
        class Sticky(DiskSegment):
            def retire(self) -> None:
                super().retire()
                raise OSError(errno.EROFS, "read-only")

        class StickyDisk(Disk):
            def open(self, start: LogStart) -> Segment:
                return Sticky(self, start)

        log = self.make(StickyDisk(), attrs.evolve(OPTIONS, keep_bytes=3000))
        fill(log, gops(10))
        self.assertGreater(log.start, 0)
        self.assertGreater(log.storage_errors, 0)

    def test_the_epoch_before_is_given_up_first(self) -> None:
        disk = Disk(room=4000)
        old = fill(self.make(disk), gops(3))
        new = self.make(disk)
        old.finish(new)
        while old.held_bytes:
            fill(new, gops(1, start=new.end_time_ms + 40))
        self.assertIsNone(new.predecessor)
        self.assertTrue(new.is_storing)

    def test_a_reader_in_what_is_dropped_reads_on(self) -> None:
        disk = Disk(room=5000)
        log = self.make(disk)
        sent = gops(12)
        fill(log, sent[:10])
        cursor = log.rtmp.cursor(0)
        first = log.rtmp.segments[0]
        fill(log, sent[10:80])
        self.assertGreater(log.start, first.end)
        read, state = drain(cursor)
        self.assertEqual((b"".join(map(rtmp_bytes, sent))[: first.end], CursorState.GAP), (read, state))
        cursor.close()


class NoMemory:
    """Memory that is out when the test says so: what is left is to fail cleanly."""

    is_stored = False
    can_open = can_write = True

    def open(self, start: LogStart) -> Segment:
        if not self.can_open:
            raise OSError(errno.EMFILE, "no descriptors")
        source = self

        class Full(MemorySegment):
            def append(self, buffers: Sequence[bytes]) -> int:
                if not source.can_write:
                    raise OSError(errno.ENOSPC, "no memory")
                return super().append(buffers)

        return Full(start.offset, start)


class NoDescriptorsTests(SynchronousTestCase):
    """The process has no descriptor left when the FLV rendition needs one: its viewers lose it, nobody else notices."""

    def setUp(self) -> None:
        self.log = fill(StreamLog(1, MemorySource()), gops(2))
        self.addCleanup(self.log.discard)

    def test_rendition_that_can_not_be_made(self) -> None:
        with no_more_descriptors(), self.assertRaises(OSError):
            self.log.open_flv(0)
        self.assertIsNone(self.log.flv)
        self.assertEqual(b"".join(map(flv_bytes, gops(2))), contents(self.log.open_flv(0)))

    def test_rendition_that_can_not_go_on(self) -> None:
        cursor = self.log.open_flv(0).cursor(0)
        drain(cursor)
        with no_more_descriptors():
            fill(self.log, gops(1, start=800))
        self.assertEqual((None, 1), (self.log.flv, self.log.storage_errors))
        self.assertIs(CursorState.GAP, cursor.advance())
        self.assertEqual(b"".join(map(rtmp_bytes, gops(3))), contents(self.log.rtmp))
        cursor.move_to(cursor.offset, self.log.open_flv(cursor.offset))
        self.assertEqual(b"".join(map(flv_bytes, gops(1, start=800))), drain(cursor)[0])
        cursor.close()


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class NoMemoryTests(SynchronousTestCase):
    """The writer is told; what readers have stays right, and the log can go on when memory is back."""

    def check(self, what: str, while_out: list[MediaMessage], options: LogOptions) -> None:
        source = NoMemory()
        log = StreamLog(1, source, options=options)
        self.addCleanup(log.discard)
        before = gops(1)
        fill(log, before)
        end = log.end_point()
        setattr(source, what, False)
        for message in while_out:
            log.append(message)
        with self.assertRaises(OSError):
            log.flush()
        self.assertEqual(attrs.evolve(end, time_ms=0), attrs.evolve(log.end_point(), time_ms=0))
        self.assertEqual(end.offset, log.end)
        setattr(source, what, True)
        after = gops(1, start=400)
        fill(log, after)
        self.assertEqual(b"".join(map(rtmp_bytes, [*before, *after])), contents(log.rtmp))
        self.assertEqual(b"".join(map(flv_bytes, [*before, *after])), contents(log.open_flv(0)))

    def test_write_fails(self) -> None:
        self.check("can_write", gops(1, start=400), LogOptions())

    def test_new_segment_fails_at_a_join_point(self) -> None:
        self.check("can_open", gops(1, start=400), LogOptions(segment_bytes=600))

    def test_new_segment_fails_elsewhere(self) -> None:
        """The first two, 67 bytes each, fill the segment that has one of the nine before; those are written."""
        source = NoMemory()
        log = StreamLog(1, source, options=LogOptions(segment_bytes=100))
        self.addCleanup(log.discard)
        sent = gops(2)
        fill(log, sent[:9])
        source.can_open = False
        for message in sent[11:]:
            log.append(message)
        with self.assertRaises(OSError):
            log.flush()
        source.can_open = True
        fill(log, sent[13:])
        self.assertEqual(b"".join(map(rtmp_bytes, sent[:9] + sent[11:])), contents(log.rtmp))


MS_NOSUID_NODEV = 6


def mount_tmpfs(path: str, size: int) -> Callable[[], None]:
    """A file system of ``size`` bytes at ``path``; returns how to take it away.

    Raises:
        OSError: we may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID_NODEV, b"size=%d" % size):
        raise OSError(ctypes.get_errno(), "mount")

    def unmount() -> None:
        if libc.umount2(path.encode(), 2):
            raise OSError(ctypes.get_errno(), "umount")

    return unmount


MS_RDONLY, MS_REMOUNT = 1, 32


def remount(path: str, flags: int) -> None:
    """Change how a file system is mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, path.encode(), None, MS_REMOUNT | flags, None):
        raise OSError(ctypes.get_errno(), "remount")


class RealFileSystemTests(SynchronousTestCase):
    """A real file system that is really full, or read-only."""

    def setUp(self) -> None:
        self.path = tempfile.mkdtemp(prefix="relay-full-")
        self.addCleanup(os.rmdir, self.path)
        try:
            self.addCleanup(mount_tmpfs(self.path, 1 << 20))
        except OSError as error:
            if is_ci():
                raise
            raise SkipTest(f"mounting needs root: {error}") from error
        self.store = Store(self.path, "boot")

    def tearDown(self) -> None:
        self.store.close()

    def test_oldest_is_dropped_and_the_stream_stays_whole(self) -> None:
        options = LogOptions(segment_bytes=100_000, keep_bytes=100 << 20)
        log = StreamLog(1, self.store.stream("live/a").source(1), options=options)
        self.addCleanup(log.close)
        sent = gops(30, size=10_000)
        fill(log, sent)
        self.assertTrue(log.is_storing)
        self.assertGreater(log.storage_errors, 0)
        self.assertGreater(log.start, 0)
        everything = b"".join(map(rtmp_bytes, sent))
        self.assertEqual(everything[log.start :], contents(log.rtmp))
        log.close()
        self.store.close()
        self.store = Store(self.path, "boot")
        recovery = self.store.stream("live/a").recover(options)
        (again,) = recovery.logs
        self.assertTrue(recovery.is_intact)
        self.assertEqual((log.start, log.end), (again.start, again.end))
        self.assertEqual(everything[log.start :], contents(again.rtmp))

    def fill_up(self) -> None:
        with open(os.path.join(self.path, "hog"), "ab", buffering=0) as hog:
            for size in (1 << 16, 1):
                try:
                    while True:
                        hog.write(bytes(size))
                except OSError as error:
                    self.assertEqual(errno.ENOSPC, error.errno)

    def test_node_starts_and_serves_on_a_full_disk(self) -> None:
        """A restart is often the first thing that is tried."""
        log = StreamLog(1, self.store.stream("live/a").source(1))
        sent = gops(2)
        fill(log, sent)
        self.fill_up()
        die(self.store, log)
        self.store = Store(self.path, "boot")
        recovery = self.store.stream("live/a").recover()
        self.assertTrue(recovery.is_intact)
        (again,) = recovery.logs
        fill(again, gops(1, start=800))
        self.assertEqual(b"".join(map(rtmp_bytes, gops(3))), contents(again.rtmp))
        again.close()
        new = StreamLog(1, self.store.stream("live/new").source(1))
        self.assertEqual([], self.store.stream("live/new").recover().logs)
        fill(new, sent)
        self.assertFalse(new.is_storing)
        self.assertEqual(b"".join(map(rtmp_bytes, sent)), contents(new.rtmp))
        new.close()

    def test_epoch_that_could_not_be_noted_is_noted_before_its_first_segment(self) -> None:
        stream = self.store.stream("live/a")
        self.fill_up()
        log = StreamLog(7, stream.source(7), options=LogOptions(segment_bytes=600))
        fill(log, gops(1))
        self.assertFalse(log.is_storing)
        os.unlink(os.path.join(self.path, "hog"))
        fill(log, gops(2, start=400))
        self.assertTrue(log.is_storing)
        die(self.store, log)
        self.store = Store(self.path, "boot")
        recovery = self.store.stream("live/a").recover()
        self.assertEqual(([7], False), ([known.epoch for known in recovery.lineage], recovery.is_lineage_lost))
        self.assertTrue(recovery.is_intact)
        self.assertEqual(log.end, recovery.logs[0].end)
        recovery.logs[0].close()

    def test_node_starts_and_serves_on_a_disk_that_became_read_only(self) -> None:
        log = StreamLog(1, self.store.stream("live/a").source(1))
        self.addCleanup(log.discard)
        fill(log, gops(1))
        os.pwrite(log.rtmp.segments[0].fd, b"torn", log.end)
        die(self.store, log)
        remount(self.path, MS_RDONLY)
        self.store = Store(self.path, "boot")
        recovery = self.store.stream("live/a").recover()
        self.assertEqual(([], 1, False), (recovery.logs, recovery.failed_epochs, recovery.is_intact))
        for name in ("live/a", "live/b"):
            new = StreamLog(2, self.store.stream(name).source(2))
            fill(new, gops(2))
            self.assertFalse(new.is_storing)
            self.assertEqual(b"".join(map(rtmp_bytes, gops(2))), contents(new.rtmp))
            new.close()

    def test_somebody_else_fills_it_the_stream_goes_on_in_memory(self) -> None:
        log = StreamLog(1, self.store.stream("live/a").source(1), options=LogOptions(segment_bytes=100_000))
        self.addCleanup(log.close)
        sent = gops(10, size=10_000)
        fill(log, sent[:5])
        self.fill_up()
        fill(log, sent[5:])
        self.assertFalse(log.is_storing)
        self.assertEqual(b"".join(map(rtmp_bytes, sent)), contents(log.rtmp))
