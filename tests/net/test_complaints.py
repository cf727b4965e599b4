"""A peer that comes back again and again with garbage is told of, and does not fill the disk."""

from __future__ import annotations

from twisted.logger import Logger, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from relay.net.complaints import LINES_PER_MINUTE, MINUTE_SECONDS
from relay.testing import MemoryNetwork
from tests import wire
from tests.net.driving import Player, Recorder, connect, make_node, stop_node

MANY = 3 * LINES_PER_MINUTE


class ComplaintTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network)
        self.is_stopped = False

    def tearDown(self) -> None:
        if not self.is_stopped:
            stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def said(self, act) -> list[str]:
        with capturedLogs() as events:
            act()
        return [formatEvent(event) for event in events if event["log_level"].name == "warn"]

    def send(self, data: bytes, times: int = MANY) -> None:
        for _ in range(times):
            client = connect(self.network, self.endpoint, Recorder())
            client.transport.write(data)
            self.network.carry()

    def test_first_lines_of_a_minute_are_written_and_the_rest_is_summed_up(self) -> None:
        garbage = b"\r\n\r\n\0\r\nQUIT\n" + b"\xff" * 20
        first = self.said(lambda: self.send(garbage))
        self.assertEqual(LINES_PER_MINUTE, len(first))
        self.assertEqual([], self.said(lambda: self.network.advance(MINUTE_SECONDS / 2, 0.5)))
        (rest,) = self.said(lambda: self.network.advance(MINUTE_SECONDS / 2 + 2, 0.5))
        self.assertRegex(rest, f"bad PROXY header: {MANY - LINES_PER_MINUTE} more like these .*, the last: 127.0.0.1")
        self.assertEqual(LINES_PER_MINUTE, len(self.said(lambda: self.send(garbage))))

    def test_garbage_in_rtmp_is_bounded_as_well(self) -> None:
        garbage = wire.handshake() + wire.set_chunk_size(0)
        self.assertEqual(LINES_PER_MINUTE, len(self.said(lambda: self.send(garbage))))

    def test_publishers_that_are_refused_are_bounded_as_well(self) -> None:
        def refuse() -> None:
            for _ in range(MANY):
                connect(self.network, self.endpoint, Player(publish="../x"))

        self.assertEqual(LINES_PER_MINUTE, len(self.said(refuse)))

    def test_kinds_are_counted_apart(self) -> None:
        say = self.node.complaints.say
        lines = self.said(lambda: [say(Logger(), kind, "{n}", n=1) for kind in ("a", "b") for _ in range(MANY)])
        self.assertEqual(2 * LINES_PER_MINUTE, len(lines))

    def test_few_lines_are_all_that_is_said(self) -> None:
        self.said(lambda: self.send(b"\r\n\r\n\0\r\nQUIT\n" + b"\xff" * 20, times=1))
        self.assertEqual([], self.said(lambda: self.network.advance(2 * MINUTE_SECONDS, 0.5)))

    def test_stop_says_what_is_left(self) -> None:
        self.said(lambda: self.send(b"\r\n\r\n\0\r\nQUIT\n" + b"\xff" * 20))
        self.is_stopped = True
        (rest,) = self.said(lambda: stop_node(self.network, self.node))
        self.assertIn("more like these", rest)
