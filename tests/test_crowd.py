"""The benchmarks' crowd sees what it is there to see: a byte that differs, one too few, one too many, an end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from relay.flv.tags import FILE_HEADER, tag
from tests.log.model import gops
from tests.net.peers import eventually
from tests.programs import require_program

HEAD = b"HTTP/1.0 200 OK\r\n\r\n" + FILE_HEADER
TAGS = [tag(message) for message in gops(4)]


class Sender(Protocol):
    """Sends the same to whoever comes, in pieces of this many bytes, and waits for the end."""

    transport: Any

    def __init__(self, server: Server) -> None:
        self._server = server

    def connectionMade(self) -> None:
        self._server.connections += 1
        self.transport.setTcpNoDelay(True)
        self._send(self._server.data)

    def _send(self, data: bytes) -> None:
        self.transport.write(data[: self._server.piece])
        if len(data) > self._server.piece:
            reactor.callLater(0.001, self._send, data[self._server.piece :])  # each a read of its own
        elif self._server.is_short:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._server.connections -= 1


class Server(Factory):
    """Of one stream in one form."""

    noisy = False

    def __init__(self, tags: list[bytes], *, is_short: bool = False, piece: int = 1 << 20) -> None:
        self.data = HEAD + b"".join(tags)
        self.is_short = is_short
        self.piece = piece
        self.connections = 0

    def buildProtocol(self, addr: object) -> Sender:
        return Sender(self)


class CrowdTests(TestCase):
    """Two servers: the one that is right, and the one that is judged."""

    async def watch(self, judged: Server, patience: float = 20.0) -> tuple[int, int, int, int]:
        """alive, cut, wrong, behind, of three viewers."""
        require_program("cc")
        servers = [Server(TAGS), judged]
        ports = [reactor.listenTCP(0, server, interface="127.0.0.1") for server in servers]
        right, url = (f"http://127.0.0.1:{port.getHost().port}/live/demo.flv" for port in ports)
        try:
            return await deferToThread(_watch, right, url, patience)
        finally:
            for port in ports:
                await port.stopListening()
            await eventually(lambda: not any(server.connections for server in servers))

    async def test_the_same_bytes_are_right(self) -> None:
        """However they are cut into pieces."""
        for piece in (1 << 20, 7):
            self.assertEqual((3, 0, 0, 0), await self.watch(Server(TAGS, piece=piece)))

    async def test_later_beginning_is_right(self) -> None:
        """At any keyframe."""
        self.assertEqual((3, 0, 0, 0), await self.watch(Server(TAGS[10:])))

    async def test_a_byte_that_differs_is_wrong(self) -> None:
        """One bit of a payload."""
        bad = [*TAGS[:15], TAGS[15][:30] + bytes([TAGS[15][30] ^ 1]) + TAGS[15][31:], *TAGS[16:]]
        self.assertEqual((0, 0, 3, 0), await self.watch(Server(bad)))

    async def test_a_message_too_few_or_too_many_is_wrong(self) -> None:
        """Or two that have changed places."""
        for bad in (
            [*TAGS[:15], *TAGS[16:]],
            [*TAGS[:15], TAGS[15], *TAGS[15:]],
            [*TAGS[:15], TAGS[16], TAGS[15], *TAGS[17:]],
        ):
            self.assertEqual((0, 0, 3, 0), await self.watch(Server(bad)))

    async def test_one_that_stands_still_is_behind(self) -> None:
        """It has had nothing wrong, but not all."""
        self.assertEqual((3, 0, 0, 3), await self.watch(Server(TAGS[:25]), patience=0.2))

    async def test_an_end_is_a_cut(self) -> None:
        """Also after all bytes."""
        self.assertEqual((0, 3, 0, 0), await self.watch(Server(TAGS, is_short=True)))


def _watch(right: str, judged: str, patience: float) -> tuple[int, int, int, int]:
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")  # they import each other as programs do
    sys.path.insert(0, benchmarks)
    try:
        from crowd import Crowd  # noqa: PLC0415
    finally:
        sys.path.remove(benchmarks)
    with Crowd([right]) as crowd:
        crowd.join([judged], 3)
        behind = crowd.behind(patience)
        window = crowd.run(0.3)
        return window.alive, window.cut, window.wrong, behind
