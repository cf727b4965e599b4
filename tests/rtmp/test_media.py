"""What a relay sees in messages that it does not decode."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.rtmp import amf0
from relay.rtmp.media import MediaInfo, describe, normalize_data
from relay.rtmp.messages import MediaMessage
from tests import wire

A, V, D = wire.AUDIO, wire.VIDEO, wire.DATA
HEVC, KEY = wire.enhanced_video_header(), wire.enhanced_gop(1)[0]
OPUS = wire.enhanced_audio_header()

#                    type, payload (hex), keyframe, sequence header, track, codec
TABLE: dict[str, tuple[int, str, bool, bool, int, str]] = {
    "AVC sequence header": (V, "17 00 000000 01", False, True, 0, "avc1"),
    "AVC keyframe": (V, "17 01 000000 00", True, False, 0, "avc1"),
    "AVC inter frame": (V, "27 01 000000 00", False, False, 0, "avc1"),
    "AVC end of sequence": (V, "17 02 000000", False, False, 0, "avc1"),
    "AVC generated keyframe": (V, "47 01 000000 00", True, False, 0, "avc1"),
    "AVC command frame": (V, "57 00", False, False, 0, "avc1"),
    "AVC cut to one byte": (V, "17", False, False, 0, "avc1"),
    "HEVC by codec id 12, header": (V, "1C 00 000000 01", False, True, 0, "hvc1"),
    "HEVC by codec id 12, keyframe": (V, "1C 01 000000 01", True, False, 0, "hvc1"),
    "Sorenson keyframe (no headers)": (V, "12 00", True, False, 0, "FLV1"),
    "unknown legacy codec": (V, "1F 00", True, False, 0, ""),
    "enhanced HEVC SequenceStart": (V, "90 68766331 01", False, True, 0, "hvc1"),
    "enhanced HEVC CodedFrames, key": (V, "91 68766331 000000 00", True, False, 0, "hvc1"),
    "enhanced HEVC CodedFramesX, key": (V, "93 68766331 00", True, False, 0, "hvc1"),
    "enhanced HEVC CodedFramesX, inter": (V, "A3 68766331 00", False, False, 0, "hvc1"),
    "enhanced SequenceEnd": (V, "92 68766331", False, False, 0, "hvc1"),
    "enhanced Metadata (frame type is ignored)": (V, "D4 68766331 02", False, False, 0, "hvc1"),
    "enhanced AV1 MPEG2TSSequenceStart": (V, "95 61763031 00", False, True, 0, "av01"),
    "enhanced VP9 key": (V, "91 76703039 00", True, False, 0, "vp09"),
    "enhanced command frame": (V, "D0 00", False, False, 0, ""),
    "enhanced, FourCC cut": (V, "90 6876", False, False, 0, ""),
    "enhanced, FourCC unprintable": (V, "93 000102FF 00", True, False, 0, ""),
    "OneTrack SequenceStart of track 3": (V, "96 00 68766331 03 01", False, True, 3, "hvc1"),
    "ManyTracks key, first track 1": (V, "96 13 61766331 01 000001 AA 02 000001 BB", True, False, 1, "avc1"),
    "ManyTracksManyCodecs key, first track 2": (V, "96 23 61766331 02 000001 AA", True, False, 2, "avc1"),
    "nested Multitrack is forbidden": (V, "96 06 68766331 03 01", False, False, 0, ""),
    "Multitrack cut": (V, "96 00 687663", False, False, 0, ""),
    "ModEx before a keyframe": (V, "97 02 000102 03 68766331 00", True, False, 0, "hvc1"),
    "two ModEx": (V, "97 00 AA 07 00 BB 00 68766331 00", False, True, 0, "hvc1"),
    "ModEx of 256 bytes and more": (V, "97 FF 0100" + "AA" * 257 + "03 68766331 00", True, False, 0, "hvc1"),
    "ModEx before Multitrack": (V, "97 00 AA 06 00 68766331 05 01", False, True, 5, "hvc1"),
    "ModEx cut": (V, "97 05 00", False, False, 0, ""),
    "ModEx without end": (V, "97" + "00AA07" * 100, False, False, 0, ""),
    "AAC sequence header": (A, "AF 00 1210", False, True, 0, "mp4a"),
    "AAC frame": (A, "AF 01 21", False, False, 0, "mp4a"),
    "AAC cut to one byte": (A, "AF", False, False, 0, "mp4a"),
    "MP3": (A, "2F 00", False, False, 0, ".mp3"),
    "G.711": (A, "72 00", False, False, 0, "alaw"),
    "enhanced Opus SequenceStart": (A, "90 4F707573 00", False, True, 0, "Opus"),
    "enhanced FLAC CodedFrames": (A, "91 664C6143 00", False, False, 0, "fLaC"),
    "enhanced AC-3": (A, "91 61632D33 00", False, False, 0, "ac-3"),
    "MultichannelConfig is no sequence header": (A, "94 4F707573 00", False, False, 0, "Opus"),
    "audio OneTrack of track 2": (A, "95 00 4F707573 02 00", False, True, 2, "Opus"),
    "audio ModEx": (A, "97 02 000102 01 4F707573 00", False, False, 0, "Opus"),
    "empty video": (V, "", False, False, 0, ""),
    "empty audio": (A, "", False, False, 0, ""),
    "data": (D, "02 0001 61", False, False, 0, ""),
}


class DescribeTests(SynchronousTestCase):
    def test_table(self) -> None:
        for name, (message_type, text, *expected) in TABLE.items():
            self.assertEqual(MediaInfo(*expected), describe(message_type, bytes.fromhex(text)), name)

    def test_wrapping_changes_only_the_track(self) -> None:
        """Multitrack and ModEx around a message leave what it is."""
        for message in (HEVC, KEY, OPUS):
            plain = describe(message.message_type, message.payload)
            for extra in (b"\0\0\1", bytes(255), bytes(256), bytes(400)):
                wrapped = wire.with_mod_ex(wire.on_track(message, 7), extra)
                expected = MediaInfo(plain.is_keyframe, plain.is_sequence_header, 7, plain.codec)
                self.assertEqual(expected, describe(wrapped.message_type, wrapped.payload), len(extra))

    def test_endless_mod_ex_costs_nothing(self) -> None:
        """8 MiB of wrappings are not walked through."""
        payload = b"\x97" + b"\x00\xaa\x07" * (8 << 20 // 3)
        before = time.process_time()
        describe(V, payload)
        self.assertLess(time.process_time() - before, 0.01)


class NormalizeTests(SynchronousTestCase):
    def test_set_data_frame_is_stripped(self) -> None:
        self.assertEqual(("onMetaData", wire.metadata().payload), normalize_data(wire.published_metadata().payload))

    def test_plain_metadata_stays(self) -> None:
        self.assertEqual(("onMetaData", wire.metadata().payload), normalize_data(wire.metadata().payload))

    def test_amf3_data_loses_its_first_byte(self) -> None:
        payload = wire.metadata().payload
        self.assertEqual(("onMetaData", payload), normalize_data(b"\0" + payload))
        self.assertEqual(("onMetaData", payload), normalize_data(b"\0" + wire.published_metadata().payload))

    def test_clear_data_frame_says_so(self) -> None:
        payload = amf0.encode("@clearDataFrame", "onMetaData")
        self.assertEqual(("@clearDataFrame", payload), normalize_data(payload))

    def test_other_names_pass(self) -> None:
        payload = amf0.encode("onTextData", {"text": "x"})
        self.assertEqual(("onTextData", payload), normalize_data(payload))

    def test_what_has_no_name_is_none(self) -> None:
        for payload in (
            b"",
            b"\0",
            b"\0\0\0",
            b"\x05",
            b"\x02\xff\xffab",
            amf0.encode("@setDataFrame"),
            amf0.encode("@setDataFrame", 1),
        ):
            self.assertIsNone(normalize_data(payload), payload)


@given(st.integers(0, 255), st.binary(max_size=40))
def test_any_bytes_are_described(message_type: int, payload: bytes) -> None:
    """Never raises, never both keyframe and header, and the codec may stand in a log line."""
    info = describe(message_type, payload)
    assert not (info.is_keyframe and info.is_sequence_header)
    assert 0 <= info.track <= 255
    assert info.codec.isascii()
    assert info.codec.isprintable()
    normalize_data(payload)


@given(st.sampled_from((0x90, 0x93, 0x96, 0x97, 0xA7, 0xD7)), st.binary(max_size=40))
def test_any_enhanced_bytes_are_described(first: int, rest: bytes) -> None:
    for message in (MediaMessage(A, 0, bytes((first,)) + rest), MediaMessage(V, 0, bytes((first,)) + rest)):
        assert describe(message.message_type, message.payload).track in range(256)
