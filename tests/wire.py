"""Legal bytes and messages by name, for every test that needs a peer.

Media are lists of ``MediaMessage``; conversations are what a client sends, handshake first, as one ``bytes``.  Nothing
here is random: the same call gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from relay.rtmp import amf0
from relay.rtmp.chunks import encode_message
from relay.rtmp.messages import (
    COMMAND_CHUNK_STREAM,
    CONTROL_CHUNK_STREAM,
    MEDIA_CHUNK_STREAM,
    MediaMessage,
    MessageType,
    RawMessage,
)

AUDIO, VIDEO, DATA = MessageType.AUDIO, MessageType.VIDEO, MessageType.DATA_AMF0

NONCE = bytes(index * 7 & 0xFF for index in range(1528))
"""A handshake's random part that isn't."""

AVC_CONFIG = bytes.fromhex("0142c01effe1001a6742c01ed9005005bb011000000300100000030320f162e48001000568cb83cb20")
HEVC_CONFIG = bytes.fromhex("01016000000090000000000078f000fcfdf8f800000f032000010018")
AAC_CONFIG = bytes.fromhex("1210")
OPUS_CONFIG = b"OpusHead\x01\x02\x38\x01\x80\xbb\x00\x00\x00\x00\x00"


# Media.


def picture(index: int, size: int = 200) -> bytes:
    """Bytes that stand for coded media and tell pictures apart."""
    return index.to_bytes(4, "big") * (size // 4)


def metadata(timestamp: int = 0, **properties: Any) -> MediaMessage:
    """onMetaData as viewers get it."""
    values = amf0.EcmaArray({"width": 1280, "height": 720, "videocodecid": 7, "audiocodecid": 10, **properties})
    return MediaMessage(DATA, timestamp, amf0.encode("onMetaData", values))


def published_metadata(timestamp: int = 0, **properties: Any) -> MediaMessage:
    """onMetaData as encoders send it, with @setDataFrame in front."""
    inner = metadata(timestamp, **properties)
    return MediaMessage(DATA, timestamp, amf0.encode("@setDataFrame") + inner.payload)


def avc_header(timestamp: int = 0, config: bytes = AVC_CONFIG) -> MediaMessage:
    return MediaMessage(VIDEO, timestamp, b"\x17\x00\x00\x00\x00" + config)


def avc_frame(timestamp: int, is_keyframe: bool, data: bytes = b"\0\0\0\2\x65\x88") -> MediaMessage:
    return MediaMessage(VIDEO, timestamp, (b"\x17" if is_keyframe else b"\x27") + b"\x01\x00\x00\x00" + data)


def h264_gop(frames: int = 25, start: int = 0, step: int = 40, size: int = 200) -> list[MediaMessage]:
    """A keyframe and ``frames - 1`` that depend on it."""
    return [
        avc_frame((start + index * step) & 0xFFFFFFFF, index == 0, picture(start + index, size))
        for index in range(frames)
    ]


def aac_header(timestamp: int = 0) -> MediaMessage:
    return MediaMessage(AUDIO, timestamp, b"\xaf\x00" + AAC_CONFIG)


def aac(frames: int = 43, start: int = 0, step: int = 23, size: int = 64) -> list[MediaMessage]:
    return [
        MediaMessage(AUDIO, (start + index * step) & 0xFFFFFFFF, b"\xaf\x01" + picture(start + index, size))
        for index in range(frames)
    ]


def enhanced_video_header(fourcc: bytes = b"hvc1", config: bytes = HEVC_CONFIG, timestamp: int = 0) -> MediaMessage:
    """E-RTMP SequenceStart."""
    return MediaMessage(VIDEO, timestamp, b"\x90" + fourcc + config)


def enhanced_gop(
    frames: int = 25, start: int = 0, step: int = 40, fourcc: bytes = b"hvc1", size: int = 200
) -> list[MediaMessage]:
    """E-RTMP CodedFramesX: no composition time."""
    return [
        MediaMessage(
            VIDEO,
            (start + index * step) & 0xFFFFFFFF,
            (b"\xa3" if index else b"\x93") + fourcc + picture(start + index, size),
        )
        for index in range(frames)
    ]


def enhanced_audio_header(fourcc: bytes = b"Opus", config: bytes = OPUS_CONFIG, timestamp: int = 0) -> MediaMessage:
    return MediaMessage(AUDIO, timestamp, b"\x90" + fourcc + config)


def enhanced_audio(frames: int = 50, start: int = 0, step: int = 20, fourcc: bytes = b"Opus") -> list[MediaMessage]:
    return [
        MediaMessage(AUDIO, (start + index * step) & 0xFFFFFFFF, b"\x91" + fourcc + picture(start + index, 80))
        for index in range(frames)
    ]


def on_track(message: MediaMessage, track: int) -> MediaMessage:
    """An E-RTMP message wrapped as OneTrack of ``track``."""
    head, fourcc, body = message.payload[0], message.payload[1:5], message.payload[5:]
    multitrack = 6 if message.message_type == VIDEO else 5
    wrapped = bytes((head & 0xF0 | multitrack, head & 0x0F)) + fourcc + bytes((track,)) + body
    return MediaMessage(message.message_type, message.timestamp, wrapped)


def with_mod_ex(message: MediaMessage, extra: bytes = b"\x00\x01\x02") -> MediaMessage:
    """An E-RTMP message with a ModEx (nanosecond offset) in front."""
    head = message.payload[0]
    size = bytes((len(extra) - 1,)) if len(extra) < 256 else b"\xff" + (len(extra) - 1).to_bytes(2, "big")
    wrapped = bytes((head & 0xF0 | 7,)) + size + extra + bytes((head & 0x0F,)) + message.payload[1:]
    return MediaMessage(message.message_type, message.timestamp, wrapped)


def in_order(*tracks: Iterable[MediaMessage]) -> list[MediaMessage]:
    """Several tracks as one stream: by timestamp, and the order given where that is equal."""
    return sorted((message for track in tracks for message in track), key=lambda message: message.timestamp)


def h264_aac_stream(seconds: int = 2, start: int = 0) -> list[MediaMessage]:
    """Metadata, both sequence headers, then one GOP a second with its audio."""
    media: list[MediaMessage] = []
    for second in range(seconds):
        at = start + second * 1000
        media += in_order(h264_gop(25, at), aac(43, at))
    return [metadata(start), avc_header(start), aac_header(start), *media]


# Bytes.


def raw(message: MediaMessage, message_stream_id: int = 1) -> RawMessage:
    chunk_stream_id = MEDIA_CHUNK_STREAM[MessageType(message.message_type)]
    return RawMessage(chunk_stream_id, message.timestamp, message.message_type, message_stream_id, message.payload)


def media(messages: Iterable[MediaMessage], chunk_size: int = 128, message_stream_id: int = 1) -> bytes:
    return b"".join(encode_message(raw(message, message_stream_id), chunk_size) for message in messages)


def command(*values: Any, message_stream_id: int = 0, chunk_size: int = 128) -> bytes:
    """A command message: name, transaction id, command object, arguments."""
    payload = amf0.encode(*values)
    message = RawMessage(COMMAND_CHUNK_STREAM, 0, MessageType.COMMAND_AMF0, message_stream_id, payload)
    return encode_message(message, chunk_size)


def control(message_type: int, payload: bytes) -> bytes:
    return encode_message(RawMessage(CONTROL_CHUNK_STREAM, 0, message_type, 0, payload), 128)


def set_chunk_size(size: int) -> bytes:
    return control(MessageType.SET_CHUNK_SIZE, size.to_bytes(4, "big"))


def user_control(event: int, payload: bytes) -> bytes:
    return control(MessageType.USER_CONTROL, event.to_bytes(2, "big") + payload)


def aggregate(messages: Iterable[MediaMessage], timestamp: int = 0, message_stream_id: int = 1) -> bytes:
    """The payload's messages as one aggregate in one chunk."""
    payload = b"".join(
        bytes((message.message_type,))
        + len(message.payload).to_bytes(3, "big")
        + (message.timestamp & 0xFFFFFF).to_bytes(3, "big")
        + (message.timestamp >> 24).to_bytes(1, "big")
        + bytes(3)
        + message.payload
        + (11 + len(message.payload)).to_bytes(4, "big")
        for message in messages
    )
    return encode_message(RawMessage(6, timestamp, MessageType.AGGREGATE, message_stream_id, payload), len(payload))


