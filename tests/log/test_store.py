from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError, StoreDamaged
from relay.log.lineage import MAX_LINEAGE, META, Epoch, decode_meta, encode_meta
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.position import Position
from relay.log.store import Store, directory_name
from relay.log.stored import Extent
from relay.names import StreamName
from tests.log.model import contents, die, fill, gops, rtmp_bytes
from tests.log.test_position import positions

epochs = st.builds(Epoch, st.integers(1, 1 << 52), st.none() | positions, st.integers(0, 1 << 40))


@given(st.text(max_size=20), st.text(max_size=20), st.lists(epochs, max_size=4))
def test_meta_comes_back(boot_id: str, name: str, lineage: list[Epoch]) -> None:
    try:
        encoded = encode_meta(boot_id, name, lineage)
    except UnicodeEncodeError:
        return
    assert decode_meta(encoded) == (boot_id, name, lineage)


@given(st.binary(max_size=100))
def test_any_bytes_are_meta_or_damage(data: bytes) -> None:
    try:
        decode_meta(data)
    except StoreDamaged:
        return


class StoreTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.store = self.open()

    def open(self, boot_id: str = "boot") -> Store:
        store = Store(self.path, boot_id)
        self.addCleanup(store.close)
        return store

    def write(self, name: str = "live/a", epoch: int = 1, count: int = 2, **source: object) -> StreamLog:
        log = StreamLog(epoch, self.store.stream(name).source(epoch, **source), options=LogOptions(segment_bytes=500))
        self.addCleanup(log.close)
        return fill(log, gops(count))


