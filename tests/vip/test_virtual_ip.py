"""Two balancers on one virtual IP, with keepalived as we ship it: whatever dies, players are served again.

Each test has a network of its own.  The balancer that has the address when it begins is the *master*, the other the
*backup*; which is which is keepalived's choice.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase
from vip_network import BALANCERS, VIP, VIP6, VipNetwork, run, running_network
from vip_viewers import Viewer, is_served

from tests.programs import is_ci, require_program

CHECKS = 2 * 2 * 3  # on two hosts, two scripts, three times
PROGRAMS = ("ip", "bridge", "curl", "keepalived")


def require_namespaces() -> None:
    """Skip, or fail in CI, where this can't be tried."""
    for program in PROGRAMS:
        require_program(program)
    if os.geteuid() != 0 or subprocess.call(["unshare", "--net", "--mount", "true"], stderr=subprocess.DEVNULL):
        if is_ci():
            raise AssertionError("network namespaces need root with all its rights, and in CI nothing may be skipped")
        raise SkipTest("network namespaces need root with all its rights")


class VirtualIpTestCase(SynchronousTestCase):
    """A network, a master and a backup."""

    def setUp(self) -> None:
        require_namespaces()
        self._stack = ExitStack()
        self.addCleanup(self._stack.close)

    def start(self, *, with_keepalived: bool = True) -> VipNetwork:
        self.network = self._stack.enter_context(running_network(with_keepalived=with_keepalived))
        return self.network

    def start_with_viewer(self) -> Viewer:
        """A player that has been served for a moment, and of whom the backup has heard."""
        self.start()
        self.note_roles(self.network.masters()[0])
        return self.view()

    def note_roles(self, master: str) -> None:
        self.master = master
        self.backup = BALANCERS[1 - BALANCERS.index(master)]

    def view(self, host: str = VIP) -> Viewer:
        self.served(host)
        self.knows(0)
        viewer = Viewer(self.network.namespace("client"), host)
        self.addCleanup(viewer.close)
        viewer.read_some()
        self.knows(1)
        return viewer

    def knows(self, viewers: int) -> None:
        self.network.when(
            lambda: self.network.metric(self.backup, "relay_peer_viewers") == viewers, f"the backup knows of {viewers}"
        )

    def view_other_way_round(self) -> Viewer:
        """The backup has become the master: the next fault is its own."""
        self.note_roles(self.backup)
        return self.view()

    def served(self, host: str = VIP) -> None:
        """A player that connects, and connects again, is sent the stream."""
        self.network.when(lambda: is_served(self.network.namespace("client"), host), "a player is served")

    def moved(self) -> None:
        """The backup has the address alone, and serves."""
        self.network.when(lambda: self.network.masters() == [self.backup], "the backup is the one master")
        self.served()

    def said(self, host: str, words: str) -> bool:
        return words in self.network.keepaliveds[host].process.said


