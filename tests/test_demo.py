"""The clip that the built-in cluster publishes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.demo import CLIP_DURATION_MS, read_clip
from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.media import describe
from relay.rtmp.messages import MessageType

MAX_BYTES = 400_000  # it is in the repository and in every installation


class ClipTests(SynchronousTestCase):
    """What a loop of it relies on."""

    def setUp(self) -> None:
        self.clip = read_clip()
        self.messages = TagReader(DEFAULT_LIMITS).feed(self.clip)

    def frames(self, message_type: MessageType) -> list[int]:
        """Timestamps of all that is no sequence header."""
        return [
            message.timestamp
            for message in self.messages
            if message.message_type == message_type
            and not describe(message.message_type, message.payload).is_sequence_header
        ]

    def test_clip_is_small(self) -> None:
        self.assertLess(len(self.clip), MAX_BYTES)

    def test_picture_and_sound_loop_without_a_seam(self) -> None:
        """Both begin at 0, and one more frame of either would begin at the loop's length."""
        video, audio = self.frames(MessageType.VIDEO), self.frames(MessageType.AUDIO)
        self.assertEqual([index * 40 for index in range(CLIP_DURATION_MS // 40)], video)
        self.assertEqual([round(index * 1024 / 48) for index in range(CLIP_DURATION_MS * 48 // 1024)], audio)
        self.assertEqual(0, CLIP_DURATION_MS * 48 % 1024)

    def test_timestamps_never_go_back(self) -> None:
        times = [message.timestamp for message in self.messages]
        self.assertEqual(sorted(times), times)

    def test_viewer_can_join_each_second(self) -> None:
        keyframes = [
            message.timestamp
            for message in self.messages
            if message.message_type == MessageType.VIDEO
            and (info := describe(message.message_type, message.payload)).is_keyframe
            and not info.is_sequence_header
        ]
        self.assertEqual(list(range(0, CLIP_DURATION_MS, 1000)), keyframes)

    def test_clip_is_h264_and_aac(self) -> None:
        codecs = {describe(message.message_type, message.payload).codec for message in self.messages}
        self.assertEqual({"avc1", "mp4a"}, codecs - {""})
