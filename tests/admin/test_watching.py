"""What a page is told without asking: one look for all, and nothing that grows."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.events import Event, EventLog
from relay.admin.node import make_site
from relay.admin.watching import KEPT_MESSAGES, QUIET_SECONDS
from tests.admin.views import FixedView, clock, send

REQUEST = b"GET /api/v1/watch HTTP/1.1\r\nHost: localhost\r\n"


def messages(transport: StringTransport) -> list[tuple[str, Any]]:
    """What came since the last time: (kind, content)."""
    data = transport.value()
    transport.clear()
    _, blank, rest = data.partition(b"\r\n\r\n")
    chunks = (rest if data.startswith(b"HTTP/") and blank else data).decode()
    found = []
    for block in chunks.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line.startswith(("event: ", "data: ")))
        if "data" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


class WatchTests(SynchronousTestCase):
    """A site, a clock, and browsers that are transports."""

    def setUp(self) -> None:
        self.clock = clock()
        self.view = FixedView()
        self.events = EventLog()
        self.site = make_site(self.view, self.clock, events=self.events)

    def happen(self, text: str) -> None:
        self.events.add(Event(id=self.events.next_id(1.0), at=1.0, kind="state", level="info", text=text))

    def watch(self, *headers: str) -> StringTransport:
        return send(self.site, REQUEST + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n")

    def test_state_comes_at_once_and_when_it_changes(self) -> None:
        browser = self.watch()
        self.assertIn(b"text/event-stream", browser.value())
        ((kind, content),) = messages(browser)
        self.assertEqual(("state", "agg1"), (kind, content["nodes"][0]["name"]))
        self.clock.advance(1)
        self.assertEqual([], messages(browser))
        self.view.viewers = 4
        self.clock.advance(1)
        ((_, content),) = messages(browser)
        self.assertEqual(4, content["nodes"][0]["viewers"])

    def test_events_come_when_they_happen(self) -> None:
        """The former ones first, or those that the browser has not had."""
        self.happen("one")
        first = self.watch()
        self.happen("two")
        told = [content for kind, content in messages(first) if kind == "event"]
        self.assertEqual(["one", "two"], [event["text"] for event in told])
        second = self.watch(f"Last-Event-ID: {told[0]['id']}")
        self.assertEqual(["two"], [content["text"] for kind, content in messages(second) if kind == "event"])

    def test_last_event_may_be_anything(self) -> None:
        self.happen("one")
        for last in (b"\xff", b"9" * 5_000):
            browser = send(self.site, REQUEST + b"Last-Event-ID: " + last + b"\r\n\r\n")
            self.assertIn(b"text/event-stream", browser.value(), last)

    def test_quiet_connection_is_kept_alive(self) -> None:
        browser = self.watch()
        messages(browser)
        self.clock.pump([1] * QUIET_SECONDS)
        self.assertIn(b":\n\n", browser.value())

    def test_browser_that_does_not_read_is_told_the_newest(self) -> None:
        """Of states the last one, of events as many as are kept."""
        browser = self.watch()
        messages(browser)
        browser.producer.pauseProducing()
        for number in range(KEPT_MESSAGES + 50):
            self.view.viewers = number
            self.happen(str(number))
            self.clock.advance(1)
        self.assertEqual([], messages(browser))
        browser.producer.resumeProducing()
        told = messages(browser)
        states = [content for kind, content in told if kind == "state"]
        events = [content["text"] for kind, content in told if kind == "event"]
        self.assertEqual([KEPT_MESSAGES + 49], [state["nodes"][0]["viewers"] for state in states])
        self.assertEqual([str(number) for number in range(50, KEPT_MESSAGES + 50)], events)

    def test_nobody_looks_while_nobody_watches(self) -> None:
        browser = self.watch()
        self.assertEqual(1, len([call for call in self.clock.getDelayedCalls() if call.getTime() == 1.0]))
        browser.channel.connectionLost(Failure(ConnectionDone()))
        self.clock.advance(1)
        self.assertEqual([], [call for call in self.clock.getDelayedCalls() if call.getTime() <= 2.0])
        self.happen("unseen")
        self.assertEqual(["state", "event"], [kind for kind, _ in messages(self.watch())])

    def test_fault_ends_the_answers_and_not_the_site(self) -> None:
        """The browser comes again by itself."""
        browser = self.watch()
        self.patch(FixedView, "health", lambda _: 1 / 0)
        self.clock.advance(1)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertTrue(browser.value().endswith(b"0\r\n\r\n"))
        self.patch(FixedView, "health", lambda view: view.state)
        self.assertEqual("state", messages(self.watch())[0][0])
