"""Listening sockets that two processes have: whoever accepts, nobody is refused, and neither ends it for the other."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase

from relay.net.ports import Ports
from tests.net.peers import eventually
from tests.net.test_balancing import write_certificate

TCP = "tcp:0:interface=127.0.0.1"


class Counting(Factory):
    """Counts who comes."""

    protocol = Protocol

    def __init__(self) -> None:
        self.count = 0

    def buildProtocol(self, addr: Any) -> Any:
        self.count += 1
        return super().buildProtocol(addr)


class PortsTests(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

        self.reactor = reactor
        self.directory = tempfile.mkdtemp(prefix="relay-ports-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.first, self.second = Counting(), Counting()

    def ports(self) -> Ports:
        made = Ports(self.reactor)
        self.addCleanup(made.forsake)
        return made

    async def pair(self, listen: str, again: str = "") -> tuple[Ports, Ports, Any]:
        """Two processes' ports, the second with what the first had; and the address."""
        before, after = self.ports(), self.ports()
        port = await serverFromString(before, listen).listen(self.first)
        asked, descriptors = before.handles()
        after.inherit(asked, [os.dup(descriptor) for descriptor in descriptors])
        await serverFromString(after, again or listen).listen(self.second)
        return before, after, port.getHost()

    def knock(self, address: Any) -> None:
        kind = socket.AF_UNIX if hasattr(address, "name") else socket.AF_INET
        with socket.socket(kind) as client:
            client.settimeout(5)
            client.connect(address.name if kind is socket.AF_UNIX else (address.host, address.port))

    async def test_second_rests_until_it_is_opened(self) -> None:
        before, after, address = await self.pair(TCP)
        self.knock(address)
        await eventually(lambda: self.first.count)
        self.assertEqual((1, 0), (self.first.count, self.second.count))
        before.rest()
        self.knock(address)
        self.knock(address)
        after.open()
        await eventually(lambda: self.second.count == 2)
        self.assertEqual(1, self.first.count)

    async def test_first_lets_go_and_the_second_still_listens(self) -> None:
        before, after, address = await self.pair(TCP)
        before.forsake()
        self.knock(address)
        after.open()
        await eventually(lambda: self.second.count)

    async def test_second_lets_go_and_the_first_still_listens(self) -> None:
        _, after, address = await self.pair(TCP)
        after.forsake()
        self.knock(address)
        await eventually(lambda: self.first.count)

    async def test_path_of_a_unix_socket_stays(self) -> None:
        before, after, address = await self.pair(f"unix:{self.directory}/door:lockfile=0")
        before.forsake()
        after.open()
        self.knock(address)
        await eventually(lambda: self.second.count)

    async def test_tls_is_of_the_new_command_line(self) -> None:
        """The socket is the old one, the certificate is the new one."""
        path = f"{self.directory}/new.pem"
        write_certificate(path)
        tls = f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}"
        _, after, _ = await self.pair(TCP, tls)
        ((_, port),) = after._ports
        self.assertIsInstance(port.factory, TLSMemoryBIOFactory)

    async def test_every_address_is_the_same_as_none(self) -> None:
        before = self.ports()
        await serverFromString(before, "tcp:0").listen(self.first)
        after = self.ports()
        asked, descriptors = before.handles()
        after.inherit(asked, [os.dup(descriptor) for descriptor in descriptors])
        await serverFromString(after, "tcp:0:interface=0.0.0.0").listen(self.second)
        self.assertEqual([], after.unclaimed())

    async def test_what_nobody_asks_for_is_said(self) -> None:
        _, after, _ = await self.pair(TCP, "tcp:0:interface=127.0.0.2")
        self.assertEqual(["tcp 127.0.0.1 0"], after.unclaimed())
