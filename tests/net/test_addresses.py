"""The watch over this machine's addresses: the kernel's messages, and the kernel itself."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from relay.net.addresses import RTM_DELADDR, RTM_NEWADDR, AddressChange, AddressWatch, read_changes
from relay.testing import ManualReactor
from tests.cluster import until
from tests.programs import require_program

ADDED = bytes.fromhex(  # ip addr add 10.77.0.100/24 dev eth0, as Linux 6.18 says it
    "5000000014000000254f066b6c420000"
    "0218800003000000"
    "080001000a4d0064"
    "080002000a4d0064"
    "090003006574683000000000"
    "0800080080000000"
    "14000600ffffffffffffffffbd351500bd351500"
)  # fmt: skip
TENTATIVE = 0x40


def message(kind: int, address: bytes, *, flags: int = 0, interface: int = 2) -> bytes:
    """One message of the kernel's, as short as may be."""
    family = 2 if len(address) == 4 else 10
    body = struct.pack("=BBBBI", family, 24, 0, 0, interface)
    body += struct.pack("=HH", 4 + len(address), 1) + address + struct.pack("=HHI", 8, 8, flags)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class MessageTests(SynchronousTestCase):
    """What the kernel says."""

    def test_address_that_came(self) -> None:
        self.assertEqual([AddressChange(3, "10.77.0.100", True)], list(read_changes(ADDED)))

    def test_address_that_went(self) -> None:
        self.assertEqual(
            [AddressChange(2, "10.0.0.1", False)], list(read_changes(message(RTM_DELADDR, bytes([10, 0, 0, 1]))))
        )

    def test_ipv6_address_is_not_there_until_it_is_known_to_be_alone(self) -> None:
        """Packets from a tentative address don't leave."""
        address = bytes.fromhex("fd000077000000000000000000000100")
        both = message(RTM_NEWADDR, address, flags=TENTATIVE) + message(RTM_NEWADDR, address)
        self.assertEqual(
            [AddressChange(2, "fd00:77::100", False), AddressChange(2, "fd00:77::100", True)], list(read_changes(both))
        )

    def test_end_of_a_dump_is_told(self) -> None:
        done = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)
        self.assertEqual([AddressChange(3, "10.77.0.100", True), None], list(read_changes(ADDED + done)))


@given(st.binary(max_size=200) | st.integers(0, len(ADDED)).map(lambda cut: ADDED[:cut]))
def test_any_bytes_are_read(data: bytes) -> None:
    """Nothing is raised, whatever comes."""
    list(read_changes(data))


DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


class Kernel:
    """The other end of a netlink socket: what it says next, and what it was asked."""

    def __init__(self, *says: bytes | OSError) -> None:
        self.says = list(says)
        self.asked = 0
        self.is_closed = False

    def recvfrom(self, count: int) -> tuple[bytes, tuple[int, int]]:
        said = self.says.pop(0) if self.says else BlockingIOError()
        if isinstance(said, OSError):
            raise said
        return said, (0, 0)

    def send(self, request: bytes) -> None:
        self.asked += 1

    def fileno(self) -> int:
        return 1 << 20

    def close(self) -> None:
        self.is_closed = True


class WatchTests(SynchronousTestCase):
    """What becomes of the kernel's words."""

    def setUp(self) -> None:
        self.reactor = ManualReactor()
        self.changes: list[list[str]] = []

    def watch(self, kernel: Kernel) -> AddressWatch:
        def changed() -> None:
            self.changes.append(sorted(watch.addresses))

        watch = AddressWatch(self.reactor, changed, lambda: kernel)
        watch.start()
        watch.doRead()
        return watch

    def test_addresses_are_known_when_the_kernel_has_told_all(self) -> None:
        """One that comes meanwhile is among them, one that goes isn't."""
        first, second, third = (bytes([10, 0, 0, number]) for number in (1, 2, 3))
        kernel = Kernel(message(RTM_NEWADDR, first) + message(RTM_NEWADDR, second))
        watch = self.watch(kernel)
        self.assertEqual([], self.changes)
        kernel.says += [message(RTM_DELADDR, first) + message(RTM_NEWADDR, third), DONE]
        watch.doRead()
        self.assertEqual([["10.0.0.2", "10.0.0.3"]], self.changes)

    def test_address_on_two_interfaces_is_gone_when_both_are(self) -> None:
        address = bytes([10, 0, 0, 1])
        both = message(RTM_NEWADDR, address, interface=2) + message(RTM_NEWADDR, address, interface=3) + DONE
        kernel = Kernel(both)
        watch = self.watch(kernel)
        for interface in (2, 3):
            kernel.says.append(message(RTM_DELADDR, address, interface=interface))
            watch.doRead()
        self.assertEqual([["10.0.0.1"], []], self.changes)

    def test_more_changes_than_the_socket_holds_are_asked_for_again(self) -> None:
        """What was lost is not known, so all is asked, and what is there no more is forgotten."""
        old, new = (message(RTM_NEWADDR, bytes([10, 0, 0, number])) for number in (1, 2))
        kernel = Kernel(old + DONE)
        watch = self.watch(kernel)
        kernel.says += [OSError(errno.ENOBUFS, "No buffer space available"), new, DONE]
        watch.doRead()
        self.assertEqual(([["10.0.0.1"], ["10.0.0.2"]], 2), (self.changes, kernel.asked))

    def test_watch_that_stops_lets_go_of_its_socket(self) -> None:
        kernel = Kernel(DONE)
        watch = self.watch(kernel)
        watch.stop()
        self.assertEqual((True, {}), (kernel.is_closed, self.reactor.readers))

    def test_machine_that_does_not_say_has_no_addresses(self) -> None:
        """A sandbox without netlink costs the resets, not the balancer."""

        def refuse() -> socket.socket:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

        watch = AddressWatch(self.reactor, lambda: self.changes.append([]), refuse)
        watch.start()
        watch.stop()
        self.assertEqual((frozenset(), []), (watch.addresses, self.changes))


class KernelTests(TestCase):
    """The real socket; an address of the loopback network comes and goes, which disturbs nobody."""

    timeout = 30

    async def test_address_that_comes_and_goes_is_seen(self) -> None:
        ip = require_program("ip")
        if os.geteuid() != 0:
            raise SkipTest("addresses are changed by root alone")
        changes: list[bool] = []
        address = f"127.{os.getpid() % 200 + 20}.7.7"
        watch = AddressWatch(reactor, lambda: changes.append(address in watch.addresses))
        watch.start()
        self.addCleanup(watch.stop)
        await until(lambda: "127.0.0.1" in watch.addresses, "what is there is known")
        self.addCleanup(subprocess.call, [ip, "addr", "del", f"{address}/32", "dev", "lo"], stderr=subprocess.DEVNULL)
        for what, is_there in (("add", True), ("del", False)):
            subprocess.check_call([ip, "addr", what, f"{address}/32", "dev", "lo"])
            await until(lambda wanted=is_there: (address in watch.addresses) is wanted, what)
        self.assertEqual([False, True, False], changes[-3:])