# Conversations.


def handshake(nonce: bytes = NONCE, version: bytes = b"\0\0\0\0") -> bytes:
    """C0, C1 and C2.  C2 is zeros, as from encoders that do not wait for S1."""
    return b"\x03" + bytes(4) + version + nonce + bytes(1536)


def connect_ffmpeg(app: str = "live") -> bytes:
    """As ffmpeg's publisher says it."""
    properties = {
        "app": app,
        "type": "nonprivate",
        "flashVer": "FMLE/3.0 (compatible; Lavf59.27.100)",
        "tcUrl": f"rtmp://127.0.0.1:1935/{app}",
    }
    return command("connect", 1, properties)


def connect_obs(app: str = "live") -> bytes:
    """As OBS 30 says it: the chunk size before connect, the E-RTMP list in it."""
    properties = {
        "app": app,
        "type": "nonprivate",
        "flashVer": "FMLE/3.0 (compatible; FMSc/1.0)",
        "swfUrl": f"rtmp://127.0.0.1:1935/{app}",
        "tcUrl": f"rtmp://127.0.0.1:1935/{app}",
        "fourCcList": ["av01", "hvc1"],
    }
    return set_chunk_size(4096) + command("connect", 1, properties, chunk_size=4096)


def connect_enhanced(app: str = "live") -> bytes:
    """As an E-RTMP v2 client says it, all properties."""
    properties = {
        "app": app,
        "tcUrl": f"rtmp://127.0.0.1:1935/{app}",
        "flashVer": "LNX 9,0,124,2",
        "objectEncoding": 0,
        "fourCcList": ["*"],
        "videoFourCcInfoMap": {"*": 4, "vp09": 3},
        "audioFourCcInfoMap": {"*": 4, "Opus": 3},
        "capsEx": 15,
    }
    return command("connect", 1, properties)


