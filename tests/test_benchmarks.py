"""The benchmarks run with tiny figures, say what they found, and leave nothing behind.  No figure is judged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from benchmarks.figures import percentile, table
from tests.programs import processes_that_name

ROOT = Path(__file__).parents[1]


class BenchmarkTests(TestCase):
    """Each as an operator runs it."""

    timeout = 90

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
        options = ("--viewers", "8", "--kbits", "400", "--seconds", "2", "--fault", "kill", "--json")
        (report,) = json.loads(await self._benchmark("mass_failover.py", *options))
        self.assertEqual((8, 4, 0), (report["viewers"], report["moved"], report["cut_by_balancer"]))
        self.assertEqual((0, 0, 0), (report["cut"], report["wrong"], report["behind"]))
        self.assertLess(0, report["pause_ms"]["p50"])

    async def test_take_over_upgrades_the_balancer_of_a_crowd(self) -> None:
        """Nobody of them, and nobody who comes meanwhile, notices."""
        options = ("--viewers", "8", "--kbits", "400", "--seconds", "2", "--rounds", "1", "--json")
        (report,) = json.loads(await self._benchmark("take_over.py", *options))
        counts = ("viewers", "cut", "wrong", "behind", "refused")
        self.assertEqual((8, 0, 0, 0, 0), tuple(report[name] for name in counts))
        self.assertLess(0, report["pause_ms"]["p50"])

    async def test_help_says_what_is_measured(self) -> None:
        """As every command does."""
        for benchmark in ("startup.py", "slow_viewers.py", "mass_failover.py", "take_over.py"):
            self.assertIn("--json", await self._benchmark(benchmark, "--help"))

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
        self.assertEqual([], list(scratch.iterdir()))
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
