"""The admin site of one node: health, metrics, API and page.

Called by the tiers with their ``--admin`` endpoint.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.logger import Logger
from twisted.web import http
from twisted.web.iweb import IRequest
from twisted.web.server import Site

from relay import __version__
from relay.admin.events import EventLog
from relay.admin.guard import Guard
from relay.admin.metrics import MetricsRoute, NodeCollector
from relay.admin.site import (
    Action,
    Answer,
    json_answer,
    json_route,
    make_routed_site,
    number,
    page_route,
    static_routes,
    text_answer,
)
from relay.admin.views import DrainControl, Health, NodeView
from relay.admin.watching import Watch

log = Logger()

DEFAULT_LISTED, MAX_LISTED = 1000, 100_000  # viewers or sessions in one answer
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
        "forwards": describe_forwards(view),
    }


def describe_drain(drain: DrainControl | None) -> dict[str, Any] | None:
    """``draining`` in ``/api/v1/node``."""
    report = None if drain is None else drain.report()
    return None if report is None else attrs.asdict(report)


def actions_of(view: NodeView) -> dict[bytes, Action]:
    """What may be changed.  Draining answers what ``/api/v1/node`` says of it."""

    def begin(_: str) -> Answer:
        if view.drain is None:
            return text_answer(CANT_DRAIN.format(name=view.name, tier=view.tier), http.CONFLICT)
        view.drain.begin()
        return json_answer({"draining": describe_drain(view.drain)})

    def end(_: str) -> Answer:
        if view.drain is not None and not view.drain.end():
            return text_answer(f"{view.name} is being stopped.", http.CONFLICT)
        return json_answer({"draining": describe_drain(view.drain)})

    def kick(viewer: str) -> Answer:
        if not view.connections.kick(viewer):
            return text_answer(f"{view.name} has no viewer {viewer!r:.40}.", http.NOT_FOUND)
        log.info("{node}: viewer {viewer} is closed by an operator", event="kick", node=view.name, viewer=viewer)
        return json_answer({"kicked": viewer})

    def dismiss(stream: str) -> Answer:
        if not view.connections.dismiss(stream):
            return text_answer(f"{view.name} has no publisher of {stream!r:.100}.", http.NOT_FOUND)
        log.info("{stream}: its publisher is sent away by an operator", event="kick", stream=stream)
        return json_answer({"dismissed": stream})

    return {
        b"/api/v1/drain": Action(b"POST", begin),
        b"/api/v1/undrain": Action(b"POST", end),
        b"/api/v1/viewers/": Action(b"DELETE", kick),
        b"/api/v1/publishers/": Action(b"DELETE", dismiss),
    }


def describe_streams(view: NodeView) -> list[dict[str, Any]]:
    """``/api/v1/streams``, by name."""
    return [attrs.asdict(stream) for stream in sorted(view.streams(), key=lambda stream: stream.name)]


def describe_links(view: NodeView) -> list[dict[str, Any]]:
    """``/api/v1/links``, in the order of preference."""
    return [attrs.asdict(link) for link in view.links()]


def describe_viewers(view: NodeView, request: IRequest) -> dict[str, Any]:
    """``/api/v1/viewers?stream=APP/NAME&limit=N``: how many there are, and the first N of them."""
    wanted = argument(request, "stream")
    viewers = [each for each in view.connections.viewers() if wanted in ("", each.stream)]
    return {"count": len(viewers), "viewers": [attrs.asdict(each) for each in viewers[: limit_of(request)]]}


def describe_sessions(view: NodeView, request: IRequest) -> dict[str, Any]:
    """``/api/v1/sessions?limit=N``: as the viewers."""
    sessions = view.connections.sessions()
    return {"count": len(sessions), "sessions": [attrs.asdict(each) for each in sessions[: limit_of(request)]]}


def argument(request: Any, name: str) -> str:
    """Of the query; empty if it is not there."""
    values = request.args.get(name.encode(), [b""])
    return str(values[0].decode("utf-8", "replace"))


def limit_of(request: IRequest) -> int:
    """``limit`` of the query."""
    return min(number(argument(request, "limit"), DEFAULT_LISTED), MAX_LISTED)


def describe_events(events: EventLog, request: IRequest) -> dict[str, Any]:
    """``/api/v1/events?after=ID``: the oldest first."""
    return {"events": events.after(number(argument(request, "after"), 0))}


def describe_forwards(view: NodeView) -> list[dict[str, Any]]:
    """``/api/v1/forwards``."""
    return [attrs.asdict(forward) for forward in view.forwards()]


def make_site(view: NodeView, reactor: Any, guard: Guard | None = None, events: EventLog | None = None) -> Site:
    """The site.

    Args:
        view: read afresh for each request.
        reactor: runs the timeouts of connections, and what is told without being asked.
        guard: who may change something.
        events: what has happened.
    """
    happened = EventLog() if events is None else events

    def health(_: IRequest) -> Answer:
        return health_answer(view.health())

    def node(request: IRequest) -> Answer:
        return json_answer({**describe_node(view), **describe_events(happened, request)})

    def publishers() -> dict[str, Any]:
        return {"publishers": [attrs.asdict(each) for each in view.connections.publishers()]}

    return make_routed_site(
        {
            b"/": page_route("node.html"),
            b"/healthz": health,
            b"/metrics": MetricsRoute(NodeCollector(view)),
            b"/api/v1/node": node,
            b"/api/v1/nodes": json_route(lambda: {"nodes": [describe_node(view)]}),
            b"/api/v1/streams": json_route(lambda: describe_streams(view)),
            b"/api/v1/links": json_route(lambda: describe_links(view)),
            b"/api/v1/forwards": json_route(lambda: describe_forwards(view)),
            b"/api/v1/viewers": lambda request: json_answer(describe_viewers(view, request)),
            b"/api/v1/sessions": lambda request: json_answer(describe_sessions(view, request)),
            b"/api/v1/publishers": json_route(publishers),
            b"/api/v1/events": lambda request: json_answer(describe_events(happened, request)),
            b"/api/v1/watch": Watch(lambda: {"nodes": [describe_node(view)]}, happened, reactor),
            **static_routes(),
        },
        reactor,
        actions_of(view),
        guard,
    )
