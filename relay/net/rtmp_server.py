"""The server's end of an RTMP connection: publisher, viewer, replica or neighbour, whichever the peer turns out to be.

Owns the conversation of one connection and its deadlines.  What a node allows is asked of its :class:`RtmpNode`;
bytes become events in :class:`relay.rtmp.server.ServerSession`; media goes to a :class:`relay.net.ingest.Publication`
or comes through a :class:`relay.net.viewer.Viewer`.  Called by the sniffing protocol.

Theory.  A connection has one purpose, fixed by its first command after connect, and one deadline at a time:

    handshake ──> connected ──> publishing   pinged when silent, closed when that is not answered
       │             │     └──> waiting ──> viewing     followed by the hub's check
       │             └────────> control      the neighbour pings us; TCP_USER_TIMEOUT does the rest
       └─ handshake_seconds  └─ first_command_seconds

A connection publishes several streams or plays one: the transport follows one log.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import LimitExceeded, NameRefused, ProtocolError, RemoteProtocolError
from relay.limits import Limits
from relay.names import StreamName, application, split_query
from relay.net.access import PLAY, PUBLISH, Access, AccessRequest, Visits
from relay.net.complaints import Complaints
from relay.net.identity import NodeIdentity, PeerNode
from relay.net.ingest import Publication, PublishRefused
from relay.net.rtmp_client import NODE_MESSAGES_PER_SECOND, neighbour_limits
from relay.net.sessions import SessionFeed, leave
from relay.net.sockets import NODE_TIMEOUT_MS, NOTSENT_LOWAT, tune, viewer_timeout_ms
from relay.net.streams import Hub, LiveStream, StreamNotFound
from relay.net.viewer import Form, RtmpForm, Viewer
from relay.rtmp import events
from relay.rtmp.handshake import NONCE_BYTES, nonce_from
from relay.rtmp.messages import MEDIA_MESSAGE_STREAM_ID
from relay.rtmp.server import ServerSession

if TYPE_CHECKING:
    from relay.net.control import ControlServer

PING_SECONDS = 10.0  # a publisher that is silent this long is pinged


class RtmpNode(Protocol):
    """What the protocol asks of the node that it serves."""

    hub: Hub
    limits: Limits
    clock: IReactorTime
    identity: NodeIdentity
    outcomes: Counter[str]
    control: ControlServer
    complaints: Complaints
    access: Access

    def publish(self, name: StreamName, publisher: RtmpServerProtocol) -> Publication:
        """Let an encoder publish.  Raises :class:`PublishRefused`."""


class RtmpServerProtocol(TwistedProtocol):
    """One connection.

    Args:
        node: what is allowed and where things are.
        peer: the address that the connection comes from (the viewer's, if a PROXY header told it).
        feed: of a session that a balancer has announced.
        seed: what the handshake's random bytes are made from; without it they are new ones.
    """

    log = Logger()
    transport: ITCPTransport

    def __init__(self, node: RtmpNode, peer: str, feed: SessionFeed | None = None, seed: bytes = b"") -> None:
        self.node = node
        self.peer = peer
        self.peer_node: PeerNode | None = None
        self.session = ServerSession(node.limits, nonce_from(seed) if seed else os.urandom(NONCE_BYTES))
        self.app = ""
        self.viewer: Viewer | None = None
        self.feed = feed
        self._visits = Visits(node.access)
        self._connected: events.ConnectRequested | None = None
        self._publications: dict[int, Publication] = {}
        self._waiting: Deferred[LiveStream] | None = None
        self._timer: IDelayedCall | None = None
        self._outcome = ""
        self._heard_at = 0.0
        self._is_neighbour = False

    # Twisted's side

    def connectionMade(self) -> None:
        tune(self.transport, viewer_timeout_ms(self.node.limits), NOTSENT_LOWAT)
        self._heard_at = self.node.clock.seconds()
        self._set_timer(self.node.limits.handshake_seconds, self.close, "handshake_timeout")

    def dataReceived(self, data: bytes) -> None:
        self._heard_at = self.node.clock.seconds()
        try:
            self._handle_all(self._events(data))
        except ProtocolError as error:
            self._complain("bad RTMP", "{peer}: {why}", str(error))
            self.close("limit" if isinstance(error, LimitExceeded) else "protocol_error")
            return
        for publication in self._publications.values():
            publication.flush()
        self.flush()

    def _events(self, data: bytes) -> Iterator[events.Event]:
        """What the session makes of these bytes; an error comes after what was whole before it."""
        try:
            yield from self.session.receive_data(data, self._heard_at)
        except RemoteProtocolError:
            yield from self.session.undelivered
            raise

    def _handle_all(self, happened: Iterator[events.Event]) -> None:
        for event in happened:
            self._handle(event)
            if self._outcome:
                return

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (Twisted's signature)
        self._set_timer(None)
        outcome = self._outcome or "peer_closed"
        self._outcome = outcome
        self.node.outcomes[f"rtmp_{outcome}"] += 1
        self._release()

    # what others call

    def describe(self) -> str:
        """Who this is, for people."""
        return f"rtmp://{self.peer}"

    def sent_away(self, description: str, outcome: str = "replaced") -> None:
        """Another publisher has the name now, or an operator wants it gone."""
        for message_stream_id in self._publications:
            self.session.send_status(message_stream_id, "error", "NetStream.Publish.BadName", description)
        self.close(outcome)

    def flush(self) -> None:
        """Send what the session has to send, between two messages of the log if there is a viewer."""
        data = self.session.data_to_send()
        if not data:
            return
        if self.viewer is not None:
            self.viewer.interject(data)
        else:
            self.transport.write(data)

    def close(self, outcome: str) -> None:
        """End the connection: our last words are sent, then it is closed, by force if need be.  The first reason
        counts."""
        if self._outcome:
            return
        self._outcome = outcome
        data = self.session.data_to_send()
        if self.viewer is not None and data:
            self.viewer.interject(data)
        elif data:
            self.transport.write(data)
        self._release()
        leave(self.transport, self.feed)
        self._set_timer(self.node.limits.close_seconds, self.transport.abortConnection)

    def _handle(self, event: events.Event) -> None:
        if isinstance(event, events.MediaReceived):
            publication = self._publications.get(event.message_stream_id)
            if publication is not None:
                publication.receive(event.message)
        elif isinstance(event, events.HandshakeDone):
            self._set_timer(self.node.limits.first_command_seconds, self.close, "first_command_timeout")
        elif isinstance(event, events.ConnectRequested):
            self._connect(event)
        elif isinstance(event, events.PublishRequested):
            self._publish(event)
        elif isinstance(event, events.PlayRequested):
            self._play(event)
        elif isinstance(event, events.StreamClosed):
            self._close_stream(event.message_stream_id)
        elif isinstance(event, events.CommandReceived):
            self._command(event)
        elif isinstance(event, events.CommandAnswered):
            self.node.control.answered(self, event.transaction_id)

    def _connect(self, request: events.ConnectRequested) -> None:
        session, identity = self.session, self.node.identity
        nonces = (session.their_nonce, session.our_nonce)
        self.peer_node = identity.recognize(request.properties, "client", *nonces, self.peer.rpartition(":")[0])
        if self.peer_node is None:
            if "relayNode" in request.properties:
                self.session.reject_connect(request, "this node does not know your cluster secret")
                self._complain("unproven", "{peer} says it is a node but proves nothing")
                self.close("unproven_node")
                return
            self.session.accept_connect(request)
        else:
            tune(self.transport, NODE_TIMEOUT_MS)
            self.session.allow_control_messages(NODE_MESSAGES_PER_SECOND)
            self.session.use_limits(neighbour_limits(self.node.limits))
            self.session.accept_connect(request, identity.properties("server", *nonces))
        self.app = request.app
        self._connected = request

    def _publish(self, request: events.PublishRequested) -> None:
        try:
            key, query = split_query(request.stream_key)
            name = StreamName(application(self.app), key)
            asked = self._access_request(PUBLISH, name, query)
        except NameRefused as refusal:
            self._refuse_publish(request, "NetStream.Publish.BadName", str(refusal))
        else:
            self._visits.ask(
                request.message_stream_id,
                asked,
                lambda: self._publish_admitted(request, name),
                lambda refusal: self._refuse_publish(request, "NetStream.Publish.Denied", str(refusal)),
                lambda: self.close("fault"),
            )

    def _access_request(self, action: str, name: StreamName, query: dict[str, str]) -> AccessRequest | None:
        """``None`` of a node of the cluster."""
        if self.peer_node is not None:
            return None
        assert self._connected is not None
        return AccessRequest.of_rtmp(action, name, self.peer, query, self._connected)

    def _publish_admitted(self, request: events.PublishRequested, name: StreamName) -> None:
        try:
            if self._is_playing:
                raise PublishRefused("NetStream.Publish.Denied", "this connection plays")
            publication = self.node.publish(name, self)
        except PublishRefused as refusal:
            self._refuse_publish(request, refusal.code, str(refusal))
        except LimitExceeded as refusal:
            self._refuse_publish(request, "NetStream.Publish.Rejected", str(refusal))
        else:
            self._publications[request.message_stream_id] = publication
            self.session.accept_publish(request)
            self.flush()
            self._set_timer(PING_SECONDS, self._ping)

    def _refuse_publish(self, request: events.PublishRequested, code: str, description: str) -> None:
        self._complain("publisher", "{peer}: publish refused: {why}", description)
        self.session.refuse_publish(request, code, description)
        self.close("publish_refused")

    def _complain(self, kind: str, words: str, why: str = "") -> None:
        self.node.complaints.say(self.log, kind, words, peer=self.peer, why=why)

    def _ping(self) -> None:
        """A publisher is silent: is it alive?"""
        silent = self.node.clock.seconds() - self._heard_at
        if silent >= self.node.limits.publisher_idle_seconds:
            self.close("publisher_idle")
            return
        if silent >= PING_SECONDS:
            self.session.send_ping(int(self.node.clock.seconds() * 1000) & 0xFFFFFFFF)
            self.flush()
        self._set_timer(PING_SECONDS, self._ping)

    def _play(self, request: events.PlayRequested) -> None:
        try:
            name_text, query = split_query(request.stream)
            if self._publications or self._is_playing or self._visits.is_asking:
                raise NameRefused("this connection is in use")
            if request.message_stream_id != MEDIA_MESSAGE_STREAM_ID:
                raise NameRefused("play on the first stream that createStream gives")
            name = StreamName(application(self.app), name_text.removesuffix(".flv"))
            asked = self._access_request(PLAY, name, query)
        except NameRefused as refusal:
            self._refuse_play(request, "NetStream.Play.Failed", str(refusal))
            return
        if "epoch" in query and self.peer_node is not None:
            self._set_timer(None)
            self.node.control.replicate(self, request, name, query)
            return
        self._visits.ask(
            request.message_stream_id,
            asked,
            lambda: self._play_admitted(request, name),
            lambda refusal: self._deny_play(request, str(refusal)),
            lambda: self.close("fault"),
        )

    @property
    def _is_playing(self) -> bool:
        return self.viewer is not None or self._waiting is not None

    def _play_admitted(self, request: events.PlayRequested, name: StreamName) -> None:
        if self._publications:
            self._refuse_play(request, "NetStream.Play.Failed", "this connection publishes")
            return
        self._set_timer(None)
        self._waiting = joinable = self.node.hub.when_joinable(name)
        joinable.addCallbacks(self._joinable, self._absent, callbackArgs=(request,), errbackArgs=(request,))
        joinable.addErrback(self._failed)

    def wait_for(self, ready: Deferred[LiveStream], call: Callable[[LiveStream], None]) -> None:
        """A neighbour's copy waits for something; forgotten if the connection goes first."""

        def done(stream: LiveStream) -> None:
            self._waiting = None
            call(stream)

        self._waiting = ready
        ready.addCallbacks(done, lambda failure: failure.trap(CancelledError) and None).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        """A fault of ours costs this connection alone."""
        self.log.failure("starting to play", failure)
        self.close("fault")

    def _joinable(self, stream: LiveStream, request: events.PlayRequested) -> None:
        self._waiting = None
        join = stream.log.newest_join_point()
        assert join is not None
        self.session.accept_play(request)
        self.flush()
        self._view(stream, RtmpForm(), self.feed).join(join)

    def _absent(self, failure: Failure, request: events.PlayRequested) -> None:
        self._waiting = None
        if failure.check(StreamNotFound):
            self._refuse_play(request, "NetStream.Play.StreamNotFound", failure.getErrorMessage())
        elif failure.check(CancelledError) is None:
            self.log.failure("waiting for a stream", failure)

    def _deny_play(self, request: events.PlayRequested, description: str) -> None:
        self._complain("viewer", "{peer}: play refused: {why}", description)
        self._refuse_play(request, "NetStream.Play.Failed", description)

    def _refuse_play(self, request: events.PlayRequested, code: str, description: str) -> None:
        self.session.refuse_play(request, code, description)
        self.close("play_refused")

    def start_replica(self, stream: LiveStream, form: Form) -> Viewer:
        """A neighbour copies the stream (called by the control server, which has answered it)."""
        self.flush()
        return self._view(stream, form)

    def _view(self, stream: LiveStream, form: Form, feed: SessionFeed | None = None) -> Viewer:
        self.viewer = Viewer(stream, self.transport, form, self.close, self.node.clock.seconds(), feed)
        return self.viewer

    def _close_stream(self, message_stream_id: int) -> None:
        self._visits.leave(message_stream_id)
        publication = self._publications.pop(message_stream_id, None)
        if publication is not None:
            publication.end()
        elif self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        elif self.viewer is not None:
            if self.feed is not None or not self.viewer.is_between_messages():
                # nothing may follow half a message but its other half, nor a run of a session's that may be resumed
                self.close("viewer_stopped")
                return
            self.viewer.stop()
            self.viewer = None
        if not self._publications and self.viewer is None:
            self._set_timer(self.node.limits.first_command_seconds, self.close, "first_command_timeout")

    def _command(self, event: events.CommandReceived) -> None:
        if self.peer_node is None:
            self.session.refuse_command(event.transaction_id, "only nodes of the cluster may ask this")
            raise RemoteProtocolError(f"{event.name[:64]!r} from a peer that is no node of the cluster")
        self._set_timer(None)
        self._is_neighbour = True
        self.node.control.command(self, event)

    def _release(self) -> None:
        self._visits.leave_all()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        publications, self._publications = self._publications, {}
        for publication in publications.values():
            publication.end()
        if self.viewer is not None:
            self.viewer.stop()
            self.viewer = None
        if self._is_neighbour:
            self._is_neighbour = False
            self.node.control.detach(self)

    def _set_timer(self, seconds: float | None, call: Any = None, *args: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self.node.clock.callLater(seconds, call, *args)
