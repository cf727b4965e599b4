"""The admin site of a whole cluster: its topology, its streams, what has happened, a player, and what to paste.

Called by the cluster's parent process, which knows the nodes; what they say of themselves comes from
:mod:`relay.admin.polling`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, DeferredList
from twisted.web.iweb import IRequest
from twisted.web.server import Site

from relay.admin.events import EventLog
from relay.admin.fetch import fetch
from relay.admin.metrics import STATES, MetricsRoute, gauge
from relay.admin.node import argument, describe_events, health_answer
from relay.admin.polling import ANSWER_SECONDS, Member
from relay.admin.polling import Answer as NodeAnswer
from relay.admin.site import (
    SCRIPT,
    Answer,
    Route,
    file_route,
    json_answer,
    json_route,
    make_routed_site,
    page_route,
    static_file,
    static_routes,
)
from relay.admin.views import Health
from relay.admin.watching import Watch

PLAYER = "vendor/mpegts.js"


@attrs.frozen(kw_only=True)
class Report:
    """One node: who it is, what it last said, how often it was started again."""

    member: Member
    answer: NodeAnswer
    restarts: int


@attrs.frozen
class PasteLine:
    """Something to paste into a player or a shell, and what it does."""

    what: str
    text: str


@attrs.frozen(kw_only=True)
class Place:
    """Where viewers come to.

    Args:
        host: of the balancer; empty if it is any address of the machine that the page comes from.
        is_tls: HTTPS and RTMPS.
    """

    host: str
    port: int
    is_tls: bool = False


class ClusterView(Protocol):
    """A cluster as its site sees it."""

    def reports(self) -> Sequence[Report]:
        """All nodes, in the order in which a stream passes them."""

    def paste_lines(self) -> Sequence[PasteLine]:
        """How to watch and to publish."""

    def places(self) -> Sequence[Place]:
        """Where a page can play from, the best first."""


def cluster_health(reports: Sequence[Report]) -> Health:
    """Down when no balancer serves; degraded when any node is not normal."""
    why = [
        f"{report.member.name} is {report.answer.state}" + "".join(f": {reason}" for reason in report.answer.why[:1])
        for report in reports
        if report.answer.state != "normal"
    ]
    serving = [
        report
        for report in reports
        if report.member.tier == "balancer" and report.answer.state in ("normal", "degraded", "unknown")
    ]
    if not serving:
        return Health("down", why)
    return Health("degraded", why) if why else Health()


def describe_cluster(view: ClusterView) -> dict[str, Any]:
    """``/api/v1/nodes``."""
    return {
        "nodes": [
            {**attrs.asdict(report.member, filter=_is_public), "admin": report.member.admin_url}
            | {**attrs.asdict(report.answer, filter=_is_state), "restarts": report.restarts}
            for report in view.reports()
        ],
        "paste": [attrs.asdict(line) for line in view.paste_lines()],
        "places": [attrs.asdict(place) for place in view.places()],
    }


def _is_public(attribute: attrs.Attribute[Any], _: object) -> bool:
    return attribute.name not in ("admin_url", "endpoint")


def _is_state(attribute: attrs.Attribute[Any], _: object) -> bool:
    return attribute.name != "events"


def describe_cluster_streams(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """``/api/v1/streams``: each stream once, by name, with the nodes that have it."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        for stream in report.answer.streams:
            name = str(stream.get("name"))
            entry = found.setdefault(
                name, {"name": name, "is_live": False, "bitrate_bps": 0.0, "viewers": 0, "source": "", "nodes": []}
            )
            entry["is_live"] = entry["is_live"] or bool(stream.get("is_live"))
            entry["bitrate_bps"] = max(entry["bitrate_bps"], stream.get("bitrate_bps", 0.0))
            entry["viewers"] += stream.get("viewers", 0)
            if report.member.tier == "origin":
                entry["source"] = stream.get("source", "")
            entry["nodes"].append({"node": report.member.name, **{key: stream.get(key) for key in ("epoch", "end")}})
    return [found[name] for name in sorted(found)]


class ClusterCollector(Collector):
    """The parent's own metrics; each node has its own besides."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def collect(self) -> Iterator[Family]:
        states = gauge("cluster_node_state", "1 for the state that the node is in.", ["node", "tier", "state"])
        restarts = CounterMetricFamily(
            "relay_cluster_node_restarts", "How often the node's process ended and was started again.", labels=["node"]
        )
        for report in self._view.reports():
            member = report.member
            for state in (*STATES, "starting", "unknown"):
                states.add_metric([member.name, member.tier, state], state == report.answer.state)
            restarts.add_metric([member.name], report.restarts)
        return iter((states, restarts))


class Lists:
    """What is asked of every node when somebody asks for it: viewers and sessions."""

    def __init__(self, view: ClusterView, reactor: Any) -> None:
        self._view = view
        self._reactor = reactor

    def route(self, key: str) -> Route:
        """``/api/v1/viewers`` or ``/api/v1/sessions``: of all nodes that answer, each with its node's name."""
        return lambda request: Deferred.fromCoroutine(self._gather(key, request))

    async def _gather(self, key: str, request: Any) -> Answer:
        query = request.uri.partition(b"?")[2].decode("ascii", "replace")
        only = argument(request, "node")
        members = [
            report.member
            for report in self._view.reports()
            if report.member.endpoint is not None and only in ("", report.member.name)
        ]
        path = f"/api/v1/{key}{'?' if query else ''}{query}"
        asked = [fetch(self._reactor, member.endpoint, path, ANSWER_SECONDS) for member in members if member.endpoint]
        count, listed, silent = 0, [], []
        for member, (is_told, body) in zip(members, await DeferredList(asked, consumeErrors=True), strict=True):
            try:
                content: Mapping[str, Any] = json.loads(body) if is_told else {}
                count += content["count"]
                listed += [{"node": member.name, **entry} for entry in content[key]]
            except (ValueError, KeyError, TypeError):
                silent.append(member.name)
        return json_answer({"count": count, key: listed, "silent": silent})


def make_cluster_site(view: ClusterView, reactor: Any, events: EventLog | None = None) -> Site:
    """The site.

    Args:
        view: read afresh for each request.
        reactor: runs the timeouts of connections, and asks nodes.
        events: what has happened.
    """
    happened = EventLog() if events is None else events
    lists = Lists(view, reactor)

    def health(_: IRequest) -> Answer:
        return health_answer(cluster_health(view.reports()))

    def play(request: IRequest) -> Any:
        schemes = [f"http{'s' if place.is_tls else ''}://{place.host or '*'}:{place.port}" for place in view.places()]
        return page_route("watch.html", f"connect-src 'self' {' '.join(schemes)}; media-src blob:")(request)

    player = {}
    if static_file(PLAYER).is_file():
        player[f"/{PLAYER}".encode()] = file_route(PLAYER, SCRIPT)
    return make_routed_site(
        {
            b"/": page_route("cluster.html"),
            b"/watch": play,
            b"/watch.js": file_route("watch.js", SCRIPT),
            **player,
            b"/healthz": health,
            b"/metrics": MetricsRoute(ClusterCollector(view)),
            b"/api/v1/nodes": json_route(lambda: describe_cluster(view)),
            b"/api/v1/streams": json_route(lambda: describe_cluster_streams(view.reports())),
            b"/api/v1/viewers": lists.route("viewers"),
            b"/api/v1/sessions": lists.route("sessions"),
            b"/api/v1/events": lambda request: json_answer(describe_events(happened, request)),
            b"/api/v1/watch": Watch(lambda: describe_cluster(view), happened, reactor),
            **static_routes(),
        },
        reactor,
    )
