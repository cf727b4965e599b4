"""HTTP callbacks: a back-end of the operator's is asked who may publish and play, and told what has happened.

Owns the calls: their form, how many at once, how long, and what a failure means.  Called by :mod:`relay.net.access`.

A call is a POST of a JSON object with SRS's field names (https://ossrs.io, "HTTP Callback"), and SRS's words for the
actions, so that a back-end made for it works: ``on_publish``, ``on_unpublish``, ``on_play``, ``on_stop``;
``on_failover`` is ours.  Yes is status 200 with ``0`` or ``{"code": 0}``; anything else is no.

Bounds: so many calls at once, so many that wait; beyond that a question is answered as a failure is, and what is only
told is dropped and counted.  Questions don't wait for what is only told: a crowd that leaves must not keep the next one
out.  A body of any length is read as far as an answer can be, redirects are not followed, and neither URLs nor queries,
which hold secrets, are logged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore, fail
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import PotentialDataLoss

from relay.errors import ConfigError, LimitExceeded
from relay.limits import Limits
from relay.net.access import AccessRefused, BackEnd

ACTIONS = ("on_publish", "on_publish_done", "on_play", "on_play_done", "on_failover")
SRS_WORDS = {"on_publish_done": "on_unpublish", "on_play_done": "on_stop"}
ANSWER_BYTES = 64 << 10
CLOSE_SECONDS = 2.0  # what is still to be told when the node stops has so long


@attrs.frozen(kw_only=True)
class HookSettings:
    """What an operator sets.

    Args:
        urls: by action; those that are not there are not called.
        seconds: for one call.
        lets_in_on_failure: may a peer, if the back-end can't be asked?
    """

    urls: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    seconds: float = 3.0
    lets_in_on_failure: bool = False


def check_hook_url(option: str, url: str) -> str:
    """Raises :class:`ConfigError` if it is none."""
    has_user = False
    try:
        parts = urlsplit(url)
        has_user = "@" in parts.netloc
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"{option}: must be http://HOST/PATH or https://HOST/PATH")
    if has_user:
        raise ConfigError(f"{option}: USER:PASSWORD@ is not supported; a secret may be in the path or the query")
    return url


class Hooks(BackEnd):
    """The calls of one node.  ``outcomes`` counts how they ended.

    Args:
        settings: whom to call.
        limits: how many calls.
        reactor: the real one.
    """

    log = Logger()

    def __init__(self, settings: HookSettings, limits: Limits, reactor: Any) -> None:
        # Only nodes that call anybody pay for importing an HTTP client.
        from treq.client import HTTPClient  # noqa: PLC0415
        from twisted.web.client import Agent, HTTPConnectionPool  # noqa: PLC0415

        self.outcomes: Counter[str] = Counter()
        self._settings = settings
        self._limits = limits
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor)
        self._pool.retryAutomatically = False
        self._pool._factory = _quiet(self._pool._factory)
        self._client = HTTPClient(Agent(reactor, connectTimeout=settings.seconds, pool=self._pool))
        self._asking = DeferredSemaphore(limits.hook_calls)
        self._telling = DeferredSemaphore(max(1, limits.hook_calls // 4))
        self._calls: set[Deferred[None]] = set()

    def wants(self, action: str) -> bool:
        return action in self._settings.urls

    def ask(self, action: str, fields: Mapping[str, Any]) -> Deferred[None]:
        if len(self._asking.waiting) >= self._limits.hook_queue:
            asking: Deferred[bytes] = fail(LimitExceeded("hook_queue", self._limits.hook_queue))
            return asking.addErrback(self._answer)
        asking = self._asking.run(self._start, action, fields)
        return asking.addTimeout(self._settings.seconds, self._reactor).addCallbacks(self._said, self._answer)

    def tell(self, action: str, fields: Mapping[str, Any]) -> None:
        if len(self._telling.waiting) >= self._limits.hook_queue:
            self.outcomes["dropped"] += 1
            return
        telling = self._telling.run(self._tell, action, fields)
        self._calls.add(telling)
        telling.addBoth(lambda _: self._calls.discard(telling))

    def close(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        calls = list(self._calls)
        if calls:
            await DeferredList(calls).addTimeout(CLOSE_SECONDS, self._reactor, lambda *_: None)
        for call in list(self._calls):
            call.cancel()
        await self._pool.closeCachedConnections()

    def _start(self, action: str, fields: Mapping[str, Any]) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._call(action, fields))

    def _tell(self, action: str, fields: Mapping[str, Any]) -> Deferred[None]:
        telling = self._start(action, fields).addTimeout(self._settings.seconds, self._reactor)
        return telling.addCallbacks(lambda _: self._count("told"), self._note)

    async def _call(self, action: str, fields: Mapping[str, Any]) -> bytes:
        """The body of an answer with status 200; empty with any other."""
        content = {"action": SRS_WORDS.get(action, action), **fields}
        url = self._settings.urls[action]
        response = await self._client.post(url, json=content, allow_redirects=False, unbuffered=True)
        answer = _Answer()
        response.deliverBody(answer)
        body = await answer.whole
        return body if response.code == 200 else b""

    def _said(self, body: bytes) -> None:
        if not is_yes(body):
            self._count("refused")
            raise AccessRefused("back_end", "the operator's server says no")
        self._count("allowed")

    def _answer(self, failure: Failure) -> Any:
        """There is no answer."""
        if failure.check(CancelledError, AccessRefused):
            return failure
        self._note(failure)
        if self._settings.lets_in_on_failure:
            return None
        return Failure(AccessRefused("back_end_failed", "the operator's server can't be asked; try again later"))

    def _note(self, failure: Failure) -> None:
        """Once for as long as it goes on."""
        if failure.check(CancelledError):
            return
        if not self.outcomes["failed"] or self._has_worked:
            self.log.warn("the back-end can't be reached: {error}", error=type(failure.value).__name__)
        self._has_worked = False
        self._count("failed")

    _has_worked = False

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        if outcome != "failed":
            self._has_worked = True


def _quiet(factory: type[Any]) -> type[Any]:
    """twisted.web would log two lines for each connection, of which viewers decide how many there are."""
    return type(factory.__name__, (factory,), {"noisy": False})


class _Answer(Protocol):
    """An answer's body.  ``whole`` fires with it; cancelled, it closes the connection, which nobody else would."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._body = b""

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > ANSWER_BYTES and not self.whole.called:
            self._abort()
            self.whole.errback(LimitExceeded("answer bytes", ANSWER_BYTES))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        from twisted.web.client import ResponseDone  # noqa: PLC0415  (as above)

        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(self._body)
        else:
            self.whole.errback(reason)

    def _abort(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()  # a response has no abortConnection; there is nothing left to be written


def is_yes(body: bytes) -> bool:
    """``0``, or an object whose ``code`` is 0."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return False
    code = content.get("code") if isinstance(content, dict) else content
    return code == 0 and not isinstance(code, bool)
