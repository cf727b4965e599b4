"""Bytes that may wait in the kernel do, and none of them, no end and no error is missed for that."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from relay.net.intake import HELD_BYTES, Intake
from tests.net.peers import Peer, eventually

TURNS = 0.05  # seconds in which the reactor would have read what it is told of


class Noting(Protocol):
    """Notes what comes, and how it ended."""

    def __init__(self) -> None:
        self.made: Deferred[Noting] = Deferred()
        self.data = b""
        self.ended = ""
        self.error: Exception | None = None

    def connectionMade(self) -> None:
        self.made.callback(self)

    def dataReceived(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended = reason.type.__name__


class IntakeTests(TestCase):
    """One connection of a reactor's, whose peer is a plain socket."""

    async def held(self) -> tuple[Noting, Intake, Peer]:
        """The peer sends segments as large as on an Ethernet: of those of a loopback, few fill a whole window."""
        noting = Noting()
        port = reactor.listenTCP(0, Factory.forProtocol(lambda: noting), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1448)
        connection.connect(("127.0.0.1", port.getHost().port))
        peer = Peer(connection)
        self.addCleanup(peer.close)
        await noting.made
        self.addCleanup(noting.transport.abortConnection)
        intake = Intake(noting.transport)
        intake.hold()
        return noting, intake, peer

    async def test_bytes_wait_until_they_are_drawn(self) -> None:
        noting, intake, peer = await self.held()
        await peer.send(b"one")
        await deferLater(reactor, TURNS)
        self.assertEqual(b"", noting.data)
        intake.draw()
        self.assertEqual(b"one", noting.data)
        intake.draw()  # there is no more
        self.assertEqual((b"one", ""), (noting.data, noting.ended))

    async def test_bytes_that_wait_come_when_they_are_released(self) -> None:
        """Those that follow, as well; and then nothing is left to draw."""
        noting, intake, peer = await self.held()
        await peer.send(b"one")
        await deferLater(reactor, TURNS)
        intake.release()
        await eventually(lambda: noting.data == b"one")
        await peer.send(b"two")
        await eventually(lambda: noting.data == b"onetwo")
        await peer.send(b"three")
        intake.draw()
        self.assertEqual(b"onetwo", noting.data)
        await eventually(lambda: noting.data == b"onetwothree")

    async def test_one_draw_takes_all_that_can_wait(self) -> None:
        noting, intake, peer = await self.held()
        await peer.send(bytes(HELD_BYTES - 1))
        await deferLater(reactor, TURNS)
        self.assertEqual(0, len(noting.data))
        intake.draw()
        self.assertEqual(HELD_BYTES - 1, len(noting.data))

    async def test_flood_does_not_wait(self) -> None:
        noting, _, peer = await self.held()
        flood = bytes(range(256)) * (HELD_BYTES // 256 * 3)
        await peer.send(flood)
        await eventually(lambda: len(noting.data) > len(flood) - HELD_BYTES)
        peer.send_fin()
        await eventually(lambda: noting.ended)
        self.assertEqual(flood, noting.data)

    async def test_end_comes_at_once_and_after_all_bytes(self) -> None:
        noting, _, peer = await self.held()
        await peer.send(b"last words")
        peer.send_fin()
        await eventually(lambda: noting.ended)
        self.assertEqual((b"last words", "ConnectionDone"), (noting.data, noting.ended))

    async def test_end_that_is_drawn_is_told_as_well(self) -> None:
        noting, intake, peer = await self.held()
        await peer.send(b"last words")
        peer.send_fin()
        for _ in range(3):
            intake.draw()
        await eventually(lambda: noting.ended)
        self.assertEqual((b"last words", "ConnectionDone"), (noting.data, noting.ended))
        intake.draw()
        intake.hold()
        intake.release()

    async def test_reset_comes_at_once(self) -> None:
        noting, _, peer = await self.held()
        peer.reset()
        await eventually(lambda: noting.ended)
        self.assertEqual("ConnectionLost", noting.ended)

    async def test_fault_of_the_protocol_costs_the_connection_alone(self) -> None:
        """As it does when the reactor reads; whoever draws goes on."""
        noting, intake, peer = await self.held()
        noting.error = RuntimeError("a fault of ours")
        await peer.send(b"one")
        await deferLater(reactor, TURNS)
        intake.draw()
        await eventually(lambda: noting.ended)
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))

    def test_transport_without_a_socket_is_left_alone(self) -> None:
        transport = StringTransport()
        intake = Intake(transport)
        intake.hold()
        intake.draw()
        intake.release()
        self.assertEqual("producing", transport.producerState)
