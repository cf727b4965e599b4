"""What one viewer sees: messages that are missing, come twice, out of order or back in time, and pauses.

Owns the judgement of one connection's messages.  Pure; told the time.

A stamped stream is judged by its numbers.  A stream without stamps can be judged by its timestamps alone: they must
never go back; whether one is missing can't be known then.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from relay.drill.stamps import stamp_of
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType

_HALF = 1 << 31
_MASK = 0xFFFFFFFF
REMEMBERED = 4096  # numbers of a track that were jumped over, to tell "late" from "twice"


@attrs.define
class Findings:
    """Of one viewer or of many, over some time."""

    missing: int = 0
    repeated: int = 0
    out_of_order: int = 0
    backwards: int = 0  # timestamps that went back
    messages: int = 0
    pauses: list[float] = attrs.field(factory=list)  # the longest of each viewer, seconds

    def add(self, other: Findings) -> None:
        """Count another's too."""
        self.missing += other.missing
        self.repeated += other.repeated
        self.out_of_order += other.out_of_order
        self.backwards += other.backwards
        self.messages += other.messages
        self.pauses += other.pauses

    @property
    def is_clean(self) -> bool:
        """Was every message there, once, in its place?"""
        return not (self.missing or self.repeated or self.out_of_order or self.backwards)


class _Track:
    """One of the stream's tracks as one viewer gets it."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._missing: set[int] = set()
        self._timestamp: int | None = None
        self.arrived_at = 0.0

    def receive(self, number: int | None, timestamp: int, findings: Findings) -> None:
        if self._timestamp is not None and (timestamp - self._timestamp) & _MASK >= _HALF:
            findings.backwards += 1
        self._timestamp = timestamp
        if number is None:
            return
        if self._next is None or number == self._next:
            self._next = number + 1
        elif number > self._next:
            findings.missing += number - self._next
            self._missing.update(range(max(self._next, number - REMEMBERED), number))
            self._next = number + 1
        elif number in self._missing:
            self._missing.discard(number)
            findings.missing -= 1
            findings.out_of_order += 1
        else:
            findings.repeated += 1


class Judge:
    """One viewer's.

    ``take`` gives what was found since the last call; a message that came too late is then taken off the missing, even
    if it was counted as such before.
    """

    def __init__(self) -> None:
        self._tracks: dict[MessageType, _Track] = {}
        self._findings = Findings()
        self._arrived_at: float | None = None
        self._longest = 0.0

    @property
    def has_begun(self) -> bool:
        """Has the first frame come?"""
        return self._arrived_at is not None

    def has_come_since(self, then: float) -> bool:
        """Has every track gone on after that time?  Then what is missing before it is known."""
        return bool(self._tracks) and all(track.arrived_at > then for track in self._tracks.values())

    def receive(self, messages: Sequence[MediaMessage], now: float) -> None:
        """Messages have come, together."""
        for message in messages:
            kind = message.message_type
            if kind == MessageType.DATA_AMF0 or describe(kind, message.payload).is_sequence_header:
                continue
            track = self._tracks.setdefault(MessageType(kind), _Track())
            track.receive(stamp_of(message.payload), message.timestamp, self._findings)
            track.arrived_at = now
            self._findings.messages += 1
            if self._arrived_at is not None:
                self._longest = max(self._longest, now - self._arrived_at)
            self._arrived_at = now

    def take(self, now: float) -> Findings:
        """What was found since the last call; a pause that goes on now counts as long as it is."""
        found, self._findings = self._findings, Findings()
        if self._arrived_at is not None:
            found.pauses = [max(self._longest, now - self._arrived_at)]
        self._longest = 0.0
        return found
