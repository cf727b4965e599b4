from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.log.timeline import AHEAD_MS, CLAMP_MS, MAX_GAP_MS, Timeline
from relay.rtmp.messages import MessageType

AUDIO, VIDEO, DATA = MessageType.AUDIO, MessageType.VIDEO, MessageType.DATA_AMF0


class FirstPublisherTests(SynchronousTestCase):
    """What the first publisher stamps is what viewers get."""

    def test_timestamps_are_kept(self) -> None:
        for first in (0, 0xFFFFFF - 40, 2**31 - 40, 2**32 - 40):
            timeline = Timeline()
            found = [timeline.rebase(VIDEO, (first + at * 40) & 0xFFFFFFFF, 1000 + at * 40) for at in range(4)]
            self.assertEqual([first, first + 40, first + 80, first + 120], found)

    def test_tracks_that_are_not_quite_in_order_are_kept(self) -> None:
        timeline = Timeline()
        sent = [(VIDEO, 1000), (AUDIO, 950), (VIDEO, 1040), (AUDIO, 973)]
        self.assertEqual([1000, 950, 1040, 973], [timeline.rebase(kind, stamp, 0) for kind, stamp in sent])

    def test_headers_before_the_first_frame_do_not_set_the_clock(self) -> None:
        """ffmpeg stamps metadata and sequence headers 0, whatever comes after them."""
        timeline = Timeline()
        self.assertEqual(0, timeline.rebase(DATA, 0, 0, is_header=True))
        self.assertEqual(0, timeline.rebase(VIDEO, 0, 0, is_header=True))
        self.assertEqual(2**32 - 1000, timeline.rebase(VIDEO, 2**32 - 1000, 0))
        self.assertEqual(2**32 - 990, timeline.rebase(AUDIO, 2**32 - 990, 10))

    def test_first_time_is_never_negative(self) -> None:
        timeline = Timeline()
        timeline.rebase(VIDEO, 5, 0)
        self.assertEqual(0, timeline.rebase(AUDIO, 2**32 - 5, 0))


class StepTests(SynchronousTestCase):
    """A publisher whose clock jumps, or tracks that go back."""

    def setUp(self) -> None:
        self.timeline = Timeline()
        self.timeline.rebase(VIDEO, 100_000, 0)
        self.timeline.rebase(AUDIO, 100_000, 0)

    def rebase(self, stamp: int, now_ms: int, kind: MessageType = VIDEO) -> int:
        return self.timeline.rebase(kind, stamp, now_ms)

    def test_track_that_goes_back_a_little_stands_still(self) -> None:
        self.assertEqual(100_000, self.rebase(100_000 - CLAMP_MS, 40))
        self.assertEqual(100_040, self.rebase(100_040, 80))

    def test_track_that_goes_back_far_goes_on_smoothly(self) -> None:
        """An encoder that starts again at 0 in the same connection."""
        self.assertEqual([100_040, 100_080], [self.rebase(0, 40), self.rebase(40, 80)])

    def test_jump_ahead_goes_on_smoothly(self) -> None:
        self.assertEqual(100_033, self.rebase(100_000 + AHEAD_MS + 34, 33))
        self.assertEqual(100_066, self.rebase(100_000 + AHEAD_MS + 67, 66))

    def test_jump_ahead_that_is_not_longer_than_the_pause_is_kept(self) -> None:
        self.assertEqual(160_000, self.rebase(160_000, 60_000))
        self.assertEqual(160_000 + AHEAD_MS, self.rebase(160_000 + AHEAD_MS, 60_000))

    def test_both_tracks_jump_together_though_one_comes_first(self) -> None:
        """Audio at its new time, video still at its old, then both new: nothing flaps, and they stay in step."""
        self.assertEqual(100_020, self.rebase(5_000_000, 20, AUDIO))
        self.assertEqual(100_040, self.rebase(100_040, 47))
        self.assertEqual(100_043, self.rebase(5_000_023, 61, AUDIO))
        self.assertEqual(100_080, self.rebase(5_000_060, 99))

    def test_tracks_with_clocks_of_their_own_both_go_on(self) -> None:
        """At the pace of their timestamps, not at that of their arrival."""
        found = []
        for at in range(1, 20):
            late = at * 7 % 5
            found.append(self.rebase(100_000 + at * 40, at * 40 + late))
            found.append(self.rebase(7_000_000 + at * 40, at * 40 + 12 + late, AUDIO))
        self.assertEqual([100_000 + at * 40 for at in range(1, 20)], found[::2])
        self.assertEqual([found[1] + at * 40 for at in range(19)], found[1::2])

    def test_jump_by_two_to_the_31_is_a_jump(self) -> None:
        for step in (2**31 - 1, 2**31, 2**31 + 1):
            timeline = Timeline()
            timeline.rebase(VIDEO, 0, 0)
            self.assertEqual(40, timeline.rebase(VIDEO, step, 40))

    def test_equal_timestamps_stay_equal(self) -> None:
        self.assertEqual([100_000] * 3, [self.rebase(100_000, at * 40) for at in range(3)])

    def test_header_in_the_middle_takes_its_tracks_last_time(self) -> None:
        self.rebase(100_040, 40)
        self.assertEqual(100_040, self.timeline.rebase(VIDEO, 0, 50, is_header=True))
        self.assertEqual(100_080, self.rebase(100_080, 80))