class FaultTests(VirtualIpTestCase):
    """The master's machine, its balancer, its keepalived."""

    def test_silent_cut_of_the_master(self) -> None:
        """As a power cut looks to the others.  The viewer hears nothing from the dead, and would wait for ever."""
        viewer = self.start_with_viewer()
        self.network.cut(self.master)
        self.served()
        self.assertEqual("reset", viewer.end())
        self.assertIn(
            f"{self.master} is lost (dead), and its viewers' address is here now; told to connect anew: 1",
            self.network.balancers[self.backup].said,
        )
        self.assertEqual(1, self.network.metric(self.backup, "relay_viewers_reset_total"))
        # When the cut heals there are two masters.  The one that sees no aggregator has fallen behind by then.
        self.network.when(lambda: self.said(self.master, "from 150 to 110"), "the master sees that it is cut off")
        self.network.heal(self.master)
        self.moved()

    def test_balancer_that_hangs_and_one_that_is_killed(self) -> None:
        """A stopped process still accepts: only who reads notices.  When it goes on, the address stays where it is.
        The kernel of a killed one resets its viewers itself."""
        viewer = self.start_with_viewer()
        self.network.balancers[self.master].signal(signal.SIGSTOP)
        self.moved()
        self.assertEqual("reset", viewer.end())
        self.network.balancers[self.master].signal(signal.SIGCONT)
        self.network.when(lambda: self.said(self.master, "from 50 to 150"), "keepalived finds it well again")
        self.moved()
        viewer = self.view_other_way_round()
        self.network.balancers[self.master].kill()
        self.assertIn(viewer.end(), ("reset", "closed"))
        self.moved()

    def test_keepalived_that_is_killed_and_one_that_is_stopped(self) -> None:
        """The first leaves the address behind; what we ship for systemd takes it away.  Both balancers live on."""
        viewer = self.start_with_viewer()
        self.network.keepaliveds[self.master].kill()
        self.moved()
        self.assertEqual("reset", viewer.end())
        process = self.network.keepaliveds[self.master].process
        process.start()
        self.network.when(lambda: process.said.count("Entering BACKUP STATE") > 1, "it is back")
        self.moved()
        viewer = self.view_other_way_round()
        self.network.keepaliveds[self.master].stop()
        self.moved()
        self.assertEqual("reset", viewer.end())

    def test_address_stays_when_neither_balancer_could_serve(self) -> None:
        """Moving it would help nobody, and reset everybody who waits."""
        self.start()
        self.note_roles(self.network.masters()[0])
        self.network.inner["origin"].kill()
        for host in BALANCERS:
            self.network.when(lambda host=host: self.network.state(host) == "down", f"{host} can serve nobody")
        asked = self.network.checks()
        self.network.when(lambda: self.network.checks() > asked + CHECKS, "keepalived has asked both about it")
        self.assertEqual([self.master], self.network.masters())
        for host, count in ((self.master, 1), (self.backup, 0)):
            said = self.network.keepaliveds[host].process.said
            self.assertEqual((count, 0), (said.count("Entering MASTER STATE"), said.count("Changing effective")), said)


class AddressTests(VirtualIpTestCase):
    """The address moved by hand: nothing of the resets depends on keepalived."""

    def test_ipv6_viewer_is_reset_too(self) -> None:
        self.start(with_keepalived=False)
        self.note_roles("lb1")
        self.move(VIP6, "add", "lb1")
        viewer = self.view(VIP6)
        self.network.cut("lb1")
        self.move(VIP6, "add", "lb2")
        self.served(VIP6)
        self.assertEqual("reset", viewer.end())

    def test_upgrade_resets_nobody_and_the_peer_knows_the_viewers_afterwards(self) -> None:
        """To the peer it looks like a death, but the address has not moved."""
        self.start(with_keepalived=False)
        self.note_roles("lb1")
        self.move(VIP, "add", "lb1")
        viewer = self.view()
        self.network.upgrade("lb1")
        self.network.when(lambda: self.network.metric("lb2", "relay_peer_up") == 1, "they know each other again")
        self.knows(1)
        self.assertEqual(0, self.network.metric("lb2", "relay_viewers_reset_total"))
        self.view_on(viewer)
        self.network.cut("lb1")
        self.move(VIP, "add", "lb2")
        self.assertEqual("reset", viewer.end())

    def test_two_masters_leave_each_other_s_viewers_alone(self) -> None:
        """The other lives, and says that it has the address: the viewer is reset when it has it no more."""
        self.start(with_keepalived=False)
        self.note_roles("lb1")
        self.move(VIP, "add", "lb1")
        viewer = self.view()
        run("ip", "-n", self.network.namespace("lb2"), "address", "add", f"{VIP}/32", "dev", "lo")  # told to nobody
        self.view_on(viewer)
        self.assertEqual(0, self.network.metric("lb2", "relay_viewers_reset_total"))
        self.move(VIP, "delete", "lb1")
        self.network.when(lambda: self.network.metric("lb2", "relay_viewers_reset_total") == 1, "it is told")

    def move(self, address: str, what: str, host: str) -> None:
        words = ["nodad"] if ":" in address and what == "add" else []
        length = 128 if ":" in address else 32
        there = self.network.namespace(host)
        run("ip", "-n", there, "address", what, f"{address}/{length}", "dev", "eth0", *words)

    def view_on(self, viewer: Viewer) -> None:
        for _ in range(5):
            viewer.read_some()
