"""The drill as an operator runs it: on a cluster of its own, and against one that he breaks himself."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from relay.drill.faults import why_no_cut
from tests.clients import looped, publish, read_clip
from tests.cluster import ENVIRONMENT, ClusterTestCase, Program
from tests.programs import is_ci, processes_that_name


def drill(*arguments: str, scratch: Path | None = None) -> Program:
    environment = ENVIRONMENT if scratch is None else {**ENVIRONMENT, "TMPDIR": str(scratch)}
    return Program([sys.executable, "-m", "relay.drill", *arguments], environment)


async def run(*arguments: str, scratch: Path | None = None) -> Program:
    program = drill(*arguments, scratch=scratch)
    program.start()
    await program.ended(120)
    return program


class CommandTests(TestCase):
    timeout = 150

    async def test_short_drill_holds_and_leaves_nothing(self) -> None:
        """One aggregator is killed, one distributor is cut off the network (as root)."""
        scratch = Path(self.mktemp()).absolute()
        scratch.mkdir()
        rows_at = scratch.with_suffix(".json")
        faults = "kill,cut" if why_no_cut() is None else "kill"
        if faults == "kill" and is_ci():
            self.fail(f"nothing is skipped on CI: {why_no_cut()}")
        options = ("--only", "agg1", "--faults", faults, "--viewers", "2", "--json", str(rows_at))
        program = await run(*options, scratch=scratch)
        self.assertEqual(0, program.status, program.text)
        self.assertIn("the promise held", program.text)
        report = json.loads(rows_at.read_text())
        self.assertEqual(["none", *faults.split(",")], [row["fault"] for row in report["rows"]])
        for row in report["rows"]:
            self.assertEqual((8, 0, 0, 0), (row["viewers"], row["cut"], row["missing"], row["repeated"]))
            self.assertLess(0, row["messages"])
        self.assertEqual(([], []), (list(scratch.iterdir()), processes_that_name(str(scratch))))

    async def test_bad_options_are_said_in_one_line(self) -> None:
        for arguments, words in (
            (["--faults", "kill,burn"], "'burn' is none of kill, hang, term, cut"),
            (["--faults", ""], "--faults: none is given"),
            (["--against", "somewhere"], "'somewhere' is not HOST:PORT"),
            (["--stream", "none"], "'none' is not APP/NAME"),
            (["--viewers", "0"], "must be 1 or more"),
        ):
            program = await run(*arguments)
            self.assertEqual(2, program.status, arguments)
            self.assertIn(words, program.text)
            self.assertNotIn("Traceback", program.text)

    async def test_drill_that_is_interrupted_does_not_hold_and_leaves_nothing(self) -> None:
        scratch = Path(self.mktemp()).absolute()
        scratch.mkdir()
        program = drill("--only", "agg1", "--faults", "hang", "--viewers", "1", scratch=scratch)
        program.start()
        await program.said("none", 60)
        program.signal(signal.SIGINT)
        self.assertEqual(2, await program.ended(40), program.text)
        self.assertIn("relay-drill: interrupted", program.text)
        self.assertEqual(([], []), (list(scratch.iterdir()), processes_that_name(str(scratch))))

    async def test_node_that_is_not_there(self) -> None:
        program = await run("--only", "c1", "--faults", "kill")
        self.assertEqual(2, program.status)
        self.assertIn("--only c1: there are o1, a1, a2, b1, b2, agg1, agg2, lb1", program.text)

    async def test_nobody_served(self) -> None:
        program = await run("--against", "127.0.0.1:9", "--viewers", "1")
        self.assertEqual(2, program.status, program.text)
        self.assertIn("a viewer can't connect", program.text)


class AgainstTests(ClusterTestCase):
    """A cluster of the test's, broken by the test."""

    timeout = 150

    async def setUp(self) -> None:
        super().setUp()
        self.start_cluster()
        await self.normal()

    async def test_aggregator_is_killed_and_nobody_sees_it(self) -> None:
        """The numbered stream is published by the drill itself."""
        program = self._against("--stream", "live/numbered", "--publish", self.origin.rtmp("live/numbered"))
        await program.said("viewers watch live/numbered", 30)
        await self.agg1.kill()
        await self.agg2.stream("live/numbered", lambda stream: stream["viewers"] == 4)
        program.signal(signal.SIGINT)
        self.assertEqual(0, await program.ended(), program.text)
        self.assertIn("the promise held", program.text)

    async def test_balancer_is_killed_and_it_is_said(self) -> None:
        """Of a stream without numbers, as one has them."""
        await publish(self, self.origin, "live/plain", looped(read_clip("h264_aac.flv")))
        await self.agg1.stream("live/plain")
        program = self._against("--stream", "live/plain")
        await program.said("viewers watch live/plain", 30)
        await self.balancer.kill()
        await program.said("is cut")
        await self.balancer.restart()
        program.signal(signal.SIGINT)
        self.assertEqual(1, await program.ended(40), program.text)
        self.assertIn("BROKEN: - yours", program.text)

    def _against(self, *arguments: str) -> Program:
        program = drill("--against", f"127.0.0.1:{self.balancer.port}", "--viewers", "2", *arguments)
        program.start()
        self.addCleanup(lambda: program.signal(signal.SIGKILL) if program.status is None else None)
        return program
