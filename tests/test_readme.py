"""README's commands are real: they parse, the files that it names are there, and CI runs its test command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(first: str) -> list[list[str]]:
    """The words of each command in README's code that calls ``first``."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [command for command in words if command and command[0].rpartition("/")[2] == first]


class ReadmeTests(SynchronousTestCase):
    """What a newcomer types."""

    def test_every_node_command_parses(self) -> None:
        """Each ``twistd -n relay-…`` line is accepted by that tier's options."""
        seen = set()
        for command in commands("twistd"):
            plugin = next(word for word in command if word.startswith("relay"))
            seen.add(plugin)
            if plugin == "relay":
                continue  # its files are looked at below
            options: Any = namedAny(f"relay.tiers.{plugin.removeprefix('relay-')}.Options")()
            options.parseOptions(command[command.index(plugin) + 1 :])
        self.assertEqual({"relay", *(f"relay-{t}" for t in ("origin", "distributor", "aggregator", "balancer"))}, seen)

    def test_there_are_two_commands_that_do_all_the_set_up(self) -> None:
        """One runs the cluster, one passes the tests; both make the environment that they need."""
        made = [line for line in README.splitlines() if line.startswith("python3 -m venv .venv && ")]
        self.assertEqual(2, len(made))
        self.assertTrue(made[0].endswith(".venv/bin/twistd -n relay"))
        self.assertTrue(made[1].endswith(".venv/bin/python -m pytest"))

    def test_ci_runs_the_test_command(self) -> None:
        """What CI passes is what README tells."""
        self.assertIn("python -m pytest", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))

    def test_files_that_are_linked_exist(self) -> None:
        """Pictures, examples, modules."""
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
            self.assertTrue((ROOT / target).exists(), target)
        for module in re.findall(r"`((?:net|rtmp|log|flv|tiers|admin)/\w+\.py)`", README):
            self.assertTrue((ROOT / "relay" / module).exists(), module)

    def test_limits_are_those_that_it_tells(self) -> None:
        """The seconds after which a slow viewer skips and is closed."""
        self.assertIn(f"is {DEFAULT_LIMITS.viewer_skip_seconds} s behind", README)
        self.assertIn(f"takes nothing for {DEFAULT_LIMITS.viewer_close_seconds} s", README)
