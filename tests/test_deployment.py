"""What operators copy: systemd units, Dockerfile, compose and Kubernetes files, by the judges of their own kind.

Every command line in them is one that our commands take.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.command import make_parser
from tests.clients import looped, publish, read_clip, watch
from tests.cluster import ENVIRONMENT, ClusterTestCase, free_port
from tests.programs import require_program

EXAMPLES = Path(__file__).parents[1] / "examples"
TWISTD = "#!/bin/sh\nexec true\n"


def judge(*command: str | Path) -> tuple[int, str]:
    """Exit status and words of a program."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.returncode, said.stdout + said.stderr


def accept(words: list[str]) -> None:
    """Parse a command line as ``twistd`` would; a bad one ends with SystemExit."""
    options: Any = namedAny(f"relay.tiers.{words[0].removeprefix('relay-')}.Options")()
    options.parseOptions(words[1:])


class SystemdTests(SynchronousTestCase):
    """``systemd-analyze verify``."""

    def test_units_are_good(self) -> None:
        """Each as it would be installed, with a twistd in its place."""
        analyze = require_program("systemd-analyze")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        twistd = folder / "twistd"
        twistd.write_text(TWISTD)
        twistd.chmod(0o755)
        units = []
        for file in [*sorted((EXAMPLES / "systemd").glob("*.s*")), EXAMPLES / "keepalived" / "relay-balancer.service"]:
            unit = folder / file.name.replace("@.", "@x1.")
            unit.write_text(file.read_text().replace("/opt/relay/bin/twistd", str(twistd)))
            units.append(unit)
        self.assertEqual(7, len(units))
        self.assertEqual((0, ""), judge(analyze, "verify", "--man=no", *units))

    def test_there_is_a_unit_for_each_tier(self) -> None:
        for tier in ("origin", "distributor", "aggregator", "balancer"):
            text = (EXAMPLES / "systemd" / f"relay-{tier}@.service").read_text()
            for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "Restart=always", "LimitNOFILE=65536"):
                self.assertIn(f"\n{line}\n", text)


class ActivationTests(ClusterTestCase):
    """``systemd-socket-activate`` hands the port over, as systemd does for ``relay-origin@.socket``."""

    async def test_origin_takes_its_port_from_systemd(self) -> None:
        """It is started by the first connection, which is served."""
        activate = require_program("systemd-socket-activate")
        port = free_port()
        twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
        socket = ["-E", f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}", "-l", f"127.0.0.1:{port}", "--fdname=relay"]
        origin = ["relay-origin", "--name", "o1", "--listen", "systemd:domain=INET:index=0"]
        node = self.run_program(activate, *socket, *twistd, *origin)
        await node.said("Listening on")
        place: Any = SimpleNamespace(port=port)
        await publish(self, place, "live/show", looped(read_clip("h264_aac.flv")))
        await (await watch(self, place, "live/show")).has_frames(10)


class ContainerTests(SynchronousTestCase):
    """Docker and Kubernetes."""

    def test_dockerfile_is_good(self) -> None:
        self.assertEqual((0, ""), judge(require_program("hadolint"), EXAMPLES / "docker" / "Dockerfile"))

    def test_kubernetes_files_are_good(self) -> None:
        """By the schemas of Kubernetes."""
        validate = require_program("kubernetes-validate")
        status, words = judge(validate, "--strict", EXAMPLES / "kubernetes" / "relay.yaml")
        self.assertEqual(0, status, words)

    def test_commands_are_ours(self) -> None:
        """Options, names and addresses: whoever is named is there."""
        commands = [*self.composed(), *self.orchestrated()]
        self.assertEqual(11, len(commands))
        for words in commands:
            accept(words)

    def test_checks_are_ours(self) -> None:
        """And those of Kubernetes don't take a degraded node out."""
        document = (EXAMPLES / "kubernetes" / "relay.yaml").read_text()
        for each in yaml.safe_load_all(document):
            for container in each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
                probe = container["readinessProbe"]["exec"]["command"]
                self.assertEqual("serves", make_parser().parse_args(probe[1:]).run.__name__)
        self.assertIn('"serves"', (EXAMPLES / "docker" / "Dockerfile").read_text())

    def composed(self) -> Iterator[list[str]]:
        """Of compose.yaml; each name in an address is a service's."""
        content = yaml.safe_load((EXAMPLES / "docker" / "compose.yaml").read_text())
        for name, service in content["services"].items():
            words = shlex.split(service["command"])
            self.assertEqual(name, words[words.index("--name") + 1])
            self.names_are_known(words, set(content["services"]))
            yield words

    def orchestrated(self) -> Iterator[list[str]]:
        """Of relay.yaml; each name in an address is a pod of a set, in its service."""
        documents = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "relay.yaml").read_text()))
        known = {
            f"{each['metadata']['name']}-{number}.{each['spec']['serviceName']}"
            for each in documents
            if each["kind"] == "StatefulSet"
            for number in range(each["spec"]["replicas"])
        }
        for each in documents:
            if each["kind"] != "Service":
                (container,) = each["spec"]["template"]["spec"]["containers"]
                words = [word.replace("$(POD)", "pod-0") for word in container["args"]]
                self.names_are_known(words, known)
                yield words

    def names_are_known(self, words: list[str], known: set[str]) -> None:
        """In ``--upstream``, ``--pair`` and ``--aggregator``."""
        for option, value in zip(words[1::2], words[2::2], strict=True):
            if option in ("--upstream", "--pair", "--aggregator"):
                for endpoint in value.rpartition("=")[2].split(","):
                    self.assertIn(endpoint.split(":")[1], known, value)
