"""Child processes that die, refuse and hang, without any process."""

from __future__ import annotations

import signal

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from relay.tiers.child import PARENT_VARIABLE
from relay.tiers.options import EXIT_CONFIG
from relay.tiers.supervise import LINE_BYTES, RESTART_SECONDS, STOP_SECONDS, Supervisor, child_environment


class FakeProcess:
    """A process that ends when a test says so; it notes the signals that it got."""

    def __init__(self, protocol, args):
        self.protocol = protocol
        self.args = args
        self.signals = []
        protocol.makeConnection(self)

    def signalProcess(self, name):
        self.signals.append(name)

    def write(self, data, descriptor=1):
        self.protocol.childDataReceived(descriptor, data)

    def end(self, status=0, by_signal=None):
        kind = ProcessDone(0) if status == 0 and by_signal is None else ProcessTerminated(status, by_signal)
        self.protocol.processEnded(Failure(kind))


class FakeReactor(Clock):
    """Spawns fake processes."""

    def __init__(self):
        super().__init__()
        self.processes = []

    def spawnProcess(self, processProtocol, executable, args=(), env=None, path=None, uid=None, gid=None):
        self.processes.append(FakeProcess(processProtocol, args))
        return self.processes[-1]


class SupervisorTestCase(SynchronousTestCase):
    """A supervisor of one node."""

    def setUp(self):
        self.reactor = FakeReactor()
        self.refusals = []
        self.supervisor = Supervisor(self.reactor, lambda name, why: self.refusals.append((name, why)))
        self.supervisor.add_node("a1", ["relay-distributor", "--name", "a1"])

    def start(self):
        self.supervisor.startService()
        self.addCleanup(self.end_all)
        return self.reactor.processes[-1]

    def end_all(self):
        stopping = self.supervisor.stopService()
        for process in self.reactor.processes:
            if process.protocol._inner.name in self.supervisor.protocols:
                process.end(by_signal=signal.SIGTERM)
        self.successResultOf(stopping)


class SupervisorTests(SupervisorTestCase):
    """Starting, restarting and stopping."""

    def test_node_runs_as_twistd_without_daemon_and_pid_file(self):
        """Eight nodes in one directory would fight about twistd.pid."""
        process = self.start()
        self.assertEqual(["relay-distributor", "--name", "a1"], process.args[-3:])
        self.assertIn("--nodaemon", process.args)
        self.assertIn("--pidfile=", process.args)

    def test_node_that_dies_is_started_again(self):
        process = self.start()
        self.reactor.advance(60)
        process.end(by_signal=signal.SIGKILL)
        self.reactor.advance(RESTART_SECONDS / 2)
        self.assertEqual(1, len(self.reactor.processes))
        self.reactor.advance(RESTART_SECONDS / 2)
        self.assertEqual((2, 1), (len(self.reactor.processes), self.supervisor.restarts("a1")))

    def test_node_that_refuses_at_once_is_not_started_again(self):
        """The supervisor's owner ends the cluster, with what the node said."""
        process = self.start()
        process.write(b"some log line\n")
        process.write(b"relay-distributor: --upstr", 2)
        process.write(b"eam x: no endpoint\n\n", 2)
        process.end(EXIT_CONFIG)
        self.assertEqual([("a1", "relay-distributor: --upstream x: no endpoint")], self.refusals)

    def test_node_that_ran_before_is_started_again_whatever_it_says(self):
        """Its port may be taken for a moment; the others go on serving."""
        self.start()
        self.reactor.advance(60)
        self.reactor.processes[-1].end(by_signal=signal.SIGKILL)
        self.reactor.advance(RESTART_SECONDS)
        self.reactor.processes[-1].end(EXIT_CONFIG)
        self.reactor.advance(30)
        self.assertEqual(([], 3), (self.refusals, len(self.reactor.processes)))

    def test_other_failures_are_retried_from_the_start(self):
        """A full disk may be emptied; a bug may need a second look.  The wait grows, but not to an hour."""
        self.start()
        for _ in range(20):
            self.reactor.processes[-1].end(1)
            self.reactor.advance(10)
        self.assertEqual(([], 21), (self.refusals, len(self.reactor.processes)))

    def test_stop_waits_until_every_process_has_ended(self):
        self.supervisor.add_node("a2", ["relay-distributor"])
        self.supervisor.startService()
        stopping = self.supervisor.stopService()
        first, second = self.reactor.processes
        self.assertEqual((["TERM"], ["TERM"]), (first.signals, second.signals))
        first.end()
        self.assertNoResult(stopping)
        second.end()
        self.successResultOf(stopping)
        self.reactor.advance(60)
        self.assertEqual(2, len(self.reactor.processes))

    def test_node_that_does_not_end_is_killed(self):
        """One that was stopped by SIGSTOP, for one."""
        process = self.start()
        stopping = self.supervisor.stopService()
        self.reactor.advance(STOP_SECONDS)
        self.assertEqual(["TERM", "KILL"], process.signals)
        process.end(by_signal=signal.SIGKILL)
        self.successResultOf(stopping)

    def test_stop_with_nothing_running_is_at_once(self):
        self.successResultOf(self.supervisor.stopService())

    def test_refusal_while_stopping_is_no_news(self):
        process = self.start()
        self.supervisor.stopService()
        process.end(EXIT_CONFIG)
        self.assertEqual([], self.refusals)


class LogTests(SupervisorTestCase):
    """What nodes write is in the parent's log, under their names."""

    def setUp(self):
        super().setUp()
        self.lines = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: LogEvent):
        if event.get("log_namespace") == "node":
            self.lines.append((event["node"], event["line"]))

    def test_lines_bear_the_name_of_their_node(self):
        """However they are cut on the way, and without the empty ones."""
        process = self.start()
        for byte in b"one {line}\n\ntwo \xff\n":
            process.write(bytes([byte]))
        process.write(b"three\n", 2)
        self.assertEqual([("a1", "one {line}"), ("a1", "two \\xff"), ("a1", "three")], self.lines)

    def test_last_line_without_newline_is_not_lost(self):
        process = self.start()
        process.write(b"Killed")
        process.end(by_signal=signal.SIGKILL)
        self.assertEqual([("a1", "Killed")], self.lines)

    def test_endless_line_is_bounded(self):
        process = self.start()
        process.write(b"x" * (LINE_BYTES + 1))
        self.assertEqual([LINE_BYTES + 1], [len(line) for _, line in self.lines])


class ChildEnvironmentTests(SynchronousTestCase):
    """What a child finds."""

    def test_child_finds_this_package_and_its_parent(self):
        environment = child_environment({"PYTHONPATH": "/elsewhere", "LANG": "C"})
        self.assertRegex(environment["PYTHONPATH"], "^/.*:/elsewhere$")
        self.assertEqual("C", environment["LANG"])
        self.assertTrue(environment[PARENT_VARIABLE].isdecimal())
