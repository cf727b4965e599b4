"""What is logged of bad peers: enough to find them, and no more, however often they come.

Owns the bound on such lines.  A peer that connects again and again and sends garbage would fill the disk otherwise.
Called by whoever speaks with peers that anybody may be; the node calls ``check`` once a second.

Of each kind the first ``LINES_PER_MINUTE`` lines of a minute are written.  The others are counted, and when the minute
is over one line says how many they were, and what the last of them said.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel, formatEvent

LINES_PER_MINUTE = 10  # of a kind: more are not read by anybody
MINUTE_SECONDS = 60.0


@attrs.define
class _Minute:
    """Of one kind."""

    begun: float
    lines: int = 0
    swallowed: int = 0
    last: str = ""


class Complaints:
    """The lines of one node.

    Args:
        clock: the reactor.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._minutes: dict[str, _Minute] = {}

    def say(self, log: Logger, kind: str, words: str, **fields: Any) -> None:
        """Log a warning, if there were not too many of its kind.

        Args:
            log: whose line it is.
            kind: one of a few; never a peer's word.
            words, fields: as for ``log.warn``.
        """
        minute = self._minutes.setdefault(kind, _Minute(self._clock.seconds()))
        minute.lines += 1
        if minute.lines <= LINES_PER_MINUTE:
            log.emit(LogLevel.warn, words, **fields)
        else:
            minute.swallowed += 1
            minute.last = formatEvent({"log_format": words, **fields})

    def check(self) -> None:
        """Say what was swallowed, when its minute is over."""
        now = self._clock.seconds()
        for kind, minute in list(self._minutes.items()):
            if now - minute.begun >= MINUTE_SECONDS:
                del self._minutes[kind]
                self._sum_up(kind, minute)

    def close(self) -> None:
        """The node stops: say what is left to say."""
        for kind, minute in self._minutes.items():
            self._sum_up(kind, minute)
        self._minutes.clear()

    def _sum_up(self, kind: str, minute: _Minute) -> None:
        if minute.swallowed:
            self.log.warn(
                "{kind}: {count} more like these within a minute, the last: {last}",
                kind=kind,
                count=minute.swallowed,
                last=minute.last,
            )
