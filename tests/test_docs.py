"""The docs tell what there is: options, files, pages; and they can be built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.command import make_parser
from relay.admin.site import static_file
from relay.tiers import check, sign
from tests.programs import require_module

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TIERS = ("origin", "distributor", "aggregator", "balancer", "cluster")
OTHERS = {"--token-file", "--pidfile", "--allow-", "--deny-"}  # of relay-admin's commands, of twistd


def options_of(tier: str) -> set[str]:
    """All long options of a command."""
    options: Any = namedAny(f"relay.tiers.{tier}.Options")()
    return {f"--{name.rstrip('=')}" for name in options.longOpt}


class DocsTests(SynchronousTestCase):
    """Markdown against the program."""

    def test_options_exist(self) -> None:
        known = set().union(*map(options_of, TIERS)) | OTHERS
        for parser in (make_parser(), check.make_parser(), sign.make_parser()):
            known |= {word for action in parser._actions for word in action.option_strings}
        for page in DOCS:
            for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", page.read_text(encoding="utf-8")):
                self.assertTrue(option in known, f"{page.name}: {option}")

    def test_files_exist(self) -> None:
        for page in DOCS:
            text = page.read_text(encoding="utf-8")
            for path in re.findall(r"`((?:examples|benchmarks|relay|docs)/[\w./-]*)`", text):
                self.assertTrue((ROOT / path).exists(), f"{page.name}: {path}")

    def test_paths_of_the_api_are_in_its_description(self) -> None:
        described = static_file("openapi.json").read_text(encoding="utf-8")
        for page in DOCS:
            for path in re.findall(r"/api/v1/[a-z]+", page.read_text(encoding="utf-8")):
                self.assertTrue(path in described or path == "/api/v1/openapi", f"{page.name}: {path}")

    def test_pages_are_built_without_a_warning(self) -> None:
        """Every link and anchor among them leads somewhere, and nothing is fetched from elsewhere to show them."""
        require_module("sphinx")
        site = Path(self.mktemp()).absolute()
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(site)]
        built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual((0, ""), (built.returncode, built.stderr))
        for page in site.glob("*.html"):
            loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(https?:[^\"]*)\"", page.read_text())
            self.assertEqual([], loaded, page.name)
