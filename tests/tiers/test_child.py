"""A child process and its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

import relay
from relay.tiers.child import PARENT_VARIABLE, LineObserver


class ChildTests(SynchronousTestCase):
    """``python -m relay.tiers.child``."""

    def run_child(self, parent: int) -> subprocess.CompletedProcess[str]:
        root = str(Path(relay.__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, PARENT_VARIABLE: str(parent)}
        command = [sys.executable, "-m", "relay.tiers.child", "--version"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def test_child_is_twistd(self) -> None:
        run = self.run_child(os.getpid())
        self.assertEqual(0, run.returncode, run.stderr)
        self.assertRegex(run.stdout, "^twistd ")

    def test_child_whose_parent_has_ended_does_not_begin(self) -> None:
        """It could never be told."""
        run = self.run_child(os.getpid() + 1)
        self.assertEqual((1, ""), (run.returncode, run.stdout))
        self.assertRegex(run.stderr, "^process [0-9]+, whose child this is, has ended\n$")


class LineObserverTests(SynchronousTestCase):
    """The form of a child's log."""

    def test_lines_have_no_time_of_their_own(self) -> None:
        """The parent puts its own before them."""
        out = StringIO()
        Logger("relay.net", observer=LineObserver(out)).emit(LogLevel.warn, "{name} is down", name="a1")
        self.assertEqual("[relay.net#warn] a1 is down\n", out.getvalue())
