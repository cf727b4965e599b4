"""The watch over this machine's addresses: the kernel's messages, and the kernel itself."""

from __future__ import annotations

import os
import struct
import subprocess
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from relay.net.addresses import RTM_DELADDR, RTM_NEWADDR, AddressChange, AddressWatch, read_changes
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
