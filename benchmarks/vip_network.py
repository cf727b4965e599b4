"""Two balancers and keepalived on hosts of their own: network namespaces on a bridge.  Needs root.

Owns the namespaces, the processes in them, and their end.  Called by ``virtual_ip.py`` and by the tests; the viewers
are in ``vip_viewers.py``.

    hub        a bridge, with a port to each of:
    client     192.0.2.9      viewers
    lb1, lb2   192.0.2.11/12  a balancer and keepalived each, with the configuration of examples/keepalived
    inner      192.0.2.21     an origin that serves, and something to see, live/demo

The interface of each host is ``eth0``, as that configuration says.  Everybody has an IPv6 address too (2001:db8::...).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "examples" / "keepalived"
INSTALLED = "/usr/local/libexec/relay"  # where the shipped configuration looks for the check script
HOSTS = {"client": 9, "lb1": 11, "lb2": 12, "inner": 21}
BALANCERS = ("lb1", "lb2")
VIP, VIP6 = "192.0.2.100", "2001:db8::100"
PORT, ADMIN_PORT, PEER_PORT = 1935, 8081, 1937
STREAM = "live/demo"
DEADLINE_SECONDS = 20.0
POLL_SECONDS = 0.02
_TOOL_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_numbers = itertools.count(1)


class NetworkFailed(Exception):
    """It isn't as it should be; the message says what was waited for, and what the processes said."""


def address(host: str) -> str:
    """A host's own IPv4 address."""
    return f"192.0.2.{HOSTS[host]}"


