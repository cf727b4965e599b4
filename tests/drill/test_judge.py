"""The judge counts what is wrong with a viewer's messages, and nothing else."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.drill.judge import Findings, Judge
from relay.drill.stamps import FRAMES_PER_SECOND, headers, stamp_of, stamped
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType

STREAM = list(islice(stamped(), 400))
VIDEO = [message for message in STREAM if message.message_type == MessageType.VIDEO]


def judge(messages: list[MediaMessage]) -> Findings:
    verdict = Judge()
    for at, message in enumerate(messages):
        verdict.receive([message], at / 100)
    return verdict.take(len(messages) / 100)


class StampTests(SynchronousTestCase):
    def test_stream_looks_like_one(self) -> None:
        """Headers, keyframes each second, timestamps in order, about 1 Mbit/s."""
        for header in headers():
            self.assertTrue(describe(header.message_type, header.payload).is_sequence_header)
        keyframes = [number for number, message in enumerate(VIDEO) if describe(9, message.payload).is_keyframe]
        self.assertEqual(list(range(0, len(VIDEO), FRAMES_PER_SECOND)), keyframes)
        times = [message.timestamp for message in STREAM]
        self.assertEqual(sorted(times), times)
        bits = sum(len(message.payload) for message in STREAM) * 8 / times[-1] * 1000
        self.assertTrue(900_000 < bits < 1_100_000, bits)

    def test_numbers_count_for_each_track(self) -> None:
        self.assertEqual(list(range(len(VIDEO))), [stamp_of(message.payload) for message in VIDEO])
        self.assertEqual([None, None], [stamp_of(header.payload) for header in headers()])
        self.assertIsNone(stamp_of(b"\x17\x01relay-drill:123"))


class JudgeTests(SynchronousTestCase):
    def test_whole_stream_from_any_place_is_clean(self) -> None:
        found = judge([*headers(), *STREAM[100:]])
        self.assertEqual((True, 300), (found.is_clean, found.messages))

    def test_gap(self) -> None:
        self.assertEqual(5, judge(VIDEO[:10] + VIDEO[15:]).missing)

    def test_repetition(self) -> None:
        """Its timestamps go back, too."""
        found = judge(VIDEO[:10] + VIDEO[5:])
        self.assertEqual((0, 5, 0, 1), (found.missing, found.repeated, found.out_of_order, found.backwards))

    def test_late_message_is_not_missing(self) -> None:
        found = judge([*VIDEO[:5], VIDEO[6], VIDEO[5], *VIDEO[7:]])
        self.assertEqual((0, 0, 1, 1), (found.missing, found.repeated, found.out_of_order, found.backwards))

    def test_stream_goes_on_when_every_track_does(self) -> None:
        """What a returning publisher left out of the sound is known when there is sound again."""
        verdict = Judge()
        self.assertFalse(verdict.has_come_since(0.0))
        verdict.receive(STREAM[:10], 1.0)
        self.assertTrue(verdict.has_come_since(0.5))
        verdict.receive(VIDEO[-1:], 2.0)
        self.assertFalse(verdict.has_come_since(1.5))

    def test_headers_repeated_by_a_returning_publisher_are_no_fault(self) -> None:
        self.assertTrue(judge([*VIDEO[:5], *headers(), *VIDEO[5:]]).is_clean)

    def test_wrapping_timestamps_go_forward(self) -> None:
        late = MediaMessage(MessageType.VIDEO, 0xFFFFFFF0, VIDEO[0].payload)
        self.assertTrue(judge([late, *VIDEO[1:]]).is_clean)

    def test_stream_without_stamps_is_judged_by_its_time(self) -> None:
        plain = [MediaMessage(MessageType.AUDIO, time, b"\xaf\x01x") for time in (0, 10, 20, 15, 30)]
        found = judge(plain)
        self.assertEqual((1, 0, 0), (found.backwards, found.missing, found.repeated))

    def test_longest_pause_counts_the_one_that_goes_on(self) -> None:
        verdict = Judge()
        self.assertFalse(verdict.has_begun)
        for now in (10.0, 10.5, 12.0, 12.1):
            verdict.receive(VIDEO[:1], now)
        self.assertEqual([1.5], verdict.take(12.2).pauses)
        self.assertEqual([3.9], [round(pause, 6) for pause in verdict.take(16.0).pauses])


@given(st.lists(st.tuples(st.sampled_from(["drop", "repeat", "keep"]), st.integers(1, 9)), max_size=20))
def test_what_was_done_to_a_stream_is_what_is_found(steps: list[tuple[str, int]]) -> None:
    """Whatever is left out between two messages that came is missing; whatever came again is repeated."""
    got, at, dropped, repeated = [VIDEO[0]], 1, 0, 0
    for step, count in steps:
        if step == "drop":
            at += count
        elif step == "keep":
            got += VIDEO[at : at + count]
            at += count
        else:
            again = got[-count:]
            got += again
            repeated += len(again)
    numbers = {stamp_of(message.payload) for message in got}
    dropped = max(number for number in numbers if number is not None) + 1 - len(numbers)
    found = judge(got)
    assert (found.missing, found.repeated, found.out_of_order) == (dropped, repeated, 0)
