"""The packet that makes a viewer notice, and the pace at which viewers are told."""

from __future__ import annotations

import ipaddress
import socket
import struct
from itertools import pairwise

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.net.four_tuple import FourTuple
from relay.net.tickle import (
    AGAIN_SECONDS,
    FIRST_SECONDS,
    PACE_SECONDS,
    SEQUENCES,
    TIMES,
    TOLD_AT_ONCE,
    Tickler,
    stale_ack,
)

VIEWER = FourTuple("10.77.0.100", 1935, "10.77.0.9", 40_001)
VIEWER6 = FourTuple("fd00:77::100", 1935, "fd00:77::9", 40_001)


def viewers(count: int) -> list[FourTuple]:
    return [FourTuple("10.77.0.100", 1935, "10.77.0.9", port) for port in range(1, count + 1)]


def sum16(data: bytes) -> int:
    """Ones' complement sum: 0xFFFF over anything that contains its right checksum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class PacketTests(SynchronousTestCase):
    """The bytes."""

    def test_packet_is_a_bare_acknowledgement(self) -> None:
        """No payload, no flag but ACK, from the balancer's address to the viewer's."""
        packet = stale_ack(VIEWER, 0x55555555)
        self.assertEqual((40, 0x45, 6), (len(packet), packet[0], packet[9]))
        self.assertEqual(40, int.from_bytes(packet[2:4], "big"))
        self.assertEqual([VIEWER.local, VIEWER.remote], [socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16)])
        local_port, remote_port, sequence, _, offset, flags, _, _, _ = struct.unpack("!HHIIBBHHH", packet[20:])
        self.assertEqual((1935, 40_001, 0x55555555, 0x50, 0x10), (local_port, remote_port, sequence, offset, flags))

    def test_checksum_covers_segment_and_addresses(self) -> None:
        for viewer, head in ((VIEWER, 20), (VIEWER6, 40)):
            packet = stale_ack(viewer, 1)
            addresses = b"".join(ipaddress.ip_address(host).packed for host in (viewer.local, viewer.remote))
            pseudo = addresses + struct.pack("!II", 20, 6)
            self.assertEqual(0xFFFF, sum16(pseudo + packet[head:]), viewer)

    def test_ipv6_packet_has_its_own_header(self) -> None:
        packet = stale_ack(VIEWER6, 1)
        self.assertEqual((60, 6, 20, 6), (len(packet), packet[0] >> 4, int.from_bytes(packet[4:6], "big"), packet[6]))
        self.assertEqual(ipaddress.ip_address(VIEWER6.local).packed, packet[8:24])
        self.assertEqual(ipaddress.ip_address(VIEWER6.remote).packed, packet[24:40])

    def test_numbers_are_further_apart_than_any_window(self) -> None:
        """If one should be in the viewer's window, the next isn't."""
        self.assertEqual(TIMES, len(set(SEQUENCES)))
        gaps = [(a - b) % (1 << 32) for a in SEQUENCES for b in SEQUENCES if a != b]
        self.assertGreater(min(gaps), 1 << 30)


class Wire:
    """Keeps what is sent, or doesn't send it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_broken = False
        self.sent: list[tuple[float, int, int]] = []  # (when, the viewer's port, the number)

    def send(self, packet: bytes, host: str) -> None:
        if self.is_broken:
            raise OSError("network is unreachable")
        assert host == VIEWER.remote
        _, port, sequence = struct.unpack("!HHI", packet[20:28])
        self.sent.append((self.clock.seconds(), port, sequence))


class PaceTests(SynchronousTestCase):
    """When."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wire = Wire(self.clock)
        self.unwanted: set[FourTuple] = set()
        self.tickler = Tickler(self.clock, self.wire, lambda viewer: viewer not in self.unwanted)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    def test_each_is_told_three_times_and_no_two_packets_are_close(self) -> None:
        """A viewer's kernel answers one in half a second; the first may come before the address is known to be here."""
        for viewer in viewers(3):
            self.tickler.add(viewer)
        self.pass_time(10)
        for port in (1, 2, 3):
            times = [at for at, to, _ in self.wire.sent if to == port]
            self.assertEqual(TIMES, len(times))
            self.assertGreaterEqual(min(times), FIRST_SECONDS)
            self.assertGreaterEqual(min(b - a for a, b in pairwise(times)), 0.5)
            self.assertEqual(list(SEQUENCES), [sequence for _, to, sequence in self.wire.sent if to == port])
        self.assertEqual((3, 0, 0), (self.tickler.told, self.tickler.failed, len(self.tickler)))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_many_are_told_at_a_bounded_pace(self) -> None:
        """Everybody who is told comes at once, and the aggregators have viewers already."""
        for viewer in viewers(500):
            self.tickler.add(viewer)
        self.pass_time(FIRST_SECONDS + AGAIN_SECONDS / 2)
        count = len(self.wire.sent)
        self.assertEqual(500, len({port for _, port, _ in self.wire.sent}))
        self.pass_time(20)
        self.assertEqual((500, 500 * TIMES), (count, len(self.wire.sent)))
        for at, _, _ in self.wire.sent:
            window = [when for when, _, _ in self.wire.sent if at <= when < at + 10 * PACE_SECONDS - 1e-6]
            self.assertLessEqual(len(window), 10 * TOLD_AT_ONCE)

    def test_newcomers_are_told_before_anybody_is_told_again(self) -> None:
        for viewer in viewers(2):
            self.tickler.add(viewer)
        self.pass_time(0.5)
        for viewer in viewers(400):
            self.tickler.add(viewer)
        self.pass_time(10)
        first_round = [port for _, port, sequence in self.wire.sent if sequence == SEQUENCES[0]]
        self.assertEqual(sorted(first_round), sorted({port for _, port, _ in self.wire.sent}))
        self.assertEqual(400 * TIMES, len(self.wire.sent))

    def test_one_that_is_added_twice_is_told_as_if_once(self) -> None:
        for _ in range(5):
            self.tickler.add(VIEWER)
            self.pass_time(0.3)
        self.pass_time(10)
        self.assertEqual(TIMES, len(self.wire.sent))

    def test_one_that_connected_meanwhile_is_left_alone(self) -> None:
        """Asked before each packet, not when it is planned."""
        self.tickler.add(VIEWER)
        self.pass_time(0.5)
        self.unwanted.add(VIEWER)
        self.pass_time(10)
        self.assertEqual(1, len(self.wire.sent))

    def test_packet_that_can_not_be_sent_is_counted_and_tried_again(self) -> None:
        """The route may come with the address, a moment later."""
        self.wire.is_broken = True
        self.tickler.add(VIEWER)
        self.pass_time(0.5)
        self.wire.is_broken = False
        self.pass_time(10)
        self.assertEqual((0, 1, TIMES - 1), (self.tickler.told, self.tickler.failed, len(self.wire.sent)))

    def test_without_permission_all_are_counted(self) -> None:
        self.tickler.sender = None
        for viewer in viewers(30):
            self.tickler.add(viewer)
        self.pass_time(1)
        self.assertEqual((0, 30, 0), (self.tickler.told, self.tickler.failed, len(self.tickler)))

    def test_nobody_is_told_after_the_end(self) -> None:
        self.tickler.add(VIEWER)
        self.tickler.close()
        self.assertEqual([], self.clock.getDelayedCalls())
