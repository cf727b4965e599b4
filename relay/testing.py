"""For tests, ours and those of applications that embed a node: transports, connections and time that a test moves.

Owns fakes of what is *below* this package (Twisted's transports, endpoints and reactor), never of the package itself,
and short ways to a hub, a log and a live stream.  Nothing in the package calls it.

Theory.  Nothing happens by itself.  A :class:`ManualReactor` is a clock and the set of descriptors that wait for
something; a :class:`CongestibleTransport` is Twisted's own ``abstract.FileDescriptor`` (so it pauses and resumes
producers, and closes, as TCP does) over a network that takes bytes only when the test lets it; a
:class:`MemoryNetwork` joins such transports in pairs and carries bytes until nobody has anything to say.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Any

from twisted.internet import abstract
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorFDSet,
    IReadDescriptor,
    IStreamClientEndpoint,
    IWriteDescriptor,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.limits import DEFAULT_LIMITS, Limits
from relay.log.log import StreamLog
from relay.log.options import DEFAULT_OPTIONS, LogOptions
from relay.log.points import ORIGIN_START, LogStart
from relay.log.segment import MemorySource
from relay.names import StreamName
from relay.net.streams import Hub, LiveStream
from relay.rtmp.messages import MediaMessage

LOOPBACK_PEER = IPv4Address("TCP", "127.0.0.1", 40_000)
QUIET_ROUNDS = 10_000  # rounds of carrying after which two protocols are taken to talk for ever


@implementer(IReactorFDSet)
class ManualReactor(Clock):
    """Time and readiness, moved by hand.

    Real sockets may be added too: ``turn`` asks the kernel which of them are ready.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[Any, None] = {}
        self.writers: dict[Any, None] = {}

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers[reader] = None

    def addWriter(self, writer: IWriteDescriptor) -> None:
        self.writers[writer] = None

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.pop(reader, None)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        self.writers.pop(writer, None)

    def removeAll(self) -> list[Any]:
        removed = list({**self.readers, **self.writers})
        self.readers.clear()
        self.writers.clear()
        return removed

    def getReaders(self) -> list[Any]:
        return list(self.readers)

    def getWriters(self) -> list[Any]:
        return list(self.writers)

    def turn(self) -> bool:
        """One round of the reactor, without waiting: calls that are due, sockets that are ready.  Was there any?"""
        due = [call for call in self.getDelayedCalls() if call.getTime() <= self.seconds()]
        self.advance(0)
        readers = [reader for reader in self.readers if reader.fileno() >= 0]
        writers = [writer for writer in self.writers if writer.fileno() >= 0]
        readable, writable, _ = select.select(readers, writers, [], 0)
        for ready, waiting, act in ((readable, self.readers, "doRead"), (writable, self.writers, "doWrite")):
            for descriptor in ready:
                if descriptor in waiting:
                    why = getattr(descriptor, act)()
                    if why is not None:
                        self._lose(descriptor, why)
        return bool(due or readable or writable)

    def _lose(self, descriptor: Any, why: Exception) -> None:
        self.removeReader(descriptor)
        self.removeWriter(descriptor)
        descriptor.connectionLost(Failure(why))


class CongestibleTransport(abstract.FileDescriptor):
    """A transport whose network takes nothing until the test says how much.

    Everything about producers, buffers and closing is Twisted's.  ``drain`` is the network.
    """

    def __init__(self, reactor: ManualReactor, peer: IPv4Address = LOOPBACK_PEER) -> None:
        super().__init__(reactor)
        self.protocol: IProtocol | None = None
        self.is_aborted = False
        self._manual = reactor
        self._peer = peer
        self._room = 0
        self._taken = bytearray()
        self._unread = bytearray()

    # what a protocol sees

    def getPeer(self) -> IPv4Address:
        return self._peer

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1935)

    def getHandle(self) -> None:
        """There is no socket."""

    def abortConnection(self) -> None:
        """As TCP does it: nothing more is read or sent, and the protocol hears of it in the next round."""
        if not self.disconnected and not self.is_aborted:
            self.is_aborted = True
            self.stopReading()
            self.stopWriting()
            self._manual.callLater(0, self.lose, ConnectionAborted())

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._deliver()

    def writeSomeData(self, data: bytes) -> int:
        count = min(self._room, len(data))
        self._taken += data[:count]
        self._room -= count
        return count

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self.protocol is not None:
            self.protocol.connectionLost(reason)

    # what a test does

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the network has not taken."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def connect(self, protocol: IProtocol) -> None:
        """The connection is made."""
        self.protocol = protocol
        self.connected = 1
        self.startReading()
        protocol.makeConnection(self)

    def drain(self, count: int | None = None) -> bytes:
        """The network takes ``count`` bytes, or all that come; what it took."""
        self._room = count if count is not None else 1 << 62
        while self in self._manual.writers and not self.is_aborted and self._room:
            why = self.doWrite()
            if why is not None:
                self.lose(why)
        self._room = 0
        taken, self._taken = bytes(self._taken), bytearray()
        return taken

    def receive(self, data: bytes) -> None:
        """Bytes come from the peer; the protocol gets them while it reads."""
        self._unread += data
        self._deliver()

    def lose(self, why: Exception) -> None:
        """The connection is over, now."""
        if self.connected:
            self.connectionLost(Failure(why))

    def _deliver(self) -> None:
        if self._unread and self.protocol is not None and self in self._manual.readers:
            data, self._unread = bytes(self._unread), bytearray()
            self.protocol.dataReceived(data)


