from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import PositionUnavailable
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.rendition import FlvRendition, Rendition, write_tags
from relay.log.segment import MemorySegment, MemorySource
from relay.log.state import LogState
from tests.log.model import audio, contents, fill, flv_bytes, gops, rtmp_bytes, video
from tests.wire import aac_header, avc_header, metadata


class Owner:
    """A log that only remembers which rendition was left."""

    is_finished = False

    def __init__(self) -> None:
        self.left: list[Rendition] = []

    def rendition_left(self, rendition: Rendition) -> None:
        self.left.append(rendition)


def piece(start: int, size: int) -> MemorySegment:
    segment = MemorySegment(start, LogStart(start))
    segment.append([bytes(size)])
    return segment


class RowTests(SynchronousTestCase):
    """Segments 10..20, 20..25, and after a hole 30..40."""

    def setUp(self) -> None:
        self.owner = Owner()
        self.row = Rendition(self.owner, 10)
        for start, size in ((10, 10), (20, 5), (30, 10)):
            self.row.add(piece(start, size))
        self.row.end = 40
        self.addCleanup(self.row.abandon)

    def test_find(self) -> None:
        found = {offset: self.row.find(offset) for offset in (9, 10, 19, 20, 24, 25, 29, 30, 39, 40)}
        starts = {offset: None if segment is None else segment.start for offset, segment in found.items()}
        expected = {9: None, 10: 10, 19: 10, 20: 20, 24: 20, 25: None, 29: None, 30: 30, 39: 30, 40: None}
        self.assertEqual(expected, starts)

    def test_run_start_stops_at_a_hole(self) -> None:
        found = {offset: self.row.run_start(offset) for offset in (10, 15, 20, 25, 27, 30, 35, 40)}
        self.assertEqual({10: 10, 15: 10, 20: 10, 25: 10, 27: 27, 30: 30, 35: 30, 40: 30}, found)

    def test_bounds(self) -> None:
        self.assertEqual((10, 40, 25), (self.row.start, self.row.end, self.row.size))
        self.assertEqual(7, Rendition(self.owner, 7).start)

    def test_last_cursor_that_leaves_is_told_to_the_log(self) -> None:
        one, other = self.row.cursor(10), self.row.cursor(40)
        one.close()
        self.assertEqual([], self.owner.left)
        other.close()
        self.assertEqual([self.row], self.owner.left)

    def test_abandoned_it_has_nothing(self) -> None:
        self.row.abandon()
        self.assertEqual([], self.row.segments)
        with self.assertRaises(PositionUnavailable):
            self.row.cursor(40)


def stored(times: list[int]) -> StreamLog:
    log = StreamLog(1, MemorySource(), options=LogOptions(segment_bytes=200))
    return fill(log, [video(time, at % 3 == 0, 20) for at, time in enumerate(times)])


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(-5, 1300))
def test_offset_at_time_is_the_first_message_of_that_time(steps: list[int], asked: int) -> None:
    times = [sum(steps[: at + 1]) for at in range(len(steps))]
    log = stored(times)
    size = len(rtmp_bytes(video(0, size=20)))
    expected = next((at * size for at, time in enumerate(times) if time >= asked), len(times) * size)
    assert log.offset_at_time(asked) == expected
    log.close()


@given(st.integers(1, 40), st.data())
def test_boundary_at_or_after_is_where_the_next_message_begins(count: int, data: st.DataObject) -> None:
    log = stored(list(range(count)))
    size = len(rtmp_bytes(video(0, size=20)))
    offset = data.draw(st.integers(0, log.end))
    assert log.boundary_at_or_after(offset) == -(-offset // size) * size
    flv = log.open_flv(0)
    tag = len(flv_bytes(video(0, size=20)))
    offset = data.draw(st.integers(0, flv.end))
    assert flv.boundary_at_or_after(offset) == -(-offset // tag) * tag
    log.close()


class BoundaryTests(SynchronousTestCase):
    def test_place_that_is_not_there(self) -> None:
        log = stored([0, 1])
        self.addCleanup(log.close)
        for offset in (-1, log.end + 1):
            with self.assertRaises(PositionUnavailable):
                log.boundary_at_or_after(offset)


class FlvTests(SynchronousTestCase):
    """The FLV rendition by itself: its offsets begin where the log says."""

    def setUp(self) -> None:
        self.owner = Owner()
        self.flv = FlvRendition(self.owner, LogStart(100, 5000), 300)
        self.addCleanup(self.flv.abandon)

    def append(self, *messages: object) -> None:
        start = LogStart(0, self.flv.end)
        self.flv.append(LogState(start), messages, [message.timestamp for message in messages])

    def test_tags_are_canonical(self) -> None:
        sent = [metadata(), avc_header(), aac_header(), video(0xFFFFFF, True), audio(0xFFFFFFFF)]
        self.append(*sent)
        self.assertEqual(b"".join(map(flv_bytes, sent)), contents(self.flv))
        self.assertEqual(5000, self.flv.start)

    def test_rolls_by_bytes(self) -> None:
        sent = gops(2)
        for message in sent:
            self.append(message)
        self.assertGreater(len(self.flv.segments), 2)
        self.assertEqual(b"".join(map(flv_bytes, sent)), contents(self.flv))

    def test_extend_back(self) -> None:
        old, new = gops(1), gops(1, start=400)
        for message in new:
            self.append(message)
        size = sum(len(flv_bytes(message)) for message in old)
        times = array("q", [message.timestamp for message in old])
        self.flv.extend_back([(LogStart(0, 5000 - size), old, times)])
        self.assertEqual(5000 - size, self.flv.start)
        self.assertEqual(b"".join(map(flv_bytes, [*old, *new])), contents(self.flv))

    def test_drop_before_drops_whole_segments_and_never_the_written_one(self) -> None:
        for message in gops(2):
            self.append(message)
        second = self.flv.segments[1]
        self.flv.drop_before(second.start + 1)
        self.assertIs(second, self.flv.segments[0])
        self.flv.drop_before(self.flv.end)
        self.assertEqual(1, len(self.flv.segments))

    def test_keep_bytes(self) -> None:
        for message in gops(3):
            self.append(message)
        self.flv.keep_bytes(700)
        self.assertLessEqual(self.flv.size, 700)
        self.flv.keep_bytes(0)
        self.assertEqual(1, len(self.flv.segments))

    def test_skip_leaves_a_hole(self) -> None:
        self.append(video(0, True))
        before = self.flv.end
        self.flv.skip_to(LogStart(0, before + 50))
        self.append(video(40, True))
        self.assertIsNone(self.flv.find(before))
        self.assertEqual(flv_bytes(video(40, True)), contents(self.flv, before + 50))

    def test_write_tags_notes_boundaries(self) -> None:
        segment = MemorySegment(7, LogStart())
        self.addCleanup(segment.close_fd)
        sent = [video(0, True), audio(5)]
        written = write_tags(segment, sent, array("q", [0, 5]))
        self.assertEqual([7, 7 + len(flv_bytes(sent[0]))], list(segment.boundaries))
        self.assertEqual(sum(len(flv_bytes(message)) for message in sent), written)
