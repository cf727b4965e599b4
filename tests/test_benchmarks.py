"""The benchmarks run with tiny figures, say what they found, and leave nothing behind.  No figure is judged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredSemaphore, ensureDeferred, gatherResults
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from benchmarks.figures import percentile, table
from tests.programs import processes_that_name, require_module, require_program

ROOT = Path(__file__).parents[1]


COMPARING = {  # with as little as they can do, and without their peers
    "fanout.py": "--viewers 4 --interval 100 --kbits 8000 --seconds 1 --without-peer",
    "splice.py": "--viewers 4 --kbits 8000 --seconds 1 --without-peer",
    "join.py": "--joins 4 --rate 100 --storm 4 --without-peer",
    "memory.py": "--viewers 4 --streams 2 --without-peer",
    "chain.py": "--viewers 4 --streams 2 --seconds 1",
    "ingest.py": "--streams 2 --seconds 1 --without-peer",
    "scale.py": "--viewers 2 --kbits 8000 --seconds 1",
}


class BenchmarkTests(TestCase):
    """Each as an operator runs it."""

    timeout = 180

    async def test_startup_counts_the_joins_through_a_whole_cluster(self) -> None:
        """Without a URL it starts a cluster, joins over both protocols and ends everything."""
        rows = json.loads(await self._benchmark("startup.py", "--joins", "2", "--json"))
        self.assertEqual(["rtmp", "http"], [row["url"].partition(":")[0] for row in rows])
        for row in rows:
            self.assertEqual((2, []), (row["joins"], row["failures"]))
            self.assertLess(0, row["connected_ms"]["p50"])
            self.assertLess(row["connected_ms"]["p50"], row["first_frame_ms"]["p50"])

    async def test_startup_says_which_joins_failed(self) -> None:
        """A server that is not there is a failure of each join, and of the run."""
        out, err, status = await self._try_benchmark(
            "startup.py", "--joins", "1", "--url", "http://127.0.0.1:9/live/demo.flv"
        )
        self.assertEqual(1, status)
        self.assertIn("refused", err)
        self.assertIn("http://127.0.0.1:9/live/demo.flv", out)

    async def test_slow_viewers_reports_memory_and_lag(self) -> None:
        """It notes the aggregator's memory at every stage, and the reader's lag with and without the others."""
        report = json.loads(await self._benchmark("slow_viewers.py", "--viewers", "4", "--seconds", "4", "--json"))
        self.assertEqual(4, len(report["memory_bytes"]))
        for memory in report["memory_bytes"].values():
            self.assertLess(1 << 20, memory["resident"])
            self.assertLess(0, memory["log"])
        for phase in ("before", "with", "after"):
            self.assertLessEqual(0, report["reader_lag_ms"][phase]["p50"])

    async def test_mass_failover_moves_the_crowd_and_compares_every_byte(self) -> None:
        """Half of them are at the aggregator that is killed."""
        require_program("cc")
        options = ("--viewers", "8", "--kbits", "400", "--seconds", "2", "--fault", "kill", "--json")
        (report,) = json.loads(await self._benchmark("mass_failover.py", *options))
        self.assertEqual((8, 4, 0), (report["viewers"], report["moved"], report["cut_by_balancer"]))
        self.assertEqual((0, 0, 0), (report["cut"], report["wrong"], report["behind"]))
        self.assertLess(0, report["pause_ms"]["p50"])

    async def test_take_over_upgrades_the_balancer_of_a_crowd(self) -> None:
        """Nobody of them, and nobody who comes meanwhile, notices."""
        require_program("cc")
        options = ("--viewers", "8", "--kbits", "400", "--seconds", "2", "--rounds", "1", "--json")
        (report,) = json.loads(await self._benchmark("take_over.py", *options))
        counts = ("viewers", "cut", "wrong", "behind", "refused")
        self.assertEqual((8, 0, 0, 0, 0), tuple(report[name] for name in counts))
        self.assertLess(0, report["pause_ms"]["p50"])

    async def test_help_says_what_is_measured(self) -> None:
        """As every command does."""
        for benchmark in ("startup.py", "slow_viewers.py", "mass_failover.py", "take_over.py", *COMPARING):
            self.assertIn("--json", await self._benchmark(benchmark, "--help"))

    async def test_those_that_compare_report_each_row(self) -> None:
        """A table for people, JSON for programs; every row has a figure for every column, and delivers the stream."""
        require_program("cc")
        three = DeferredSemaphore(3)
        runs = [three.run(ensureDeferred, self._report_of(*each)) for each in COMPARING.items()]
        for out, report in await gatherResults(runs, consumeErrors=True):
            self.assertIn("relay", report["versions"])
            for row in report["rows"]:
                self.assertIn(row["name"], out)
                self.assertEqual(1, len(row["rounds"]), row)
                self.assertTrue(all(value >= 0 for value in row["median"].values()), row)
                self.assertLess(90, row["median"].get("delivered", 100), row)

    async def _report_of(self, benchmark: str, options: str) -> tuple[str, dict[str, Any]]:
        """What it says, and what it writes."""
        found = Path(self.mktemp()).absolute()
        words = [*options.split(), "--rounds", "1", "--settle", "0.2", "--json", str(found)]
        return await self._benchmark(benchmark, *words), json.loads(found.read_text())

    async def test_peers_are_compared_with(self) -> None:
        """nginx-rtmp and HAProxy, in the same run, with a picture of it."""
        for program in ("cc", "nginx", "haproxy"):
            require_program(program)
        require_module("matplotlib")
        for benchmark, options, peer in (
            ("join.py", "--joins 4 --rate 100 --storm 4", "nginx-rtmp"),
            ("splice.py", "--bulk --seconds 1", "HAProxy, its best"),
        ):
            found, picture = Path(self.mktemp()).absolute(), Path(f"{self.mktemp()}.svg").absolute()
            words = [*options.split(), "--rounds", "1", "--json", str(found), "--plot", str(picture)]
            await self._benchmark(benchmark, *words)
            report = json.loads(found.read_text())
            ours = next(row for row in report["rows"] if row["name"] == "relay")
            self.assertEqual(peer, report["peer"])
            self.assertTrue(all(ratio > 0 for ratio in ours["ratio"].values()), ours)
            self.assertIn("<svg", picture.read_text())

    async def test_ours_runs_beside_each_way_of_haproxy(self) -> None:
        """At once: a ratio for each."""
        for program in ("cc", "haproxy"):
            require_program(program)
        out, report = await self._report_of("splice.py", "--beside --viewers 20 --kbits 8000 --seconds 2")
        self.assertEqual(3, len(report["rows"]))
        for row in report["rows"]:
            self.assertIn(row["name"], out)
            self.assertLess(0, row["median"]["ratio"])
            self.assertLess(90, row["median"]["delivered"], row)

    async def _benchmark(self, benchmark: str, *arguments: str) -> str:
        out, err, status = await self._try_benchmark(benchmark, *arguments)
        self.assertEqual(0, status, err)
        return out

    async def _try_benchmark(self, benchmark: str, *arguments: str) -> tuple[str, str, int]:
        scratch = Path(self.mktemp()).absolute()
        scratch.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
        command = [str(ROOT / "benchmarks" / benchmark), *arguments]
        out, err, status = await getProcessOutputAndValue(sys.executable, command, environment)
        self.assertEqual([], [path for path in scratch.iterdir() if path.name != f"relay-benchmarks-{os.getuid()}"])
        self.assertEqual([], processes_that_name(str(scratch)))
        return out.decode(), err.decode(), status


class FigureTests(SynchronousTestCase):
    """What both print."""

    def test_percentile_is_one_of_the_values(self) -> None:
        """The nearest rank, never something between two values."""
        values = [float(value) for value in range(100, 0, -1)]
        self.assertEqual([1, 50, 99, 100], [percentile(values, percent) for percent in (0, 50, 99, 100)])
        self.assertEqual([7, 7], [percentile([7.0], percent) for percent in (1, 99)])

    def test_table_lines_up(self) -> None:
        """Names to the left, figures to the right."""
        self.assertEqual("a    p50\nbcd  1.0", table([["a", "p50"], ["bcd", 1.0]]))
