"""The HTTP side of an admin page: routes, methods, status codes and headers.

Owns nothing of what is shown: a route is a path and a function that makes an :class:`Answer`.  Called by
:mod:`relay.admin.node` and :mod:`relay.admin.cluster`.

All answers go through one place, so that none lacks the headers that keep a browser from being used against the page:
only scripts and styles of this site run, nothing frames it, nothing guesses types.  What only shows something is shown
to whoever asks, by whatever name; what changes something is a POST that :mod:`relay.admin.guard` has nothing against.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from io import BytesIO
from typing import Any

import attrs
from twisted.internet.interfaces import IAddress
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web import http
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from relay.admin.guard import Guard

IDLE_SECONDS = 60
"""A kept-alive connection with no request; a browser with the page open asks each second."""

HEADERS = {
    "Server": "relay",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
METHODS = (b"GET", b"HEAD")


@attrs.frozen
class Answer:
    """What a route gives."""

    body: bytes
    content_type: str
    status: int = http.OK


Route = Callable[[IRequest], Answer]
NO_ACTIONS: Mapping[bytes, Route] = {}


def json_answer(content: object, status: int = http.OK) -> Answer:
    """JSON, indented, for people who use curl."""
    return Answer(json.dumps(content, indent=2).encode() + b"\n", "application/json", status)


def text_answer(text: str, status: int) -> Answer:
    """One line, for errors."""
    return Answer(text.encode() + b"\n", "text/plain; charset=utf-8", status)


def json_route(make: Callable[[], object]) -> Route:
    """A route that shows what ``make`` gives at the time."""
    return lambda _: json_answer(make())


def static_routes() -> dict[bytes, Route]:
    """The style sheet and the script of the pages."""
    return {
        b"/page.css": _file_route("page.css", "text/css; charset=utf-8"),
        b"/page.js": _file_route("page.js", "text/javascript; charset=utf-8"),
    }


def page_route(name: str) -> Route:
    """One of the HTML files beside this module."""
    return _file_route(name, "text/html; charset=utf-8")


def _file_route(name: str, content_type: str) -> Route:
    answer = Answer(files("relay.admin").joinpath("static", name).read_bytes(), content_type)
    return lambda _: answer


class RoutedResource(Resource):
    """Every path of a site: ``routes`` show something, ``actions`` change something."""

    isLeaf = True

    def __init__(
        self, routes: Mapping[bytes, Route], actions: Mapping[bytes, Route] = NO_ACTIONS, guard: Guard | None = None
    ) -> None:
        super().__init__()
        self._routes = routes
        self._actions = actions
        self._guard = guard or Guard()

    def render(self, request: Any) -> bytes:
        answer = self._answer(request)
        request.setResponseCode(answer.status)
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        request.setHeader("Content-Type", answer.content_type)
        request.setHeader("Content-Length", str(len(answer.body)))
        return b"" if request.method == b"HEAD" else answer.body

    def _answer(self, request: Any) -> Answer:
        action = self._actions.get(request.path)
        if action is not None:
            return self._act(request, action)
        route = self._routes.get(request.path)
        if route is None:
            return text_answer("There is no such page here.", http.NOT_FOUND)
        if request.method not in METHODS:
            request.setHeader("Allow", b", ".join(METHODS))
            return text_answer("This page is only ever read.", http.NOT_ALLOWED)
        return route(request)

    def _act(self, request: Any, action: Route) -> Answer:
        if request.method != b"POST":
            request.setHeader("Allow", b"POST")
            return text_answer("This changes something: POST it.", http.NOT_ALLOWED)
        said = [request.getHeader(name) for name in ("Host", "Origin", "Sec-Fetch-Site")]
        objection = self._guard.objection(*said)
        return action(request) if objection is None else text_answer(objection, http.FORBIDDEN)


class _Nowhere(BytesIO):
    """Takes bytes and forgets them."""

    def write(self, data: Any) -> int:
        return len(data)


class AdminRequest(Request):
    """Nothing here wants a request's body; twisted.web would keep one of any length in a temporary file."""

    def gotLength(self, length: int | None) -> None:
        self.content = _Nowhere()


class AdminSite(Site):
    """A site that doesn't log each request: a health check a second is no news."""

    displayTracebacks = False
    requestFactory = AdminRequest

    def log(self, request: Any) -> None:
        """No access log."""


class BoundedFactory(WrappingFactory):
    """At most ``connections`` at once; more are closed as they come."""

    noisy = False

    def __init__(self, site: Site, connections: int) -> None:
        super().__init__(site)
        self._connections = connections

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper | None:  # type: ignore[override]
        return None if len(self.protocols) >= self._connections else super().buildProtocol(addr)


def make_routed_site(
    routes: Mapping[bytes, Route],
    reactor: Any,
    actions: Mapping[bytes, Route] = NO_ACTIONS,
    guard: Guard | None = None,
) -> Site:
    """A site with these routes and actions.  ``reactor`` runs its timeouts."""
    site = AdminSite(RoutedResource(routes, actions, guard), timeout=IDLE_SECONDS, reactor=reactor)
    site.noisy = False
    return site