def publish_preamble(stream_key: str = "demo", chunk_size: int = 128) -> bytes:
    """What encoders send between connect and media."""
    return b"".join(
        (
            command("releaseStream", 2, None, stream_key, chunk_size=chunk_size),
            command("FCPublish", 3, None, stream_key, chunk_size=chunk_size),
            command("createStream", 4, None, chunk_size=chunk_size),
            command("publish", 5, None, stream_key, "live", message_stream_id=1, chunk_size=chunk_size),
        )
    )


def play_preamble(stream: str = "demo") -> bytes:
    """What ffmpeg's player sends between connect and media."""
    return b"".join(
        (
            control(MessageType.WINDOW_ACK_SIZE, (2_500_000).to_bytes(4, "big")),
            command("createStream", 2, None),
            command("getStreamLength", 3, None, stream),
            command("play", 4, None, stream, -2000.0, message_stream_id=1),
            user_control(3, (1).to_bytes(4, "big") + (3000).to_bytes(4, "big")),
        )
    )


def unpublish(stream_key: str = "demo", chunk_size: int = 128) -> bytes:
    return command("FCUnpublish", 6, None, stream_key, chunk_size=chunk_size) + command(
        "deleteStream", 7, None, 1, chunk_size=chunk_size
    )


def ffmpeg_publishes(seconds: int = 1) -> bytes:
    return (
        handshake(version=b"\x09\x00\x7c\x02")
        + connect_ffmpeg()
        + publish_preamble()
        + media([published_metadata(), *h264_aac_stream(seconds)[1:]])
        + unpublish()
    )


def obs_publishes(seconds: int = 1) -> bytes:
    return (
        handshake()
        + connect_obs()
        + publish_preamble(chunk_size=4096)
        + media([published_metadata(), *h264_aac_stream(seconds)[1:]], chunk_size=4096)
        + unpublish(chunk_size=4096)
    )


def enhanced_publishes() -> bytes:
    video = [enhanced_video_header(), *enhanced_gop(10)]
    second = [on_track(message, 1) for message in video]
    messages = in_order(video, second, [enhanced_audio_header(), *enhanced_audio(20)])
    return handshake() + connect_enhanced() + publish_preamble() + media(messages) + unpublish()


def aggregate_publishes() -> bytes:
    big = set_chunk_size(1 << 20)
    gop = aggregate(h264_gop(5, 1000), timestamp=1000)
    return handshake() + connect_ffmpeg() + publish_preamble() + media([avc_header()]) + big + gop


def ffmpeg_plays() -> bytes:
    return handshake(version=b"\x09\x00\x7c\x02") + connect_ffmpeg() + play_preamble()


CONVERSATIONS = {
    "ffmpeg_publishes": ffmpeg_publishes(),
    "obs_publishes": obs_publishes(),
    "enhanced_publishes": enhanced_publishes(),
    "aggregate_publishes": aggregate_publishes(),
    "ffmpeg_plays": ffmpeg_plays(),
}
"""Whole legal conversations of a client with our server."""