class LockTests(StoreTestCase):
    def test_second_node_is_refused_with_a_clear_line(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            Store(self.path, "boot")
        self.assertEqual(f"store {self.path}: in use by another node (process {os.getpid()})", str(caught.exception))

    def test_another_process_is_refused_too(self) -> None:
        code = "import sys; from relay.log.store import Store; Store(sys.argv[1], 'boot')"
        run = subprocess.run(
            [sys.executable, "-c", code, self.path],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.assertIn("in use by another node", run.stderr)

    def test_dead_nodes_lock_is_gone(self) -> None:
        die(self.store)
        self.open()

    def test_closed_store_is_free(self) -> None:
        self.store.close()
        self.open()

    def test_directory_that_can_not_be_used(self) -> None:
        for path in ("/proc/nothing", "/dev/null/store"):
            with self.assertRaises(ConfigError) as caught:
                Store(path, "boot")
            self.assertIn(path, str(caught.exception))

    def test_lock_that_is_a_link(self) -> None:
        self.store.close()
        os.unlink(os.path.join(self.path, "lock"))
        os.symlink("/etc/passwd", os.path.join(self.path, "lock"))
        with self.assertRaises(ConfigError):
            Store(self.path, "boot")


class NameTests(StoreTestCase):
    def test_name_is_never_a_path(self) -> None:
        for name in ("live/a", "../../etc/x", "/etc/passwd", "a\0b", "x" * 300):
            self.store.stream(name).source(1)
        self.assertEqual([], [entry for entry in os.listdir(self.path) if entry != "lock" and len(entry) != 32])
        self.assertEqual(5, len(self.store.names()))

    def test_names_are_known_again(self) -> None:
        self.write("live/b")
        self.write("live/a")
        self.store.close()
        self.assertEqual(["live/a", "live/b"], self.open().names())

    def test_stream_is_the_same_one_by_either_form_of_its_name(self) -> None:
        self.assertIs(self.store.stream("live/a"), self.store.stream(StreamName("live", "a")))

    def test_directory_with_anothers_name_is_not_believed(self) -> None:
        self.write("live/a").close()
        self.store.close()
        os.rename(os.path.join(self.path, directory_name("live/a")), os.path.join(self.path, directory_name("live/b")))
        self.store = self.open()
        recovery = self.store.stream("live/b").recover()
        self.assertTrue(recovery.is_lineage_lost)

    def test_stream_directory_that_is_a_link(self) -> None:
        os.symlink("/tmp", os.path.join(self.path, directory_name("live/x")))
        log = self.write("live/x")
        self.assertFalse(log.is_storing)
        self.assertEqual(["live/x"], self.store.names())


class LineageTests(StoreTestCase):
    def test_predecessor_is_remembered(self) -> None:
        self.write(epoch=7)
        self.write(epoch=9, predecessor=Position(7, 4096), time_ms=5000)
        self.write(epoch=9, predecessor=Position(8, 1))
        self.store.close()
        self.store = self.open()
        self.assertEqual([Epoch(7), Epoch(9, Position(7, 4096), 5000)], self.store.stream("live/a").lineage)

    def test_order_is_that_of_the_lineage_not_of_the_numbers(self) -> None:
        for epoch in (9, 3, 5):
            self.write(epoch=epoch)
        self.store.close()
        self.store = self.open()
        recovery = self.store.stream("live/a").recover()
        self.assertEqual([9, 3, 5], [log.epoch for log in recovery.logs])
        for log in recovery.logs:
            log.close()

    def test_it_does_not_grow_for_ever(self) -> None:
        stream = self.store.stream("live/a")
        self.write(epoch=1)
        for epoch in range(2, 60):
            stream.source(epoch)
        self.assertEqual([1, *range(60 - MAX_LINEAGE, 60)], [known.epoch for known in stream.lineage])

    def test_lost_lineage_is_told_and_the_bytes_verified(self) -> None:
        log = self.write()
        die(self.store, log)
        with open(os.path.join(self.path, directory_name("live/a"), META), "r+b") as file:
            file.write(b"garbage")
        self.store = self.open()
        recovery = self.store.stream("live/a").recover()
        self.assertEqual((True, False), (recovery.is_lineage_lost, recovery.is_intact))
        self.assertEqual(log.join_points[-1].offset, recovery.logs[0].end)
        self.assertEqual(["live/a"], self.store.names())
        for log in recovery.logs:
            log.close()

    def test_epoch_that_begins_later_keeps_its_time(self) -> None:
        """Its first segment is read from the lineage's time when the index is lost."""
        source = self.store.stream("live/a").source(2, time_ms=2**33)
        log = fill(StreamLog(2, source, LogStart(time_ms=2**33)), gops(1, start=2**33))
        end = log.end_point()
        die(self.store, log)
        os.unlink(os.path.join(self.path, directory_name("live/a"), "2-00000000000000000000.index"))
        self.store = self.open()
        (again,) = self.store.stream("live/a").recover().logs
        self.assertEqual(end, again.end_point())
        again.close()


class ContentTests(StoreTestCase):
    def test_extents_tell_what_is_on_disk(self) -> None:
        stream = self.store.stream("live/a")
        self.assertEqual(([], 0), (stream.extents(), stream.stored_bytes))
        old = self.write(epoch=9)
        new = self.write(epoch=3)
        end = new.end
        new.skip_to(LogStart(end + 1000, 0, 5000))
        fill(new, gops(1))
        expected = [Extent(9, 0, old.end), Extent(3, 0, end), Extent(3, end + 1000, new.end)]
        self.assertEqual(expected, stream.extents())
        self.assertEqual(old.end + new.end - 1000, stream.stored_bytes)

    def test_remove(self) -> None:
        log = self.write()
        with self.assertRaises(OSError):
            self.store.remove("live/a")
        log.close()
        self.store.stream("live/a").close()
        self.store.remove("live/a")
        self.store.remove("live/a")
        self.assertEqual(["lock"], os.listdir(self.path))

    def test_expire_removes_what_nobody_wrote_or_has_open(self) -> None:
        for name in ("live/old", "live/open", "live/new"):
            self.write(name).close()
        for name in ("live/old", "live/new"):
            self.store.stream(name).close()
        for name, written in (("live/old", 1000), ("live/open", 1000), ("live/new", 9000)):
            folder = os.path.join(self.path, directory_name(name))
            for path in (*(os.path.join(folder, file) for file in os.listdir(folder)), folder):
                os.utime(path, (written, written))
        self.assertEqual(1, self.store.expire(10_000, 5000))
        self.assertEqual(["live/new", "live/open"], self.store.names())
        self.assertEqual(0, self.store.expire(10_000, 5000))

    def test_closed_stores_log_goes_on_in_memory(self) -> None:
        """A descriptor's number may be another file's by then: nothing may be written by it."""
        log = self.write()
        self.store.close()
        fill(log, gops(2, start=800))
        self.assertFalse(log.is_storing)
        self.assertGreater(log.storage_errors, 0)
        log.close()

    def test_two_streams_do_not_mix(self) -> None:
        one, other = self.write("live/a"), self.write("live/b", count=3)
        self.assertEqual(b"".join(map(rtmp_bytes, gops(2))), contents(one.rtmp))
        self.assertEqual(b"".join(map(rtmp_bytes, gops(3))), contents(other.rtmp))
