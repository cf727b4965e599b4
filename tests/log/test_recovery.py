from __future__ import annotations

import os
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.store import Store, directory_name
from relay.log.stored import Recovery
from relay.rtmp.messages import MediaMessage
from tests.log.model import audio, contents, die, fill, flv_bytes, gops, rtmp_bytes, video
from tests.log.test_storage import no_more_descriptors
from tests.wire import aac_header, avc_header

SENT = [avc_header(), *gops(6, step=60)]
"""A keyframe each 600 ms: far enough apart for each to be marked in the index."""
OPTIONS = LogOptions(segment_bytes=1300)


class RecoveryTestCase(SynchronousTestCase):
    """A log of several segments, a death, and what the next process makes of it."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.store = Store(self.path, "boot 1")
        self.folder = os.path.join(self.path, directory_name("live/a"))

    def tearDown(self) -> None:
        self.store.close()

    def write(self, sent: list[MediaMessage] = SENT, epoch: int = 1, start: LogStart | None = None) -> StreamLog:
        source = self.store.stream("live/a").source(epoch, time_ms=0 if start is None else start.time_ms)
        return fill(StreamLog(epoch, source, start or LogStart(), OPTIONS), sent)

    def files(self, ending: str = ".log") -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if name.endswith(ending))

    def size(self, name: str) -> int:
        return os.stat(os.path.join(self.folder, name)).st_size

    def change(self, name: str, at: int, data: bytes) -> None:
        with open(os.path.join(self.folder, name), "r+b") as file:
            file.seek(at)
            file.write(data)

    def recover(self, *logs: StreamLog, boot_id: str = "boot 1") -> Recovery:
        die(self.store, *logs)
        self.store = Store(self.path, boot_id)
        recovery = self.store.stream("live/a").recover(OPTIONS)
        for log in recovery.logs:
            self.addCleanup(log.close)
        return recovery

    def check_same(self, before: StreamLog, after: StreamLog) -> None:
        self.assertEqual(before.end_point(), after.end_point())
        self.assertEqual(before.join_points, after.join_points)
        everything = b"".join(map(rtmp_bytes, SENT))
        self.assertEqual(everything, contents(after.rtmp))


class ProcessDiedTests(RecoveryTestCase):
    """The page cache survives: nothing that anybody saw is lost."""

    def test_log_goes_on_as_if_nothing_had_happened(self) -> None:
        before = self.write()
        recovery = self.recover(before)
        self.assertTrue(recovery.is_intact)
        self.assertEqual((0, 0, 0), (recovery.torn_bytes, recovery.damaged_bytes, recovery.unverified_bytes))
        (after,) = recovery.logs
        self.check_same(before, after)
        more = gops(2, start=3600)
        fill(after, more)
        self.assertEqual(b"".join(map(rtmp_bytes, [*SENT, *more])), contents(after.rtmp))
        self.assertEqual(b"".join(map(flv_bytes, [*SENT, *more])), contents(after.open_flv(0)))

    def test_again_and_again(self) -> None:
        log = self.write([])
        for at in range(0, len(SENT), 7):
            fill(log, SENT[at : at + 7])
            (log,) = self.recover(log).logs
        self.assertEqual(b"".join(map(rtmp_bytes, SENT)), contents(log.rtmp))

    def test_closed_log_comes_back_too(self) -> None:
        before = self.write()
        before.close()
        (after,) = self.recover(before).logs
        self.check_same(before, after)

    def test_message_that_was_being_written_is_cut_off(self) -> None:
        before = self.write()
        torn = rtmp_bytes(video(9000, True))
        for cut in (1, 11, 12, 30, len(torn) - 1):
            self.change(self.files()[-1], self.size(self.files()[-1]), torn[:cut])
            recovery = self.recover(before)
            self.assertEqual((cut, 0, True), (recovery.torn_bytes, recovery.damaged_bytes, recovery.is_intact))
            (after,) = recovery.logs
            self.check_same(before, after)
            self.assertEqual(len(b"".join(map(rtmp_bytes, SENT))), sum(map(self.size, self.files())))
            before = after

    def test_whole_message_that_nobody_was_told_of_is_kept(self) -> None:
        before = self.write()
        extra = rtmp_bytes(video(3600, True))
        self.change(self.files()[-1], self.size(self.files()[-1]), extra)
        (after,) = self.recover(before).logs
        self.assertEqual(before.end + len(extra), after.end)
        self.assertEqual(3600, after.newest_join_point().time_ms)

    def test_clock_goes_on_over_the_wrap(self) -> None:
        sent = gops(3, start=2**32 - 500)
        before = self.write(sent)
        (after,) = self.recover(before).logs
        self.assertEqual(before.end_time_ms, after.end_time_ms)
        self.assertGreater(after.end_time_ms, 2**32)

    def test_hole_stays_a_hole(self) -> None:
        before = self.write(SENT[:30])
        end = before.end
        before.skip_to(LogStart(end + 500, before.flv_end + 600, 5000, before.headers))
        fill(before, gops(1, start=5000))
        (after,) = self.recover(before).logs
        self.assertEqual(before.end_point(), after.end_point())
        self.assertEqual(end, len(contents(after.rtmp)))
        self.assertEqual(b"".join(map(rtmp_bytes, gops(1, start=5000))), contents(after.rtmp, end + 500))
        self.assertEqual(5000, after.newest_join_point().time_ms)
        self.assertIsNone(after.join_point_at_or_before(end + 200))

    def test_lost_index_is_made_anew(self) -> None:
        before = self.write()
        for name in self.files(".index"):
            os.unlink(os.path.join(self.folder, name))
        recovery = self.recover(before)
        self.assertEqual((len(self.files()), True), (recovery.rebuilt_indexes, recovery.is_intact))
        self.check_same(before, recovery.logs[0])
        self.assertEqual(0, self.recover(*recovery.logs).rebuilt_indexes)

    def test_damaged_index_is_made_anew_from_the_damage_on(self) -> None:
        before = self.write()
        for name in self.files(".index"):
            self.change(name, self.size(name) // 2, b"~")
        recovery = self.recover(before)
        self.assertTrue(recovery.is_intact)
        self.check_same(before, recovery.logs[0])

    def test_first_segment_in_the_middle_without_index_can_not_be_used(self) -> None:
        """The headers in force there are known nowhere else; guessing them would give a newcomer a broken picture."""
        before = self.write(start=LogStart(5000, 6000, 0))
        first, second = self.files()[:2]
        os.unlink(os.path.join(self.folder, first.replace(".log", ".index")))
        lost = self.size(first)
        recovery = self.recover(before)
        self.assertEqual((lost, False), (recovery.damaged_bytes, recovery.is_intact))
        self.assertEqual(5000 + lost, recovery.logs[0].start)
        self.assertIn(str(5000 + lost), second)

    def test_stored_file_that_got_shorter_is_damage(self) -> None:
        before = self.write()
        name = self.files()[1]
        os.truncate(os.path.join(self.folder, name), self.size(name) - 10)
        recovery = self.recover(before)
        self.assertFalse(recovery.is_intact)
        (after,) = recovery.logs
        everything = b"".join(map(rtmp_bytes, SENT))
        self.assertEqual(everything[: after.end], contents(after.rtmp))

    def test_garbage_after_the_last_mark_is_damage(self) -> None:
        before = self.write()
        name = self.files()[-1]
        self.change(name, self.size(name) - len(rtmp_bytes(SENT[-1])), b"\xff" * 12)
        recovery = self.recover(before)
        self.assertEqual((len(rtmp_bytes(SENT[-1])), False), (recovery.damaged_bytes, recovery.is_intact))

    def test_link_in_the_place_of_a_segment_is_not_followed(self) -> None:
        before = self.write()
        name = self.files()[-1]
        victim = self.mktemp()
        os.rename(os.path.join(self.folder, name), victim)
        os.symlink(os.path.abspath(victim), os.path.join(self.folder, name))
        size = os.stat(victim).st_size
        recovery = self.recover(before)
        self.assertFalse(recovery.is_intact)
        self.assertEqual(size, os.stat(victim).st_size)
        self.assertNotIn(name, self.files())

    def test_segment_that_overlaps_the_one_before_is_damage(self) -> None:
        before = self.write()
        with open(os.path.join(self.folder, "1-00000000000000000700.log"), "wb") as file:
            file.write(b"x" * 100)
        recovery = self.recover(before)
        self.assertFalse(recovery.is_intact)
        everything = b"".join(map(rtmp_bytes, SENT))
        end = recovery.logs[0].end
        self.assertEqual(len(everything) + 100, end + recovery.damaged_bytes)
        self.assertEqual(everything[:end], contents(recovery.logs[0].rtmp))

    def test_bytes_after_a_sealed_segments_end_are_cut_off(self) -> None:
        before = self.write()
        before.close()
        name = self.files()[-1]
        self.change(name, self.size(name), rtmp_bytes(video(9000)))
        recovery = self.recover(before)
        self.assertEqual((len(rtmp_bytes(video(9000))), True), (recovery.torn_bytes, recovery.is_intact))
        self.check_same(before, recovery.logs[0])
        self.assertEqual(before.end, sum(map(self.size, self.files())))

    def test_without_descriptors_nothing_is_thrown_away(self) -> None:
        before = self.write()
        before.close()
        names = sorted(os.listdir(self.folder))
        die(self.store, before)
        self.store = Store(self.path, "boot 1")
        stream = self.store.stream("live/a")
        with no_more_descriptors():
            recovery = stream.recover(OPTIONS)
        self.assertEqual(([], 1, False), (recovery.logs, recovery.failed_epochs, recovery.is_intact))
        self.assertEqual(names, sorted(os.listdir(self.folder)))
        self.check_same(before, self.recover().logs[0])

    def test_strays_are_removed(self) -> None:
        before = self.write()
        self.recover(before)
        for name in ("1-00000000000000099999.index", "meta.tmp"):
            with open(os.path.join(self.folder, name), "wb"):
                pass
        self.recover(*self.store.stream("live/a").recover(OPTIONS).logs)
        self.assertEqual(len(self.files()), len(self.files(".index")))
        self.assertEqual([], self.files(".tmp"))

    def test_audio_only_log_has_join_points_again(self) -> None:
        before = self.write([aac_header(), *(audio(at * 20) for at in range(200))])
        (after,) = self.recover(before).logs
        self.assertEqual(before.end_point(), after.end_point())
        self.assertLessEqual(set(after.join_points), set(before.join_points))
        times = [point.time_ms for point in after.join_points]
        self.assertLessEqual(max(later - time for time, later in pairwise(times)), 1000)

    def test_nothing_was_ever_written(self) -> None:
        before = self.write([])
        recovery = self.recover(before)
        self.assertEqual(([], True), (recovery.logs, recovery.is_intact))
        self.assertEqual([1], [known.epoch for known in recovery.lineage])


class MachineWentDownTests(RecoveryTestCase):
    """Only what a CRC vouches for is served again."""

    def test_what_is_verified_is_kept_and_the_rest_is_not(self) -> None:
        before = self.write()
        last_mark = before.join_points[-1].offset
        recovery = self.recover(before, boot_id="boot 2")
        self.assertEqual((True, False), (recovery.is_boot_changed, recovery.is_intact))
        self.assertEqual((0, before.end - last_mark), (recovery.damaged_bytes, recovery.unverified_bytes))
        (after,) = recovery.logs
        self.assertEqual(last_mark, after.end)
        self.assertEqual(b"".join(map(rtmp_bytes, SENT))[:last_mark], contents(after.rtmp))

    def test_sealed_log_is_kept_whole(self) -> None:
        before = self.write()
        before.close()
        recovery = self.recover(before, boot_id="boot 2")
        self.assertEqual((0, 0), (recovery.damaged_bytes, recovery.unverified_bytes))
        self.check_same(before, recovery.logs[0])

    def test_is_verified_once(self) -> None:
        before = self.write()
        recovery = self.recover(before, boot_id="boot 2")
        recovery = self.recover(*recovery.logs, boot_id="boot 2")
        self.assertEqual((False, True), (recovery.is_boot_changed, recovery.is_intact))
        self.assertEqual(0, recovery.unverified_bytes)

    def test_every_damaged_byte_is_found_and_cut_before(self) -> None:
        before = self.write()
        before.close()
        everything = b"".join(map(rtmp_bytes, SENT))
        saved = {name: self.read(name) for name in os.listdir(self.folder)}
        places = [(name, at) for name in self.files() for at in range(0, self.size(name), 61)]
        for name, at in places:
            self.change(name, at, bytes((saved[name][at] ^ 0x10,)))
            recovery = self.recover(boot_id=f"boot {name} {at}")
            offset = int(name.split("-")[1].removesuffix(".log")) + at
            end = recovery.logs[-1].end if recovery.logs else 0
            self.assertLessEqual(end, offset)
            self.assertEqual(len(everything), end + recovery.damaged_bytes)
            if recovery.logs:
                self.assertEqual(everything[:end], contents(recovery.logs[-1].rtmp))
            for restored, data in saved.items():
                with open(os.path.join(self.folder, restored), "wb") as file:
                    file.write(data)

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    def test_zeros_where_the_disk_never_got_the_page(self) -> None:
        before = self.write()
        before.close()
        name = self.files()[1]
        self.change(name, 100, bytes(self.size(name) - 100))
        recovery = self.recover(before, boot_id="boot 2")
        self.assertGreater(recovery.damaged_bytes, 0)
        end = recovery.logs[0].end
        self.assertEqual(b"".join(map(rtmp_bytes, SENT))[:end], contents(recovery.logs[0].rtmp))

    def test_segments_without_index_can_not_be_vouched_for(self) -> None:
        before = self.write()
        before.close()
        for name in self.files(".index"):
            os.unlink(os.path.join(self.folder, name))
        recovery = self.recover(before, boot_id="boot 2")
        self.assertEqual(([], before.end), (recovery.logs, recovery.unverified_bytes + recovery.damaged_bytes))

    def test_new_epoch_after_it_names_the_one_before(self) -> None:
        before = self.write()
        recovery = self.recover(before, boot_id="boot 2")
        (old,) = recovery.logs
        new = self.write(gops(1), epoch=2, start=LogStart(time_ms=old.end_time_ms + 40))
        old.finish(new)
        recovery = self.recover(old, new, boot_id="boot 2")
        self.assertEqual([1, 2], [log.epoch for log in recovery.logs])
        one, two = recovery.logs
        self.assertIs(two, one.successor)
        self.assertIs(one, two.predecessor)
        self.assertEqual((True, False), (one.is_finished, two.is_finished))
