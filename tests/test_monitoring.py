"""Dashboard and alerts: Prometheus's own tool takes them, and every number in them is one that nodes export."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.cluster import ClusterTestCase
from tests.programs import require_program

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "examples" / "monitoring"
NAME = re.compile(r"\b(?:relay|process)_[a-z_]+\b")


def expressions() -> dict[str, list[str]]:
    """By file."""
    dashboard = json.loads((MONITORING / "relay-overview.json").read_text())
    rules = re.findall(r"^ +expr: (.*)$", (MONITORING / "alerts.yml").read_text(), re.MULTILINE)
    return {
        "relay-overview.json": [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]],
        "alerts.yml": rules,
    }


class PromtoolTests(SynchronousTestCase):
    """``promtool``, of Debian's package prometheus."""

    def check(self, *command: str) -> None:
        """It says nothing against it."""
        program = require_program("promtool")
        judge = subprocess.run([program, *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        self.assertEqual(0, judge.returncode, judge.stdout + judge.stderr)

    def test_rules_and_configuration_are_good(self) -> None:
        self.check("check", "config", "prometheus.yml")
        self.check("check", "rules", "alerts.yml")

    def test_alerts_fire_when_they_should(self) -> None:
        """And not when they should not."""
        self.check("test", "rules", "alerts_test.yml")

    def test_every_alert_leads_to_its_place_in_the_failure_guide(self) -> None:
        guide = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
        for anchor in re.findall(r"failures\.md#([a-z-]+)", (MONITORING / "alerts.yml").read_text()):
            self.assertIn(f"({anchor})=\n", guide)

    def test_panels_do_not_overlap(self) -> None:
        """Grafana would move them about."""
        taken: set[tuple[int, int]] = set()
        for panel in json.loads((MONITORING / "relay-overview.json").read_text())["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertEqual(set(), cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells


class ExportedTests(ClusterTestCase):
    """What nodes of every tier export."""

    async def test_every_number_is_exported(self) -> None:
        """Also those that the failure guide names."""
        self.start_cluster()
        await self.normal()
        exported: set[str] = set()
        for node in self.nodes:
            exported |= set(re.findall(r"^# TYPE ([a-z_]+)", await node.text_of("/metrics"), re.MULTILINE))
        guide = re.findall(r"`(relay_[a-z_]+)", (ROOT / "docs" / "failures.md").read_text(encoding="utf-8"))
        peer_only = {"relay_peer_up", "relay_viewers_reset_total"}  # of balancers that share an address
        named = {name for each in expressions().values() for text in each for name in NAME.findall(text)} | set(guide)
        self.assertEqual(set(), named - exported - peer_only)
        self.assertLess(20, len(named))
