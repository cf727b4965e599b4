"""HTTP-FLV on the media port: one request a connection, answered with an endless FLV file.

Owns the request's conversation; h11 parses it (strictly: request smuggling and its kin are its business).  The bytes
come through a :class:`relay.net.viewer.Viewer`.  Called by the sniffing protocol.

    GET /live/demo.flv  ->  200, video/x-flv, until either side closes
    HEAD                ->  the same head at once (404 if the stream is not there)
    OPTIONS             ->  204 with the CORS heads
    anything else       ->  405; bad requests 400; unknown streams 404 after ``stream_wait_seconds``

Whatever follows the first request is ignored: the answer says ``Connection: close``.
"""

from __future__ import annotations

import re
from collections import Counter
from http import HTTPStatus
from typing import Protocol

import h11
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import NameRefused
from relay.limits import Limits
from relay.names import StreamName, split_query
from relay.net.access import MAX_PAGE_URL, PLAY, Access, AccessRefused, AccessRequest, Visits
from relay.net.complaints import Complaints
from relay.net.sessions import SessionFeed, leave
from relay.net.sockets import NOTSENT_LOWAT, tune, viewer_timeout_ms
from relay.net.streams import Hub, LiveStream, StreamNotFound
from relay.net.viewer import FlvForm, Viewer

SUFFIX = ".flv"
ALLOWED = "GET, HEAD, OPTIONS"


class MediaNode(Protocol):
    """What the protocol asks of the node that it serves."""

    hub: Hub
    limits: Limits
    clock: IReactorTime
    outcomes: Counter[str]
    allow_origin: str
    access: Access
    complaints: Complaints


