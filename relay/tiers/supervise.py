"""The child processes of a cluster: one a node, started again when it dies, all ended with the parent.

Owns starting, restarting and stopping them, and telling a node that can't start from one that died.  Called by
:mod:`relay.tiers.cluster`.

``twisted.runner.procmon`` restarts whatever ends, for ever and whatever its exit status was.  It asks a reactor to
spawn processes, so a reactor of ours stands between and sees each process end.  A node that ends with ``EXIT_CONFIG``
the first time that it is started has a bad option or a port in use, and starting it again won't help.  One that ran
before is started again whatever its status: its port may be taken for a moment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.runner.procmon import ProcessMonitor
from zope.interface import implementer

import relay
from relay.tiers.child import PARENT_VARIABLE
from relay.tiers.jsonlogs import is_json_line
from relay.tiers.options import EXIT_CONFIG

STOP_SECONDS = 10
"""From SIGTERM to SIGKILL, for all nodes at once.

Balancers let their viewers go and end; aggregators, which drain, have no session left then, and end; then distributors
have no copy left.  It takes a second or two, unless one hangs.
"""

RESTART_SECONDS = 1.0
"""Until a node that died is started again: just then its neighbours need the processor, for its viewers move."""

MAX_RESTART_SECONDS = 10
"""Longest wait before a node that dies at once is started again; procmon's own is an hour."""

LINE_BYTES = 64 << 10
"""Of a child's output without a newline; then it is logged as it is."""

