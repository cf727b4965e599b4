"""``relay-check``: what it says of good files, of bad ones, and of nodes that run."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.node import make_site
from relay.admin.views import Health
from relay.tiers.check import BAD, GOOD, NOT_NORMAL, main
from tests.admin.test_polling import ServerTestCase
from tests.admin.views import FixedView
from tests.tiers.test_cluster import SMALL_CLUSTER, free_ports

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.toml"


def run(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Exit status, lines, complaints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue().splitlines(), err.getvalue().splitlines()


class FileTests(SynchronousTestCase):
    """Without asking anybody."""

    def write(self, text: str) -> str:
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path)

    def test_good_file_is_described(self) -> None:
        status, lines, _ = run(str(EXAMPLE))
        self.assertEqual((GOOD, "origin      o1 on 127.0.0.1, tcp:1936:interface=127.0.0.1"), (status, lines[0]))
        self.assertTrue(any(line.startswith("pair        a: a1 (tcp:1941") for line in lines))
        self.assertEqual(6, len(lines))

    def test_first_fault_is_one_line(self) -> None:
        path = self.write(EXAMPLE.read_text().replace("[[balancer]]", "[[blancer]]"))
        status, lines, complaints = run(path)
        self.assertEqual((BAD, [], 1), (status, lines, len(complaints)))
        self.assertTrue(complaints[0].startswith(f"relay-check: {path}: "))
        self.assertEqual((BAD, [], ["relay-check: /nowhere: No such file or directory"]), run("/nowhere"))

    def test_options_are_read_as_the_node_reads_them(self) -> None:
        """One that there is not is a fault; a file that is not here may be on the node's machine."""
        text = EXAMPLE.read_text()
        for options, status, words in (
            ("--keep-secnds=5", BAD, "relay-check: agg1: option --keep-secnds not recognized"),
            ("--merge-ms=-5", BAD, "relay-check: agg1: --merge-ms -5"),
            ("--sign-key-file=/nowhere", GOOD, "relay-check: warning: agg1: --sign-key-file /nowhere: No such file"),
        ):
            path = self.write(text.replace('name = "agg1"', f'name = "agg1"\noptions = ["{options}"]'))
            found, _, complaints = run(path)
            self.assertEqual(status, found, complaints)
            self.assertTrue(any(line.startswith(words) for line in complaints), complaints)

    def test_what_one_would_not_want_is_a_warning(self) -> None:
        """Or, if one says so, a fault."""
        text = EXAMPLE.read_text().replace('name = "agg1"', 'name = "agg1"\nhost = "10.0.0.1"')
        for old in ('listen = "tcp:1961:interface=127.0.0.1"', 'admin = "tcp:8088:interface=127.0.0.1"'):
            self.assertIn(old, text)
        text = text.replace('listen = "tcp:1961:interface=127.0.0.1"', 'listen = "tcp:1961"')
        text = text.replace('admin = "tcp:8088:interface=127.0.0.1"', "")
        status, _, complaints = run(self.write(text))
        self.assertEqual(GOOD, status)
        for words in (
            "pair a: a1 and a2 are on one machine (127.0.0.1)",
            "there is one balancer, lb1: when it dies, viewers are cut",
            "there is no secret_file: ",
            "there is no store: ",
            "lb1 has no admin endpoint: ",
        ):
            self.assertTrue(any(f"warning: {words}" in line for line in complaints), (words, complaints))
        self.assertEqual(BAD, run("--strict", self.write(text))[0])

    def test_secret_that_others_can_read_is_a_fault(self) -> None:
        secret = Path(self.mktemp()).absolute()
        secret.write_text("0123456789abcdef")
        secret.chmod(0o644)
        status, _, complaints = run(self.write(f'secret_file = "{secret}"\n{EXAMPLE.read_text()}'))
        self.assertEqual((BAD, 1), (status, len(complaints)))
        self.assertIn("others can read it", complaints[0])


class LiveTests(ServerTestCase):
    """Nodes on real ports."""

    async def test_every_node_is_asked(self) -> None:
        """One is normal, one degraded, one is another one, one does not answer."""
        ports = free_ports(10)
        admin = {"o1": ports[1], "a1": ports[3], "a2": ports[5], "agg1": ports[7]}
        views = {
            "o1": FixedView(name="o1", tier="origin"),
            "a1": FixedView(name="a1", tier="distributor", state=Health("degraded", ["the store takes no bytes"])),
            "a2": FixedView(name="other", tier="distributor"),
        }
        for name, view in views.items():
            port = reactor.listenTCP(admin[name], make_site(view, reactor), interface="127.0.0.1")
            self.addCleanup(port.stopListening)
        path = Path(self.mktemp())
        path.write_text(SMALL_CLUSTER.format(*ports))
        status, lines, _ = await deferToThread(run, "--live", str(path))
        self.assertEqual(NOT_NORMAL, status)
        shown = {line.split()[0]: line for line in lines}
        for name, words in (
            ("o1", "normal     3 viewers"),
            ("a1", "degraded   3 viewers; the store takes no bytes"),
            ("a2", "another    other (distributor) answers"),
            ("agg1", "no answer  no answer from 127.0.0.1"),
        ):
            self.assertIn(words, shown[name])
