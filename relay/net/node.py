"""What all media nodes (origin, distributor, aggregator) are made of: streams, a port, neighbours, counts.

Owns the composition, not the differences: a tier gives a rule for publishers and feeds the hub.  Called by the tiers
and by whoever embeds a node in an application of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger

from relay.limits import DEFAULT_LIMITS, Limits
from relay.names import StreamName
from relay.net.control import ControlServer
from relay.net.http_flv import HttpFlvProtocol
from relay.net.identity import NodeIdentity
from relay.net.ingest import Publication, PublishRefused
from relay.net.listening import ListeningService
from relay.net.proxy import TLV_BALANCER, TLV_RESUME, ProxyHeader, is_authentic
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


class Node(MultiService):
    """A running media node.

    Args:
        settings: see there.
        clock: the reactor.
    """

    log = Logger()

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
        self.ports = PortFactory(
            make_rtmp=lambda peer: RtmpServerProtocol(self, peer),
            make_http=lambda peer: HttpFlvProtocol(self, peer),
            limits=settings.limits,
            clock=clock,
            outcomes=self.outcomes,
            trusted=settings.trusted,
            is_authentic=lambda header: (
                self.identity.secret is not None and is_authentic(header, self.identity.secret.key)
            ),
            make_resumed=self._make_resumed,
            announce=self._announce,
        )
        self._listeners: list[ListeningService] = []
        timer = TimerService(1.0, self._check_always)
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
        return None if point is None else ResumedProtocol(self, peer, ResumePoint.from_bytes(point))

    def _announce(self, protocol: Any, header: ProxyHeader) -> None:
        """A balancer's session: tell it which bytes it carries."""
        balancer = header.tlvs.get(TLV_BALANCER)
        if balancer is not None and header.session_id is not None:
            protocol.feed = SessionFeed(self.control, balancer.decode("latin-1"), header.session_id.hex())

    @property
    def upstream_settings(self) -> ClientSettings:
        """For connections to other nodes: what they say in one command may be larger than what a viewer may say."""
        return ClientSettings(identity=self.identity, limits=neighbour_limits(self.limits), clock=self.clock)

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
        """("normal" | "degraded" | "down", reasons)."""
        return "normal", []

    def _check_always(self) -> None:
        """A timer that meets an error stops; this one must not."""
        try:
            self.check()
        except Exception:
            self.log.failure("the check of this second failed")

    def check(self) -> None:
        """Once a second."""
        self.hub.check()
        self.tell_health()

    def tell_health(self) -> None:
        """Let the neighbours know, if it has changed."""
        self.control.set_health(*self.health())

    def stop_after(self, first: Sequence[Deferred[Any]]) -> Deferred[None]:
        """Stop listening, wait for what the tier has to end first, then let go of everybody."""
        self.running = 0

        async def stop() -> None:
            children = [maybeDeferred(service.stopService) for service in self]
            await DeferredList([*children, *first], consumeErrors=True)
            await self.ports.close()
            self.hub.close()

        return Deferred.fromCoroutine(stop())

    def stopService(self) -> Deferred[None]:
        return self.stop_after([])