def run(*words: str) -> str:
    """Run a command to its end, which must be a good one.

    Raises:
        NetworkFailed: it is not.
    """
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PATH": _TOOL_PATH}, check=False, timeout=10
    )
    if done.returncode:
        raise NetworkFailed(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Process:
    """One that runs on a host.  Its output goes to a file."""

    def __init__(self, network: VipNetwork, host: str, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._log = network.directory / f"{host}-{name}.log"
        # Whatever becomes of this process, that one ends with it.
        tied = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
        self._command = ["ip", "netns", "exec", network.namespace(host), *tied]
        self.start()

    def start(self) -> None:
        """Run it (again)."""
        environment = {
            **os.environ,
            "PATH": _TOOL_PATH,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "RELAY_PARENT_PID": str(os.getpid()),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    @property
    def pid(self) -> int:
        """``ip netns exec`` becomes the command, so this is the command's own."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Nothing if it has ended."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """For its end."""
        self._process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self._process.kill()
        self._process.wait()


class Keepalived:
    """keepalived on a host, with the configuration that we ship, under a stand-in for systemd.

    The stand-in does what the shipped override says: whatever the end, ``ExecStopPost`` is run.
    """

    def __init__(self, network: VipNetwork, host: str, *, advert_seconds: float) -> None:
        self._network = network
        self._host = host
        directory = network.directory
        text = (SHIPPED / f"keepalived-{host}.conf").read_text()
        text = text.replace(INSTALLED, str(directory)).replace("advert_int 0.1", f"advert_int {advert_seconds:g}")
        config = directory / f"{host}.conf"
        config.write_text(text)
        self._pid_files = [directory / f"{host}-{kind}.pid" for kind in ("keepalived", "vrrp")]
        command = [
            "keepalived",
            "-n",
            "-l",
            "-D",
            "-P",
            "-f",
            config,
            "-p",
            self._pid_files[0],
            "-r",
            self._pid_files[1],
        ]
        self.process = Process(network, host, "keepalived", command)

    def kill(self) -> None:
        """As ``kill -9`` of all of it, and then what systemd does."""
        for file in self._pid_files:  # its child would end in good order if only the parent were killed
            os.kill(int(file.read_text()), signal.SIGKILL)
            file.unlink()  # the orphaned child is a zombie until init reaps it, and a new keepalived asks no more
        self.process.wait()
        for line in (SHIPPED / "keepalived-override.conf").read_text().splitlines():
            if line.startswith("ExecStopPost=-"):
                command = line.removeprefix("ExecStopPost=-").split()
                subprocess.call(self._network.on(self._host, *command), stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """As ``systemctl stop`` does."""
        self.process.signal(signal.SIGTERM)
        self.process.wait()


class VipNetwork:
    """All of it, running.  Use :func:`running_network`."""

    def __init__(self, stack: ExitStack) -> None:
        self._tag = f"relay-{os.getpid()}-{next(_numbers)}"
        # Root's, and nobody else may write above it: keepalived would refuse to run a script from /tmp.
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self._tag}-", dir="/run"))
        stack.callback(shutil.rmtree, self.directory)
        self._stack = stack
        self._processes: list[Process] = []
        self.balancers: dict[str, Process] = {}
        self.inner: dict[str, Process] = {}
        self.keepaliveds: dict[str, Keepalived] = {}
        self._make_namespaces()
        stack.callback(self._end_processes)
        self._secret = self.directory / "secret"
        self._secret.touch(0o600)
        self._secret.write_text("a secret that only this network knows")
        check = (SHIPPED / "relay-check").read_text().replace("\n", f"\necho x >> {self.directory}/checks\n", 1)
        (self.directory / "relay-check").write_text(check)
        (self.directory / "relay-check").chmod(0o755)

    def namespace(self, host: str) -> str:
        """Its name, as ``ip netns`` knows it."""
        return f"{self._tag}-{host}"

    def on(self, host: str, *words: str) -> list[str]:
        """A command that runs on a host."""
        return ["ip", "netns", "exec", self.namespace(host), *words]

    # making

    def _make_namespaces(self) -> None:
        for host in ("hub", *HOSTS):
            run("ip", "netns", "add", self.namespace(host))
            self._stack.callback(run, "ip", "netns", "delete", self.namespace(host))
            run("ip", "-n", self.namespace(host), "link", "set", "lo", "up")
        hub = self.namespace("hub")
        run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", hub, "link", "set", "br0", "up")
        for host, number in HOSTS.items():
            there = self.namespace(host)
            run("ip", "-n", hub, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", there)
            run("ip", "-n", hub, "link", "set", host, "master", "br0", "up")
            for setting in ("ipv6/conf/eth0/ndisc_notify", "ipv4/conf/eth0/arp_notify"):  # an address by hand is told
                run(*self.on(host, "sh", "-c", f"echo 1 > /proc/sys/net/{setting}"))
            run("ip", "-n", there, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            run("ip", "-n", there, "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
            run("ip", "-n", there, "link", "set", "eth0", "up")

    def start(self, *, advert_seconds: float, with_keepalived: bool) -> None:
        """Everything but viewers; returns when a viewer would be served."""
        self.inner["origin"] = self._node("inner", "origin", "--name", "o1", "--listen", f"tcp:{PORT}")
        for host in BALANCERS:
            self.balancers[host] = self._balancer(host)
        for host in BALANCERS:
            self.when(lambda host=host: self.state(host) == "normal", f"{host} is normal")
        clip = str(ROOT / "relay" / "demo" / "demo.flv")
        url = f"rtmp://127.0.0.1:{PORT}/{STREAM}"
        self.inner["publisher"] = self._process(
            "inner", "publisher", sys.executable, str(ROOT / "examples/publish_file.py"), "--loop", clip, url
        )
        if with_keepalived:
            for host in BALANCERS:  # one after the other: together, both may be the master for a moment
                self.keepaliveds[host] = self.start_keepalived(host, advert_seconds)
                self.when(lambda: len(self.masters()) == 1, "one balancer has the address")

    def _balancer(self, host: str) -> Process:
        peer = BALANCERS[1 - BALANCERS.index(host)]
        words = ["--name", host, "--listen", rf"tcp:{PORT}:interface=\:\:"]
        words += ["--admin", f"tcp:{ADMIN_PORT}:interface=127.0.0.1"]
        words += ["--aggregator", f"o1=tcp:{address('inner')}:{PORT}"]
        words += ["--handover", str(self.directory / f"{host}.sock")]
        words += ["--take-over-from", str(self.directory / f"{host}.sock")]
        words += ["--peer-listen", f"tcp:{PEER_PORT}:interface={address(host)}"]
        words += ["--peer", f"{peer}=tcp:{address(peer)}:{PEER_PORT}"]
        return self._node(host, "balancer", *words)

    def upgrade(self, host: str) -> None:
        """A new balancer process takes over from the one that runs there."""
        old = self.balancers[host]
        self.balancers[host] = self._balancer(host)
        self.when(lambda: not old.is_running, f"the old process of {host} has ended")

    def _node(self, host: str, tier: str, *words: str) -> Process:
        command = [sys.executable, "-m", "relay.tiers.child", "-n", "--pidfile=", f"relay-{tier}"]
        return self._process(host, tier, *command, "--secret-file", str(self._secret), *words)

    def _process(self, host: str, name: str, *command: str) -> Process:
        process = Process(self, host, name, command)
        self._processes.append(process)
        return process

    def start_keepalived(self, host: str, advert_seconds: float = 0.1) -> Keepalived:
        """Run it there (again)."""
        keepalived = Keepalived(self, host, advert_seconds=advert_seconds)
        self._processes.append(keepalived.process)
        return keepalived

    def _end_processes(self) -> None:
        for process in self._processes:
            process.signal(signal.SIGCONT)
            process.kill()
        for host in HOSTS:  # a keepalived that is killed leaves its child behind
            for pid in run("ip", "netns", "pids", self.namespace(host)).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    # asking

    def when(self, is_so: Callable[[], object], what: str) -> None:
        """Wait until ``is_so()`` is true.

        Raises:
            NetworkFailed: it doesn't come true.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                said = "\n".join(f"-- {process.name}\n{process.said}" for process in self._processes)
                raise NetworkFailed(f"not within {DEADLINE_SECONDS:g} s: {what}\n{said}")
            time.sleep(POLL_SECONDS)

    def checks(self) -> int:
        """How often keepalived has asked the check script for anything, on both hosts together."""
        return (self.directory / "checks").read_text().count("x")

    def masters(self) -> list[str]:
        """The balancers that have the address."""
        return [host for host in BALANCERS if VIP in self.addresses(host)]

    def addresses(self, host: str) -> list[str]:
        """Of its eth0."""
        shown = run("ip", "-n", self.namespace(host), "-oneline", "address", "show", "dev", "eth0")
        return re.findall(r"inet6? ([^/ ]+)", shown)

    def state(self, balancer: str) -> str:
        """What its health page says; "" if it says nothing."""
        found = re.search(r'"state": "(\w+)"', self._page(balancer, "healthz"))
        return found[1] if found else ""

    def metric(self, balancer: str, name: str) -> float:
        """The sum of a metric's values."""
        return sum(
            float(line.split()[-1]) for line in self._page(balancer, "metrics").splitlines() if line.startswith(name)
        )

    def _page(self, balancer: str, path: str) -> str:
        url = f"http://127.0.0.1:{ADMIN_PORT}/{path}"
        asked = subprocess.run(
            self.on(balancer, "curl", "-s", "--max-time", "1", url), capture_output=True, text=True, check=False
        )
        return asked.stdout

    # breaking

    def cut(self, host: str) -> None:
        """Its bridge port passes nothing any more.  Its own interface stays up, and nobody is told."""
        self._set_port(host, 0)

    def heal(self, host: str) -> None:
        """It passes everything again."""
        self._set_port(host, 3)

    def _set_port(self, host: str, state: int) -> None:
        run("bridge", "-n", self.namespace("hub"), "link", "set", "dev", host, "state", str(state))


@contextmanager
def running_network(*, advert_seconds: float = 0.1, with_keepalived: bool = True) -> Iterator[VipNetwork]:
    """A network, for as long as the context lasts.

    Raises:
        NetworkFailed: it does not come up.
    """
    with ExitStack() as stack:
        network = VipNetwork(stack)
        network.start(advert_seconds=advert_seconds, with_keepalived=with_keepalived)
        yield network
