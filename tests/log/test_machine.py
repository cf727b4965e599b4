"""A log, its readers, its store and its deaths, driven at random against a plain list of messages."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.errors import PositionUnavailable
from relay.log.cursor import Cursor, CursorState
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.position import Position
from relay.log.segment import MemorySource
from relay.log.store import Store, directory_name
from relay.log.stored import Recovery
from relay.rtmp.messages import MediaMessage
from tests.log.model import Told, Truth, audio, contents, die, fill, flv_bytes, rtmp_bytes, video
from tests.wire import aac_header, avc_header, metadata

OPTIONS = LogOptions(segment_bytes=600, segment_ms=3000, keep_ms=20_000, keep_bytes=6000, memory_bytes=6000)
NAME = "live/machine"

KINDS = ("key", "inter", "inter", "inter", "audio", "audio", "audio", "avc header", "aac header", "metadata")


@attrs.define
class Reader:
    """A viewer: where it reads, and the place in the truth that it should be given next."""

    cursor: Cursor
    is_flv: bool
    epoch: int
    offset: int


class LogMachine(RuleBasedStateMachine):
    """One stream at one node.  ``truths`` is every epoch as it ought to be, oldest first."""

    @initialize(time_ms=st.sampled_from((0, 0xFFFFFF - 300, 2**31 - 300, 2**32 - 300)))
    def begin(self, time_ms: int) -> None:
        self.path = tempfile.mkdtemp(prefix="relay-machine-")
        self.boot = 1
        self.store = Store(self.path, "boot 1")
        self.readers: list[Reader] = []
        self.is_recovered = False
        self.has_video = False
        self.truths = [Truth(1, time_ms)]
        self.log = self.open_log(LogStart(time_ms=time_ms))
        self.written = 0
        self.before_gap: int | None = None
        """The end of what is here, if all after it is missing."""

    def teardown(self) -> None:
        if hasattr(self, "path"):
            for reader in self.readers:
                reader.cursor.close()
            self.log.close()
            self.store.close()
            shutil.rmtree(self.path)

    @property
    def truth(self) -> Truth:
        return self.truths[-1]

    def epoch(self, number: int) -> Truth:
        return next(truth for truth in self.truths if truth.epoch == number)

    def open_log(self, start: LogStart, predecessor: Position | None = None) -> StreamLog:
        source = self.store.stream(NAME).source(self.truth.epoch, predecessor, start.time_ms)
        return StreamLog(self.truth.epoch, source, start, OPTIONS)

    # the writer

    def message(self, kind: str, step: int, size: int) -> None:
        """The next message of the stream, into the truth only."""
        time_ms = self.truth.time_ms + step
        stamp = time_ms & 0xFFFFFFFF
        if kind in ("key", "inter") and self.truth.video is None:
            kind = "avc header"
        made = {
            "key": lambda: video(time_ms, True, size),
            "inter": lambda: video(time_ms, False, size),
            "audio": lambda: attrs.evolve(audio(step, size), timestamp=stamp),
            "avc header": lambda: avc_header(stamp, bytes((size & 0xFF,)) * 10),
            "aac header": lambda: attrs.evolve(aac_header(stamp), payload=b"\xaf\x00" + bytes((size & 0xFF, 0x10))),
            "metadata": lambda: metadata(stamp, width=size),
        }[kind]()
        self.truth.add(made, time_ms)

    def told_messages(self, count: int) -> list[MediaMessage]:
        return [told.message for told in self.truth.told[-count:]]

    @rule(
        kinds=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 400), st.integers(4, 200)), max_size=12),
        at_once=st.booleans(),
    )
    def publish(self, kinds: list[tuple[str, int, int]], at_once: bool) -> None:
        """Messages arrive; each is flushed, or all together."""
        for kind, step, size in kinds:
            self.message(kind, step, size)
            (message,) = self.told_messages(1)
            self.log.append(message)
            self.before_gap = None
            if not at_once:
                self.log.flush()
        assert self.log.end <= len(self.truth.rtmp)
        self.log.flush()
        self.written = len(self.truth.rtmp)

    @rule()
    def camera_off(self) -> None:
        """Sound alone, for longer than it takes to count as audio only."""
        for _ in range(5):
            self.message("audio", 3000, 20)
        fill(self.log, self.told_messages(5))
        self.before_gap = None
        self.written = len(self.truth.rtmp)

    @rule(count=st.integers(1, 5))
    def upstream_has_lost_some(self, count: int) -> None:
        """A replica can't get some messages any more, and goes on after them."""
        begin = self.truth.end
        for _ in range(count):
            self.message("inter", 40, 30)
        end = self.truth.end
        was_empty = not self.log.rtmp.segments
        missing = self.log.skip_to(end)
        assert missing == (0 if was_empty else end.offset - begin.offset)
        if self.before_gap is None:
            self.before_gap = begin.offset
        self.written = end.offset

    @rule()
    def publisher_leaves_and_returns(self) -> None:
        self.log.finish()
        for reader in self.readers:
            is_done = reader.offset == reader.cursor.rendition.end and reader.cursor.stop is None
            if reader.cursor.rendition.log is self.log and is_done:
                assert reader.cursor.advance() is CursorState.ENDED
        self.log.reopen()

    @rule()
    def new_epoch(self) -> None:
        """The origin begins anew, naming where it was."""
        old = self.log
        time_ms = old.end_time_ms + 40
        self.truths.append(Truth(self.truth.epoch + 1, time_ms))
        self.before_gap = None
        self.log = self.open_log(LogStart(time_ms=time_ms), Position(old.epoch, old.end))
        self.log.missing_bytes = 0
        old.finish(self.log)
        self.written = 0

    # readers

    @rule(is_flv=st.booleans(), back=st.integers(0, 3))
    def join(self, is_flv: bool, back: int) -> None:
        """A viewer comes, at the newest join point or an older one."""
        newest = self.log.newest_join_point()
        if newest is None:
            return
        points = [point for point in self.log.join_points if point.offset >= self.log.rtmp.run_start(self.log.end)]
        point = points[max(0, len(points) - 1 - back)]
        told = next(told for told in self.truth.told if told.offset == point.offset)
        assert told.is_keyframe or told.is_audio_only
        if is_flv:
            rendition: Any = self.log.open_flv(point.flv_offset)
            self.readers.append(Reader(rendition.cursor(point.flv_offset), True, self.log.epoch, point.flv_offset))
        else:
            self.readers.append(Reader(self.log.rtmp.cursor(point.offset), False, self.log.epoch, point.offset))

    @rule(is_flv=st.booleans(), share=st.floats(0, 1))
    def resume(self, is_flv: bool, share: float) -> None:
        """A viewer is moved here from a dead node, in the middle of a message."""
        end = self.log.flv_end if is_flv else self.log.end
        offset = int(end * share)
        try:
            cursor = (self.log.open_flv(offset) if is_flv else self.log.rtmp).cursor(offset)
        except PositionUnavailable:
            begin = self.log.rtmp.run_start(self.log.end)
            if not is_flv:
                assert offset < begin
            return
        self.readers.append(Reader(cursor, is_flv, self.log.epoch, offset))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), limit=st.integers(1, 5000), turns=st.integers(1, 20))
    def read(self, data: st.DataObject, limit: int, turns: int) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        for _ in range(turns):
            piece = reader.cursor.read(limit)
            truth = self.epoch(reader.epoch)
            expected = truth.flv if reader.is_flv else truth.rtmp
            assert piece == expected[reader.offset : reader.offset + len(piece)]
            reader.offset += len(piece)
            assert reader.cursor.offset == reader.offset
            if not piece and not self.go_on(reader):
                return

    def go_on(self, reader: Reader) -> bool:
        """What a transport does when there is nothing to send; can it send again?"""
        state = reader.cursor.advance()
        log: Any = reader.cursor.rendition.log
        if state is CursorState.READY:
            return True
        if state is CursorState.AT_END:
            assert log is self.log
            assert reader.offset == (len(self.truth.flv) if reader.is_flv else len(self.truth.rtmp)) or self.is_cut
            return False
        if state is CursorState.AT_STOP:
            assert reader.offset == reader.cursor.stop
            assert reader.offset in self.boundaries(reader)
            reader.cursor.stop = None
            return True
        if state is CursorState.GAP:
            assert self.is_explained(reader)
        while state is CursorState.GAP and log.newest_join_point() is None and log.successor is not None:
            log = log.successor
        return self.rejoin(reader, log.successor if state is CursorState.ENDED else log)

    def rejoin(self, reader: Reader, log: StreamLog) -> bool:
        """Over to the start of a new epoch, or to the newest join point after a gap; a viewer without one leaves."""
        point = (
            log.newest_join_point() if log.epoch == reader.epoch else (log.join_points or [log.newest_join_point()])[0]
        )
        if point is None or (
            log.epoch == reader.epoch and reader.offset >= (point.flv_offset if reader.is_flv else point.offset)
        ):
            reader.cursor.close()
            self.readers.remove(reader)
            return False
        offset = point.flv_offset if reader.is_flv else point.offset
        try:
            reader.cursor.move_to(offset, log.open_flv(offset) if reader.is_flv else log.rtmp)
        except PositionUnavailable:
            # Too far back for the FLV rendition's bound, or a hole lies between.
            reader.cursor.close()
            self.readers.remove(reader)
            return False
        reader.epoch, reader.offset = log.epoch, offset
        return True

    def is_explained(self, reader: Reader) -> bool:
        """Is the gap that a reader was told of one that is there?"""
        rendition = reader.cursor.rendition
        return rendition.is_abandoned or rendition.find(reader.offset) is None

    @property
    def is_cut(self) -> bool:
        return self.written < len(self.truth.rtmp)

    def boundaries(self, reader: Reader) -> set[int]:
        truth = self.epoch(reader.epoch)
        ends = {len(truth.flv) if reader.is_flv else len(truth.rtmp)}
        return ends | {told.flv_offset if reader.is_flv else told.offset for told in truth.told}

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def stop_at_a_boundary(self, data: st.DataObject) -> None:
        """Somebody wants to write between two messages to a viewer."""
        reader = data.draw(st.sampled_from(self.readers))
        try:
            reader.cursor.stop = reader.cursor.rendition.boundary_at_or_after(reader.offset)
        except PositionUnavailable:
            return
        assert reader.cursor.stop in self.boundaries(reader)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.readers.remove(reader)
        reader.cursor.close()
        reader.cursor.close()

    # other nodes

    @rule(data=st.data())
    def replicate(self, data: st.DataObject) -> None:
        """Another node begins at a join point of ours: both renditions are the same there, byte and offset."""
        run = self.log.rtmp.run_start(self.log.end)
        points = [point for point in self.log.join_points if point.offset >= run]
        if not points:
            return
        point = data.draw(st.sampled_from(points))
        after = [told.message for told in self.truth.told if point.offset <= told.offset < self.log.end]
        replica = fill(StreamLog(self.log.epoch, MemorySource(), point, LogOptions()), after, data.draw(st.booleans()))
        assert replica.start == point.offset
        assert attrs.evolve(replica.end_point(), time_ms=0) == attrs.evolve(self.log.end_point(), time_ms=0)
        assert contents(replica.rtmp) == contents(self.log.rtmp, point.offset)
        assert contents(replica.open_flv(point.flv_offset)) == self.truth.flv[point.flv_offset : self.log.flv_end]
        replica.discard()

    # deaths

    def die_and_recover(self, boot: int) -> Recovery:
        for reader in self.readers:
            reader.cursor.close()
        self.readers.clear()
        log: StreamLog | None = self.log
        logs = []
        while log is not None:
            logs.append(log)
            log = log.predecessor
        die(self.store, *logs)
        self.boot = boot
        self.store = Store(self.path, f"boot {boot}")
        self.is_recovered = True
        return self.store.stream(NAME).recover(OPTIONS)

    def take_up(self, recovery: Recovery, is_cut_allowed: bool) -> None:
        """Go on with the newest epoch that is there; what was lost of it is lost to this node."""
        for log in recovery.logs:
            self.check_log(log, self.epoch(log.epoch))
        newest = recovery.logs[-1] if recovery.logs else None
        if newest is not None and newest.epoch == self.truth.epoch and newest.end == len(self.truth.rtmp):
            self.log = newest
            return
        if newest is not None and newest.epoch == self.truth.epoch and newest.end == self.before_gap:
            newest.skip_to(self.truth.end)
            self.log = newest
            return
        if newest is None or newest.epoch != self.truth.epoch:
            assert is_cut_allowed or not self.truth.rtmp or self.written == 0 or not self.stored_any
        else:
            assert is_cut_allowed
        before = newest
        time_ms = max(self.truth.time_ms, 0) + 1000
        self.truths.append(Truth(self.truth.epoch + 1, time_ms))
        self.before_gap = None
        self.log = self.open_log(
            LogStart(time_ms=time_ms), None if before is None else Position(before.epoch, before.end)
        )
        if before is not None:
            before.finish(self.log)
        self.written = 0

    @property
    def stored_any(self) -> bool:
        return bool(self.log.rtmp.segments)

    @rule(unflushed=st.integers(0, 2), torn=st.integers(0, 60))
    def kill_process(self, unflushed: int, torn: int) -> None:
        """SIGKILL, perhaps in the middle of a write: nothing that was flushed is lost."""
        for at in range(unflushed):
            self.log.append(video(at))
        torn_bytes = 0
        active = self.log._storage.active
        if active is not None and active.size:
            data = rtmp_bytes(video(self.truth.time_ms, False, 60))[:torn]
            os.pwrite(active.fd, data, active.size)
            torn_bytes = len(data)
        recovery = self.die_and_recover(self.boot)
        assert recovery.is_intact
        assert (recovery.torn_bytes, recovery.rebuilt_indexes) == (torn_bytes, 0)
        self.take_up(recovery, is_cut_allowed=False)

    def folder(self) -> str:
        return os.path.join(self.path, directory_name(NAME))

    @rule(data=st.data(), share=st.floats(0, 1, exclude_max=True))
    def lose_an_index(self, data: st.DataObject, share: float) -> None:
        """An index file is gone or damaged when the next process starts."""
        names = [name for name in sorted(os.listdir(self.folder())) if name.endswith(".index")]
        if names:
            path = os.path.join(self.folder(), data.draw(st.sampled_from(names)))
            if data.draw(st.booleans()):
                os.unlink(path)
            else:
                self.flip(path, share)
        recovery = self.die_and_recover(self.boot)
        self.take_up(recovery, is_cut_allowed=not recovery.is_intact)

    @staticmethod
    def flip(path: str, share: float) -> None:
        with open(path, "r+b") as file:
            data = file.read()
            if data:
                at = int(len(data) * share)
                file.seek(at)
                file.write(bytes((data[at] ^ 0x08,)))

    @rule(data=st.data(), share=st.floats(0, 1, exclude_max=True), how=st.sampled_from(("flip", "cut", "nothing")))
    def lose_power(self, data: st.DataObject, share: float, how: str) -> None:
        """The machine goes down, and some page never reached the disk."""
        names = [name for name in sorted(os.listdir(self.folder())) if name.endswith((".log", ".index"))]
        if names and how != "nothing":
            path = os.path.join(self.folder(), data.draw(st.sampled_from(names)))
            if how == "flip":
                self.flip(path, share)
            else:
                os.truncate(path, int(os.stat(path).st_size * share))
        recovery = self.die_and_recover(self.boot + 1)
        assert recovery.is_boot_changed
        assert not recovery.is_intact
        self.take_up(recovery, is_cut_allowed=True)

    # what always holds

    @invariant()
    def everything_that_is_here_is_right(self) -> None:
        if not hasattr(self, "log"):
            return
        log: StreamLog | None = self.log
        while log is not None:
            self.check_log(log, self.epoch(log.epoch))
            log = log.predecessor
        assert self.log.end == self.written == len(self.truth.rtmp)
        assert self.log.flv_end == len(self.truth.flv)
        assert self.log.headers == self.truth.headers
        assert self.log.end_time_ms == self.truth.time_ms or not self.truth.told

    def check_log(self, log: StreamLog, truth: Truth) -> None:
        """Bytes, boundaries, join points and bounds of one epoch."""
        starts = [told.offset for told in truth.told]
        for segment in log.rtmp.segments:
            segment.acquire()
            assert segment.pread(segment.start, segment.size) == truth.rtmp[segment.start : segment.end]
            segment.release()
            boundaries = [offset for offset in starts if segment.start <= offset < segment.end]
            assert list(segment.message_index()[0]) == boundaries
        assert log.held_bytes == log.rtmp.size
        segments = log.rtmp.segments
        assert len(segments) <= 1 or log.held_bytes <= OPTIONS.keep_bytes + segments[-1].size
        if log.flv is not None:
            for segment in log.flv.segments:
                assert segment.pread(segment.start, segment.size) == truth.flv[segment.start : segment.end]
            assert log.flv.cursors == sum(reader.cursor.rendition is log.flv for reader in self.readers) > 0
        self.check_join_points(log, {told.offset: told for told in truth.told})

    def check_join_points(self, log: StreamLog, told_at: dict[int, Told]) -> None:
        for point in log.join_points:
            told = told_at[point.offset]
            assert told.is_keyframe or told.is_audio_only
            assert (point.flv_offset, point.time_ms, point.headers) == (told.flv_offset, told.time_ms, told.headers)
            assert log.rtmp.find(point.offset) is not None
        if not self.is_recovered:
            here = {
                told.offset for told in told_at.values() if log.rtmp.find(told.offset) is not None and told.is_keyframe
            }
            assert here <= {point.offset for point in log.join_points}
        assert log.join_points == sorted(log.join_points, key=lambda point: point.offset)


LogMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestLogMachine = LogMachine.TestCase


def test_the_model_is_independent() -> None:
    """The reference renderings are not the code under test."""
    message = video(0x01020304, True, 3)
    assert rtmp_bytes(message).hex() == "06ffffff0000080901000000010203041701000000040404"
    assert flv_bytes(message).hex() == "0900000802030401000000170100000004040400000013"
