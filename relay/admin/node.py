"""The admin site of one node: health, metrics, API and page.

Called by the tiers with their ``--admin`` endpoint.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.web import http
from twisted.web.iweb import IRequest
from twisted.web.server import Site

from relay import __version__
from relay.admin.guard import Guard
from relay.admin.metrics import MetricsRoute, NodeCollector
from relay.admin.site import (
    Answer,
    Route,
    json_answer,
    json_route,
    make_routed_site,
    page_route,
    static_routes,
    text_answer,
)
from relay.admin.views import DrainControl, Health, NodeView

CANT_DRAIN = (
    "{name} is a {tier}: no other can take its viewers over, so it can't be drained. To upgrade it, start the new one "
    "with --take-over-from."
)


def health_answer(health: Health) -> Answer:
    """200 when normal, else 503: a check needs no more than the status."""
    status = http.OK if health.state == "normal" else http.SERVICE_UNAVAILABLE
    return json_answer({"state": health.state, "why": list(health.why)}, status)


def describe_node(view: NodeView) -> dict[str, Any]:
    """Everything that the API says of a node, in one object: whoever shows a cluster asks once."""
    health = view.health()
    return {
        "name": view.name,
        "tier": view.tier,
        "version": __version__,
        "state": health.state,
        "why": list(health.why),
        "draining": describe_drain(view.drain),
        "viewers": view.viewers,
        "streams": describe_streams(view),
        "links": describe_links(view),
    }


def describe_drain(drain: DrainControl | None) -> dict[str, Any] | None:
    """``draining`` in ``/api/v1/node``."""
    report = None if drain is None else drain.report()
    return None if report is None else attrs.asdict(report)


def drain_actions(view: NodeView) -> dict[bytes, Route]:
    """``/api/v1/drain`` and ``/api/v1/undrain``; their answer is what ``/api/v1/node`` says of it."""

    def begin(_: IRequest) -> Answer:
        if view.drain is None:
            return text_answer(CANT_DRAIN.format(name=view.name, tier=view.tier), http.CONFLICT)
        view.drain.begin()
        return json_answer({"draining": describe_drain(view.drain)})

    def end(_: IRequest) -> Answer:
        if view.drain is not None and not view.drain.end():
            return text_answer(f"{view.name} is being stopped.", http.CONFLICT)
        return json_answer({"draining": describe_drain(view.drain)})

    return {b"/api/v1/drain": begin, b"/api/v1/undrain": end}


def describe_streams(view: NodeView) -> list[dict[str, Any]]:
    """``/api/v1/streams``, by name."""
    return [attrs.asdict(stream) for stream in sorted(view.streams(), key=lambda stream: stream.name)]


def describe_links(view: NodeView) -> list[dict[str, Any]]:
    """``/api/v1/links``, in the order of preference."""
    return [attrs.asdict(link) for link in view.links()]


def make_site(view: NodeView, reactor: Any = None, guard: Guard | None = None) -> Site:
    """The site.

    Args:
        view: read afresh for each request.
        reactor: runs the timeouts of connections; the global one by default.
        guard: who may change something.
    """

    def health(_: IRequest) -> Answer:
        return health_answer(view.health())

    return make_routed_site(
        {
            b"/": page_route("node.html"),
            b"/healthz": health,
            b"/metrics": MetricsRoute(NodeCollector(view)),
            b"/api/v1/node": json_route(lambda: describe_node(view)),
            b"/api/v1/streams": json_route(lambda: describe_streams(view)),
            b"/api/v1/links": json_route(lambda: describe_links(view)),
            **static_routes(),
        },
        reactor,
        drain_actions(view),
        guard,
    )
