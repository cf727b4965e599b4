"""The drill's stream: what looks like H.264 and AAC, and bears a number in every message.

Owns the form of a stamp and the rhythm of the stream.  Pure.

A stamp is ``MAGIC`` and a 64-bit number, in the place of the coded picture or sound: no decoder is asked.  Each track
counts for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from relay.rtmp.messages import MediaMessage, MessageType

MAGIC = b"relay-drill:"
FRAMES_PER_SECOND = 30
GOP_FRAMES = 30  # a viewer can join each second
AUDIO_MS = 21.333  # 1024 samples at 48 kHz
VIDEO_BYTES = 3700  # with the audio about 1 Mbit/s
AUDIO_BYTES = 300

_KEYFRAME, _PICTURE = b"\x17\x01\x00\x00\x00", b"\x27\x01\x00\x00\x00"
_SOUND = b"\xaf\x01"
_AVC_CONFIGURATION = b"\x17\x00\x00\x00\x00" + bytes.fromhex("0142c01effe1000467420001010003680001")
_AAC_CONFIGURATION = b"\xaf\x00\x11\x90"


def headers() -> list[MediaMessage]:
    """What a decoder would be set up with."""
    return [
        MediaMessage(MessageType.VIDEO, 0, _AVC_CONFIGURATION),
        MediaMessage(MessageType.AUDIO, 0, _AAC_CONFIGURATION),
    ]


def stamped() -> Iterator[MediaMessage]:
    """The stream for ever, in the order of its timestamps, which begin at 0."""
    video, audio = _video(), _audio()
    picture, sound = next(video), next(audio)
    while True:
        if picture.timestamp <= sound.timestamp:
            yield picture
            picture = next(video)
        else:
            yield sound
            sound = next(audio)


def stamp_of(payload: bytes) -> int | None:
    """A message's number; ``None`` if it has none (a header, or somebody else's)."""
    at = payload.find(MAGIC, 0, 32)
    start = at + len(MAGIC)
    if at < 0 or len(payload) < start + 8:
        return None
    return int.from_bytes(payload[start : start + 8], "big")


def _video() -> Iterator[MediaMessage]:
    for number in count():
        is_keyframe = number % GOP_FRAMES == 0
        unit = (b"\x65" if is_keyframe else b"\x41") + _stamp(number, VIDEO_BYTES)
        payload = (_KEYFRAME if is_keyframe else _PICTURE) + len(unit).to_bytes(4, "big") + unit
        yield MediaMessage(MessageType.VIDEO, number * 1000 // FRAMES_PER_SECOND, payload)


def _audio() -> Iterator[MediaMessage]:
    for number in count():
        yield MediaMessage(MessageType.AUDIO, int(number * AUDIO_MS), _SOUND + _stamp(number, AUDIO_BYTES))


def _stamp(number: int, size: int) -> bytes:
    return (MAGIC + number.to_bytes(8, "big")).ljust(size, b"\0")
