"""The timestamps that another server is sent: from 0 on, with the distances of the log.

Owns the rule for one connection.  Called by :mod:`relay.net.forward_connection`, for every message.

Theory.  Encoders begin at 0 and platforms reckon with it, so a constant is taken off each timestamp of the log: the
time of the join point at which the connection begins.  The distance between sound and picture stays what it is to the
millisecond.  Frames of before the join point (sound that comes a little late in the log) are left out; they would need
a time below 0, and their picture was not sent.  Where the reader skips, the time goes on by what was skipped: as much
time has passed.

A new epoch goes on after the old one's time.  If it does not (an origin that has lost its log and knows of no copy),
another constant is chosen at its first frame, once, for no platform likes time to go back.

The log's own timestamps have 32 bits; here they are unwrapped, so that a connection may last longer than 2**31 ms.
"""

from __future__ import annotations

BACK_MS = 1_000
"""ms.  How far the first frame of another epoch may be before the last of the one before, as tracks interleave."""

STRAY_MS = 10_000
"""ms.  A header or data message that is further away than this from the frames has no time of its own."""


def _signed(step: int) -> int:
    """A difference of two 32-bit timestamps (RFC 1982)."""
    step &= 0xFFFFFFFF
    return step - (1 << 32) if step >= 1 << 31 else step


class TargetClock:
    """One connection's clock.

    Args:
        start_ms: unwrapped media time of the join point that it begins at.
    """

    def __init__(self, start_ms: int) -> None:
        self.time_ms = start_ms
        """Unwrapped media time of the last frame."""
        self.has_begun = False
        """Was a frame sent?"""
        self._base_ms = start_ms
        self._is_new_epoch = False

    def cross(self) -> None:
        """The next frame is another epoch's."""
        self._is_new_epoch = True

    def of_frame(self, timestamp: int) -> int | None:
        """The timestamp to send a frame with; None: it is of before the beginning and is not sent."""
        step = _signed(timestamp - self.time_ms)
        if self._is_new_epoch:
            self._is_new_epoch = False
            if step < -BACK_MS:
                self._base_ms += step - 1
        self.time_ms += step
        self.has_begun = True
        sent = self.time_ms - self._base_ms
        return sent & 0xFFFFFFFF if sent >= 0 else None

    def of_other(self, timestamp: int) -> int:
        """The timestamp to send a header or a data message with."""
        step = _signed(timestamp - self.time_ms)
        own_ms = self.time_ms - self._base_ms + (step if abs(step) <= STRAY_MS else 0)
        return max(0, own_ms) & 0xFFFFFFFF
