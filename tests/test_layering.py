"""Imports point one way: plugins -> tiers -> {net, admin} -> {rtmp, flv, log} -> errors, hosts, limits, names.

``native`` is a leaf, for ``net``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

import relay

PACKAGE = Path(relay.__file__).parent
ROOT = PACKAGE.parent
BASE = frozenset({"errors", "hosts", "limits", "names"})

MAY_IMPORT = {
    "errors": frozenset(),
    "hosts": frozenset(),
    "limits": frozenset({"errors"}),
    "names": frozenset({"errors", "limits"}),
    "demo": frozenset(),
    "native": frozenset(),
    "rtmp": BASE,
    "flv": BASE | {"rtmp"},
    "log": BASE | {"rtmp", "flv"},
    "net": BASE | {"rtmp", "flv", "log", "native"},
    "admin": BASE | {"rtmp", "flv", "log"},
    "tiers": BASE | {"rtmp", "flv", "log", "net", "admin", "demo"},
    "drill": BASE | {"rtmp", "flv", "log", "net", "admin", "tiers"},
    "testing": BASE | {"rtmp", "flv", "log", "net"},
}
"""For each room (or module) of the package: the others that it may import.  ``testing`` is for tests alone."""

TIERS = frozenset({"origin", "distributor", "aggregator", "balancer", "cluster"})

PURE_ROOMS = frozenset({"rtmp", "flv", "log"})
"""Bytes in, events out: what time it is, and every random number, is handed in."""

IMPURE = frozenset(
    {"twisted", "time", "datetime", "random", "secrets", "uuid", "socket", "asyncio", "threading", "select"}
)


@attrs.frozen(kw_only=True)
class Import:
    """One import: who does it, what is imported (dotted), where, and whether at module level."""

    module: str
    target: str
    line: int
    is_top_level: bool

    @property
    def room(self) -> str:
        return _room(self.module)

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def _room(module: str) -> str:
    """``relay.net.following`` is in room ``net``, ``relay.errors`` in ``errors``."""
    return _part(module, 1)


def _part(module: str, index: int) -> str:
    """Dotted part ``index`` of a name, or "" where it has no so many."""
    return dict(enumerate(module.split("."))).get(index, "")


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(), str(path))
    in_functions = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        for target in _targets(node):
            yield Import(
                module=_module_name(path), target=target, line=node.lineno, is_top_level=node not in in_functions
            )


def _targets(node: ast.AST) -> list[str]:
    """What a statement imports: ``from relay import net`` counts as ``relay.net``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports in this package are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _all_imports() -> list[Import]:
    return [found for path in sorted(PACKAGE.rglob("*.py")) for found in _imports_of(path)]


class LayeringTests(SynchronousTestCase):
    """The arrows of the package, held."""

    def refuse(self, wrong: list[Import], rule: str) -> None:
        self.assertEqual([], [str(each) for each in wrong], rule)

    def test_every_room_has_a_rule(self) -> None:
        """A new room does not slip in without its place in the order."""
        rooms = {_room(_module_name(path)) for path in PACKAGE.rglob("*.py")} - {""}
        self.assertEqual(set(), rooms - set(MAY_IMPORT))

    def test_arrows_point_one_way(self) -> None:
        """No room imports one above or beside it."""
        wrong = [
            each
            for each in _all_imports()
            if each.target.startswith("relay.")
            and _room(each.target) != each.room
            and each.room
            and _room(each.target) not in MAY_IMPORT[each.room] | {"__version__"}
        ]
        self.refuse(wrong, "imports point down")

    def test_flv_knows_only_messages_and_media_of_rtmp(self) -> None:
        """An FLV tag is a message in other clothes; chunks, sessions and AMF are not its business."""
        wrong = [
            each
            for each in _all_imports()
            if each.room == "flv"
            and each.target.startswith("relay.rtmp.")
            and _part(each.target, 2) not in ("messages", "media")
        ]
        self.refuse(wrong, "flv imports rtmp.messages and rtmp.media only")

    def test_pure_rooms_import_neither_twisted_nor_time_nor_random(self) -> None:
        """What they do depends on their arguments alone."""
        wrong = [each for each in _all_imports() if each.room in PURE_ROOMS and each.target.split(".")[0] in IMPURE]
        self.refuse(wrong, "rtmp, flv and log are told the time, the nonce and the bytes")

    def test_pure_rooms_ask_the_kernel_for_no_random_bytes(self) -> None:
        """``os`` may be used for files, not for what differs from run to run."""
        for room in sorted(PURE_ROOMS):
            for path in sorted((PACKAGE / room).rglob("*.py")):
                names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
                self.assertEqual(set(), names & {"urandom", "getrandom"}, str(path))

    def test_nothing_imports_the_reactor_at_module_level(self) -> None:
        """Importing a module of ours never chooses the reactor."""
        wrong = [
            each
            for each in _all_imports()
            if each.is_top_level and each.target.split(".")[:3] == ["twisted", "internet", "reactor"]
        ]
        self.refuse(wrong, "reactors are arguments")

    def test_only_what_the_operator_wrote_is_dialed(self) -> None:
        """FAULTS row 13: endpoints are made from options and the cluster file alone, never from what a peer said.

        (The drill makes its own nodes, or is told where to watch.)
        """
        makers = {"clientFromString", "HostnameEndpoint", "TCP4ClientEndpoint", "TCP6ClientEndpoint", "connectTCP"}
        made_in = set()
        for path in sorted(PACKAGE.rglob("*.py")):
            tree = ast.parse(path.read_text())
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            if makers & names:
                made_in.add(str(path.relative_to(PACKAGE)))
        forwards = {f"relay.net.forward{part}" for part in ("ing", "_connection", "_rules")}  # --forward
        drill = {"drill/drill.py", "drill/rig.py", "drill/viewers.py"}
        self.assertEqual({"net/dialing.py", "net/urls.py", "tiers/clusterpage.py", "tiers/options.py", *drill}, made_in)
        for module, expected in (
            ("relay.net.urls", {"relay.tiers.origin", "relay.drill.command", *forwards}),
            ("relay.net.dialing", {"relay.tiers.balancer"}),
        ):
            self.assertEqual(expected, {each.module for each in _all_imports() if each.target.startswith(module)})

    def test_tiers_never_import_each_other(self) -> None:
        """A tier is one module; what two tiers share is below them or in a module that is no tier."""
        wrong = [
            each
            for each in _all_imports()
            if each.target.startswith("relay.tiers.")
            and _part(each.target, 2) in TIERS
            and _part(each.target, 2) != _part(each.module, 2)
        ]
        self.refuse(wrong, "tiers do not know each other")

    def test_nothing_but_tests_imports_testing(self) -> None:
        """Fakes stay out of the product."""
        wrong = [
            each for each in _all_imports() if _room(each.target) == "testing" and each.target.startswith("relay.")
        ]
        self.refuse(wrong, "relay.testing is for tests")

    def test_the_plugin_imports_service_makers_alone(self) -> None:
        """``twistd --help`` reads every plugin: ours costs one import that twistd has done already."""
        plugin = ROOT / "twisted" / "plugins" / "relay_plugins.py"
        self.assertEqual(
            ["twisted.application.service.ServiceMaker"],
            [each.target for each in _imports_of(plugin) if not each.target.startswith("__future__")],
        )
        self.assertFalse((plugin.parent / "__init__.py").exists(), "it would hide Twisted's own plugins")
