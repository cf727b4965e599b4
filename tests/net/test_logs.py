"""Where a node keeps its logs, and when a new life begins."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.store import Store
from relay.names import StreamName
from relay.net.logs import MemoryLogs, StoredLogs, boot_id, new_epoch
from tests.log.model import contents, fill, gops

NAME = StreamName("live", "demo")
OPTIONS = LogOptions(segment_bytes=2000)


class EpochTests(SynchronousTestCase):
    def test_later_epochs_are_larger_and_exact_in_amf(self) -> None:
        epochs = [0]
        for _ in range(200):
            epochs.append(new_epoch(epochs[-1]))
        self.assertEqual(sorted(set(epochs)), epochs)
        self.assertLess(epochs[-1], 1 << 53)

    def test_clock_that_went_back_gives_a_larger_epoch_all_the_same(self) -> None:
        future = (1 << 53) - 100
        self.assertEqual(future + 1, new_epoch(future))

    def test_two_nodes_do_not_choose_the_same(self) -> None:
        self.assertGreater(len({new_epoch() for _ in range(50)}), 30)


class MemoryLogsTests(SynchronousTestCase):
    def test_nothing_outlives_the_process(self) -> None:
        logs = MemoryLogs(OPTIONS, DEFAULT_LIMITS)
        log = fill(logs.make(NAME, 5, LogStart(), None), gops(1))
        self.assertEqual((None, [], 0), (logs.recover(NAME), logs.names(), logs.expire(0)))
        log.close()
        logs.close()

    def test_new_life_follows_the_old_one_in_time(self) -> None:
        logs = MemoryLogs(OPTIONS, DEFAULT_LIMITS)
        old = fill(logs.make(NAME, 5, LogStart(), None), gops(1))
        new = logs.new_life(NAME, old)
        self.assertIs(new, old.successor)
        self.assertGreater(new.epoch, old.epoch)
        self.assertEqual(old.end_time_ms, new.end_time_ms)
        new.close()
        old.close()


class StoredLogsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        self.opened: list = []

    def tearDown(self) -> None:
        for logs in self.opened:
            logs.close()

    def open(self, boot="boot-1", is_writer=True) -> StoredLogs:
        """A process begins; the one before is gone."""
        self.close()
        logs = StoredLogs(Store(self.directory, boot), OPTIONS, DEFAULT_LIMITS, is_writer)
        self.opened.append(logs)
        return logs

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def write(self, logs, messages=None):
        log = fill(logs.make(NAME, 5, LogStart(), None), messages or gops(3))
        log.close()
        return log

    def test_restarted_process_goes_on_in_the_same_epoch(self) -> None:
        self.write(self.open())
        log = self.open().recover(NAME)
        self.assertEqual((5, False), (log.epoch, log.end == 0))
        fill(log, gops(1, start=1200))
        self.assertTrue(contents(log.rtmp).endswith(contents(fill(self.memory(), gops(1, start=1200)).rtmp)))
        log.close()

    def memory(self):
        return MemoryLogs(OPTIONS, DEFAULT_LIMITS).make(NAME, 1, LogStart(), None)

    def test_names_are_what_is_stored(self) -> None:
        self.write(self.open())
        self.assertEqual([NAME], self.open().names())

    def test_writer_whose_machine_went_down_begins_a_new_epoch_that_names_its_predecessor(self) -> None:
        old = self.write(self.open("boot-1"))
        log = self.open("boot-2").recover(NAME)
        self.assertGreater(log.epoch, old.epoch)
        self.assertEqual(old.epoch, log.predecessor.epoch)
        self.assertEqual(log.predecessor.end_time_ms, log.end_time_ms)
        log.close()
        log.predecessor.close()

    def test_copy_whose_machine_went_down_goes_on_from_what_is_sound(self) -> None:
        """It reads the rest again: only a writer must not use an offset twice."""
        old = self.write(self.open("boot-1", is_writer=False))
        log = self.open("boot-2", is_writer=False).recover(NAME)
        self.assertEqual(old.epoch, log.epoch)
        self.assertLessEqual(log.end, old.end)
        log.close()

    def test_forgotten_stream_is_gone_from_the_disk(self) -> None:
        logs = self.open()
        self.write(logs)
        logs.forget(NAME)
        self.assertEqual([], logs.names())
        self.assertIsNone(self.open().recover(NAME))

    def test_idle_streams_expire(self) -> None:
        self.write(self.open())
        logs = self.open()
        self.assertEqual(0, logs.expire(3600))
        self.assertEqual(1, logs.expire(-1))
        self.assertEqual([], logs.names())

    def test_boot_id_is_the_machine_s(self) -> None:
        self.assertEqual((36, boot_id()), (len(boot_id()), boot_id()))
