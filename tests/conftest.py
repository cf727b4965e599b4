"""What pytest adds to the suite: hypothesis profiles, and two checks after each test in the rooms that use a reactor.

A test that waits for Deferreds is a ``twisted.trial.unittest.TestCase`` with an ``async def`` method, which pytest and
trial both run; or, where pytest's fixtures or parameters are wanted, a function that pytest-twisted runs.  The two
take turns: pytest-twisted's reactor keeps running in a greenlet after its first function, and a trial test that waits
would start it again.  So all test cases run first (:func:`pytest_collection_modifyitems`).

trial checks its own test cases for delayed calls, open ports and logged errors.  It does not check plain functions,
nor see connections that were added to the reactor and lost again by the test.  :func:`clean_reactor` does both.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from _pytest.unittest import TestCaseFunction
from hypothesis import settings
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.programs import is_ci

settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("ci" if is_ci() else "dev")

_REACTOR_ROOMS = frozenset({"net", "tiers", "admin", "integration", "interop"})
_PROCESS_ROOMS = frozenset({"integration", "interop", "vip", "drill", "page"})
_PROCESS_MODULES = frozenset(
    f"test_{what}" for what in ["cluster", "benchmarks", "benchmark", "crowd", "examples", "deployment", "monitoring"]
)
HALVES = {"rooms": False, "processes": True}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Trial's test cases first: see the module.

    With ``RELAY_TESTS=processes`` only those that start real nodes and wait for them, with ``rooms`` only the others,
    which keep a core busy: CI runs both halves at the same time.
    """
    items.sort(key=lambda item: not isinstance(item, TestCaseFunction))
    half = os.environ.get("RELAY_TESTS")
    if half is not None:
        others = [item for item in items if _starts_processes(item) is not HALVES[half]]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _starts_processes(item) is HALVES[half]]


def _starts_processes(item: pytest.Item) -> bool:
    return not _PROCESS_ROOMS.isdisjoint(item.path.parent.parts) or item.path.stem in _PROCESS_MODULES


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Leave to pytest-twisted only what is marked as its own.

    It would run every function in its greenlet, and it wraps a parametrized hypothesis test once for each parameter,
    on top of the former wrap.
    """
    if pytest_twisted._get_mark(pyfuncitem.obj) is not None:
        return None
    pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    return True


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported out of later collections: ``gc.collect()`` after a test then takes 1 ms, not 60."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def trial_directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run trial's test cases in a temporary directory, as trial does: their ``mktemp`` makes paths below it."""
    if isinstance(request.instance, SynchronousTestCase):
        monkeypatch.chdir(tmp_path_factory.getbasetemp())


@attrs.define
class LoggedErrors:
    """The failures logged while a plain test function runs.  Those that it expects, it flushes."""

    _events: list[LogEvent] = attrs.field(factory=list)

    def __call__(self, event: LogEvent) -> None:
        """An observer of ``twisted.logger``."""
        if event.get("log_failure") is not None:
            self._events.append(event)

    def flush(self, *kinds: type[BaseException]) -> list[BaseException]:
        """Forget and return the logged exceptions that are one of ``kinds`` (all, when none is named)."""
        wanted = kinds or (BaseException,)
        flushed = [event for event in self._events if event["log_failure"].check(*wanted)]
        self._events = [event for event in self._events if event not in flushed]
        return [event["log_failure"].value for event in flushed]

    @property
    def tracebacks(self) -> list[str]:
        """Those not flushed, as text."""
        return [event["log_failure"].getTraceback() for event in self._events]


@pytest.fixture
def logged_errors() -> Iterator[LoggedErrors]:
    """For a plain test function that makes the code log failures.  A trial test case uses ``flushLoggedErrors``."""
    errors = LoggedErrors()
    globalLogPublisher.addObserver(errors)
    try:
        yield errors
        gc.collect()  # a failed Deferred that nobody looked at is logged when it is collected
    finally:
        globalLogPublisher.removeObserver(errors)
    if errors.tracebacks:
        pytest.fail("logged and not flushed:\n" + "\n".join(errors.tracebacks), pytrace=False)


@pytest.fixture(autouse=True)
def clean_reactor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a delayed call or a socket in the reactor, or a logged failure not flushed."""
    if _REACTOR_ROOMS.isdisjoint(request.path.parent.parts):
        yield
        return
    if not isinstance(request.instance, SynchronousTestCase):
        request.getfixturevalue("logged_errors")
    from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

    before = _left_in(reactor)
    yield
    gc.collect()
    left = [entry for entry in _left_in(reactor) if entry not in before]
    for entry in left:
        _remove(reactor, entry)
    if left:
        pytest.fail("left in the reactor:\n" + "\n".join(repr(entry) for entry in left), pytrace=False)


def _left_in(reactor: Any) -> list[object]:
    """Delayed calls, readers and writers, without those that the reactor needs for itself."""
    selectables = {*reactor.getReaders(), *reactor.getWriters()} - reactor._internalReaders
    return [*reactor.getDelayedCalls(), *selectables]


def _remove(reactor: Any, entry: Any) -> None:
    if hasattr(entry, "cancel"):
        entry.cancel()
        return
    reactor.removeReader(entry)
    reactor.removeWriter(entry)
