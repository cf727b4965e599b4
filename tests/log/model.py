"""What the log's tests compare with: an independent rendering of messages, and a plain list of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs

from relay.log.cursor import Cursor, CursorState
from relay.log.files import FileSegment
from relay.log.headers import HeadersInForce
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.rendition import Rendition
from relay.log.store import Store
from relay.rtmp.messages import MediaMessage
from tests.wire import aac, avc_frame

CHUNK_STREAMS = {8: 4, 9: 6, 18: 5}


def rtmp_bytes(message: MediaMessage) -> bytes:
    """One type-0 chunk, written out by hand."""
    stamp = message.timestamp
    is_long = stamp >= 0xFFFFFF
    head = bytes((CHUNK_STREAMS[message.message_type],)) + (0xFFFFFF if is_long else stamp).to_bytes(3, "big")
    head += len(message.payload).to_bytes(3, "big") + bytes((message.message_type,)) + b"\1\0\0\0"
    return head + (stamp.to_bytes(4, "big") if is_long else b"") + message.payload


def flv_bytes(message: MediaMessage) -> bytes:
    """One FLV tag with its back pointer, written out by hand."""
    stamp = message.timestamp.to_bytes(4, "big")
    size = len(message.payload)
    head = bytes((message.message_type,)) + size.to_bytes(3, "big") + stamp[1:] + stamp[:1] + bytes(3)
    return head + message.payload + (size + 11).to_bytes(4, "big")


def video(time_ms: int, is_keyframe: bool = False, size: int = 50) -> MediaMessage:
    return avc_frame(time_ms & 0xFFFFFFFF, is_keyframe, (time_ms & 0xFF).to_bytes(1, "big") * size)


def audio(time_ms: int, size: int = 40) -> MediaMessage:
    return aac(1, time_ms, size=size)[0]


def gops(count: int, frames: int = 10, step: int = 40, start: int = 0, size: int = 50) -> list[MediaMessage]:
    """``count`` times a keyframe and ``frames - 1`` that depend on it."""
    return [video(start + at * step, at % frames == 0, size) for at in range(count * frames)]


def fill(log: StreamLog, messages: Iterable[MediaMessage], is_flushed_each: bool = True) -> StreamLog:
    for message in messages:
        log.append(message)
        if is_flushed_each:
            log.flush()
    log.flush()
    return log


def drain(cursor: Cursor, limit: int = 1 << 20) -> tuple[bytes, CursorState]:
    """All that a cursor can read, and why it can't go on."""
    read = b""
    while True:
        piece = cursor.read(limit)
        read += piece
        if not piece:
            state = cursor.advance()
            if state is not CursorState.READY:
                return read, state


def contents(rendition: Rendition, start: int | None = None) -> bytes:
    """Everything from ``start`` (the rendition's own by default) to the first hole or the end."""
    cursor = rendition.cursor(rendition.start if start is None else start)
    try:
        return drain(cursor)[0]
    finally:
        cursor.close()


def die(store: Store, *logs: StreamLog) -> None:
    """What the kernel does when a process dies: every descriptor is closed, nothing else happens."""
    for log in logs:
        segments = [*log.rtmp.segments, *(log.flv.segments if log.flv is not None else ())]
        for segment in segments:
            segment.close_fd()
            if isinstance(segment, FileSegment):
                segment._close_index()
    for stream in list(store._streams.values()):
        stream._directory.close()
    store._directory.close()
    os.close(store._lock_fd)
    store._lock_fd = -1


@attrs.frozen
class Told:
    """One message of the truth, with the state before it."""

    offset: int
    flv_offset: int
    time_ms: int
    message: MediaMessage
    headers: HeadersInForce
    is_keyframe: bool
    is_audio_only: bool


class Truth:
    """One epoch as a plain list of messages and two byte strings."""

    def __init__(self, epoch: int, time_ms: int) -> None:
        self.epoch = epoch
        self.rtmp = b""
        self.flv = b""
        self.told: list[Told] = []
        self.time_ms = time_ms
        self.metadata: bytes | None = None
        self.video: bytes | None = None
        self.audio: bytes | None = None
        self.last_video_ms: int | None = None

    @property
    def headers(self) -> HeadersInForce:
        return HeadersInForce(
            self.metadata,
            () if self.video is None else ((0, self.video),),
            () if self.audio is None else ((0, self.audio),),
        )

    @property
    def end(self) -> LogStart:
        return LogStart(len(self.rtmp), len(self.flv), self.time_ms, self.headers)

    def add(self, message: MediaMessage, time_ms: int) -> None:
        """A message that is the next one, at a time that is not before the last."""
        head = bytes((message.message_type,)) + message.payload[:2]
        since = None if self.last_video_ms is None else time_ms - self.last_video_ms
        told = Told(
            len(self.rtmp), len(self.flv), time_ms, message, self.headers,
            is_keyframe=head == b"\x09\x17\x01",
            is_audio_only=head == b"\x08\xaf\x01" and (since is None or since > 10_000),
        )  # fmt: skip
        self.told.append(told)
        self.time_ms = time_ms
        if message.message_type == 9:
            self.last_video_ms = time_ms
        if message.message_type == 18:
            self.metadata = message.payload
        elif head == b"\x09\x17\x00":
            self.video = message.payload
        elif head == b"\x08\xaf\x00":
            self.audio = message.payload
        self.rtmp += rtmp_bytes(message)
        self.flv += flv_bytes(message)
