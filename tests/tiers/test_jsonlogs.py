"""``--json-logs``: each line one object, whatever is logged."""

from __future__ import annotations

import io
import json
import signal
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from relay.tiers import jsonlogs
from relay.tiers.cluster import Options, make_node
from relay.tiers.jsonlogs import FAILURE_CHARACTERS, MESSAGE_CHARACTERS, JsonObserver, is_json_line
from tests.cluster import ClusterTestCase


class ObserverTests(SynchronousTestCase):
    """Lines of a log of its own."""

    def setUp(self) -> None:
        self.out = io.StringIO()
        publisher = LogPublisher()
        publisher.addObserver(JsonObserver(self.out, {"node": "agg1", "tier": "aggregator"}))
        self.log = Logger("relay.here", observer=publisher)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]

    def test_line_says_when_where_and_what(self) -> None:
        self.log.warn("{stream}: {why}", event="failover", stream="live/show", why='a "word"\nand another')
        (line,) = self.lines()
        self.assertRegex(line.pop("time"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
        told = {"level": "warn", "node": "agg1", "tier": "aggregator", "logger": "relay.here"}
        said = {"message": 'live/show: a "word"\nand another', "event": "failover", "stream": "live/show"}
        self.assertEqual({**told, **said}, line)

    def test_failure_is_one_line_with_its_traceback(self) -> None:
        try:
            raise ValueError("no " * 20_000)
        except ValueError:
            self.log.failure("it has failed", Failure())
        (line,) = self.lines()
        self.assertEqual(("critical", "it has failed"), (line["level"], line["message"]))
        self.assertEqual(FAILURE_CHARACTERS, len(line["failure"]))

    def test_lines_are_bounded(self) -> None:
        self.log.info("{words}", words="x" * 100_000)
        self.assertEqual(MESSAGE_CHARACTERS, len(self.lines()[0]["message"]))

    def test_line_of_another_process_is_passed_on_as_it_is(self) -> None:
        """And what only looks like one is not taken for one."""
        self.log.info("hello")
        line = self.out.getvalue().strip()
        self.assertTrue(is_json_line(line))
        self.log.info("[{node}] {line}", node="a1", line=line, json_line=line)
        self.assertEqual([line, line], self.out.getvalue().splitlines())
        for other in ("hello", "[1]", '{"time": "then', '{"a": 1}', ""):
            self.assertFalse(is_json_line(other), other)


class NodeOfFileTests(SynchronousTestCase):
    """``relay --config FILE --node NAME --json-logs``."""

    def test_lines_say_of_which_tier_the_node_is(self) -> None:
        labels: dict[str, str] = {}
        self.patch(jsonlogs, "_labels", labels)
        options = Options()
        options.parseOptions(["--node", "agg1", "--json-logs"])
        make_node(options, MemoryReactorClock())
        self.assertEqual({"node": "agg1", "tier": "aggregator"}, labels)


class TwistdTests(ClusterTestCase):
    """A real process."""

    async def test_every_line_of_a_node_is_an_object(self) -> None:
        """From the first to the last, those of ``twistd`` itself included."""
        node = self.start_origin("--json-logs")
        await node.is_listening()
        node.signal(signal.SIGTERM)
        self.assertEqual(0, await node.ended())
        lines = [json.loads(line) for line in node.text.splitlines()]
        self.assertEqual({"o1"}, {line["node"] for line in lines})
        self.assertIn("Server Shut Down.", lines[-1]["message"])
