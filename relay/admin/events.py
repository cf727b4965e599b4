"""What has happened at a node lately: the named ones among its log lines.

Owns a bounded list, and telling whoever watches.  A log line is an event if it was written with ``event="some_word"``;
so an operator reads the same in the log, at ``/api/v1/events`` and on the page, and nothing is told twice.  Called by
the tiers, which make an :class:`EventLog` an observer of Twisted's log while the node runs.

Identifiers grow, also over a restart of the process: the first is the wall clock's milliseconds.  Whoever has seen
events up to N asks for those after N.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, LogPublisher, formatEvent, globalLogPublisher
from zope.interface import implementer

KEPT_EVENTS = 500
TEXT_CHARACTERS = 400


@attrs.frozen(kw_only=True)
class Event:
    """One thing that has happened.

    Args:
        at: when, seconds since 1970.
        node: where; empty in the list of that node itself.
        kind: a word, from the log line's ``event``.
        level: "info", "warn", "error" or "critical".
        text: the log line.
        stream: which stream it is about, "app/name"; empty if none.
    """

    id: int
    at: float
    node: str = ""
    kind: str
    level: str
    text: str
    stream: str = ""


@implementer(ILogObserver)
class EventLog(Service):
    """The newest events of this process; it listens while it runs.

    Args:
        publisher: of the log.
        keep: how many.
    """

    def __init__(self, publisher: LogPublisher = globalLogPublisher, keep: int = KEPT_EVENTS) -> None:
        self.watchers: list[Callable[[Event], None]] = []
        self._publisher = publisher
        self._events: deque[Event] = deque(maxlen=keep)

    def startService(self) -> None:
        super().startService()
        self._publisher.addObserver(self)

    def stopService(self) -> None:
        super().stopService()
        self._publisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        kind = event.get("event")
        if not isinstance(kind, str):
            return
        at = float(event.get("log_time", 0.0))
        level = event.get("log_level")
        stream = event.get("stream", "")
        self.add(
            Event(
                id=self.next_id(at),
                at=at,
                kind=kind,
                level="info" if level is None else level.name,
                text=formatEvent(event)[:TEXT_CHARACTERS],
                stream=str(stream),
            )
        )

    def next_id(self, at: float) -> int:
        """For something that happened then."""
        return max(int(at * 1000), self._events[-1].id + 1 if self._events else 0)

    def add(self, event: Event) -> None:
        """Keep it, and tell the watchers."""
        self._events.append(event)
        for watcher in list(self.watchers):
            watcher(event)

    def after(self, seen: int = 0) -> list[dict[str, Any]]:
        """All that are later than the one with this identifier, the oldest first: ``/api/v1/events``."""
        return [attrs.asdict(event) for event in self._events if event.id > seen]
