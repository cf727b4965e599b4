"""Server-sent events: what a page is told without asking (HTML standard, "Server-sent events").

Owns the open answers and what waits for a browser that does not read.  Called by :mod:`relay.admin.node` and
:mod:`relay.admin.cluster`, which say what there is to tell.

One look at the node a second serves all who watch, and nobody looks while nobody watches.  A browser that reads slowly
is sent the newest state when it reads again, and the events of the meantime as far as they are kept: nothing grows.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from relay.admin.events import Event, EventLog
from relay.admin.site import number

LOOK_SECONDS = 1.0
QUIET_SECONDS = 15  # then a comment is sent, so that whatever is in between does not take the connection for dead
KEPT_MESSAGES = 200  # events for one browser that does not read


class Watch:
    """All who watch one site.

    Args:
        describe: the state, as JSON; asked once a second while somebody watches.
        events: what happens besides.
        clock: the reactor.
    """

    log = Logger()

    def __init__(self, describe: Callable[[], object], events: EventLog, clock: IReactorTime) -> None:
        self._describe = describe
        self._events = events
        self._watchers: set[Watcher] = set()
        self._state = b""
        self._quiet = 0
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def __len__(self) -> int:
        return len(self._watchers)

    def __call__(self, request: Any) -> int:
        """The route: an answer that does not end.  ``Last-Event-ID`` says which events the browser has had."""
        request.setHeader("Content-Type", "text/event-stream")
        if request.method == b"HEAD":
            request.finish()
            return int(NOT_DONE_YET)
        seen = request.getHeader("Last-Event-ID") or ""
        watcher = Watcher(request)
        self._watchers.add(watcher)
        request.notifyFinish().addBoth(self._left, watcher)
        request.registerProducer(watcher, True)
        watcher.tell(b"retry: 1000\n\n")
        if not self._loop.running:
            self._events.watchers.append(self._happened)
            self._state = b""
            self._loop.start(LOOK_SECONDS).addErrback(self._failed)
        else:
            watcher.show(self._state)
        for event in self._events.after(number(seen, 0)):
            watcher.tell(message("event", event, event["id"]))
        return int(NOT_DONE_YET)

    def close(self) -> None:
        """The site goes."""
        for watcher in list(self._watchers):
            watcher.close()

    def _left(self, _: object, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        if not self._watchers and self._loop.running:
            self._loop.stop()
            self._events.watchers.remove(self._happened)

    def _look(self) -> None:
        state = message("state", self._describe())
        self._quiet += 1
        if state != self._state:
            self._state = state
            for watcher in self._watchers:
                watcher.show(state)
        elif self._quiet >= QUIET_SECONDS:
            for watcher in self._watchers:
                watcher.tell(b":\n\n")
        else:
            return
        self._quiet = 0

    def _happened(self, event: Event) -> None:
        data = message("event", attrs.asdict(event), event.id)
        for watcher in self._watchers:
            watcher.tell(data)

    def _failed(self, failure: Failure) -> None:
        """A fault in describing: whoever watches comes again, and it is in the log as often as that."""
        self.log.failure("describing the state for those who watch", failure)
        self._events.watchers.remove(self._happened)
        self.close()


def message(kind: str, content: object, identifier: int | None = None) -> bytes:
    """One message of the event stream."""
    lines = [f"event: {kind}", f"data: {json.dumps(content, separators=(',', ':'))}"]
    if identifier is not None:
        lines.insert(0, f"id: {identifier}")
    return "\n".join([*lines, "", ""]).encode()


@implementer(IPushProducer)
class Watcher:
    """One browser."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._is_paused = False
        self._state = b""
        self._messages: deque[bytes] = deque(maxlen=KEPT_MESSAGES)

    def show(self, state: bytes) -> None:
        """The newest state; one that was not sent is not needed any more."""
        if self._is_paused:
            self._state = state
        else:
            self._request.write(state)

    def tell(self, data: bytes) -> None:
        """Something that is not to be lost, unless there is too much of it."""
        if self._is_paused:
            self._messages.append(data)
        else:
            self._request.write(data)

    def close(self) -> None:
        """End the answer."""
        self._request.unregisterProducer()
        self._request.finish()

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        while self._messages and not self._is_paused:
            self._request.write(self._messages.popleft())
        if self._state and not self._is_paused:
            state, self._state = self._state, b""
            self._request.write(state)

    def stopProducing(self) -> None:
        """The connection is lost: ``notifyFinish`` says so, too."""
