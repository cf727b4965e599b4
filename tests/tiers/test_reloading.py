"""What is different in a cluster file, and in which order a running cluster follows it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.tiers.clusterfile import ClusterSpec, load
from relay.tiers.reloading import LOOK_SECONDS, WELL_SECONDS, Changes, Reloader, compare

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
