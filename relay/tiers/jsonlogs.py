"""``--json-logs``: the log as one JSON object a line, for whoever collects logs.

Owns the form of a line.  Called by the tiers' options, which put the observer in the place of ``twistd``'s own before
it begins to log, and by a cluster, whose nodes' lines are passed on as they are.

    {"time": "2026-11-25T11:33:01.123456Z", "level": "info", "node": "agg1", "tier": "aggregator",
     "logger": "relay.net.causes.Interruption", "message": "live/show: reading from a2 now: a1 is dead (…)",
     "event": "failover", "stream": "live/show"}

``event`` and ``stream`` are there if the line has them, ``failure`` is a traceback.  Nothing is written to files and
nothing rotated: that is the work of whatever runs the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, formatEvent
from zope.interface import implementer

MESSAGE_CHARACTERS = 8192
FAILURE_CHARACTERS = 16384
FLAG = ["json-logs", None, "Log to standard output as one JSON object a line."]


@implementer(ILogObserver)
class JsonObserver:
    """Writes events to ``out``; ``labels`` are put into each."""

    def __init__(self, out: TextIO, labels: Mapping[str, str]) -> None:
        self._out = out
        self._labels = labels

    def __call__(self, event: LogEvent) -> None:
        line = event.get("json_line")
        if line is None:
            line = json.dumps(self.fields_of(event), ensure_ascii=False)
        self._out.write(line + "\n")
        self._out.flush()

    def fields_of(self, event: LogEvent) -> dict[str, Any]:
        """The object of one line."""
        at = datetime.fromtimestamp(event["log_time"], UTC)
        level = event.get("log_level")
        fields: dict[str, Any] = {
            "time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": "info" if level is None else level.name,
            **self._labels,
            "logger": event.get("log_namespace", ""),
            "message": formatEvent(event)[:MESSAGE_CHARACTERS],
        }
        for name in ("event", "stream", "node"):
            if isinstance(event.get(name), str):
                fields[name] = event[name]
        failure = event.get("log_failure")
        if failure is not None:
            fields["failure"] = failure.getTraceback()[-FAILURE_CHARACTERS:]
        return fields


def is_json_line(text: str) -> bool:
    """Is it a line of another process's :class:`JsonObserver`?"""
    if not text.startswith('{"time": "'):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


_labels: dict[str, str] = {}  # of this process, which has one log


def log_as_json(options: Any, **labels: str) -> None:
    """Let ``twistd``, whose sub-command has these options, log so.  To be called while options are parsed: ``twistd``
    then looks for its observer by name."""
    _labels.update(labels)
    if options["json-logs"] and options.parent is not None:
        options.parent["logger"] = f"{__name__}.{make_observer.__name__}"


def make_observer() -> JsonObserver:
    """For ``twistd --logger``."""
    return JsonObserver(sys.stdout, _labels)
