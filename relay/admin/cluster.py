"""The admin site of a whole cluster: its topology, and what to paste to try it.

Called by the cluster's parent process, which knows the nodes; what they say of themselves comes from
:mod:`relay.admin.polling`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import attrs
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from twisted.web.iweb import IRequest
from twisted.web.server import Site

from relay.admin.metrics import STATES, MetricsRoute, gauge
from relay.admin.node import health_answer
from relay.admin.polling import Answer as NodeAnswer
from relay.admin.polling import Member
from relay.admin.site import Answer, json_route, make_routed_site, page_route, static_routes
from relay.admin.views import Health


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


class ClusterView(Protocol):
    """A cluster as its site sees it."""

    def reports(self) -> Sequence[Report]:
        """All nodes, in the order in which a stream passes them."""

    def paste_lines(self) -> Sequence[PasteLine]:
        """How to watch and to publish."""


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
            | {**attrs.asdict(report.answer), "restarts": report.restarts}
            for report in view.reports()
        ],
        "paste": [attrs.asdict(line) for line in view.paste_lines()],
    }


def _is_public(attribute: attrs.Attribute[Any], _: object) -> bool:
    return attribute.name not in ("admin_url", "endpoint")


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


def make_cluster_site(view: ClusterView, reactor: Any = None) -> Site:
    """The site.

    Args:
        view: read afresh for each request.
        reactor: runs the timeouts of connections; the global one by default.
    """

    def health(_: IRequest) -> Answer:
        return health_answer(cluster_health(view.reports()))

    return make_routed_site(
        {
            b"/": page_route("cluster.html"),
            b"/healthz": health,
            b"/metrics": MetricsRoute(ClusterCollector(view)),
            b"/api/v1/nodes": json_route(lambda: describe_cluster(view)),
            **static_routes(),
        },
        reactor,
    )
