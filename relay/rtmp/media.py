"""What a relay knows of a message that it does not decode: keyframe? sequence header? which track? which codec?

Owns the first bytes of audio and video messages, legacy (FLV) and enhanced (E-RTMP v2), and the name of a data message.
Never raises: whatever a publisher puts there is passed on, and if it says nothing to us it is an ordinary message.
Called by ``relay.log`` for every message and by the sessions for data messages.

A sequence header is never a keyframe: a viewer who starts there would see nothing until the next picture.

Not counted as sequence headers, although players use them: E-RTMP's MultichannelConfig and video Metadata.  The headers
in force hold one message a track, so either would push out the SequenceStart without which nothing decodes; without
them a player falls back to its codec's channel order and colours.

A message for several tracks (ManyTracks) is described by its first one.
"""

from __future__ import annotations

import attrs

from relay.rtmp import amf0
from relay.rtmp.messages import MessageType


@attrs.frozen
class MediaInfo:
    """One message in four words.  ``codec`` is a FourCC ("avc1", "mp4a" …), empty if it isn't known."""

    is_keyframe: bool
    is_sequence_header: bool
    track: int
    codec: str


_NOTHING = MediaInfo(False, False, 0, "")

_LEGACY_VIDEO = {2: "FLV1", 3: "FSV1", 4: "VP6F", 5: "VP6A", 6: "FSV2", 7: "avc1", 12: "hvc1", 13: "av01"}
"""FLV codec ids; 12 and 13 are not Adobe's, but SRS and many encoders used them before E-RTMP."""

_LEGACY_AUDIO = {2: ".mp3", 7: "alaw", 8: "ulaw", 10: "mp4a", 11: "spex", 13: "Opus", 14: ".mp3"}

_HAS_PACKET_TYPE = frozenset({"avc1", "hvc1", "av01", "mp4a", "Opus"})
"""Legacy codecs whose second byte tells a sequence header (0) from frames (1)."""

_KEY_FRAMES = (1, 4)
_COMMAND_FRAME = 5
_ENHANCED_VIDEO = 0x80
_ENHANCED_AUDIO = 9

_SEQUENCE_START, _CODED_FRAMES, _CODED_FRAMES_X, _METADATA = 0, 1, 3, 4
_MPEG2TS_SEQUENCE_START = 5
_VIDEO_MULTITRACK, _AUDIO_MULTITRACK, _MOD_EX = 6, 5, 7

MAX_MOD_EX = 16
"""ModEx wrappings looked through.  One is in use (nanosecond offsets); each may be 3 bytes of an 8 MiB message."""


def describe(message_type: int, payload: bytes) -> MediaInfo:
    """What can be told of any bytes of any message type."""
    if not payload:
        return _NOTHING
    if message_type == MessageType.VIDEO:
        return _describe_enhanced_video(payload) if payload[0] & _ENHANCED_VIDEO else _describe_legacy_video(payload)
    if message_type == MessageType.AUDIO:
        return _describe_audio(payload)
    return _NOTHING


def _describe_legacy_video(payload: bytes) -> MediaInfo:
    codec = _LEGACY_VIDEO.get(payload[0] & 0x0F, "")
    is_keyframe = payload[0] >> 4 in _KEY_FRAMES
    if codec not in _HAS_PACKET_TYPE:
        return MediaInfo(is_keyframe, False, 0, codec)
    packet_type = payload[1] if len(payload) > 1 else -1
    is_header = packet_type == 0 and payload[0] >> 4 != _COMMAND_FRAME
    return MediaInfo(is_keyframe and packet_type == 1, is_header, 0, codec)


def _describe_audio(payload: bytes) -> MediaInfo:
    if payload[0] >> 4 == _ENHANCED_AUDIO:
        packet_type, track, codec = _enhanced_head(payload, _AUDIO_MULTITRACK)
        return MediaInfo(False, packet_type == _SEQUENCE_START, track, codec)
    codec = _LEGACY_AUDIO.get(payload[0] >> 4, "")
    is_header = codec in _HAS_PACKET_TYPE and len(payload) > 1 and payload[1] == 0
    return MediaInfo(False, is_header, 0, codec)


def _describe_enhanced_video(payload: bytes) -> MediaInfo:
    frame_type = payload[0] >> 4 & 7
    packet_type, track, codec = _enhanced_head(payload, _VIDEO_MULTITRACK)
    if frame_type == _COMMAND_FRAME and packet_type != _METADATA:
        return _NOTHING
    is_picture = packet_type in (_CODED_FRAMES, _CODED_FRAMES_X)
    is_header = packet_type in (_SEQUENCE_START, _MPEG2TS_SEQUENCE_START)
    return MediaInfo(is_picture and frame_type in _KEY_FRAMES, is_header, track, codec)


def _enhanced_head(payload: bytes, multitrack: int) -> tuple[int, int, str]:
    """Packet type, track and FourCC behind any ModEx and Multitrack wrapping; packet type -1 if that is cut short."""
    packet_type = payload[0] & 0x0F
    at = 1
    for _ in range(MAX_MOD_EX):
        if packet_type != _MOD_EX:
            break
        size = payload[at] + 1 if at < len(payload) else 0
        at += 1
        if size == 256:
            size = int.from_bytes(payload[at : at + 2], "big") + 1
            at += 2
        at += size
        if at >= len(payload):
            return -1, 0, ""
        packet_type = payload[at] & 0x0F
        at += 1
    if packet_type != multitrack:
        return _with_fourcc(packet_type, 0, payload[at : at + 4])
    if at + 6 > len(payload):
        return -1, 0, ""
    packet_type = payload[at] & 0x0F
    if packet_type == multitrack:
        return -1, 0, ""
    # one FourCC for all tracks, or (many codecs) one in front of each: the same place for the first track
    return _with_fourcc(packet_type, payload[at + 5], payload[at + 1 : at + 5])


def _with_fourcc(packet_type: int, track: int, fourcc: bytes) -> tuple[int, int, str]:
    if packet_type == _MOD_EX or len(fourcc) < 4:
        return -1, 0, ""
    codec = fourcc.decode("ascii", "replace")
    return packet_type, track, codec if codec.isprintable() and codec.isascii() else ""


SET_DATA_FRAME = "@setDataFrame"
CLEAR_DATA_FRAME = "@clearDataFrame"


def normalize_data(payload: bytes) -> tuple[str, bytes] | None:
    """The name of a data message, and the message as viewers get it.

    Encoders say ``@setDataFrame`` in front of ``onMetaData`` to have it kept; viewers must not see that.  A message of
    AMF3 type has a 0x00 in front.  ``@clearDataFrame`` stays as it is and is its own name.

    Returns:
        None if the payload does not begin with a name.
    """
    if payload[:2] in (b"\x00\x02", b"\x00\x0c"):
        payload = payload[1:]
    first = amf0.first_string(payload)
    if first is None:
        return None
    name, end = first
    if name != SET_DATA_FRAME:
        return name, payload
    payload = payload[end:]
    inner = amf0.first_string(payload)
    return None if inner is None else (inner[0], payload)
