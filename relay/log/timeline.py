"""The origin's clock rule: publishers' 32-bit timestamps in, one timeline that goes on whatever they do out.

Owns the rule and its state for one stream.  The origin asks it for each message; replicas never do: they copy.  It has
no clock; callers pass ``now_ms``, monotonic.

Theory.  A publisher's timestamps are kept but for a *shift*, added to each.  The first publisher's shift is 0.  A later
one's is chosen at its first frame, so that this frame comes as much media time after the last as wall time has passed,
and at least 1 ms.  A timestamp is believed when it is at most ``CLAMP_MS`` before the last of its own track (then it is
raised to that), and not ahead of everything by more than wall time and ``AHEAD_MS``.  One that is not believed is tried
with the shift before: tracks jump one after the other, and some encoders give each track its own clock.  If that does
not fit either, a new shift is chosen as for a new publisher.

Headers (metadata and sequence headers) say nothing about the clock: encoders stamp them 0, or with a time long past.
They are given the last time of their track, so that no frame after them goes back, or their own if they come first.
"""

from __future__ import annotations

from relay.rtmp.messages import MessageType

CLAMP_MS = 1_000
"""ms.  How far a track may go back and be raised; more than any encoder's reordering, less than any restart."""

AHEAD_MS = 10_000
"""ms.  How far ahead of wall time a step may be: encoders send what they have buffered in bursts."""

MAX_GAP_MS = 1 << 30
"""ms, 12 days.  Timestamps are compared with 32-bit serial arithmetic, so no step may reach 2**31."""


class Timeline:
    """One stream's media time, 64 bits, in ms.  Within a track it never goes back."""

    def __init__(self) -> None:
        self._shift: int | None = 0
        """What is added to timestamps; None: the next frame decides."""
        self._last_shift: int | None = None
        self._is_started = False
        self._floor = 0
        """No message of the current publisher comes before this."""
        self._end = 0
        self._wall_ms = 0
        self._tracks: dict[int, int] = {}

    @classmethod
    def resume(cls, last_ms: int, now_ms: int) -> Timeline:
        """A timeline that goes on after ``last_ms``, from a store or from what replicas report."""
        timeline = cls()
        timeline._is_started = True
        timeline._end, timeline._wall_ms = last_ms, now_ms
        timeline._shift, timeline._floor = None, last_ms + 1
        return timeline

    @property
    def last_ms(self) -> int:
        """The latest time given."""
        return self._end

    def new_publisher(self, now_ms: int) -> None:
        """Somebody else, or the same one again, publishes from now on; its own timestamps mean nothing yet."""
        if not self._is_started:
            return
        self._shift = self._last_shift = None
        self._tracks.clear()
        self._advance(self._smooth(now_ms, 1), now_ms)
        self._floor = self._end

    def rebase(self, message_type: MessageType | int, timestamp: int, now_ms: int, *, is_header: bool = False) -> int:
        """The time to store a message with.

        Args:
            message_type: audio, video and data are tracks of their own.
            timestamp: the publisher's, 32 bits.
            now_ms: monotonic clock.
            is_header: metadata or a sequence header.
        """
        if not self._is_started:
            self._begin(message_type, timestamp, now_ms, is_header)
            return self._end
        if is_header:
            return self._tracks.get(message_type, max(self._floor, self._end - CLAMP_MS))
        time_ms = self._believed(message_type, timestamp, now_ms)
        if time_ms is None:
            time_ms = self._smooth(now_ms, 0 if self._shift is None else 1)
            self._last_shift, self._shift = self._shift, time_ms - timestamp
        time_ms = max(time_ms, self._floor, self._tracks.get(message_type, time_ms))
        self._tracks[message_type] = time_ms
        self._advance(time_ms, now_ms)
        return time_ms

    def _begin(self, message_type: int, timestamp: int, now_ms: int, is_header: bool) -> None:
        """The very first message: a frame sets the clock, a header only tells where we are until one does."""
        self._end, self._wall_ms = timestamp, now_ms
        if not is_header:
            self._is_started = True
            self._tracks[message_type] = timestamp

    def _advance(self, time_ms: int, now_ms: int) -> None:
        if time_ms >= self._end:
            self._end = time_ms
            self._wall_ms = now_ms

    def _smooth(self, now_ms: int, at_least_ms: int) -> int:
        """The last time and as much as wall time has gone on since."""
        return self._end + min(max(now_ms - self._wall_ms, at_least_ms), MAX_GAP_MS)

    def _believed(self, message_type: int, timestamp: int, now_ms: int) -> int | None:
        """The time by the shift, or by the one before, if either gives one that can be true."""
        latest = self._end + AHEAD_MS + max(now_ms - self._wall_ms, 0)
        earliest = self._tracks.get(message_type, self._end) - CLAMP_MS
        for shift in (self._shift, self._last_shift):
            if shift is None:
                continue
            step = (timestamp + shift - self._end) & 0xFFFFFFFF
            time_ms = self._end + (step - (1 << 32) if step >= 1 << 31 else step)
            if earliest <= time_ms <= latest:
                return time_ms
        return None
