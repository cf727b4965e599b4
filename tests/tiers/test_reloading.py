"""What is different in a cluster file, and in which order a running cluster follows it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.polling import Answer
from relay.tiers.cluster import BLIND_SECONDS, Cluster
from relay.tiers.clusterfile import ClusterSpec, load
from relay.tiers.options import EXIT_CONFIG
from relay.tiers.reloading import LOOK_SECONDS, WELL_SECONDS, Changes, Reloader, compare
from tests.tiers.test_supervise import FakeProcess, FakeReactor

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.toml"
NEW_PAIR = """
[[pair]]
name = "c"
[[pair.distributor]]
name = "c1"
listen = "tcp:1971:interface=127.0.0.1"
[[pair.distributor]]
name = "c2"
listen = "tcp:1972:interface=127.0.0.1"
"""
THIRD_AGGREGATOR = """
[[aggregator]]
name = "agg3"
listen = "tcp:1963:interface=127.0.0.1"
"""
MERGED = [
    (f'tcp:{port}:interface=127.0.0.1"', f'tcp:{port}:interface=127.0.0.1"\nread = "merge"') for port in (8086, 8087)
]


def names(nodes: Sequence[object]) -> list[str]:
    return [node if isinstance(node, str) else getattr(node, "name", "") for node in nodes]


class SpecTestCase(SynchronousTestCase):
    """The example, and what is made of it."""

    def spec(self, *replaced: tuple[str, str], more: str = "") -> ClusterSpec:
        text = EXAMPLE.read_text(encoding="utf-8")
        for old, new in replaced:
            self.assertIn(old, text)
            text = text.replace(old, new)
        tomllib.loads(text + more)
        path = Path(self.mktemp())
        path.write_text(text + more, encoding="utf-8")
        return attrs.evolve(load(path), store=Path("/store"))

    def running(self) -> dict[str, list[str]]:
        spec = self.spec()
        return {node.name: spec.arguments(node) for node in spec}


class CompareTests(SpecTestCase):
    """Which nodes are concerned."""

    def test_same_file_changes_nothing(self) -> None:
        changes = compare(self.running(), self.spec())
        self.assertTrue(changes.is_empty)
        self.assertEqual("nothing has changed", changes.describe())

    def test_new_pair_is_started_and_gathered(self) -> None:
        """By every aggregator; nobody else's command line is another."""
        changes = compare(self.running(), self.spec(more=NEW_PAIR))
        self.assertEqual((["c1", "c2"], ["agg1", "agg2"]), (names(changes.added), names(changes.changed)))
        self.assertEqual("added: c1, c2; changed: agg1, agg2", changes.describe())

    def test_node_that_is_gone_is_removed(self) -> None:
        running = {**self.running(), "c1": ["relay-distributor", "--name", "c1"]}
        self.assertEqual("removed: c1", compare(running, self.spec()).describe())

    def test_balancer_is_left_as_it_is(self) -> None:
        """Its viewers could go nowhere."""
        changes = compare(self.running(), self.spec(("tcp:1935", "tcp:1999")))
        self.assertEqual(([], ["lb1"]), (names(changes.changed), [node.name for node, _ in changes.kept]))
        self.assertIn("lb1 is left as it is (its viewers would be cut", changes.describe())

    def test_only_aggregator_is_left_as_it_is(self) -> None:
        start = EXAMPLE.read_text(encoding="utf-8").index('[[aggregator]]\nname = "agg2"')
        text = EXAMPLE.read_text(encoding="utf-8")[start:]
        second = text[: text.index("# ---")]
        changes = compare(self.running(), self.spec((second, ""), more=NEW_PAIR))
        self.assertEqual({"agg1", "lb1"}, {node.name for node, _ in changes.kept})
        self.assertEqual(["agg2"], list(changes.removed))


@attrs.define
class FixedProcesses:
    """Notes what is asked, in order; nodes end when they are told to, if they are not in ``slow``."""

    done: list[str] = attrs.field(factory=list)
    slow: dict[str, Deferred[None]] = attrs.field(factory=dict)

    def add_node(self, name: str, arguments: Sequence[str]) -> None:
        self.done.append(f"start {name}")

    def end_node(self, name: str) -> Deferred[None]:
        self.done.append(f"stop {name}")
        return self.slow.get(name) or succeed(None)


