"""Peers and parts that several tests of ``relay.net`` need: a real loopback pair, clients and servers that record."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import attrs
from twisted.internet import tcp
from twisted.internet.protocol import Factory, Protocol

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.log.options import LogOptions
from relay.net.following import FollowingTransport
from relay.net.gathering import Gatherer
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.net.replication import Counts
from relay.net.storing import IngestSettings, StoreSettings, StoringNode
from relay.rtmp.chunks import ChunkReader
from relay.rtmp.client import ClientSession
from relay.rtmp.events import Connected, Event, HandshakeDone, MediaReceived, StatusReceived, StreamCreated
from relay.rtmp.messages import MediaMessage, RawMessage
from relay.testing import ManualReactor
from tests import wire
from tests.log.model import flv_bytes, rtmp_bytes

SERVER_CHUNKS = wire.set_chunk_size(0xFFFFFF)
"""Put before log bytes, it makes them readable for a ChunkReader."""


def log_bytes(messages: Iterable[MediaMessage]) -> bytes:
    return b"".join(map(rtmp_bytes, messages))


def flv_tags(messages: Iterable[MediaMessage]) -> bytes:
    return b"".join(map(flv_bytes, messages))


def read_messages(data: bytes) -> list[RawMessage]:
    """Bytes of whole chunks, as an RTMP viewer parses them; fails where they are none."""
    reader = ChunkReader(DEFAULT_LIMITS)
    return reader.feed(SERVER_CHUNKS + data)[1:]


def read_tags(data: bytes) -> list[MediaMessage]:
    return TagReader(DEFAULT_LIMITS).feed(data)


@attrs.frozen
class _Port:
    """What ``tcp.Server`` wants to know of the port that made it."""

    _realPortNumber: int = 0


class TcpPair:
    """A transport of ours on a real loopback connection, run by hand, and the peer's plain socket.

    Args:
        send_buffer, receive_buffer: bytes asked of the kernel; small ones make a peer that is soon congested.
    """

    def __init__(
        self,
        protocol: Protocol,
        reactor: ManualReactor,
        kind: type[tcp.Server] = FollowingTransport,
        send_buffer: int = 0,
        receive_buffer: int = 0,
    ) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.peer = socket.socket()
            if receive_buffer:
                self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.peer.connect(listener.getsockname())
            ours, address = listener.accept()
        ours.setblocking(False)
        self.peer.setblocking(False)
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.reactor = reactor
        self.transport = kind(ours, protocol, address, _Port(), 0, reactor)
        protocol.makeConnection(self.transport)
        self.received = bytearray()
        self.is_ended = False

    def read(self, count: int = 1 << 18) -> bytes:
        """What the kernel has for the peer, up to ``count`` bytes."""
        try:
            data = self.peer.recv(count)
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            data = b""
        self.is_ended = not data
        self.received += data
        return data

    def run(self, count: int = 1 << 18) -> bytes:
        """Let reactor and peer work until there is nothing left to do; all that was received so far."""
        while (self.read(count) and not self.is_ended) or self.reactor.turn():
            pass
        return bytes(self.received)

    def close(self) -> None:
        self.peer.close()
        if self.transport.connected:
            self.reactor.turn()
        if self.transport.connected:
            self.transport.abortConnection()
            self.reactor.turn()


class Recorder(Protocol):
    """A protocol that keeps what it hears."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ends: list[type] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason) -> None:
        self.ends.append(reason.type)


class Player(Protocol):
    """An RTMP client that does one thing after connect, and records every event and every message.

    Args:
        app: the application.
        play, publish: a stream to ask for once the connection stands.
        properties: more of them for connect.
        messages: what to publish once the server lets us.
    """

    def __init__(self, app="live", *, play=None, publish=None, properties=None, limits=DEFAULT_LIMITS) -> None:
        self.session = ClientSession(limits, wire.NONCE[::-1])
        self.events: list[Event] = []
        self.ends: list[type] = []
        self.received = bytearray()
        self._app, self._play, self._publish, self._properties = app, play, publish, properties

    def connectionMade(self) -> None:
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for event in self.session.receive_data(data, 0.0):
            self.events.append(event)
            if isinstance(event, HandshakeDone):
                properties = self._properties(self.session) if callable(self._properties) else self._properties
                self.session.connect(self._app, f"rtmp://127.0.0.1/{self._app}", properties)
            elif isinstance(event, Connected) and (self._play or self._publish):
                self.session.create_stream()
            elif isinstance(event, StreamCreated) and self._play:
                self.session.play(event.message_stream_id, self._play)
            elif isinstance(event, StreamCreated):
                self.session.publish(event.message_stream_id, self._publish)
        self.flush()

    def connectionLost(self, reason) -> None:
        self.ends.append(reason.type)

    def flush(self) -> None:
        data = self.session.data_to_send()
        if data and self.transport.connected:
            self.transport.write(data)

    def send(self, messages: Iterable[MediaMessage]) -> None:
        """Publish messages."""
        for message in messages:
            self.session.send_media(1, message)
        self.flush()

    @property
    def media(self) -> list[MediaMessage]:
        return [event.message for event in self.events if isinstance(event, MediaReceived)]

    @property
    def codes(self) -> list[str]:
        """The status codes that came."""
        return [event.code for event in self.events if isinstance(event, StatusReceived)]

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)


class PublishingNode(StoringNode):
    """A node that takes encoders, as an origin does."""

    is_writer = True

    def publish(self, name, publisher):
        return self.ingest(name).admit(publisher)


def make_node(network, name="o1", kind=PublishingNode, secret=None, directory=None, **changes):
    """A running node on a memory network, and the endpoint where it is reached.

    ``changes`` are limits, or settings of ingest.
    """
    ingest = {key: changes.pop(key) for key in list(changes) if key in attrs.fields_dict(IngestSettings)}
    identity = NodeIdentity(name=name, tier="origin", secret=secret)
    settings = NodeSettings(identity=identity, limits=attrs.evolve(DEFAULT_LIMITS, **changes))
    store = StoreSettings(directory=directory, keep=LogOptions(keep_ms=3_600_000))
    node = kind(settings, network.reactor, store, IngestSettings(**ingest))
    node.startService()
    return node, network.endpoint(node.ports)


def connect(network, endpoint, protocol):
    """A client on the node; it is connected when this returns, and all is carried that it had to say."""
    connecting = endpoint.connect(Factory.forProtocol(lambda: protocol))
    network.carry()
    assert getattr(connecting, "result", None) is protocol, connecting
    return protocol


def stop_node(network, node):
    """Stop a node and let its last words pass; all that it held is then gone."""
    stopping = node.stopService()
    network.advance(node.limits.close_seconds + 1, step=0.5)
    assert stopping.called, "the node does not stop"


class CopyingNode(StoringNode):
    """A node that copies from a group of others, as a distributor does."""

    gatherer: Gatherer | None = None

    def gather(self, members, **options) -> Gatherer:
        """Begin to copy from ``(name, endpoint)``, the preferred first."""
        self.counts = Counts()
        self.gatherer = Gatherer(
            "pair",
            members,
            **{
                "patterns": ("*",),
                "hub": self.hub,
                "maker": self.logs,
                "settings": self.upstream_settings,
                "counts": self.counts,
                **options,
            },
        )
        self.gatherer.start()
        return self.gatherer

    def check(self) -> None:
        super().check()
        if self.gatherer is not None:
            self.gatherer.check()

    def stop_reading(self):
        return [self.gatherer.stop()]