class HttpFlvProtocol(TwistedProtocol):
    """One request, one stream.  ``feed``: of a session that a balancer has announced."""

    log = Logger()
    transport: ITCPTransport

    def __init__(self, node: MediaNode, peer: str, feed: SessionFeed | None = None) -> None:
        self.node = node
        self.peer = peer
        self.viewer: Viewer | None = None
        self.feed = feed
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=node.limits.http_head_bytes)
        self._visits = Visits(node.access)
        self._waiting: Deferred[LiveStream] | None = None
        self._timer: IDelayedCall | None = None
        self._outcome = ""
        self._has_request = False
        self._is_head = False
        self._bytes = 0  # received, the request and what follows it

    # Twisted's side

    def connectionMade(self) -> None:
        tune(self.transport, viewer_timeout_ms(self.node.limits), NOTSENT_LOWAT)
        self._timer = self.node.clock.callLater(self.node.limits.http_head_seconds, self._too_late)

    def dataReceived(self, data: bytes) -> None:
        if self._has_request:
            return
        self._bytes += len(data)
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            # what h11 says ends with what the peer sent, which is not for echoing
            self._answer(HTTPStatus(error.error_status_hint), str(error).partition(":")[0])
            return
        if isinstance(event, h11.Request):
            self._has_request = True
            self._cancel_timer()
            # h11 bounds a head that is not complete; one that came in a single piece is bounded here
            if self._bytes - len(self._http.trailing_data[0]) > self.node.limits.http_head_bytes:
                self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long")
                return
            self._respond_to(event)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (Twisted's signature)
        self._cancel_timer()
        self._outcome = self._outcome or "peer_closed"
        self.node.outcomes[f"http_{self._outcome}"] += 1
        self._release()

    # the request

    def _respond_to(self, request: h11.Request) -> None:
        method = request.method.decode("ascii")
        self._is_head = method == "HEAD"
        if method == "OPTIONS":
            self._answer(HTTPStatus.NO_CONTENT)
            return
        if method not in ("GET", "HEAD"):
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not {ALLOWED}")
            return
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in request.headers):
            self._answer(HTTPStatus.BAD_REQUEST, f"a {method} has no body here")
            return
        try:
            name, query = stream_of(request.target.decode("ascii", "replace"))
        except NameRefused as refusal:
            self._answer(HTTPStatus.NOT_FOUND, str(refusal))
            return
        said = {key: value.decode("ascii", "replace")[:MAX_PAGE_URL] for key, value in request.headers}
        asked = AccessRequest(
            action=PLAY,
            name=name,
            peer=self.peer,
            query=query,
            tc_url=f"http://{said.get(b'host', '')}/{name.app}",
            page_url=said.get(b"referer", ""),
        )
        if method == "HEAD":
            self._respond_to_head(asked)
        else:
            self._visits.ask(
                0,
                asked,
                lambda: self._admitted(name),
                self._deny,
                lambda: self._answer(HTTPStatus.INTERNAL_SERVER_ERROR),
            )

    def _respond_to_head(self, asked: AccessRequest) -> None:
        try:
            self.node.access.check(asked)
        except AccessRefused as refusal:
            self._deny(refusal)
            return
        stream = self.node.hub.get(asked.name)
        is_there = stream is not None and stream.is_joinable
        self._answer(HTTPStatus.OK if is_there else HTTPStatus.NOT_FOUND)

    def _deny(self, refusal: AccessRefused) -> None:
        self.node.complaints.say(self.log, "viewer", "{peer}: play refused: {why}", peer=self.peer, why=str(refusal))
        self._answer(HTTPStatus.FORBIDDEN, str(refusal))

    def _admitted(self, name: StreamName) -> None:
        self._waiting = joinable = self.node.hub.when_joinable(name)
        joinable.addCallbacks(self._joinable, self._absent).addErrback(self._failed)

    def _joinable(self, stream: LiveStream) -> None:
        self._waiting = None
        join = stream.log.newest_join_point()
        assert join is not None
        self._write_head(HTTPStatus.OK, "video/x-flv")
        self.viewer = Viewer(stream, self.transport, FlvForm(), self.close, self.node.clock.seconds(), self.feed)
        self.viewer.join(join)

    def _absent(self, failure: Failure) -> None:
        self._waiting = None
        if failure.check(StreamNotFound):
            self._answer(HTTPStatus.NOT_FOUND, failure.getErrorMessage())
        elif failure.check(CancelledError) is None:
            self.log.failure("waiting for a stream", failure)

    def _failed(self, failure: Failure) -> None:
        """A fault of ours costs this connection alone."""
        self.log.failure("starting to play", failure)
        self.close("fault")

    # the answer

    def _answer(self, status: HTTPStatus, why: str = "") -> None:
        body = f"{status} {status.phrase}{': ' if why else ''}{why}\n".encode("ascii", "replace")
        if status is HTTPStatus.OK:
            self._write_head(status, "video/x-flv")
        elif status is HTTPStatus.NO_CONTENT:
            self._write_head(status, "")
        else:
            self._write_head(status, "text/plain; charset=us-ascii", body)
        self.close(f"{int(status)}")

    def _write_head(self, status: HTTPStatus, content_type: str, body: bytes = b"") -> None:
        headers = [("Connection", "close"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
        if content_type:
            headers.append(("Content-Type", content_type))
        if body:
            headers.append(("Content-Length", str(len(body))))
        if status is HTTPStatus.METHOD_NOT_ALLOWED or status is HTTPStatus.NO_CONTENT:
            headers.append(("Allow", ALLOWED))
        if self.node.allow_origin:
            headers.append(("Access-Control-Allow-Origin", self.node.allow_origin))
        # An endless body ends with the connection: HTTP/1.0's way, which every client knows.
        writer = h11.Connection(h11.SERVER)
        writer.receive_data(b"GET / HTTP/1.0\r\n\r\n")
        writer.next_event()
        head = writer.send(h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers))
        self.transport.write((head or b"") + (b"" if self._is_head else body))

    # the end

    def close(self, outcome: str) -> None:
        """Send what is written, then close; by force if the peer does not take it."""
        if self._outcome:
            return
        self._outcome = outcome
        self._release()
        leave(self.transport, self.feed)
        self._cancel_timer()
        self._timer = self.node.clock.callLater(self.node.limits.close_seconds, self.transport.abortConnection)

    def _too_late(self) -> None:
        self._timer = None
        self._answer(HTTPStatus.REQUEST_TIMEOUT, "the request did not come")

    def _release(self) -> None:
        self._visits.leave_all()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self.viewer is not None:
            self.viewer.stop()
            self.viewer = None

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


_ABSOLUTE = re.compile(r"\Ahttps?://[^/?#]*", re.IGNORECASE)


def stream_of(target: str) -> tuple[StreamName, dict[str, str]]:
    """``/live/demo.flv?any=query`` to the stream's name and the query; also in the absolute form (RFC 9112, 3.2.2).

    Raises:
        NameRefused: it is no such path.
    """
    path, query = split_query(_ABSOLUTE.sub("", target))
    if not path.startswith("/") or not path.endswith(SUFFIX):
        raise NameRefused(f"{path[:64]!r} is not /APP/NAME{SUFFIX}")
    return StreamName.parse(path[1 : -len(SUFFIX)]), query
