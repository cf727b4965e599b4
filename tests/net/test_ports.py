"""Listening sockets that two processes have: whoever accepts, nobody is refused, and neither ends it for the other."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
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

    async def share(self, listen: str = TCP) -> tuple[Any, Any]:
        """Two processes' ports that share one number."""
        first = await serverFromString(self.ports().shared, listen).listen(self.first)
        number = first.getHost().port
        second = await serverFromString(self.ports().shared, listen.replace(":0", f":{number}")).listen(self.second)
        return first, second

    async def test_shared_port_deals_connections_to_both(self) -> None:
        """By the kernel, without a word between the processes."""
        first, _ = await self.share()
        for _ in range(64):
            self.knock(first.getHost())
        await eventually(lambda: self.first.count + self.second.count == 64)
        self.assertTrue(self.first.count and self.second.count, (self.first.count, self.second.count))

    async def test_the_other_has_all_when_one_is_gone(self) -> None:
        first, second = await self.share()
        await second.stopListening()
        for _ in range(8):
            self.knock(first.getHost())
        await eventually(lambda: self.first.count == 8)

    async def test_shared_port_of_tls(self) -> None:
        path = f"{self.directory}/shared.pem"
        write_certificate(path)
        first, second = await self.share(f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}")
        self.assertIsInstance(first.factory, TLSMemoryBIOFactory)
        self.assertEqual(first.getHost(), second.getHost())

    async def test_port_that_is_not_shared_is_taken(self) -> None:
        """Both must say that they share it, and the error names the place."""
        port = await serverFromString(self.ports(), TCP).listen(self.first)
        number = port.getHost().port
        with self.assertRaises(CannotListenError) as caught:
            await serverFromString(self.ports().shared, f"tcp:{number}:interface=127.0.0.1").listen(self.second)
        self.assertEqual(("127.0.0.1", number), (caught.exception.interface, caught.exception.port))

    async def test_shared_port_is_handed_over(self) -> None:
        """To the process that takes over, beside the one that shares it."""
        before = self.ports()
        address = (await serverFromString(before.shared, TCP).listen(self.first)).getHost()
        after = self.ports()
        asked, descriptors = before.handles()
        after.inherit(asked, [os.dup(descriptor) for descriptor in descriptors])
        await serverFromString(after.shared, TCP).listen(self.second)
        before.forsake()
        after.open()
        self.knock(address)
        await eventually(lambda: self.second.count)
