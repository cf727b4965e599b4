"""Balancers that share an address: what they tell each other, and whose viewers are made to connect anew."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.net.four_tuple import FourTuple
from relay.net.identity import ClusterSecret, NodeIdentity
from relay.net.neighbours import Neighbourhood, PeerLink
from relay.net.node import NodeSettings
from relay.net.telling import BATCH
from relay.rtmp.events import CommandReceived
from relay.testing import MemoryNetwork
from tests.net.driving import Player, connect

VIP = "10.77.0.100"
SECRET = ClusterSecret(b"a secret that only this test knows")


@attrs.frozen
class Ends:
    """A viewer's transport, as far as it is asked for addresses."""

    remote_port: int
    local: str = VIP

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.local, 1935)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "10.77.0.9", self.remote_port)


class Machine:
    """The addresses of a machine, moved by hand, and what left it."""

    def __init__(self) -> None:
        self.addresses: frozenset[str] = frozenset()
        self.told: list[int] = []  # ports of the viewers that were sent a packet
        self.is_allowed = True
        self.health = "normal"
        self._changed: Callable[[], None] = lambda: None

    def watch(self, changed: Callable[[], None]) -> Machine:
        self._changed = changed
        return self

    def start(self) -> None:
        """Nothing to open."""

    def stop(self) -> None:
        """Nothing to close."""

    def set(self, *addresses: str) -> None:
        self.addresses = frozenset(addresses)
        self._changed()

    def open_sender(self) -> Machine:
        if not self.is_allowed:
            raise PermissionError(1, "Operation not permitted")
        return self

    def send(self, packet: bytes, host: str) -> None:
        assert ipaddress.ip_address(packet[12:16]) == ipaddress.ip_address(VIP)
        self.told.append(struct.unpack("!H", packet[22:24])[0])


def heard(name: str, values: list[Any]) -> CommandReceived:
    return CommandReceived(name=name, transaction_id=0.0, values=values)