class NextPublisherTests(SynchronousTestCase):
    """Viewers stay through a change of publishers: their timeline goes on."""

    def setUp(self) -> None:
        self.timeline = Timeline()
        self.timeline.rebase(VIDEO, 5000, 100)

    def test_goes_on_after_as_much_time_as_passed(self) -> None:
        self.timeline.new_publisher(2100)
        self.assertEqual([7000, 7040], [self.timeline.rebase(VIDEO, stamp, 2100 + stamp) for stamp in (0, 40)])

    def test_time_until_its_first_frame_counts(self) -> None:
        self.timeline.new_publisher(2100)
        self.assertEqual(7300, self.timeline.rebase(VIDEO, 0, 2400))

    def test_grows_even_if_no_time_passed(self) -> None:
        self.timeline.new_publisher(100)
        self.assertEqual(5001, self.timeline.rebase(VIDEO, 77, 100))

    def test_none_of_its_messages_come_before_it(self) -> None:
        self.timeline.new_publisher(2100)
        header = self.timeline.rebase(AUDIO, 0, 2100, is_header=True)
        video = self.timeline.rebase(VIDEO, 1000, 2100)
        audio = self.timeline.rebase(AUDIO, 900, 2100)
        self.assertEqual([7000, 7000, 7000], [header, video, audio])

    def test_long_silence_stays_within_serial_arithmetic(self) -> None:
        self.timeline.new_publisher(100 + 2**40)
        self.assertEqual(5000 + MAX_GAP_MS, self.timeline.rebase(VIDEO, 0, 100 + 2**40))

    def test_before_anything_was_published_it_is_the_first(self) -> None:
        timeline = Timeline()
        timeline.new_publisher(5)
        self.assertEqual(123_456, timeline.rebase(VIDEO, 123_456, 6))

    def test_resumed_after_a_restart(self) -> None:
        timeline = Timeline.resume(2**33, 50)
        self.assertEqual(2**33 + 250, timeline.rebase(VIDEO, 0, 300))
        self.assertEqual(2**33 + 250, timeline.last_ms)


publishings = st.lists(
    st.tuples(
        st.sampled_from((AUDIO, VIDEO, DATA)),
        st.integers(0, 2**32 - 1) | st.integers(0, 3000) | st.sampled_from((2**31, 2**32 - 1, 0xFFFFFF)),
        st.integers(0, 200) | st.sampled_from((60_000, 2**35)),
        st.sampled_from(("frame", "frame", "frame", "header", "new")),
    ),
    max_size=60,
)


@given(publishings)
def test_no_track_ever_goes_back_whatever_is_published(steps: list[tuple[MessageType, int, int, str]]) -> None:
    timeline = Timeline()
    now, last, is_started = 0, {}, False
    for kind, stamp, passed, what in steps:
        now += passed
        if what == "new":
            timeline.new_publisher(now)
            continue
        time_ms = timeline.rebase(kind, stamp, now, is_header=what == "header")
        assert time_ms >= 0
        if is_started:
            assert time_ms >= last.get(kind, 0)
            assert time_ms - timeline.last_ms <= 0
            last[kind] = time_ms
        elif what == "frame":
            is_started = True
            assert time_ms == stamp
            last[kind] = time_ms


@given(publishings)
def test_time_is_never_further_ahead_of_the_wall_than_believed(steps: list[tuple[MessageType, int, int, str]]) -> None:
    timeline = Timeline()
    timeline.rebase(VIDEO, 0, 0)
    now = 0
    for kind, stamp, passed, what in steps:
        before = timeline.last_ms
        now += passed
        if what == "new":
            timeline.new_publisher(now)
        else:
            timeline.rebase(kind, stamp, now, is_header=what == "header")
        assert timeline.last_ms - before <= max(now, 1) + AHEAD_MS
