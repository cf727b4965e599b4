"""The suite's own checks: a test that leaves something behind fails, whatever kind of test it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tests
from tests.programs import require_program

LEAKY = """
from hypothesis import given, strategies
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

def log_failure():
    Logger().failure("x", Failure(ValueError("boo")))

def test_bad_delayed_call():
    reactor.callLater(100, print)

def test_bad_port():
    reactor.listenTCP(0, Factory(), interface="127.0.0.1")

def test_bad_logged_failure():
    log_failure()

def test_bad_failed_deferred():
    failed = Deferred()
    failed.errback(ValueError("boo"))
    failed.itself = failed

def test_good_flushed_failure(logged_errors):
    log_failure()
    assert len(logged_errors.flush(ValueError)) == 1

@given(strategies.integers())
def test_good_property(number):
    pass

class TrialTests(TestCase):
    def test_bad_port(self):
        reactor.listenTCP(0, Factory(), interface="127.0.0.1")

    async def test_good_that_waits(self):
        waiting = Deferred()
        reactor.callLater(0, waiting.callback, None)
        await waiting

class SynchronousTests(SynchronousTestCase):
    def test_bad_delayed_call(self):
        reactor.callLater(100, print)

    def test_good_flushed_failure(self):
        log_failure()
        assert len(self.flushLoggedErrors(ValueError)) == 1
"""


def run_pytest(directory: Path) -> str:
    root = Path(tests.__file__).parent.parent
    (directory / "conftest.py").write_text("from tests.conftest import *\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:twisted", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    return run.stdout


def test_whatever_is_left_behind_fails_the_test(tmp_path: Path) -> None:
    """In the rooms that use a reactor."""
    room = tmp_path / "net"
    room.mkdir()
    (room / "test_leaky.py").write_text(LEAKY)
    outcomes = {}
    for line in run_pytest(tmp_path).splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "ERROR"):
            name = rest.split(" - ")[0].rpartition("test_leaky.py::")[2]
            outcomes[name] = outcomes.get(name, True) and word == "PASSED"
    assert len(outcomes) == 10, outcomes
    assert outcomes == {name: "bad" not in name for name in outcomes}


def test_missing_program_is_a_failure_in_ci_alone(monkeypatch) -> None:
    """Off CI a test that needs it is skipped."""
    assert Path(require_program("sh")).is_absolute()
    for variable, expected in (("", "SkipTest"), ("1", "AssertionError")):
        monkeypatch.setenv("RELAY_CI", variable)
        monkeypatch.setenv("CI", "")
        try:
            require_program("no-such-program")
        except Exception as error:
            assert type(error).__name__ == expected
        else:
            raise AssertionError("found")
