"""What each message does to a log's place, clock, headers and join points.

Owns that one rule, as a small object that is fed messages in order.  The live log and the recovery of a stored one both
use it, so they can't disagree.

Theory.  A message has a 32-bit timestamp; a log has an unwrapped time.  Each step is the signed 32-bit difference to
the last time (RFC 1982), except that the clock of a log that starts at zeros is set by its first frame: headers come
before it stamped 0 by most encoders, whatever the frames' timestamps are.

A join point is a keyframe of video track 0.  In a stream without video each audio frame is one.  "Without video" means:
no video message in the last ``AUDIO_ONLY_AFTER_MS`` of media, or none ever (a start whose headers name video counts as
video seen just then).  It is a time and not "never", because an encoder can switch its camera off: were audio no
join point then, the last keyframe would fall out of retention and nobody could join any more.
"""

from __future__ import annotations

from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.points import JoinPoint, LogStart
from relay.log.record import record_size
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType

AUDIO_ONLY_AFTER_MS = 10_000
"""ms.  Longer than the pause between video frames of any screen share that is still alive."""

FLV_OVERHEAD = 15
"""Bytes of an FLV tag around its payload, the back pointer included (relay.flv.tags.OVERHEAD)."""


class LogState:
    """Where a log ends, as it will stand after the messages taken so far."""

    __slots__ = (
        "_is_clock_set",
        "_last_video_ms",
        "_limits",
        "end_time_ms",
        "flv_offset",
        "headers",
        "offset",
        "time_ms",
    )

    def __init__(self, start: LogStart, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self.offset = start.offset
        self.flv_offset = start.flv_offset
        self.time_ms = start.time_ms
        self.end_time_ms = start.time_ms
        self.headers = start.headers
        self._last_video_ms = start.time_ms if start.headers.video else None
        self._is_clock_set = start.offset > 0 or start.time_ms > 0

    def take(self, message: MediaMessage) -> JoinPoint | None:
        """Move past ``message``; the join point that it is, if it is one."""
        kind = message.message_type
        info = describe(kind, message.payload)
        headers = self.headers.updated(message, info, self._limits)
        is_frame = kind != MessageType.DATA_AMF0 and not info.is_sequence_header
        self._advance_clock(message.timestamp & 0xFFFFFFFF, is_frame)
        found = None
        if kind == MessageType.VIDEO:
            self._last_video_ms = self.time_ms
            can_join = is_frame and info.is_keyframe and info.track == 0
        else:
            can_join = is_frame and kind == MessageType.AUDIO and bool(message.payload) and self._is_audio_only()
        if can_join:
            found = JoinPoint(self.offset, self.flv_offset, self.time_ms, self.headers)
        self.headers = headers
        self.offset += record_size(message)
        self.flv_offset += len(message.payload) + FLV_OVERHEAD
        return found

    def _advance_clock(self, timestamp: int, is_frame: bool) -> None:
        if self._is_clock_set:
            step = (timestamp - self.time_ms) & 0xFFFFFFFF
            self.time_ms = max(0, self.time_ms + (step - (1 << 32) if step >= 1 << 31 else step))
        else:
            self.time_ms = timestamp
            self._is_clock_set = is_frame
        self.end_time_ms = max(self.end_time_ms, self.time_ms)

    def _is_audio_only(self) -> bool:
        seen = self._last_video_ms
        return seen is None or self.time_ms - seen > AUDIO_ONLY_AFTER_MS

    def here(self) -> LogStart:
        """The state at the log's end, for whoever goes on from it."""
        return LogStart(self.offset, self.flv_offset, self.time_ms, self.headers)

    def copy(self) -> LogState:
        """The same state, to be kept while this one goes on."""
        other = LogState.__new__(LogState)
        other._limits = self._limits
        other.offset, other.flv_offset = self.offset, self.flv_offset
        other.time_ms, other.end_time_ms = self.time_ms, self.end_time_ms
        other.headers = self.headers
        other._last_video_ms, other._is_clock_set = self._last_video_ms, self._is_clock_set
        return other
