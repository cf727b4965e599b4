"""The benchmark of the virtual IP runs, and says what it found.  No figure is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.vip.test_virtual_ip import require_namespaces

ROOT = Path(__file__).parents[2]


class BenchmarkTests(SynchronousTestCase):
    """As an operator runs it."""

    def test_stopped_keepalived_is_measured(self) -> None:
        """The quickest of its faults: all viewers notice, and the client is served again."""
        require_namespaces()
        command = [sys.executable, str(ROOT / "benchmarks" / "virtual_ip.py"), "--json", "--rounds", "1"]
        done = subprocess.run(
            [*command, "--viewers", "3", "--fault", "keepalived SIGTERM"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
            timeout=60,
        )
        self.assertEqual(0, done.returncode, done.stderr)
        (row,) = json.loads(done.stdout)
        self.assertEqual((1, 3, 3), (row["rounds"], row["viewers"], row["noticed"]))
        self.assertLess(0, row["not_served_ms"]["max"])
