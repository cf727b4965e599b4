"""What the admin site of each tier shows: the tiers' objects as :class:`relay.admin.views.NodeView`.

Owns the translation only; everything is read afresh for each request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs

from relay.admin.views import DrainView, ForwardView, Health, LinkView, Metric, StreamView
from relay.net.backends import Backend, BackendState
from relay.net.balancing import BalancerFactory
from relay.net.causes import CAUSES
from relay.net.discovery import ServiceWatcher
from relay.net.gathering import Gatherer
from relay.net.hooks import Hooks
from relay.net.links import ControlLink
from relay.net.neighbours import Neighbourhood
from relay.net.node import Node
from relay.net.replication import Counts
from relay.tiers.connections import BalancerConnections, MediaConnections
from relay.tiers.families import discovery_metrics, forward_metrics, gauge, peer_metrics, upstream_metrics

OUTCOMES = "Connections that ended, by how."

COUNTS = (
    ("copied_bytes", "Bytes of logs copied from upstream.", "bytes_copied"),
    ("resumed_bytes", "Bytes of logs, published while an upstream was lost, that came from the next.", "bytes_resumed"),
    ("missing_bytes", "Bytes of logs that no upstream had any more: what viewers here have missed.", "bytes_missing"),
    ("gaps", "Times that a copy had to go on further on.", "gaps"),
    ("epochs", "Times that a log began anew upstream.", "epochs"),
    ("diverged", "Times that an upstream had other bytes than we have at the same position.", "diverged"),
)


class NodeDrain:
    """How a media node is drained by its admin site."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def begin(self) -> None:
        self._node.drain.begin("asked for at the admin site")

    def end(self) -> bool:
        self._node.drain.end()
        return not self._node.drain.is_stopping

    def report(self) -> DrainView | None:
        drain = self._node.drain
        return DrainView(why=drain.why, **attrs.asdict(drain.remaining())) if drain.why else None


class MediaNodeView:
    """An origin, a distributor or an aggregator.

    Args:
        node: the node.
        gatherers: what copies for it.
        counts: of its copies, if it makes any.
        watcher: of the service whose members it copies from, if they are found by DNS.
    """

    def __init__(
        self,
        node: Node,
        gatherers: Sequence[Gatherer] = (),
        counts: Counts | None = None,
        watcher: ServiceWatcher | None = None,
    ) -> None:
        self._node = node
        self._gatherers = gatherers
        self._counts = counts
        self._watchers = [] if watcher is None else [watcher]

    @property
    def name(self) -> str:
        return self._node.identity.name

    @property
    def tier(self) -> str:
        return self._node.identity.tier

    @property
    def viewers(self) -> int:
        return self._node.viewers

    def health(self) -> Health:
        return _health(*self._node.shown_health())

    @property
    def connections(self) -> MediaConnections:
        return MediaConnections(self._node)

    @property
    def drain(self) -> NodeDrain:
        return NodeDrain(self._node)

    def streams(self) -> Sequence[StreamView]:
        return [
            StreamView(
                name=str(stream.name),
                epoch=stream.log.epoch,
                start=stream.log.start,
                end=stream.log.end,
                bitrate_bps=stream.bits_per_second,
                viewers=stream.watching,
                source=stream.source,
                is_live=stream.is_live,
            )
            for stream in self._node.hub
        ]

    def forwards(self) -> Sequence[ForwardView]:
        return [
            ForwardView(
                stream=str(forward.stream.name),
                target=forward.target,
                state="sending" if forward.is_sending else "connecting",
                seconds=round(forward.seconds, 1),
                lag_ms=forward.lag_ms,
                sent_bytes=forward.sent_bytes,
                reconnects=forward.reconnects,
                skips=forward.skips,
                why=forward.problem,
            )
            for forward in self._node.forwarder
        ]

    def links(self) -> Sequence[LinkView]:
        return [_upstream_view(gatherer, link) for gatherer in self._gatherers for link in gatherer.links]

    def metrics(self) -> Sequence[Metric]:
        return list(self._metrics())

    def _metrics(self) -> Iterator[Metric]:
        yield Metric(name="connections_closed", help=OUTCOMES, values=self._node.outcomes, label="outcome")
        access = self._node.access
        yield Metric(
            name="access_refused",
            help="Encoders and viewers that were not let in, by why.",
            values=access.refused,
            label="reason",
        )
        if isinstance(access.back_end, Hooks):
            yield Metric(
                name="hook_calls",
                help="Calls of the operator's back-end, by how they ended.",
                values=access.back_end.outcomes,
                label="outcome",
            )
        yield gauge(
            "viewers_waiting",
            "Viewers that wait for a stream which is not there yet.",
            {"": self._node.hub.waiting},
        )
        remaining = self._node.drain.remaining()
        yield gauge(
            "draining",
            "1 while the node drains: its readers are asked to go elsewhere.",
            {"": float(bool(self._node.drain.why))},
        )
        yield gauge(
            "readers",
            "Connections by what becomes of them when the node drains: sessions and copies move, others stay.",
            {"session": remaining.sessions, "copy": remaining.copies, "other": remaining.others},
            label="kind",
        )
        streams = list(self._node.hub)
        yield Metric(
            name="reader_skips",
            help="Times that a slow reader was moved to the newest join point.",
            values={str(stream.name): stream.skips for stream in streams},
            label="stream",
        )
        yield Metric(
            name="sent_bytes",
            help="Bytes of a stream sent to viewers and copies, without what is said besides.",
            values={str(stream.name): stream.sent_bytes for stream in streams},
            label="stream",
        )
        yield Metric(
            name="storage_errors",
            help="Times that the disk did not take a stream's bytes.",
            values={str(stream.name): stream.log.storage_errors for stream in streams},
            label="stream",
        )
        if self._counts is not None:
            for name, words, attribute in COUNTS:
                yield Metric(name=name, help=words, values={"": getattr(self._counts, attribute)})
            failovers = self._counts.failovers
            yield Metric(
                name="failovers",
                help="Times that a copy went on at another upstream, or at the same one anew, by why it left the last.",
                values={cause: failovers[cause] for cause in (*CAUSES, "wrong")},
                label="cause",
            )
        yield from forward_metrics(self.forwards())
        if self._gatherers:
            yield from upstream_metrics(self._gatherers)
        yield from discovery_metrics(self._watchers)