class PeerTests(SynchronousTestCase):
    """Two balancers on two machines; lb1 has the address and the viewers."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.machines = {name: Machine() for name in ("lb1", "lb2")}
        self.nodes: dict[str, Neighbourhood] = {}
        self.endpoints: dict[str, Any] = {}
        self.make("lb1", [])
        self.make("lb2", [("lb1", self.endpoints["lb1"])])
        self.machines["lb1"].set(VIP, "10.77.0.1")
        self.machines["lb2"].set("10.77.0.2")

    def tearDown(self) -> None:
        for node in self.nodes.values():
            stopping = node.stopService()
            self.network.advance(DEFAULT_LIMITS.close_seconds + 1, step=0.5)
            self.successResultOf(stopping)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def make(self, name: str, peers: Any, secret: ClusterSecret = SECRET, **limits: int) -> Neighbourhood:
        """A balancer's neighbourhood, running."""
        identity = NodeIdentity(name=name, tier="balancer", secret=secret)
        settings = NodeSettings(identity=identity, limits=attrs.evolve(DEFAULT_LIMITS, **limits))
        machine = self.machines[name]
        node = Neighbourhood(
            settings, self.network.reactor, peers, lambda: (machine.health, []), machine.watch, machine.open_sender
        )
        self.nodes[name] = node
        self.endpoints[name] = self.network.endpoint(node.port.ports)
        node.privilegedStartService()
        node.startService()
        self.network.advance(0.2)
        return node

    def come(self, *ports: int, name: str = "lb1", local: str = VIP) -> None:
        for port in ports:
            self.nodes[name].viewer_made(port, Ends(port, local))
        self.network.advance(0.2)

    def known(self) -> list[int]:
        """Ports of lb1's viewers that lb2 knows."""
        return sorted(viewer.remote_port for viewer in self.nodes["lb2"].links[0].viewers.values())

    def told(self) -> list[int]:
        """Ports of those that lb2 has told, three times each, and forget them."""
        self.network.advance(5)
        told, self.machines["lb2"].told = self.machines["lb2"].told, []
        self.assertEqual(sorted(told), sorted(3 * list(set(told))))
        return sorted(set(told))

    def cut(self) -> None:
        """lb1's machine is gone, without a word."""
        for link in self.endpoints["lb1"].open_links:
            link.is_cut = True
        self.endpoints["lb1"].is_silent = True

    def heal(self) -> None:
        """It is back: what was sent meanwhile is lost, so the old connections are too."""
        self.endpoints["lb1"].is_silent = False
        for link in self.endpoints["lb1"].open_links:
            link.is_cut = False
            link.kill_server()
        self.network.advance(5)

    # telling

    def test_peer_knows_who_is_there(self) -> None:
        self.come(1, 2, 3)
        self.nodes["lb1"].viewer_gone(2)
        self.network.advance(0.2)
        self.assertEqual([1, 3], self.known())

    def test_peer_that_comes_late_is_told_of_all(self) -> None:
        """In batches; who leaves between two of them is not told."""
        ports = range(1, 2 * BATCH + 10)
        self.endpoints["lb1"].open_links[0].kill_server()
        self.network.carry()
        self.come(*ports)
        self.network.advance(5)
        self.assertEqual(list(ports), self.known())

    def test_viewer_that_leaves_at_once_is_not_told(self) -> None:
        self.nodes["lb1"].viewer_made(1, Ends(1))
        self.nodes["lb1"].viewer_gone(1)
        self.nodes["lb1"].viewer_gone(1)
        self.network.advance(1)
        self.assertEqual([], self.known())

    def test_new_connection_replaces_what_was_known(self) -> None:
        """A balancer that starts anew has nobody, and its ids begin at one again."""
        self.come(1, 2)
        self.nodes["lb1"].viewer_gone(1)  # told to nobody: the connection ends first
        self.endpoints["lb1"].open_links[0].kill_server()
        self.network.advance(5)
        self.assertEqual([2], self.known())

    def test_viewers_that_no_address_could_bring_here_are_not_told(self) -> None:
        self.come(1, local="127.0.0.1")
        unix = type("Unix", (), {"getHost": lambda self: UNIXAddress("x"), "getPeer": lambda self: UNIXAddress("")})
        self.nodes["lb1"].viewer_made(2, unix())
        self.network.advance(0.2)
        self.assertEqual([], self.known())

    def test_peer_viewers(self) -> None:
        """No more are kept than the limit says; the rest is not reset, which is said once."""
        self.machines["lb3"] = Machine()
        lines: list[str] = []
        self.patch(PeerLink, "log", Lines(lines))
        self.make("lb3", [("lb1", self.endpoints["lb1"])], peer_viewers=10)
        self.come(*range(1, 8))
        self.come(*range(8, 20))
        self.come(20)
        self.assertEqual(10, len(self.nodes["lb3"].links[0].viewers))
        self.assertEqual(20, len(self.known()))
        self.assertEqual(1, len([line for line in lines if "peer_viewers" in line]))

    def test_peer_without_the_secret_is_told_nothing(self) -> None:
        self.machines["lb3"] = Machine()
        self.come(1, 2)
        link = self.make("lb3", [("lb1", self.endpoints["lb1"])], ClusterSecret(b"some other secret!")).links[0]
        self.assertEqual(("down", {}), (link.state, link.viewers))

    def test_viewer_at_the_peers_port_is_told_nothing(self) -> None:
        """It is no place to ask for streams, or for viewers."""
        self.come(1, 2)
        player = connect(self.network, self.endpoints["lb1"], Player(play="demo"))
        player.session.send_command("relayHello", 0, [])
        player.flush()
        self.network.advance(1)
        self.assertFalse(player.has(CommandReceived))
        self.assertEqual(1, len(player.ends))

    def test_nonsense_from_a_peer_ends_the_connection(self) -> None:
        link = self.nodes["lb2"].links[0]
        good = {"id": 1.0, "at": VIP, "atPort": 1935.0, "viewer": "10.77.0.9", "viewerPort": 9.0}
        link.told(heard("relayViewers", [False, [good]]))
        for change in ({"at": "lb1"}, {"at": 5}, {"atPort": 0}, {"viewer": None}, {"viewerPort": 70_000}, {"id": "x"}):
            with self.assertRaises(RemoteProtocolError):
                link.told(heard("relayViewers", [False, [{**good, **change}]]))
        for value in ([None], [{}], ["x"], [float("nan")], [float("inf")]):
            with self.assertRaises(RemoteProtocolError):
                link.told(heard("relayViewersGone", [value]))
            with self.assertRaises(RemoteProtocolError):
                link.told(heard("relayViewers", [True, value]))

    def test_what_a_later_version_adds_is_ignored(self) -> None:
        told = {"at": VIP, "atPort": 1935.0, "viewer": "10.77.0.9", "viewerPort": 9.0, "sequence": 12.0}
        self.assertEqual(FourTuple(VIP, 1935, "10.77.0.9", 9), FourTuple.from_wire(told))

    def test_ipv4_viewer_of_an_ipv6_listener_has_its_ipv4_address(self) -> None:
        self.assertEqual(VIP, getattr(FourTuple.of(Ends(1, f"::ffff:{VIP}")), "local", None))

    # giving way

    def test_balancer_that_can_serve_nobody_gives_way_to_one_that_may(self) -> None:
        node = self.nodes["lb2"]
        for ours, theirs, gives_way in (
            ("normal", "normal", False),
            ("degraded", "normal", False),
            ("down", "degraded", True),
            ("down", "down", False),
            ("normal", "down", False),
        ):
            self.machines["lb2"].health, self.machines["lb1"].health = ours, theirs
            self.nodes["lb1"].tell_health()
            self.network.carry()
            self.assertEqual(gives_way, node.gives_way, (ours, theirs))

    def test_balancer_that_can_serve_nobody_and_hears_of_nobody_gives_way(self) -> None:
        """It is cut off, and when that heals it must not win the address back."""
        self.machines["lb2"].health = "down"
        self.cut()
        self.network.advance(1)
        self.assertTrue(self.nodes["lb2"].gives_way)

    # resetting

    def test_lost_peer_s_viewers_are_told_when_its_address_comes(self) -> None:
        self.come(1, 2, 3)
        self.come(4, local="10.77.0.1")
        self.cut()
        self.network.advance(1)
        self.assertEqual([], self.told())
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.assertEqual([1, 2, 3], self.told())

    def test_address_may_come_before_the_peer_is_known_to_be_lost(self) -> None:
        """VRRP is quicker than our own dead time."""
        self.come(1, 2, 3)
        self.cut()
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.network.advance(0.1)
        self.assertEqual([], self.machines["lb2"].told)
        self.assertEqual([1, 2, 3], self.told())

    def test_peer_that_lives_and_has_the_address_too_keeps_its_viewers(self) -> None:
        """Two masters: where the viewers' packets go is not known here."""
        self.come(1, 2, 3)
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.assertEqual([], self.told())

    def test_peer_that_lives_and_gives_the_address_up_loses_its_viewers(self) -> None:
        for order in (("lb1", "lb2"), ("lb2", "lb1")):
            self.machines["lb1"].set(VIP, "10.77.0.1")
            self.machines["lb2"].set("10.77.0.2")
            self.come(*range(1, 4))
            for name in order:
                has = {"lb1": ["10.77.0.1"], "lb2": ["10.77.0.2", VIP]}[name]
                self.machines[name].set(*has)
                self.network.advance(0.2)
            self.assertEqual([1, 2, 3], self.told(), order)
            for port in range(1, 4):
                self.nodes["lb1"].viewer_gone(port)

    def test_stale_viewer_that_a_peer_tells_of_later_is_told_too(self) -> None:
        """The balancer here was started anew, and hears only now of those that its peer still holds."""
        self.machines["lb1"].set("10.77.0.1")
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.network.advance(0.2)
        self.come(1)
        self.assertEqual([1], self.told())

    def test_viewer_that_has_connected_here_is_left_alone(self) -> None:
        """It may even have the port that it had there."""
        self.come(1, 2, 3)
        self.cut()
        self.network.advance(1)
        self.nodes["lb2"].viewer_made("it", Ends(2))
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.assertEqual([1, 3], self.told())

    def test_viewer_is_told_again_only_when_the_address_comes_again(self) -> None:
        self.come(1)
        self.cut()
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.assertEqual([1], self.told())
        self.machines["lb2"].set("10.77.0.2", VIP, "10.77.0.5")
        self.assertEqual([], self.told())
        self.machines["lb2"].set("10.77.0.2")
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.assertEqual([1], self.told())

    def test_healed_peer_that_has_kept_the_address_is_heard(self) -> None:
        """A cut that heals leaves two masters for a moment; then one of them gives in."""
        self.come(1)
        self.cut()
        self.machines["lb2"].set("10.77.0.2", VIP)
        self.assertEqual([1], self.told())
        self.heal()
        self.assertEqual([], self.told())
        self.machines["lb1"].set("10.77.0.1")
        self.network.advance(0.2)
        self.assertEqual([1], self.told())

    def test_without_permission_it_says_so_once_and_counts(self) -> None:
        self.machines["lb3"] = Machine()
        self.machines["lb3"].is_allowed = False
        lines: list[str] = []
        self.patch(Neighbourhood, "log", Lines(lines))
        node = self.make("lb3", [("lb1", self.endpoints["lb1"])])
        self.come(1, 2)
        self.cut()
        self.machines["lb3"].set(VIP)
        self.network.advance(5)
        self.assertEqual((0, 2), (node.tickler.told, node.tickler.failed))
        self.assertEqual(1, len([line for line in lines if "CAP_NET_RAW" in line]))

    def test_balancer_without_peers_opens_no_raw_socket(self) -> None:
        """It only tells; the permission is not wanted."""
        self.assertIsNone(self.nodes["lb1"].tickler.sender)


@attrs.frozen
class Lines:
    """What is logged, as text."""

    lines: list[str]

    def warn(self, text: str, **fields: object) -> None:
        self.lines.append(text.format(**fields))

    info = warn
