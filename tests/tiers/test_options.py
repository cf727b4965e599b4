"""Bad options are one line and exit status 2; good ones become settings.  All tiers that serve media."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from twisted.application.service import MultiService
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from relay import __version__
from relay.errors import ConfigError
from relay.limits import DEFAULT_LIMITS
from relay.tiers.aggregator import make_aggregator
from relay.tiers.options import EXIT_CONFIG, NodeOptions, NodeRunner, StoreOptions, client_endpoint, server_endpoint
from tests.net.peers import Listener

TIERS = ("origin", "distributor", "aggregator", "balancer")
GOOD = {
    "origin": ["--name", "o1"],
    "distributor": ["--name", "a1", "--upstream", "tcp:127.0.0.1:1"],
    "aggregator": ["--name", "agg1", "--pair", "a=tcp:127.0.0.1:1,tcp:127.0.0.1:2"],
    "balancer": ["--name", "lb1", "--aggregator", "agg1=tcp:127.0.0.1:1"],
}


class TierTestCase(SynchronousTestCase):
    """Parses and builds as ``twistd`` does."""

    def setUp(self) -> None:
        self.stderr = io.StringIO()
        self.patch(sys, "__stderr__", self.stderr)
        self.reactor = MemoryReactorClock()

    def parse(self, tier: str, arguments):
        options = import_module(f"relay.tiers.{tier}").Options()
        options.parseOptions(arguments)
        return options

    def make(self, tier: str, arguments=()) -> MultiService:
        return import_module(f"relay.tiers.{tier}").makeService(
            self.parse(tier, [*GOOD[tier], *arguments]), self.reactor
        )

    def assert_refused(self, tier: str, arguments, *words: str, is_built: bool = False) -> None:
        """One line that names the command and holds these words; status 2."""
        self.stderr.seek(0)
        self.stderr.truncate()
        act = self.make if is_built else self.parse
        error = self.assertRaises(SystemExit, act, tier, arguments)
        said = self.stderr.getvalue()
        self.assertEqual(EXIT_CONFIG, error.code)
        self.assertEqual((1, True), (said.count("\n"), said.startswith(f"relay-{tier}: ")), said)
        for word in words:
            self.assertIn(word, said)


class RunnerTests(TierTestCase):
    def test_signals_reach_the_node_of_a_runner_inside(self) -> None:
        """As ``relay --config FILE --node NAME`` has one."""
        inner, outer = NodeRunner("relay-aggregator"), NodeRunner("relay")
        node = make_aggregator(self.parse("aggregator", GOOD["aggregator"]), self.reactor)
        node.setServiceParent(inner)
        inner.setServiceParent(outer)
        said: list[str] = []
        self.patch(node, "drain", SimpleNamespace(hurry=lambda: said.append("hurry")))
        inner.on_hangup = lambda: said.append("read again")
        outer.hurry()
        outer.hang_up()
        self.assertEqual(["hurry", "read again"], said)


class RefusalTests(TierTestCase):
    def test_bad_values_of_options_that_every_tier_has(self) -> None:
        for tier in TIERS:
            good = GOOD[tier]
            self.assert_refused(tier, good[2:], "--name is required")
            self.assert_refused(tier, [*good, "--no-such-option"], "no-such-option")
            self.assert_refused(tier, [*good, "stray"], "unexpected argument 'stray'")
            self.assert_refused(tier, [*good, "--trust-proxy", "10.0.0.0/99"], "--trust-proxy", "10.0.0.0/99")
            self.assert_refused(tier, [*good, "--limit", "connections"], "NAME=VALUE")
            self.assert_refused(tier, [*good, "--limit", "nothing=5"], "viewer_skip_seconds")
            self.assert_refused(tier, [*good, "--limit", "connections=-1"], "--limit connections", "above 0")
            self.assert_refused(tier, [*good, "--limit", "connections=0.5"], "whole number")
            self.assert_refused(tier, [*good, "--limit", "handshake_seconds=soon"], "'soon' is no number")

    def test_bad_values_of_options_that_media_tiers_have(self) -> None:
        for tier in TIERS[:3]:
            self.assert_refused(tier, [*GOOD[tier], "--merge-ms", "-5"], "--merge-ms -5")
            for number in ("x", "0", "nan", "inf", ""):
                self.assert_refused(tier, [*GOOD[tier], "--keep-seconds", number], "--keep-seconds")

    def test_bad_endpoints_and_files_are_refused_when_the_node_is_built(self) -> None:
        for tier in TIERS:
            for endpoint in ("", "tcp", "tcp:port", "carrier-pigeon:1", "ssl:1:privateKey=/nonexistent", "1935:x=y"):
                self.assert_refused(tier, ["--listen", endpoint], "--listen", "is no endpoint", is_built=True)
            self.assert_refused(tier, ["--admin", "tcp:x"], "--admin", "is no endpoint", is_built=True)
            self.assert_refused(tier, ["--secret-file", "/nonexistent"], "--secret-file /nonexistent", is_built=True)
            token = ["--admin", "tcp:0:interface=127.0.0.1", "--admin-token-file", "/nonexistent"]
            self.assert_refused(tier, token, "--admin-token-file /nonexistent", is_built=True)

    def test_port_in_use_is_one_line(self) -> None:
        """With the address, so that the operator knows which of two it is."""
        runner = NodeRunner("relay-origin")

        class Busy(MultiService):
            def privilegedStartService(self) -> None:
                raise CannotListenError("127.0.0.1", 1935, OSError(98, "Address already in use"))

        Busy().setServiceParent(runner)
        error = self.assertRaises(SystemExit, runner.privilegedStartService)
        self.assertEqual(EXIT_CONFIG, error.code)
        self.assertEqual(
            "relay-origin: can't listen on 127.0.0.1:1935: Address already in use\n", self.stderr.getvalue()
        )


class SettingsTests(TierTestCase):
    def test_options_become_settings(self) -> None:
        secret = Path(self.mktemp())
        secret.write_bytes(b"0123456789abcdef\n")
        secret.chmod(0o600)
        options = self.parse(
            "origin",
            [*GOOD["origin"], "--secret-file", str(secret), "--trust-proxy", "10.0.0.0/8", "--trust-proxy", "::1",
             "--limit", "connections=5", "--limit", "handshake_seconds=2.5", "--merge-ms", "0", "--allow-origin", ""],
        )  # fmt: skip
        settings = options.settings()
        self.assertEqual(("o1", "origin"), (settings.identity.name, settings.identity.tier))
        self.assertEqual(b"0123456789abcdef", settings.identity.secret.key)
        self.assertEqual(["10.0.0.0/8", "::1/128"], [str(network) for network in settings.trusted])
        self.assertEqual((5, 2.5), (settings.limits.connections, settings.limits.handshake_seconds))
        self.assertEqual(DEFAULT_LIMITS.streams, settings.limits.streams)
        self.assertEqual((0.0, ""), (settings.merge_seconds, settings.allow_origin))

    def test_without_options_only_loopback_is_trusted(self) -> None:
        settings = self.parse("origin", GOOD["origin"]).settings()
        self.assertEqual(["127.0.0.0/8", "::1/128"], [str(network) for network in settings.trusted])
        self.assertIsNone(settings.identity.secret)

    def test_store_settings(self) -> None:
        options = StoreOptions()
        options.parseOptions(
            ["--name", "x", "--store", "/srv/relay", "--keep-seconds", "1.5", "--keep-mbytes", "2",
             "--keep-idle-hours", "0.5"]
        )  # fmt: skip
        store = options.store_settings()
        self.assertEqual(("/srv/relay", 1500, 2 << 20, 1800.0),
                         (store.directory, store.keep.keep_ms, store.keep.keep_bytes, store.idle_seconds))  # fmt: skip

    def test_endpoints_are_twisted_s(self) -> None:
        for text in ("tcp:1935", "tcp:1935:interface=127.0.0.1", "unix:/run/relay.sock", "tcp:0"):
            self.assertIsNotNone(server_endpoint(self.reactor, "--listen", text))
        for text in ("tcp:127.0.0.1:1935", "tcp:host=a:port=1", "unix:/run/relay.sock", "tls:host:443"):
            self.assertIsNotNone(client_endpoint(self.reactor, "--upstream", text))
        self.assertRaises(ConfigError, client_endpoint, self.reactor, "--upstream", "tcp:127.0.0.1:port")

    def test_version(self) -> None:
        stdout = io.StringIO()
        self.patch(sys, "stdout", stdout)
        error = self.assertRaises(SystemExit, self.parse, "origin", ["--version"])
        self.assertEqual((0, f"relay-origin {__version__}\n"), (error.code, stdout.getvalue()))

    def test_help_names_every_option_and_reads_like_a_manual_page(self) -> None:
        for tier in TIERS:
            options = import_module(f"relay.tiers.{tier}").Options()
            text = str(options)
            for name in ("--name", "--listen", "--admin", "--secret-file", "--trust-proxy", "--limit"):
                self.assertIn(name, text)
            self.assertIn(options.longdesc.split(".")[0][:40], text.replace("\n", " ").replace("  ", " "))


class BuildTests(TierTestCase):
    def test_make_service_starts_nothing(self) -> None:
        """No connection, no port, no timer: that is for startService."""
        for tier in TIERS:
            with self.subTest(tier):
                service = self.make(tier, ["--admin", "tcp:0:interface=127.0.0.1"])
                self.assertIsInstance(service, MultiService)
                self.assertFalse(service.running)
                reactor = self.reactor
                self.assertEqual(([], [], []), (reactor.getDelayedCalls(), reactor.tcpServers, reactor.tcpClients))

    def test_plain_options_raise_usage_errors_inside(self) -> None:
        """What makes the line is parseOptions alone, so that whoever embeds a node can catch the error."""
        options = NodeOptions()
        options["name"] = None
        self.assertRaises(usage.UsageError, options.postOptions)


ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}


class ProcessTests(SynchronousTestCase):
    """As the operator sees it: a process, its standard error, its exit status."""

    def run_node(self, *arguments: str) -> subprocess.CompletedProcess:
        command = "from twisted.scripts.twistd import run; run()"
        directory = Path(self.mktemp())
        directory.mkdir()
        return subprocess.run(
            [sys.executable, "-c", command, "--nodaemon", "--pidfile=", *arguments],
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
            cwd=directory,
            env=ENVIRONMENT,
        )

    def assert_one_line(self, ended: subprocess.CompletedProcess, words: str) -> None:
        self.assertEqual((EXIT_CONFIG, 1), (ended.returncode, ended.stderr.count("\n")), ended.stderr)
        self.assertIn(words, ended.stderr)
        self.assertNotIn("Traceback", ended.stderr + ended.stdout)

    def test_bad_option(self) -> None:
        self.assert_one_line(
            self.run_node("relay-origin", "--name", "o1", "--second-publisher", "x"), "second-publisher"
        )

    def test_port_in_use(self) -> None:
        listener = Listener()
        self.addCleanup(listener.close)
        ended = self.run_node("relay-origin", "--name", "o1", "--listen", f"tcp:{listener.port}:interface=127.0.0.1")
        self.assert_one_line(ended, f"can't listen on 127.0.0.1:{listener.port}: Address already in use")

    def test_process_has_all_its_descriptors_and_a_clock_that_nobody_sets(self) -> None:
        """What ``twistd`` leaves at the shell's soft limit and at the wall clock; and its memory is settled."""
        program = (
            "import gc, resource, time; from relay.tiers.options import prepare_process; "
            "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE); "
            "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); prepare_process(); "
            "from twisted.internet import reactor; "
            "reactor.callWhenRunning(reactor.stop); reactor.run(); "
            "print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard), reactor.seconds is time.monotonic, "
            "gc.get_freeze_count() > 10_000)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=False, text=True, timeout=60, env=ENVIRONMENT
        )
        self.assertEqual("True True True\n", ended.stdout, ended.stderr)

    def test_store_that_can_t_be_used(self) -> None:
        ended = self.run_node("relay-origin", "--name", "o1", "--listen", "tcp:0", "--store", "/proc/no-store-here")
        self.assert_one_line(ended, "/proc/no-store-here")
