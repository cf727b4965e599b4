"""Families of numbers that are there only if a node has what they count: upstreams, forwards, services, peers.

Owns their names, help and labels.  Called by :mod:`relay.tiers.views`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from relay.admin.views import ForwardView, Metric
from relay.net.discovery import ServiceWatcher
from relay.net.gathering import Gatherer
from relay.net.neighbours import Neighbourhood


def upstream_metrics(gatherers: Sequence[Gatherer]) -> list[Metric]:
    """Of a node that copies: who is read, and who is how far."""
    links = [(gatherer, link) for gatherer in gatherers for link in gatherer.links]
    leads = {link.shown: gatherer.lead_ms(link) for gatherer, link in links if link.state == "up"}
    return [
        gauge(
            "upstream_streams",
            "Streams that are read from each upstream now.",
            {link.shown: gatherer.reads_from(link) for gatherer, link in links},
            label="upstream",
        ),
        gauge(
            "upstream_ahead_seconds",
            "Media time that an upstream has and this node has not yet, of all streams the most.",
            {name: ahead / 1000 for name, (ahead, _) in leads.items()},
            label="upstream",
        ),
        gauge(
            "upstream_behind_seconds",
            "Media time that this node has and an upstream has not yet (standby lag), of all streams the most.",
            {name: behind / 1000 for name, (_, behind) in leads.items()},
            label="upstream",
        ),
    ]


def forward_metrics(forwards: Sequence[ForwardView]) -> Iterator[Metric]:
    """Of streams that are pushed to others; there are none without any."""
    if forwards:
        keys = [f"{each.stream},{each.target}" for each in forwards]
        sending = [each.state == "sending" for each in forwards]
        lags = [each.lag_ms / 1000 for each in forwards]
        for name, words, is_counter, values in (
            ("forward_up", "1 while the target takes the stream.", False, sending),
            ("forward_lag_seconds", "Media time that is here and not sent.", False, lags),
            ("forward_bytes", "Bytes sent to the target.", True, [each.sent_bytes for each in forwards]),
            ("forward_reconnects", "Times that the connection was lost.", True, [each.reconnects for each in forwards]),
            ("forward_skips", "Times that a slow target was left out media.", True, [each.skips for each in forwards]),
        ):
            found = dict(zip(keys, map(float, values), strict=True))
            yield Metric(name=name, help=words, values=found, label="stream,target", is_counter=is_counter)


def discovery_metrics(watchers: Sequence[ServiceWatcher]) -> Iterator[Metric]:
    """Of services whose members are found by DNS."""
    if watchers:
        yield gauge(
            "service_members",
            "Members of a service that the name server has told of.",
            {watcher.service: len(watcher.members) for watcher in watchers},
            label="service",
        )
        yield Metric(
            name="service_lookup_failures",
            help="Answers of name servers that did not count: errors, timeouts, empty ones.",
            values={watcher.service: watcher.failures for watcher in watchers},
            label="service",
        )


def peer_metrics(neighbourhood: Neighbourhood) -> list[Metric]:
    """Of a balancer that shares a virtual IP."""
    links = neighbourhood.links
    return [
        gauge(
            "peer_up",
            "1 while the other balancer of the virtual IP answers.",
            {link.name: link.state == "up" for link in links},
            label="peer",
        ),
        gauge(
            "peer_viewers",
            "Viewers that the other balancer has told of; kept when it is lost.",
            {link.name: len(link.viewers) for link in links},
            label="peer",
        ),
        gauge(
            "gives_way",
            "1 while this balancer can serve nobody and another may: keepalived's check then lets the address go.",
            {"": neighbourhood.gives_way},
        ),
        Metric(
            name="viewers_reset",
            help="Viewers of a lost balancer that were made to connect anew.",
            values={"": neighbourhood.tickler.told},
        ),
        Metric(
            name="viewers_not_reset",
            help="Viewers of a lost balancer that could not be told, for want of CAP_NET_RAW or of a way to them.",
            values={"": neighbourhood.tickler.failed},
        ),
    ]


def gauge(name: str, words: str, values: Mapping[str, float], label: str | None = None) -> Metric:
    """A number that goes up and down."""
    return Metric(name=name, help=words, values=values, label=label, is_counter=False)
