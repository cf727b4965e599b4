"""The client's end of an RTMP connection: a :class:`relay.rtmp.client.ClientSession` on a Twisted transport.

Owns bytes in, bytes out, deadlines and the node's proof of identity; what the connection is *for* is in the subclasses
(replication, control, pulling from and publishing to a server).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import RemoteProtocolError
from relay.limits import Limits
from relay.net.identity import NodeIdentity, PeerNode
from relay.net.sockets import NODE_TIMEOUT_MS, host_of, tune, write_now
from relay.rtmp.client import ClientSession
from relay.rtmp.events import Connected, ConnectRejected, Event, HandshakeDone, StreamCreated
from relay.rtmp.handshake import NONCE_BYTES

NODE_MESSAGES_PER_SECOND = 100_000  # a neighbour may report on thousands of streams at once
NODE_COMMAND_BYTES = 4 << 20  # a catalogue of 1000 streams, or headers in force with the largest metadata


def neighbour_limits(limits: Limits) -> Limits:
    """What a neighbour says in one command may be larger than what a viewer may say: either may list its streams."""
    return attrs.evolve(
        limits,
        command_bytes=NODE_COMMAND_BYTES,
        amf_string_bytes=NODE_COMMAND_BYTES,
        amf_items=64 << 10,
    )


@attrs.frozen(kw_only=True)
class ClientSettings:
    """What all client connections of a node share.

    Without an identity we are an ordinary encoder or player, to whom no server owes anything.
    """

    identity: NodeIdentity | None = None
    limits: Limits
    clock: IReactorTime


class RtmpClientProtocol(Protocol):
    """Connects, and hands every other event to ``received``.

    Subclasses override ``accepted``, ``rejected``, ``created``, ``received``, ``read_done`` and ``over``; ``over`` is
    called once, however the connection ended, with a word for the log.
    """

    log = Logger()
    transport: ITCPTransport | None = None
    properties: Mapping[str, Any] | None = None  # of connect, for one that has no identity

    def __init__(self, settings: ClientSettings, app: str, tc_url: str) -> None:
        self.settings = settings
        self.session = ClientSession(settings.limits, os.urandom(NONCE_BYTES))
        self.peer_node: PeerNode | None = None
        self.heard_at = 0.0  # clock seconds at the last byte from the peer
        self._app = app
        self._tc_url = tc_url
        self._deadline: IDelayedCall | None = None
        self._outcome = ""

    # what subclasses fill in

    def accepted(self, properties: dict[str, Any]) -> None:
        """The server accepted us.  By default a stream is created."""
        self.session.create_stream()

    def rejected(self, event: ConnectRejected) -> None:
        """The server did not accept us.  By default that is said, and the end."""
        host = host_of(self.transport)
        self.log.warn("{host} refused us: {description}", host=host, description=event.description[:200])
        self.give_up("refused")

    def created(self, message_stream_id: int) -> None:
        """A stream may be used."""

    def received(self, event: Event) -> None:
        """Anything else."""

    def read_done(self) -> None:
        """All events of one read were handled."""

    def over(self, outcome: str) -> None:
        """The connection is gone."""

    def user_timeout_ms(self) -> int:
        """How long the kernel waits for a peer that takes nothing, or is cut off."""
        return NODE_TIMEOUT_MS

    # what they call

    def is_ready(self) -> None:
        """The connection does what it is for: no deadline any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def flush(self) -> None:
        """Send what the session has to send."""
        data = self.session.data_to_send()
        if data and self.transport is not None:
            write_now(self.transport, data)

    def give_up(self, outcome: str) -> None:
        """End the connection now, for this reason."""
        self._outcome = self._outcome or outcome
        if self.transport is not None:
            self.transport.abortConnection()

    # Twisted's side

    def connectionMade(self) -> None:
        assert self.transport is not None
        tune(self.transport, self.user_timeout_ms())
        clock = self.settings.clock
        self.heard_at = clock.seconds()
        self._deadline = clock.callLater(self.settings.limits.handshake_seconds, self._too_late)
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        self.heard_at = self.settings.clock.seconds()
        try:
            for event in self.session.receive_data(data, self.heard_at):
                self._handle(event)
                if self._outcome:
                    return
            self.read_done()
        except RemoteProtocolError as error:
            self.log.warn("{host}: {error}", host=host_of(self.transport), error=str(error))
            self.give_up("protocol_error")
            return
        self.flush()

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (Twisted's signature)
        self.is_ready()
        self.over(self._outcome or "connection_lost")

    def _handle(self, event: Event) -> None:
        if isinstance(event, HandshakeDone):
            session = self.session
            identity = self.settings.identity
            said = identity.properties("client", session.their_nonce, session.our_nonce) if identity else None
            session.connect(self._app, self._tc_url, said or self.properties)
        elif isinstance(event, Connected):
            self._recognize(event.properties)
            if self.peer_node is not None:
                self.session.allow_control_messages(NODE_MESSAGES_PER_SECOND)
                self.session.use_limits(neighbour_limits(self.settings.limits))
            self.accepted(event.properties)
        elif isinstance(event, ConnectRejected):
            self.rejected(event)
        elif isinstance(event, StreamCreated):
            self.created(event.message_stream_id)
        else:
            self.received(event)

    def _recognize(self, properties: dict[str, Any]) -> None:
        session, identity = self.session, self.settings.identity
        if identity is not None:
            self.peer_node = identity.recognize(
                properties, "server", session.their_nonce, session.our_nonce, host_of(self.transport)
            )

    def _too_late(self) -> None:
        self._deadline = None
        self.give_up("handshake_timeout")
