from __future__ import annotations

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from relay.log.headers import HeadersInForce
from relay.log.points import ORIGIN_START, JoinPoint, LogStart
from relay.log.state import AUDIO_ONLY_AFTER_MS, LogState
from relay.rtmp.messages import MediaMessage
from tests.log.model import audio, flv_bytes, rtmp_bytes, video
from tests.wire import aac_header, avc_header, enhanced_gop, enhanced_video_header, metadata, on_track


def joins(messages: Iterable[MediaMessage], start: LogStart = ORIGIN_START) -> list[JoinPoint]:
    state = LogState(start)
    return [point for message in messages if (point := state.take(message)) is not None]


class PlaceTests(SynchronousTestCase):
    def test_both_offsets_follow_the_bytes(self) -> None:
        state = LogState(LogStart(1000, 2000))
        sent = [metadata(), avc_header(), video(0, True), audio(0xFFFFFF), video(0xFFFFFF)]
        for message in sent:
            state.take(message)
        self.assertEqual(1000 + sum(len(rtmp_bytes(message)) for message in sent), state.here().offset)
        self.assertEqual(2000 + sum(len(flv_bytes(message)) for message in sent), state.here().flv_offset)


class ClockTests(SynchronousTestCase):
    def times(self, *stamps: int, start: LogStart = ORIGIN_START) -> list[int]:
        state = LogState(start)
        found = []
        for stamp in stamps:
            state.take(MediaMessage(9, stamp, b"\x27\x01"))
            found.append(state.time_ms)
        return found

    def test_time_goes_on_where_timestamps_wrap(self) -> None:
        self.assertEqual([2**32 - 10, 2**32 + 10], self.times(2**32 - 10, 10))

    def test_steps_back_are_steps_back(self) -> None:
        self.assertEqual([100, 80, 120], self.times(100, 80, 120))

    def test_first_frame_sets_the_clock_whatever_the_headers_said(self) -> None:
        """ffmpeg stamps its metadata 0 and its first frame with the source's time."""
        state = LogState(LogStart())
        state.take(metadata())
        state.take(avc_header())
        state.take(video(2**32 - 1000, True))
        self.assertEqual(2**32 - 1000, state.time_ms)
        state.take(avc_header(0))
        self.assertEqual(2**32, state.time_ms)

    def test_log_that_starts_in_the_middle_has_a_clock(self) -> None:
        self.assertEqual([2**32 + 5], self.times(5, start=LogStart(500, 500, 2**32 - 1)))
        self.assertEqual([2**32 + 5], self.times(5, start=LogStart(0, 0, 2**32 - 1)))

    def test_time_is_never_negative(self) -> None:
        """A position's time travels as a number that must be one."""
        self.assertEqual([5, 0, 7], self.times(5, 2**32 - 5, 7))

    def test_latest_time_never_goes_back(self) -> None:
        state = LogState(LogStart())
        for stamp in (100, 80):
            state.take(video(stamp))
        self.assertEqual((80, 100), (state.time_ms, state.end_time_ms))


class JoinPointTests(SynchronousTestCase):
    def test_keyframe_is_one_with_the_headers_before_it(self) -> None:
        sent = [metadata(), avc_header(), aac_header(), video(7, True), video(47)]
        offset = sum(len(rtmp_bytes(message)) for message in sent[:3])
        flv_offset = sum(len(flv_bytes(message)) for message in sent[:3])
        headers = HeadersInForce(metadata().payload, ((0, avc_header().payload),), ((0, aac_header().payload),))
        self.assertEqual([JoinPoint(offset, flv_offset, 7, headers)], joins(sent))

    def test_enhanced_keyframe_is_one(self) -> None:
        self.assertEqual(1, len(joins([enhanced_video_header(), *enhanced_gop(5)])))

    def test_keyframe_of_a_further_track_is_none(self) -> None:
        self.assertEqual([], joins([on_track(enhanced_gop(1)[0], 1)]))
        self.assertEqual(1, len(joins([on_track(enhanced_gop(1)[0], 0)])))

    def test_sequence_header_is_none(self) -> None:
        self.assertEqual([], joins([avc_header(), aac_header(), metadata()]))

    def test_each_audio_frame_of_an_audio_only_stream_is_one(self) -> None:
        self.assertEqual(
            [0, 23, 46], [point.time_ms for point in joins([aac_header(), audio(0), audio(23), audio(46)])]
        )

    def test_empty_audio_is_none(self) -> None:
        self.assertEqual([], joins([MediaMessage(8, 0, b"")]))

    def test_audio_beside_video_is_none(self) -> None:
        self.assertEqual([0], [point.time_ms for point in joins([avc_header(), video(0, True), audio(5), video(40)])])

    def test_audio_becomes_one_when_the_camera_is_off(self) -> None:
        """Without it nobody could join once the last keyframe has left retention."""
        off = AUDIO_ONLY_AFTER_MS
        found = joins([video(0, True), audio(off), audio(off + 1), video(off + 2), audio(off + 3)])
        self.assertEqual([0, off + 1], [point.time_ms for point in found])

    def test_start_with_a_video_header_counts_as_video(self) -> None:
        headers = HeadersInForce(video=((0, avc_header().payload),))
        self.assertEqual([], joins([audio(5)], LogStart(100, 100, 0, headers)))
        self.assertEqual(1, len(joins([audio(5)], LogStart(100, 100, 0))))


class LogStartTests(SynchronousTestCase):
    def test_timestamp_is_what_messages_carry(self) -> None:
        self.assertEqual(5, LogStart(time_ms=2**32 + 5).timestamp)


class CopyTests(SynchronousTestCase):
    def test_copy_stays_when_the_original_goes_on(self) -> None:
        state = LogState(LogStart())
        state.take(video(0, True))
        copy = state.copy()
        here = state.here()
        state.take(avc_header(40))
        self.assertEqual(here, copy.here())
        self.assertNotEqual(here, state.here())