def _upstream_view(gatherer: Gatherer, link: ControlLink) -> LinkView:
    streams = gatherer.reads_from(link)
    is_there = link.state != "down"
    is_needed = bool(gatherer.replicas or gatherer.pulls)
    return LinkView(
        name=link.shown,
        endpoint=link.name,
        state=link.state,
        why=link.why,
        role=("active" if streams else "standby") if is_there and is_needed else "",
        streams=streams,
        behind_ms=gatherer.lead_ms(link)[1] if is_there else 0,
    )


class BalancerView:
    """A balancer: its links are the aggregators."""

    def __init__(
        self,
        factory: BalancerFactory,
        name: str,
        addresses: Mapping[str, str] | None = None,
        neighbourhood: Neighbourhood | None = None,
        watchers: Sequence[ServiceWatcher] = (),
    ) -> None:
        self._factory = factory
        self._watchers = watchers
        self._neighbourhood = neighbourhood
        self._name = name
        self._addresses = addresses or {}

    tier = "balancer"

    @property
    def name(self) -> str:
        return self._name

    @property
    def viewers(self) -> int:
        return len(self._factory.viewers)

    def health(self) -> Health:
        return balancer_health(self._factory)

    drain = None

    @property
    def connections(self) -> BalancerConnections:
        return BalancerConnections(self._factory)

    def forwards(self) -> Sequence[ForwardView]:
        """It has no stream."""
        return []

    def streams(self) -> Sequence[StreamView]:
        """It reads no stream."""
        return []

    def links(self) -> Sequence[LinkView]:
        return [
            LinkView(
                name=backend.name,
                endpoint=self._addresses.get(backend.name, backend.name),
                state="down" if backend.state is BackendState.DOWN else "up",
                why=self._link_why(backend),
                viewers=backend.viewers,
            )
            for backend in self._factory.pool.backends.values()
        ]

    def _link_why(self, backend: Backend[Any]) -> str:
        seconds = self._factory.pool.rises_in(backend)
        if seconds:
            return f"it gets viewers again if it stays {backend.state.value} for {seconds:.1f} s more"
        return f"it drains: {backend.reason}" if backend.state is BackendState.DRAINING else backend.reason

    def metrics(self) -> Sequence[Metric]:
        backends = self._factory.pool.backends.values()
        return [
            Metric(name="connections_closed", help=OUTCOMES, values=self._factory.outcomes, label="outcome"),
            Metric(
                name="spliced_bytes",
                help="Bytes passed on, by direction.",
                values={
                    "to_viewers": self._factory.splicer.bytes_to_viewers,
                    "to_aggregators": self._factory.splicer.bytes_to_backends,
                },
                label="direction",
            ),
            Metric(
                name="sessions_moved",
                help="Times that a viewer's session went on at another aggregator.",
                values={"": self._factory.sessions_moved},
            ),
            Metric(
                name="sessions_drained",
                help="Of those moves, the ones from an aggregator that drained, and still served.",
                values={"": self._factory.departures.moved},
            ),
            Metric(
                name="sessions_cut",
                help="Sessions that were lost with their aggregator, because where to go on was not known exactly.",
                values={"": self._factory.sessions_cut},
            ),
            gauge(
                "aggregator_viewers",
                "Viewers spliced to each aggregator.",
                {backend.name: backend.viewers for backend in backends},
                label="aggregator",
            ),
            *([] if self._neighbourhood is None else peer_metrics(self._neighbourhood)),
            *discovery_metrics(self._watchers),
        ]


def balancer_health(factory: BalancerFactory) -> Health:
    """Normal when every aggregator is, degraded while one is usable, down when none is."""
    why = [_why(backend) for backend in factory.pool.backends.values() if backend.state is not BackendState.UP]
    if not factory.pool.has_usable(factory.options.pin):
        return _health("down", why)
    return _health("degraded" if why else "normal", why)


def _why(backend: Backend[Any]) -> str:
    return f"{backend.name} is {backend.state.value}{f': {backend.reason}' if backend.reason else ''}"


def _health(state: str, why: Sequence[str]) -> Health:
    known: dict[str, Literal["normal", "degraded", "down"]] = {"normal": "normal", "degraded": "degraded"}
    return Health(known.get(state, "down"), tuple(why))
