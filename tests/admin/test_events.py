"""What has happened: the named ones among the lines of the log."""

from __future__ import annotations

from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.events import TEXT_CHARACTERS, Event, EventLog


class EventLogTests(SynchronousTestCase):
    """A log of its own."""

    def setUp(self) -> None:
        publisher = LogPublisher()
        self.log = Logger(observer=publisher)
        self.events = EventLog(publisher, keep=3)
        self.events.startService()

    def test_named_lines_are_kept(self) -> None:
        self.log.info("not this one")
        self.log.warn("{stream}: {what}", event="failover", stream="live/demo", what="a1 is dead")
        (event,) = self.events.after()
        told = [event[key] for key in ("kind", "level", "text", "stream", "node")]
        self.assertEqual(["failover", "warn", "live/demo: a1 is dead", "live/demo", ""], told)

    def test_identifiers_grow_and_are_asked_after(self) -> None:
        """Two of one millisecond have two."""
        for number in range(3):
            self.log.info("{number}", event="state", number=number)
        first, second, third = self.events.after()
        self.assertLess(first["id"], second["id"])
        self.assertEqual([third], self.events.after(second["id"]))

    def test_clock_that_is_set_back_repeats_no_identifier(self) -> None:
        self.events({"event": "state", "log_time": 2000.0, "log_format": "later"})
        self.events({"event": "state", "log_time": 1000.0, "log_format": "earlier"})
        self.assertEqual([2_000_000, 2_000_001], [event["id"] for event in self.events.after()])

    def test_only_the_newest_are_kept(self) -> None:
        """And none of any length."""
        for number in range(5):
            self.log.info("{number}" + "x" * 1000, event="state", number=number)
        kept = self.events.after()
        self.assertEqual(["2", "3", "4"], [event["text"][0] for event in kept])
        self.assertEqual({TEXT_CHARACTERS}, {len(event["text"]) for event in kept})

    def test_watchers_are_told(self) -> None:
        told: list[Event] = []
        self.events.watchers.append(told.append)
        self.log.info("it is so", event="state")
        self.assertEqual(["it is so"], [event.text for event in told])

    def test_nothing_is_kept_after_the_end(self) -> None:
        self.events.stopService()
        self.log.info("late", event="state")
        self.assertEqual([], self.events.after())