class FollowTests(SpecTestCase):
    """In which order, with a clock and no process."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.processes = FixedProcesses()
        self.well: set[str] = set()

    def follow(self, changes: Changes, spec: ClusterSpec) -> Deferred[bool]:
        reloader = Reloader(self.processes, spec, lambda node: node.name in self.well, self.clock)
        return Deferred.fromCoroutine(reloader.follow(changes))

    def become_well(self, *nodes: str) -> None:
        self.well.update(nodes)
        self.clock.pump([LOOK_SECONDS] * 2)

    def test_one_after_another_and_only_when_the_last_is_well(self) -> None:
        spec = self.spec(more=NEW_PAIR)
        running = {**self.running(), "old": ["relay-distributor"]}
        done = self.follow(compare(running, spec), spec)
        self.assertEqual(["start c1", "start c2"], self.processes.done)
        self.become_well("c1")
        self.assertEqual(2, len(self.processes.done))
        self.become_well("c2")
        self.assertEqual(["stop agg1", "start agg1"], self.processes.done[2:])
        self.become_well("agg1")
        self.assertEqual(["stop agg2", "start agg2"], self.processes.done[4:])
        self.become_well("agg2")
        self.assertEqual(["stop old"], self.processes.done[6:])
        self.assertTrue(self.successResultOf(done))

    def test_node_that_does_not_end_yet_is_waited_for(self) -> None:
        """It drains."""
        spec = self.spec(more=NEW_PAIR)
        self.well.update(("c1", "c2"))
        draining: Deferred[None] = Deferred()
        self.processes.slow["agg1"] = draining
        self.follow(compare(self.running(), spec), spec)
        self.assertEqual(["start c1", "start c2", "stop agg1"], self.processes.done)
        draining.callback(None)
        self.assertEqual("start agg1", self.processes.done[-1])

    def test_node_that_does_not_become_well_spares_the_others(self) -> None:
        """The second aggregator goes on as it was."""
        spec = self.spec(more=NEW_PAIR)
        self.well.update(("c1", "c2"))
        done = self.follow(compare(self.running(), spec), spec)
        self.clock.pump([LOOK_SECONDS] * (round(WELL_SECONDS / LOOK_SECONDS) + 2))
        self.assertFalse(self.successResultOf(done))
        self.assertNotIn("stop agg2", self.processes.done)


class WholeReactor(FakeReactor, MemoryReactorClock):
    """Fake processes, a clock, and a network on which nobody answers."""


def with_option(spec: ClusterSpec, name: str, option: str) -> ClusterSpec:
    """One node of it gets another option."""
    change = {node: attrs.evolve(node, own_arguments=(*node.own_arguments, option)) for node in [spec.node(name)]}
    return attrs.evolve(spec, aggregators=[change.get(node, node) for node in spec.aggregators])


class ClusterTests(SpecTestCase):
    """A whole cluster at SIGHUP, whose processes run, end and answer when a test says so."""

    def setUp(self) -> None:
        self.reactor = WholeReactor()
        self.lines: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: LogEvent) -> None:
        self.lines.append((event["log_level"], formatEvent(event)))

    def run_cluster(self, spec: ClusterSpec) -> None:
        """Start it; all are normal."""
        spec = attrs.evolve(spec, demo=None)
        self.cluster = Cluster(spec, "tcp:8080", self.reactor)
        self.cluster.poller.disownServiceParent()  # the test says what it knows
        self.cluster.startService()
        self.addCleanup(self.end)
        self.answer(*names(list(spec)))

    def end(self) -> None:
        stopping = self.cluster.stopService()
        for name in list(self.cluster.supervisor.protocols):
            self.process(name).end()
        self.successResultOf(stopping)

    def reload(self, spec: ClusterSpec) -> None:
        self.cluster.reload(lambda: attrs.evolve(spec, demo=None))

    def process(self, name: str) -> FakeProcess:
        """The newest of this node."""
        return next(each for each in reversed(self.reactor.processes) if each.protocol._inner.name == name)

    def runs(self, name: str) -> bool:
        return name in self.cluster.supervisor.protocols

    def answer(self, *nodes: str, state: str = "normal", **more: object) -> None:
        for name in nodes:
            self.cluster.poller.answers[name] = Answer(state=state, **more)

    def pass_time(self, seconds: float = 2 * LOOK_SECONDS) -> None:
        self.reactor.pump([LOOK_SECONDS] * round(seconds / LOOK_SECONDS))

    def said(self, words: str) -> list[str]:
        """At which levels."""
        return [level.name for level, line in self.lines if words in line]

    def ended(self, name: str) -> None:
        """It was told to, and has."""
        self.assertEqual("TERM", self.process(name).signals[-1])
        self.process(name).end()

    def test_option_that_is_wrong_changes_nothing(self) -> None:
        """It is found before a node is stopped; so is a file that can't be used."""
        self.run_cluster(self.spec())
        for option in ("--keep-secnds=5", "--version", "--sign-key-file=/nowhere/keys"):
            self.reload(with_option(self.spec(more=NEW_PAIR), "agg1", option))
            self.assertEqual(([], False), (self.process("agg1").signals, self.runs("c1")), option)
        self.assertEqual(["error"] * 3, self.said("nothing is changed: agg1: "))

    def test_nodes_that_stay_read_their_keys_again(self) -> None:
        self.run_cluster(self.spec())
        self.reload(with_option(self.spec(), "agg1", "--merge-ms=50"))
        self.assertEqual((["HUP"], ["TERM"]), (self.process("agg2").signals, self.process("agg1").signals))

    def test_reload_that_is_over_at_once_is_not_the_last(self) -> None:
        """Nothing had to be waited for, as when nothing has changed."""
        self.run_cluster(self.spec())
        self.reload(self.spec())
        self.reload(self.spec(more=NEW_PAIR))
        self.assertEqual(([], True), (self.said("the last reload goes on"), self.runs("c1")))
        self.reload(self.spec())
        self.assertEqual(["warn"], self.said("the last reload goes on"))

    def test_node_that_a_reload_brings_does_not_end_the_cluster(self) -> None:
        """If it can't start, now or when the reload is over: what to do is said, and it is tried again."""
        self.run_cluster(self.spec())
        self.reload(self.spec(more=THIRD_AGGREGATOR))
        self.refuse("agg3")
        self.pass_time(BLIND_SECONDS + 2)
        self.assertEqual((["info"], True), (self.said("the cluster is as the file says"), self.runs("agg3")))

    def test_node_that_refuses_when_the_reload_is_over_does_not_end_the_cluster(self) -> None:
        """It came that far before it found its port taken."""
        self.run_cluster(self.spec())
        self.reload(self.spec(more=THIRD_AGGREGATOR))
        self.pass_time(BLIND_SECONDS + 1)
        self.assertEqual(["info"], self.said("the cluster is as the file says"))
        self.refuse("agg3")

    def refuse(self, name: str) -> None:
        """It ends as one that has a bad option; nobody else does."""
        self.process(name).write(b"relay-aggregator: no\n", 2)
        self.process(name).end(EXIT_CONFIG)
        self.assertEqual(["critical"], self.said(f"{name} can't start: relay-aggregator: no. It is tried again"))
        self.assertFalse(self.reactor.hasStopped)

    def test_node_that_can_not_be_asked_is_well_when_it_has_run_for_a_while(self) -> None:
        """The second aggregator is not touched before."""
        self.run_cluster(self.spec())
        self.reload(self.spec(more=NEW_PAIR))
        self.pass_time(BLIND_SECONDS - 1)
        self.process("c2").end(EXIT_CONFIG)
        self.pass_time(BLIND_SECONDS)
        self.assertEqual([], self.process("agg1").signals)
        self.pass_time(2)
        self.ended("agg1")

    def test_balancer_that_does_not_answer_proves_nothing(self) -> None:
        """An aggregator that was restarted may have no viewers yet, so the next one keeps its own."""
        agg1 = self.spec().node("agg1").connect
        self.run_cluster(self.spec())
        self.reload(self.spec(*MERGED))
        self.ended("agg1")
        self.answer("lb1", state="down")
        self.answer("agg1")
        self.pass_time()
        self.assertEqual([], self.process("agg2").signals)
        for link in ({"state": "down"}, {"state": "up", "why": "was lost"}):
            self.answer("lb1", links=[{"endpoint": agg1, **link}])
            self.pass_time()
            self.assertEqual([], self.process("agg2").signals)
        self.answer("lb1", state="degraded", links=[{"endpoint": agg1, "state": "up", "why": ""}])
        self.pass_time()
        self.ended("agg2")

    def test_answer_of_a_process_that_has_ended_proves_nothing(self) -> None:
        self.run_cluster(self.spec())
        self.reload(self.spec(*MERGED))
        self.ended("agg1")
        self.process("agg1").end(1)
        self.answer("agg1")
        self.pass_time()
        self.assertEqual([], self.process("agg2").signals)

    def test_node_that_has_moved_is_asked_where_it_is_until_it_is_restarted(self) -> None:
        """A balancer is left as it is; an aggregator waits for its turn."""
        self.run_cluster(self.spec())
        before = self.admins()
        moved = [(f":{port}:", f":{port + 1000}:") for port in (before["agg1"], before["agg2"], before["lb1"])]
        self.reload(self.spec(*moved))
        self.assertEqual(before, self.admins())
        self.ended("agg1")
        self.assertEqual({**before, "agg1": before["agg1"] + 1000}, self.admins())

    def admins(self) -> dict[str, int]:
        """Where nodes are asked."""
        return {report.member.name: report.member.endpoint._port for report in self.cluster.reports()}
