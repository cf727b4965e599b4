"""``twistd relay`` as an operator knows it: real processes, one command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

import relay
from relay.admin.fetch import fetch
from relay.errors import ConfigError
from relay.names import StreamName
from relay.tiers.cluster import Options
from relay.tiers.clusterfile import default_cluster
from relay.tiers.clusterpage import paste_lines
from relay.tiers.options import EXIT_CONFIG
from tests.net.peers import eventually

TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=")

START_SECONDS = 60
"""Six Python processes on a busy machine of two cores."""

SMALL_CLUSTER = """\
demo = "live/demo"
[[origin]]
name = "o1"
listen = "tcp:{0}:interface=127.0.0.1"
admin = "tcp:{1}:interface=127.0.0.1"
[[pair]]
name = "a"
[[pair.distributor]]
name = "a1"
listen = "tcp:{2}:interface=127.0.0.1"
admin = "tcp:{3}:interface=127.0.0.1"
[[pair.distributor]]
name = "a2"
listen = "tcp:{4}:interface=127.0.0.1"
admin = "tcp:{5}:interface=127.0.0.1"
[[aggregator]]
name = "agg1"
listen = "tcp:{6}:interface=127.0.0.1"
admin = "tcp:{7}:interface=127.0.0.1"
[[balancer]]
name = "lb1"
listen = "tcp:{8}:interface=127.0.0.1"
admin = "tcp:{9}:interface=127.0.0.1"
"""


def free_ports(count):
    """Ports that nobody has now.  All are taken before the first is let go, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Collected(ProcessProtocol):
    """What a process wrote and how it ended."""

    def __init__(self):
        self.out = b""
        self.err = b""
        self.status = None
        self.ended = Deferred()

    def outReceived(self, data):
        self.out += data

    def errReceived(self, data):
        self.err += data

    def processEnded(self, reason):
        self.status = reason.value.exitCode
        self.ended.callback(None)


