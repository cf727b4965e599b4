from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.log.headers import NO_HEADERS, HeadersInForce
from relay.rtmp import amf0
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType
from tests.wire import (
    aac,
    aac_header,
    avc_frame,
    avc_header,
    enhanced_audio_header,
    enhanced_video_header,
    metadata,
    on_track,
)

tracks = st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=50)), max_size=5).map(tuple)
headers_in_force = st.builds(HeadersInForce, st.none() | st.binary(max_size=50), tracks, tracks)


def after(*messages: MediaMessage, limits: object = DEFAULT_LIMITS) -> HeadersInForce:
    headers = NO_HEADERS
    for message in messages:
        headers = headers.updated(message, describe(message.message_type, message.payload), limits)
    return headers


@given(headers_in_force)
def test_wire_form_comes_back_as_the_same_headers(headers: HeadersInForce) -> None:
    assert HeadersInForce.from_wire(headers.to_wire()) == headers


@given(st.lists(st.text(max_size=20) | st.integers() | st.none(), max_size=5))
def test_any_wire_form_is_headers_or_the_peers_error(texts: list[object]) -> None:
    try:
        HeadersInForce.from_wire(texts)
    except RemoteProtocolError:
        return


class UpdateTests(SynchronousTestCase):
    """A newcomer needs the last metadata and each track's last sequence header, and nothing older."""

    def test_each_kind_is_kept(self) -> None:
        found = after(metadata(), avc_header(), aac_header())
        expected = HeadersInForce(metadata().payload, ((0, avc_header().payload),), ((0, aac_header().payload),))
        self.assertEqual(expected, found)

    def test_newer_one_of_the_same_track_replaces(self) -> None:
        newer = avc_header(config=b"\x01newer")
        self.assertEqual(((0, newer.payload),), after(avc_header(), newer).video)
        self.assertEqual(metadata(width=1).payload, after(metadata(), metadata(width=1)).metadata)

    def test_each_track_has_its_own(self) -> None:
        one, two = enhanced_video_header(), on_track(enhanced_video_header(config=b"two"), 2)
        self.assertEqual(((0, one.payload), (2, two.payload)), after(one, two).video)
        audio = on_track(enhanced_audio_header(), 1)
        self.assertEqual(((1, audio.payload),), after(audio).audio)

    def test_frames_and_other_data_change_nothing(self) -> None:
        before = after(metadata(), avc_header(), aac_header())
        cue = MediaMessage(MessageType.DATA_AMF0, 0, amf0.encode("onCuePoint", {}))
        garbage = MediaMessage(MessageType.DATA_AMF0, 0, b"\xff")
        for message in (avc_frame(0, True), aac(1)[0], cue, garbage, avc_header(), metadata()):
            self.assertIs(before, before.updated(message, describe(message.message_type, message.payload)))

    def test_clear_data_frame_drops_the_metadata(self) -> None:
        clear = MediaMessage(MessageType.DATA_AMF0, 0, amf0.encode("@clearDataFrame", "onMetaData"))
        self.assertIsNone(after(metadata(), clear).metadata)

    def test_more_tracks_than_the_limit_are_not_kept(self) -> None:
        """``Limits.tracks``."""
        limits = attrs.evolve(DEFAULT_LIMITS, tracks=2)
        sent = [on_track(enhanced_video_header(), track) for track in range(3)]
        self.assertEqual([0, 1], [track for track, _ in after(*sent, limits=limits).video])
        self.assertEqual(NO_HEADERS.audio, after(*sent, aac_header(), limits=limits).audio)
        replaced = on_track(enhanced_video_header(config=b"new"), 1)
        self.assertIn((1, replaced.payload), after(*sent, replaced, limits=limits).video)

    def test_header_that_is_too_large_is_not_kept(self) -> None:
        """``Limits.header_bytes``: every newcomer is sent every track's."""
        limits = attrs.evolve(DEFAULT_LIMITS, header_bytes=100)
        large = avc_header(config=bytes(200))
        self.assertEqual(((0, avc_header().payload),), after(avc_header(), large, limits=limits).video)

    def test_metadata_that_is_too_large_is_not_kept(self) -> None:
        limits = attrs.evolve(DEFAULT_LIMITS, metadata_bytes=100)
        self.assertIsNone(after(metadata(text="x" * 200), limits=limits).metadata)


class MessageTests(SynchronousTestCase):
    def test_order_and_timestamp(self) -> None:
        """Metadata first: ffmpeg opens its streams by it."""
        found = after(aac_header(), avc_header(), metadata()).messages(1234)
        self.assertEqual([metadata(1234), avc_header(1234), aac_header(1234)], found)

    def test_none(self) -> None:
        self.assertEqual([], NO_HEADERS.messages(0))


class WireTests(SynchronousTestCase):
    def test_strings(self) -> None:
        headers = HeadersInForce(b"\x02", ((3, b"\x17\x00"),), ((0, b"\xaf\x00"),))
        self.assertEqual(["m0:Ag==", "v3:FwA=", "a0:rwA="], headers.to_wire())

    def test_bad_ones_are_the_peers_fault(self) -> None:
        for text in (
            "",
            "v",
            "v0",
            "v:Ag==",
            "x0:Ag==",
            "v0:Ag=",
            "v0:*",
            "v1234:Ag==",
            "v-1:Ag==",
            "v\u0663:Ag==",
            7,
            None,
        ):
            with self.assertRaises(RemoteProtocolError, msg=repr(text)):
                HeadersInForce.from_wire([text])

    def test_more_or_larger_than_the_limits_are_refused(self) -> None:
        limits = attrs.evolve(DEFAULT_LIMITS, tracks=2, metadata_bytes=3, header_bytes=3)
        with self.assertRaises(RemoteProtocolError):
            HeadersInForce.from_wire(["v0:", "v1:", "v2:", "v3:"], limits)
        with self.assertRaises(RemoteProtocolError):
            HeadersInForce.from_wire(["m0:AAAAAA=="], limits)
        with self.assertRaises(RemoteProtocolError):
            HeadersInForce.from_wire(["v0:AAAAAA=="], limits)
