"""What all media nodes (origin, distributor, aggregator) are made of: streams, a port, neighbours, counts.

Owns the composition, not the differences: a tier gives a rule for publishers and feeds the hub.  Called by the tiers
and by whoever embeds a node in an application of their own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger

from relay.limits import DEFAULT_LIMITS, Limits
from relay.names import StreamName
from relay.net.access import Access, AccessRules, BackEnd
from relay.net.complaints import Complaints
from relay.net.control import PROGRESS_SECONDS, ControlServer
from relay.net.draining import Drain
from relay.net.forward_rules import ForwardRule
from relay.net.forwarding import Forwarder
from relay.net.hooks import Hooks, HookSettings
from relay.net.http_flv import HttpFlvProtocol
from relay.net.identity import NodeIdentity
from relay.net.ingest import Publication, PublishRefused
from relay.net.listening import ListeningService
from relay.net.proxy import TLV_BALANCER, TLV_RESUME, TLV_SEED, ProxyHeader, is_authentic
from relay.net.resuming import ResumedProtocol
from relay.net.rtmp_client import ClientSettings, neighbour_limits
from relay.net.rtmp_server import RtmpServerProtocol
from relay.net.sessions import ResumePoint, SessionFeed
from relay.net.sniffing import LOOPBACK, Network, PortFactory
from relay.net.streams import Hub


@attrs.frozen(kw_only=True)
class NodeSettings:
    """What any node is told."""

    identity: NodeIdentity
    limits: Limits = DEFAULT_LIMITS
    trusted: Sequence[Network] = LOOPBACK
    merge_seconds: float = 0.1
    allow_origin: str = "*"
    drain_seconds: float = 0.0
    """How long a stop waits at most for those who can go elsewhere."""
    access: AccessRules = attrs.field(factory=AccessRules)
    hooks: HookSettings = attrs.field(factory=HookSettings)
    forwards: Sequence[ForwardRule] = ()


class Node(MultiService):
    """A running media node.

    Args:
        settings: see there.
        clock: the reactor.
    """

    log = Logger()
    is_left = True  # when it drains: do those who read from it go elsewhere?

    def __init__(self, settings: NodeSettings, clock: IReactorTime) -> None:
        super().__init__()
        self.setName(settings.identity.name)
        self.settings = settings
        self.identity = settings.identity
        self.limits = settings.limits
        self.clock = clock
        self.allow_origin = settings.allow_origin
        self.outcomes: Counter[str] = Counter()
        self.hub = Hub(clock, settings.limits, settings.merge_seconds)
        self.control = ControlServer(self.hub)
        self.drain = Drain(self, clock)
        hooks = settings.hooks
        back_end = Hooks(hooks, settings.limits, clock) if hooks.urls else BackEnd()
        self.access = Access(settings.access, back_end, time.time, settings.identity.name)
        self.complaints = Complaints(clock)
        self.forwarder = Forwarder(settings.forwards, self.hub, self.upstream_settings)
        self.ports = PortFactory(
            make_rtmp=self._make_rtmp,
            make_http=lambda peer, header: HttpFlvProtocol(self, peer, self._feed(header)),
            limits=settings.limits,
            clock=clock,
            outcomes=self.outcomes,
            trusted=settings.trusted,
            is_authentic=lambda header: (
                self.identity.secret is not None and is_authentic(header, self.identity.secret.key)
            ),
            make_resumed=self._make_resumed,
            disown=self._disown,
            complaints=self.complaints,
        )
        self._listeners: list[ListeningService] = []
        self._said_state = "normal"
        for seconds, what in ((1.0, self.check), (PROGRESS_SECONDS, self.control.tell_progress)):
            timer = TimerService(seconds, self._do_always, what)
            timer.clock = clock
            timer.setServiceParent(self)

    def listen(self, endpoint: IStreamServerEndpoint) -> None:
        """Serve on this endpoint while running."""
        service = ListeningService(endpoint, self.ports)
        service.setServiceParent(self)
        self._listeners.append(service)

    def when_listening(self) -> Deferred[IListeningPort]:
        """Fires with the first port."""
        return self._listeners[0].when_listening()

    def _make_resumed(self, peer: str, header: ProxyHeader) -> ResumedProtocol | None:
        point = header.tlvs.get(TLV_RESUME)
        if point is None:
            return None
        return ResumedProtocol(self, peer, ResumePoint.from_bytes(point), self._feed(header))

    def _make_rtmp(self, peer: str, header: ProxyHeader | None) -> RtmpServerProtocol:
        """A balancer's seed makes it say what another node would say."""
        seed = b"" if header is None else header.tlvs.get(TLV_SEED, b"")
        return RtmpServerProtocol(self, peer, self._feed(header), seed)

    def _feed(self, header: ProxyHeader | None) -> SessionFeed | None:
        """What tells a balancer which bytes its session carries."""
        balancer = None if header is None else header.tlvs.get(TLV_BALANCER)
        if header is None or balancer is None or header.session_id is None:
            return None
        return SessionFeed(self.control, balancer.decode("latin-1"), header.session_id.hex())

    def _disown(self, header: ProxyHeader) -> Deferred[None] | None:
        """A balancer's session that ends here before it has begun is not to be tried elsewhere."""
        feed = self._feed(header)
        return None if feed is None else feed.over()

    @property
    def upstream_settings(self) -> ClientSettings:
        """For connections to other nodes: what they say in one command may be larger than what a viewer may say."""
        return ClientSettings(identity=self.identity, limits=neighbour_limits(self.limits), clock=self.clock)

    @property
    def publishers(self) -> int:
        """How many publish here."""
        return 0

    @property
    def viewers(self) -> int:
        """How many watch; neighbours' copies are not counted."""
        return sum(stream.watching for stream in self.hub)

    def publish(self, name: StreamName, publisher: RtmpServerProtocol) -> Publication:
        """Only origins take encoders.

        Raises:
            PublishRefused: always; the origin overrides this.
        """
        raise PublishRefused("NetStream.Publish.Denied", f"{self.identity.name} is no origin: publish there")

    def health(self) -> tuple[str, list[str]]:
        """("normal" | "degraded" | "down", reasons), whether it drains or not."""
        return "normal", []

    def shown_health(self) -> tuple[str, list[str]]:
        """For checks: one that drains is not to be sent anybody."""
        state, why = self.health()
        return ("down", [f"draining: {self.drain.why}", *why]) if self.drain.why else (state, why)

    def told_health(self) -> tuple[str, list[str]]:
        """For neighbours: one that drains is to be left by those who can."""
        return ("draining", [self.drain.why]) if self.drain.why and self.is_left else self.health()

    def _do_always(self, what: Callable[[], None]) -> None:
        """A timer that meets an error stops; these must not."""
        try:
            what()
        except Exception:
            self.log.failure("what is done again and again has failed this time")

    def check(self) -> None:
        """Once a second."""
        self.hub.check()
        self.forwarder.check()
        self.complaints.check()
        self.tell_health()
        self._say_state()

    def _say_state(self) -> None:
        """A line when it has changed for more than a moment."""
        state, why = self.shown_health()
        if state != self._said_state:
            self._said_state = state
            say = self.log.info if state == "normal" else self.log.warn
            words = f": {'; '.join(why)}" if why else ""
            say("{name} is {state}{why}", event="state", name=self.name, state=state, why=words)

    def tell_health(self) -> None:
        """Let the neighbours know, if it has changed."""
        self.control.set_health(*self.told_health())

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """Drain, while everything goes on; then stop listening and reading, then let go of everybody."""
        await self.drain.before_stop(self.settings.drain_seconds)
        self.running = 0
        children = [maybeDeferred(service.stopService) for service in self]
        await DeferredList([*children, *self.stop_reading()], consumeErrors=True)
        await self.ports.close()
        await self.forwarder.stop()
        await self.access.back_end.close()
        self.complaints.close()
        self.hub.close()
        self.release()

    def stop_reading(self) -> Sequence[Deferred[Any]]:
        """Stop whatever feeds the streams; each fires when that is done."""
        return []

    def release(self) -> None:
        """Everybody is gone: let go of what the tier holds."""
