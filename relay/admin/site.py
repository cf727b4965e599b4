"""The HTTP side of an admin page: routes, methods, status codes and headers.

Owns nothing of what is shown: a route is a path and a function that makes an :class:`Answer`.  Called by
:mod:`relay.admin.node` and :mod:`relay.admin.cluster`.

All answers go through one place, so that none lacks the headers that keep a browser from being used against the page:
only scripts and styles of this site run, nothing frames it, nothing guesses types.  What only shows something is shown
to whoever asks, by whatever name; what changes something (POST, DELETE) only if :mod:`relay.admin.guard` has nothing
against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from io import BytesIO
from typing import Any, AnyStr
from urllib.parse import unquote

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from relay.admin.guard import CHALLENGES, Guard

MOST_DIGITS = 18  # of a number that somebody says
IDLE_SECONDS = 60
"""A kept-alive connection with no request; one that is told without asking has one all the time."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
)
HEADERS = {
    "Server": "relay",
    "Cache-Control": "no-store",
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
    policy: str = ""
    """What may be loaded from elsewhere besides (Content-Security-Policy), for a page that plays."""


Reply = Answer | Deferred[Answer] | int
"""``NOT_DONE_YET``: the route answers by itself."""

Route = Callable[[IRequest], Reply]


@attrs.frozen
class Action:
    """A route that changes something.

    Args:
        method: POST or DELETE.
        call: makes the answer; told what follows the path, if the path ends with a slash.
    """

    method: bytes
    call: Callable[[str], Answer]


NO_ACTIONS: Mapping[bytes, Action] = {}


def json_answer(content: object, status: int = http.OK) -> Answer:
    """JSON, indented, for people who use curl."""
    return Answer(json.dumps(content, indent=2).encode() + b"\n", "application/json", status)


def text_answer(text: str, status: int) -> Answer:
    """One line, for errors."""
    return Answer(text.encode() + b"\n", "text/plain; charset=utf-8", status)


def json_route(make: Callable[[], object]) -> Route:
    """A route that shows what ``make`` gives at the time."""
    return lambda _: json_answer(make())


STYLE, SCRIPT, HTML = (f"text/{kind}; charset=utf-8" for kind in ("css", "javascript", "html"))


def static_routes() -> dict[bytes, Route]:
    """The style sheet and the scripts of the pages, and the description of the API."""
    return {
        b"/page.css": file_route("page.css", STYLE),
        b"/page.js": file_route("page.js", SCRIPT),
        b"/topology.js": file_route("topology.js", SCRIPT),
        b"/api/v1/openapi.json": file_route("openapi.json", "application/json"),
    }


def page_route(name: str, policy: str = "") -> Route:
    """One of the HTML files beside this module; ``policy`` as in :class:`Answer`."""
    return file_route(name, HTML, policy)


def file_route(name: str, content_type: str, policy: str = "") -> Route:
    """A file beside this module."""
    answer = Answer(static_file(name).read_bytes(), content_type, policy=policy)
    return lambda _: answer


def static_file(name: str) -> Traversable:
    """Where it is; it may not be there (the player, where the package was built without the npm registry)."""
    return files("relay.admin").joinpath("static", name)


class RoutedResource(Resource):
    """Every path of a site: ``routes`` show something, ``actions`` change something."""

    isLeaf = True
    log = Logger()

    def __init__(
        self, routes: Mapping[bytes, Route], actions: Mapping[bytes, Action] = NO_ACTIONS, guard: Guard | None = None
    ) -> None:
        super().__init__()
        self._routes = routes
        self._actions = actions
        self._guard = guard or Guard()

    def paths(self) -> list[bytes]:
        """All that are served; one that ends with a slash is followed by a name."""
        return [*self._routes, *self._actions]

    def render(self, request: Any) -> bytes | int:
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        reply = self._reply(request)
        if isinstance(reply, Deferred):
            self._send_later(request, reply)
            return int(NOT_DONE_YET)
        return reply if isinstance(reply, int) else self._send(request, reply)

    def _send_later(self, request: Any, reply: Deferred[Answer]) -> None:
        def send(answer: Answer) -> None:
            request.write(self._send(request, answer))
            request.finish()

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError) is None:
                self.log.failure("answering {path}", failure, path=request.path.decode("ascii", "replace"))
                send(text_answer("This has failed; the log says why.", http.INTERNAL_SERVER_ERROR))

        request.notifyFinish().addErrback(lambda _: reply.cancel())
        reply.addCallbacks(send, failed)

    def _send(self, request: Any, answer: Answer) -> bytes:
        request.setResponseCode(answer.status)
        request.setHeader("Content-Type", answer.content_type)
        request.setHeader("Content-Security-Policy", POLICY + (answer.policy or "connect-src 'self'"))
        request.setHeader("Content-Length", str(len(answer.body)))
        return b"" if request.method == b"HEAD" else answer.body

    def _reply(self, request: Any) -> Reply:
        path: bytes = request.path
        action, rest = self._actions.get(path), ""
        if action is None:
            prefix = next((each for each in self._actions if each.endswith(b"/") and path.startswith(each)), None)
            if prefix is not None:
                action, rest = self._actions[prefix], unquote(path[len(prefix) :].decode("ascii", "replace"))
        if action is not None:
            return self._act(request, action, rest)
        route = self._routes.get(path)
        if route is None:
            return text_answer("There is no such page here.", http.NOT_FOUND)
        if request.method not in METHODS:
            request.setHeader("Allow", b", ".join(METHODS))
            return text_answer("This page is only ever read.", http.NOT_ALLOWED)
        return route(request)

    def _act(self, request: Any, action: Action, rest: str) -> Answer:
        if request.method != action.method:
            request.setHeader("Allow", action.method)
            return text_answer(f"This changes something: {action.method.decode()} it.", http.NOT_ALLOWED)
        said = [request.getHeader(name) for name in ("Host", "Origin", "Sec-Fetch-Site")]
        objection = self._guard.objection(*said)
        if objection is not None:
            return text_answer(objection, http.FORBIDDEN)
        objection = self._guard.credentials.objection(request.getHeader("Authorization"), request.getClientAddress())
        if objection is None:
            return action.call(rest)
        if self._guard.credentials.token is None:
            return text_answer(objection, http.FORBIDDEN)
        request.responseHeaders.setRawHeaders("WWW-Authenticate", CHALLENGES)
        return text_answer(objection, http.UNAUTHORIZED)


class _Nowhere(BytesIO):
    """Takes bytes and forgets them."""

    def write(self, data: Any) -> int:
        return len(data)


def number(text: str, otherwise: int) -> int:
    """Of somebody's digits; so many that Python won't read them are a large number."""
    return int(text[:MOST_DIGITS]) if text.isdecimal() else otherwise


class AdminRequest(Request):
    """Nothing here wants a request's body; twisted.web would keep one of any length in a temporary file."""

    def gotLength(self, length: int | None) -> None:
        self.content = _Nowhere()

    def getHeader(self, key: AnyStr) -> AnyStr | None:
        """As text whatever it has: twisted.web raises if it is not UTF-8."""
        if isinstance(key, bytes):
            return super().getHeader(key)
        value = super().getHeader(key.encode())
        return None if value is None else value.decode("utf-8", "replace")


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
    actions: Mapping[bytes, Action] = NO_ACTIONS,
    guard: Guard | None = None,
) -> Site:
    """A site with these routes and actions.  ``reactor`` runs its timeouts."""
    site = AdminSite(RoutedResource(routes, actions, guard), timeout=IDLE_SECONDS, reactor=reactor)
    site.noisy = False
    return site