TWISTD = (
    sys.executable,
    "-m",
    "relay.tiers.child",
    "--nodaemon",
    "--pidfile=",
    "--logger=relay.tiers.child.make_observer",
)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, in which a child finds the same package and its parent."""
    root = str(Path(relay.__file__).parent.parent)
    python_path = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONPATH": python_path, PARENT_VARIABLE: str(os.getpid())}


class Supervisor(ProcessMonitor):
    """Runs ``twistd`` with the arguments of each node.

    Args:
        reactor: spawns and keeps time.
        on_refused: told (node, last line of its standard error) when a node can't start at all.  Unless the service
            is stopped then, the node is started again like any other.
        restart_seconds: until a node that died is started again, at the least.
    """

    killTime = STOP_SECONDS
    maxRestartDelay = MAX_RESTART_SECONDS

    def __init__(
        self, reactor: Any, on_refused: Callable[[str, str], None], restart_seconds: float = RESTART_SECONDS
    ) -> None:
        super().__init__(_ChildReactor(reactor, self._spawned, self._ended, restart_seconds))
        self.starts: dict[str, int] = {}
        self._time: IReactorTime = reactor
        self._on_refused = on_refused
        self._alive = 0
        self._when_ended: dict[str, Deferred[None]] = {}  # of those that are to end
        self._when_empty: list[Deferred[None]] = []

    def add_node(self, name: str, arguments: Sequence[str]) -> None:
        """Run a node, from now or the start of the service on."""
        self.starts[name] = 0
        self.addProcess(name, [*TWISTD, *arguments], env=child_environment(os.environ))

    def end_node(self, name: str) -> Deferred[None]:
        """Stop a node for good, by SIGTERM first; fires when its process has ended."""
        waiting = self.restart.pop(name, None)
        if waiting is not None and waiting.active():
            waiting.cancel()
        ended: Deferred[None] = Deferred()
        if name in self.protocols:
            self._when_ended[name] = ended
        else:
            ended.callback(None)
        self.removeProcess(name)
        return ended

    def restarts(self, name: str) -> int:
        """How often a node was started again."""
        return max(0, self.starts.get(name, 0) - 1)

    def seconds_running(self, name: str) -> float:
        """Since its process was started; 0 if it has none."""
        return self._time.seconds() - self.timeStarted[name] if name in self.protocols else 0.0

    def startProcess(self, name: str) -> None:
        if name not in self.protocols:
            self.starts[name] += 1
            if self.starts[name] > 1:
                self.log.info("{name} is started again", event="process", name=name)
        super().startProcess(name)

    def stopService(self) -> Deferred[None]:  # type: ignore[override]  # a service may, procmon doesn't
        """End all; fires when none is left."""
        super().stopService()
        return self.when_empty()

    def hang_up(self, name: str) -> None:
        """SIGHUP to a node that runs: it reads its keys again."""
        protocol = self.protocols.get(name)
        if protocol is not None and protocol.transport is not None:
            try:
                protocol.transport.signalProcess("HUP")
            except ProcessExitedAlready:
                return  # it is started again, and reads everything

    def when_empty(self) -> Deferred[None]:
        """Fires when no child process is left."""
        if not self._alive:
            return succeed(None)
        empty: Deferred[None] = Deferred()
        self._when_empty.append(empty)
        return empty

    def _spawned(self) -> None:
        self._alive += 1

    def _ended(self, name: str, how: Failure, last_error: str) -> None:
        self._alive -= 1
        status: int | None = getattr(how.value, "exitCode", None)
        ended = self._when_ended.pop(name, None)
        if ended is not None:
            ended.callback(None)
        elif self.running:
            killed = getattr(how.value, "signal", None)
            words = f"signal {killed}" if killed is not None else f"exit status {status}"
            self.log.warn("{name}: its process has ended ({how})", event="process", name=name, how=words)
        if status == EXIT_CONFIG and self.starts[name] == 1 and self.running and ended is None:
            self._on_refused(name, last_error)
        if not self._alive:
            waiting, self._when_empty = self._when_empty, []
            for empty in waiting:
                empty.callback(None)


class _WatchedProcess(ProcessProtocol):
    """Logs what a process writes, line by line, and tells when it has ended: procmon first, then the supervisor."""

    def __init__(self, inner: Any, on_end: Callable[[str, Failure, str], None]) -> None:
        self._log = Logger("node")  # as a class attribute it would bear this class's name, which means nothing here
        self._inner = inner
        self._on_end = on_end
        self._unfinished = {1: b"", 2: b""}
        self._last_error = ""

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)
        self._inner.makeConnection(transport)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *lines, rest = (self._unfinished[childFD] + data).split(b"\n")
        if len(rest) > LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._unfinished[childFD] = rest
        for line in lines:
            self._log_line(childFD, line)

    def processEnded(self, reason: Failure) -> None:
        for descriptor, rest in self._unfinished.items():
            self._log_line(descriptor, rest)
        self._inner.processEnded(reason)
        self._on_end(self._inner.name, reason, self._last_error)

    def _log_line(self, descriptor: int, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip()
        if not text:
            return
        if descriptor == 2:
            self._last_error = text
        more = {"json_line": text} if is_json_line(text) else {}
        self._log.info("[{node}] {line}", node=self._inner.name, line=text, **more)


@implementer(IReactorProcess, IReactorTime)
class _ChildReactor:
    """What procmon needs of a reactor, with each process watched."""

    def __init__(
        self,
        reactor: Any,
        on_spawn: Callable[[], None],
        on_end: Callable[[str, Failure, str], None],
        restart_seconds: float,
    ) -> None:
        self._reactor = reactor
        self._restart_seconds = restart_seconds
        self._on_spawn = on_spawn
        self._on_end = on_end

    def spawnProcess(self, processProtocol: Any, *args: Any, **kwargs: Any) -> Any:
        process = self._reactor.spawnProcess(_WatchedProcess(processProtocol, self._on_end), *args, **kwargs)
        self._on_spawn()
        return process

    def seconds(self) -> float:
        seconds: float = self._reactor.seconds()
        return seconds

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        return self._reactor.callLater(max(delay, self._restart_seconds), callable, *args, **kwargs)

    def getDelayedCalls(self) -> Sequence[Any]:
        calls: Sequence[Any] = self._reactor.getDelayedCalls()
        return calls