def children(pid):
    """Its child processes, those that wait to be collected left out: {name of the node: process id}."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--name" in arguments:
            found[arguments[arguments.index(b"--name") + 1].decode()] = int(child)
    return found


def is_alive(pid):
    """Does this process run (a zombie does not)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class ClusterTestCase(TestCase):
    """Runs ``twistd relay`` in a directory of its own."""

    timeout = 180

    def setUp(self):
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.scratch = self.directory / "tmp"
        self.scratch.mkdir()
        *self.ports, self.page = free_ports(11)
        self.config = self.directory / "cluster.toml"
        self.config.write_text(SMALL_CLUSTER.format(*self.ports))

    def twistd(self, *arguments):
        """Start it; it is killed at the end of the test, if it still runs."""
        protocol = Collected()
        root = str(Path(relay.__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(self.scratch)}
        command = [sys.executable, *TWISTD, *arguments]
        process = reactor.spawnProcess(protocol, sys.executable, command, env=environment, path=str(self.directory))
        protocol.pid = process.pid
        self.addCleanup(self.end, protocol)
        return protocol

    async def end(self, protocol):
        if protocol.status is None and not protocol.ended.called:
            os.kill(protocol.pid, signal.SIGKILL)
            await protocol.ended

    def run_cluster(self, *arguments):
        return self.twistd("relay", "--config", str(self.config), "--admin", self.endpoint(self.page), *arguments)

    def endpoint(self, port):
        return f"tcp:{port}:interface=127.0.0.1"

    async def nodes(self, page=None):
        """What the page knows of each node; nothing while there is no page."""
        try:
            body = await fetch(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", page or self.page), "/api/v1/nodes", 5)
        except Exception:
            return {}
        return {node["name"]: node for node in json.loads(body)["nodes"]}

    async def when(self, condition, page=None):
        """Wait until the nodes are as wanted, on the cluster's page or another; what they are then."""
        latest = {}

        async def look():
            latest.update(await self.nodes(page))

        for _ in range(START_SECONDS * 5):
            await look()
            if latest and condition(latest):
                return latest
            await eventually(never_for(0.2))
        raise AssertionError(f"not so within {START_SECONDS} s: {latest}")


def never_for(seconds):
    """A condition that becomes true after a while: a look at the page costs more than a look at a variable."""
    end = reactor.seconds() + seconds
    return lambda: reactor.seconds() >= end


def all_normal(nodes):
    """And the test stream has come to the aggregator."""
    return all(node["state"] == "normal" for node in nodes.values()) and any(
        stream["is_live"] for stream in nodes["agg1"]["streams"]
    )


class RunningClusterTests(ClusterTestCase):
    """The whole thing."""

    async def test_cluster_runs_heals_and_ends(self):
        """The test stream reaches viewers, a killed node comes back, SIGTERM leaves nothing, and no node waits long."""
        cluster = self.run_cluster()
        nodes = await self.when(all_normal)
        self.assertEqual(["o1", "a1", "a2", "agg1", "lb1"], list(nodes))
        self.assertEqual(b"FLV", await self.first_bytes())
        self.assertEqual(["o1"], [link["name"] for link in nodes["a1"]["links"]])

        before = children(cluster.pid)
        self.assertEqual(set(nodes), set(before))
        os.kill(before["a2"], signal.SIGKILL)
        await self.when(lambda nodes: nodes["a2"]["restarts"] == 1 and all_normal(nodes))
        after = children(cluster.pid)
        self.assertEqual({"a2"}, {name for name in before if after[name] != before[name]})
        self.assertEqual(1, len(list(self.scratch.glob("relay-*"))))

        os.kill(cluster.pid, signal.SIGTERM)
        await cluster.ended
        self.assertEqual(0, cluster.status)
        self.assertNotIn("the others are cut off", cluster.out.decode())
        self.assertFalse(any(map(is_alive, [*before.values(), *after.values()])))
        self.assertEqual([], list(self.scratch.iterdir()))
        self.assertRegex(cluster.out.decode(), r"\[node#info\] \[a1\] ")
        self.assertNotIn("Traceback", cluster.out.decode())
        self.assertEqual(b"", cluster.err)

    async def test_children_do_not_outlive_a_parent_that_is_killed(self):
        """Nobody is left on the ports, so the next start works."""
        cluster = self.run_cluster("--no-demo")
        await eventually(lambda: len(children(cluster.pid)) == 5, START_SECONDS)
        pids = children(cluster.pid).values()
        os.kill(cluster.pid, signal.SIGKILL)
        await cluster.ended
        await eventually(lambda: not any(map(is_alive, pids)), START_SECONDS)

    async def test_page_without_nodes_shows_those_of_others(self):
        """And ends without them; streams are kept where the operator says."""
        store = self.directory / "store"
        cluster = self.run_cluster("--store", str(store))
        await self.when(all_normal)
        (port,) = free_ports(1)
        words = ("--config", str(self.config), "--page-only", "--admin", f"tcp:{port}:interface=127.0.0.1")
        page = self.twistd("relay", *words)
        shown = await self.when(all_normal, port)
        self.assertEqual(["o1", "a1", "a2", "agg1", "lb1"], list(shown))
        os.kill(page.pid, signal.SIGTERM)
        await page.ended
        self.assertEqual(0, page.status)
        self.assertEqual(set(shown), set(children(cluster.pid)))
        os.kill(cluster.pid, signal.SIGTERM)
        await cluster.ended
        self.assertEqual({"o1", "a1", "a2"}, {entry.name for entry in store.iterdir()})

    async def first_bytes(self):
        """Of the test stream over HTTP-FLV from the balancer."""
        connected = socket.create_connection(("127.0.0.1", self.ports[8]))
        self.addCleanup(connected.close)
        connected.sendall(b"GET /live/demo.flv HTTP/1.1\r\nHost: x\r\n\r\n")
        connected.setblocking(False)
        received = bytearray()

        def has_body():
            try:
                received.extend(connected.recv(4096))
            except BlockingIOError:
                return False
            return b"\r\n\r\n" in received and len(received.partition(b"\r\n\r\n")[2]) >= 3

        await eventually(has_body, START_SECONDS)
        self.assertTrue(received.startswith(b"HTTP/1.1 200 "), received[:100])
        return re.search(rb"\r\n\r\n(?:[0-9a-fA-F]+\r\n)?(...)", bytes(received), re.DOTALL).group(1)


class OneNodeTests(ClusterTestCase):
    """``--node``."""

    async def test_one_node_runs_in_this_process(self):
        """As it would by its own command."""
        node = self.run_cluster("--node", "o1")
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.ports[1])

        async def look():
            try:
                return json.loads(await fetch(reactor, endpoint, "/api/v1/node", 5))
            except Exception:
                return None

        found = None
        for _ in range(START_SECONDS * 5):
            found = await look()
            if found or node.status is not None:
                break
            await eventually(never_for(0.2))
        self.assertEqual(("o1", "origin"), (found["name"], found["tier"]))
        self.assertEqual({}, children(node.pid))
        os.kill(node.pid, signal.SIGTERM)
        await node.ended


class RefusalTests(ClusterTestCase):
    """What can't work is one clear line and a status that says so."""

    async def refusal(self, *arguments):
        """The one line on standard error."""
        cluster = self.run_cluster(*arguments)
        await cluster.ended
        self.assertEqual(EXIT_CONFIG, cluster.status, cluster.out.decode() + cluster.err.decode())
        lines = cluster.err.decode().splitlines()
        self.assertEqual(1, len(lines), lines)
        self.assertEqual([], list(self.scratch.iterdir()))
        return lines[0]

    async def test_port_of_a_node_in_use(self):
        """The other nodes are ended, and the line names the node and the port."""
        taken = socket.create_server(("127.0.0.1", self.ports[6]))
        self.addCleanup(taken.close)
        line = await self.refusal()
        self.assertRegex(line, rf"^relay: agg1 can't start: .*127\.0\.0\.1:{self.ports[6]}: Address already in use$")

    async def test_port_of_the_page_in_use(self):
        taken = socket.create_server(("127.0.0.1", self.page))
        self.addCleanup(taken.close)
        line = await self.refusal()
        self.assertRegex(line, rf"^relay: can't listen on 127\.0\.0\.1:{self.page}: Address already in use$")

    async def test_wrong_key(self):
        self.config.write_text("colour = 1\n" + self.config.read_text())
        self.assertRegex(await self.refusal(), r"^relay: /.*/cluster\.toml: colour = 1: no such key here; ")

    async def test_bad_endpoint(self):
        line = await self.refusal("--listen", "1935")
        self.assertEqual(
            "relay: --listen '1935': no endpoint; one begins with tcp:, tcp6:, ssl:, unix:, systemd:", line
        )

    async def test_unknown_node(self):
        line = await self.refusal("--node", "a3")
        self.assertEqual("relay: no node is called 'a3'; there are o1, a1, a2, agg1, lb1", line)

    async def test_unknown_option(self):
        line = await self.refusal("--colour")
        self.assertEqual("relay: option --colour not recognized (see relay --help)", line)

    async def test_nodes_of_several_machines(self):
        self.config.write_text(self.config.read_text().replace('name = "a2"', 'name = "a2"\nhost = "192.0.2.1"'))
        line = await self.refusal()
        words = "relay: the nodes are on 2 machines (127.0.0.1, 192.0.2.1): use --node NAME on each, and --page-only"
        self.assertEqual(f"{words} where the page of all is wanted", line)


class OptionsTests(SynchronousTestCase):
    """The command line without a process."""

    def cluster(self, *arguments):
        options = Options()
        options.parseOptions(arguments)
        return options.cluster()

    def test_without_options_it_is_the_built_in_cluster(self):
        self.assertEqual(default_cluster(), self.cluster())

    def test_no_demo_publishes_nothing(self):
        self.assertIsNone(self.cluster("--no-demo").demo)

    def test_listen_moves_the_balancer_alone(self):
        moved = self.cluster("--listen", "tcp:19350")
        self.assertEqual("tcp:19350", moved.node("lb1").listen.text)
        self.assertEqual(list(default_cluster())[:-1], list(moved)[:-1])

    def test_store_is_for_every_node_that_has_one(self):
        cluster = self.cluster("--store", tempfile.gettempdir())
        self.assertIn(f"{tempfile.gettempdir()}/a1", cluster.command_line(cluster.node("a1")))

    def test_bad_listen_is_said(self):
        with self.assertRaisesRegex(ConfigError, "--listen 'x'"):
            self.cluster("--listen", "x")

    def test_lines_to_paste_name_the_balancer_the_origin_and_the_demo(self):
        texts = [line.text for line in paste_lines(default_cluster())]
        self.assertIn("rtmp://127.0.0.1:1935/live/demo", texts)
        self.assertIn("http://127.0.0.1:1935/live/demo.flv", texts)
        self.assertIn("ffmpeg -re -i FILE -c copy -f flv rtmp://127.0.0.1:1936/live/NAME", texts)
        self.assertEqual(StreamName("live", "demo"), default_cluster().demo)