class MemoryLink:
    """A client's transport and a server's, joined.

    ``is_cut``: the cable is pulled, or a host hangs: nothing passes, and nobody is told.
    """

    def __init__(self, client: CongestibleTransport, server: CongestibleTransport) -> None:
        self.client = client
        self.server = server
        self.is_cut = False

    @property
    def is_open(self) -> bool:
        """Does either side think that it is connected?"""
        return bool(self.client.connected or self.server.connected)

    def carry(self) -> bool:
        """Take what each has written to the other, and an end.  Was there anything?"""
        if self.is_cut:
            return False
        sent, answered = self._carry(self.client, self.server), self._carry(self.server, self.client)
        return sent or answered

    def kill_server(self) -> None:
        """The server's end is gone at once; the client is told when that is carried."""
        self.server.lose(ConnectionLost())

    def _carry(self, source: CongestibleTransport, target: CongestibleTransport) -> bool:
        data = source.drain()
        if data and target.connected:
            target.receive(data)
        ends = bool(source.disconnected and target.connected)
        if ends:
            target.lose(ConnectionLost() if source.is_aborted else ConnectionDone())
        return bool(data) or ends


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Where a server of a :class:`MemoryNetwork` is reached.

    ``is_listening``: if not, connects are refused, at once.  ``is_silent``: connects are neither made nor refused.
    """

    def __init__(self, network: MemoryNetwork, factory: IProtocolFactory) -> None:
        self.is_listening = True
        self.is_silent = False
        self.attempts = 0
        self.links: list[MemoryLink] = []
        self._network = network
        self._factory = factory
        self._pending: dict[Deferred[IProtocol], IDelayedCall] = {}

    def connect(self, client_factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts += 1
        if not self.is_listening:
            return fail(ConnectionRefusedError())
        connecting: Deferred[IProtocol] = Deferred(self._cancelled)
        if not self.is_silent:
            call = self._network.reactor.callLater(0, self._connect, client_factory, connecting)
            self._pending[connecting] = call
        return connecting

    def _cancelled(self, connecting: Deferred[IProtocol]) -> None:
        call = self._pending.pop(connecting, None)
        if call is not None:
            call.cancel()
        connecting.errback(ConnectingCancelledError(LOOPBACK_PEER))

    def _connect(self, client_factory: IProtocolFactory, connecting: Deferred[IProtocol]) -> None:
        del self._pending[connecting]
        server = self._factory.buildProtocol(LOOPBACK_PEER)
        if server is None:
            connecting.errback(ConnectionRefusedError())
            return
        client = client_factory.buildProtocol(LOOPBACK_PEER)
        assert client is not None
        self.links.append(self._network.join(client, server))
        connecting.callback(client)

    @property
    def open_links(self) -> list[MemoryLink]:
        """Those that somebody holds."""
        return [link for link in self.links if link.is_open]


class MemoryNetwork:
    """All the connections of a test."""

    def __init__(self, reactor: ManualReactor | None = None) -> None:
        self.reactor = reactor or ManualReactor()
        self.links: list[MemoryLink] = []

    def endpoint(self, factory: IProtocolFactory) -> MemoryEndpoint:
        """Let a server's factory be reached."""
        return MemoryEndpoint(self, factory)

    def join(self, client: IProtocol, server: IProtocol) -> MemoryLink:
        """Connect two protocols."""
        link = MemoryLink(CongestibleTransport(self.reactor), CongestibleTransport(self.reactor))
        self.links.append(link)
        link.server.connect(server)
        link.client.connect(client)
        return link

    def carry(self) -> None:
        """Carry bytes and ends until everybody is quiet."""
        for _ in range(QUIET_ROUNDS):
            self.reactor.advance(0)
            if not sum(link.carry() for link in self.links if link.is_open):  # all of them, so not any()
                return
        raise AssertionError(f"not quiet after {QUIET_ROUNDS} rounds")

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, and carry what it brings about, every ``step`` seconds."""
        until = self.reactor.seconds() + seconds
        self.carry()
        while self.reactor.seconds() < until - 1e-9:
            self.reactor.advance(min(step, until - self.reactor.seconds()))
            self.carry()


def memory_log(
    messages: Iterable[MediaMessage] = (),
    *,
    epoch: int = 1,
    start: LogStart = ORIGIN_START,
    options: LogOptions = DEFAULT_OPTIONS,
) -> StreamLog:
    """A log in memory that holds ``messages``."""
    log = StreamLog(epoch, MemorySource(), start, options)
    for message in messages:
        log.append(message)
    log.flush()
    return log


def make_hub(
    messages: Iterable[MediaMessage] = (),
    *,
    clock: Clock | None = None,
    limits: Limits = DEFAULT_LIMITS,
    merge_seconds: float = 0.1,
    options: LogOptions = DEFAULT_OPTIONS,
) -> tuple[Hub, LiveStream]:
    """A hub on a clock that stands still, with the live stream ``live/demo`` that holds ``messages``."""
    hub = Hub(clock or ManualReactor(), limits, merge_seconds)
    stream = hub.add(StreamName("live", "demo"), memory_log(messages, options=options))
    hub.set_live(stream, True, "a test")
    return hub, stream


def publish(stream: LiveStream, messages: Iterable[MediaMessage], *, at_once: bool = True) -> None:
    """Append messages, flush, and so wake readers: after all, or after each."""
    for message in messages:
        stream.log.append(message)
        if not at_once:
            stream.flush()
    stream.flush()


__all__ = [
    "LOOPBACK_PEER",
    "CongestibleTransport",
    "ManualReactor",
    "MemoryEndpoint",
    "MemoryLink",
    "MemoryNetwork",
    "make_hub",
    "memory_log",
    "publish",
]
