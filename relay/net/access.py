"""Who may publish and who may play at one node: by address, by key, by signed URL, and by what a back-end says.

Owns the rules, and what a connection was admitted to.  The questions to a back-end are :mod:`relay.net.hooks`'s.
Called by the RTMP and HTTP-FLV protocols before they accept anything.

Nothing of this concerns neighbours that have proved the cluster secret, nor a session that goes on here after another
aggregator was lost: it was admitted there.

For each action:

    address     one of --deny-… is refused; if there are --allow-…, only those are let in
    key         --publish-key-file: NAME?key=KEY
    signature   --sign-…: a URL that was minted by relay-sign; with both, one of the two will do
    back-end    --on-…: last of all, so that it is asked about those alone who would be let in
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlencode

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import ConfigError, RelayError
from relay.hosts import address_of, is_in
from relay.names import StreamName, split_query
from relay.net.identity import read_private_file
from relay.net.signing import SigningKeys
from relay.net.sniffing import Network
from relay.rtmp.events import ConnectRequested

PUBLISH, PLAY = "publish", "play"
MAX_PAGE_URL = 1024  # characters of what a peer says of the page that it is on
MIN_KEY_BYTES = 8  # of a publish key: an encoder's, that is typed


class AccessRefused(RelayError):
    """``reason`` is a word for the counter; the text is for the peer, and tells nothing of keys."""

    def __init__(self, reason: str, description: str) -> None:
        self.reason = reason
        super().__init__(description)


@attrs.frozen(kw_only=True)
class AccessRequest:
    """What a peer asks for.  ``query`` holds secrets: it is never shown."""

    action: str
    name: StreamName
    peer: str
    query: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    tc_url: str = attrs.field(default="", repr=False)
    page_url: str = ""
    is_resumed: bool = False

    @classmethod
    def of_rtmp(
        cls, action: str, name: StreamName, peer: str, query: Mapping[str, str], connect: ConnectRequested
    ) -> AccessRequest:
        """Keys may be in the stream's query, in the app's, or in that of tcUrl.

        Raises:
            NameRefused: there are too many.
        """
        page = connect.properties.get("pageUrl")
        return cls(
            action=action,
            name=name,
            peer=peer,
            query={**split_query(connect.tc_url)[1], **split_query(connect.app)[1], **query},
            tc_url=connect.tc_url,
            page_url=page[:MAX_PAGE_URL] if isinstance(page, str) else "",
        )

    @property
    def host(self) -> str:
        """The peer's address, as people and back-ends write it."""
        host = self.peer.rpartition(":")[0]
        return str(address_of(host) or host)


@attrs.frozen(repr=False)
class PublishKeys:
    """(pattern, key), as the file has them."""

    _entries: Sequence[tuple[str, bytes]]

    def __repr__(self) -> str:
        return "PublishKeys(...)"

    def allow(self, name: StreamName, key: str) -> bool:
        """Is it the key of a pattern that the stream matches?"""
        given = key.encode("utf-8", "replace")
        found = [hmac.compare_digest(each, given) for pattern, each in self._entries if fnmatchcase(str(name), pattern)]
        return any(found)


def read_publish_keys(option: str, path: str) -> PublishKeys:
    """Read ``--publish-key-file``: ``APP/NAME-PATTERN KEY`` a line, ``#`` begins a comment line.

    Raises:
        ConfigError: it can't be read, others can read it, a line is no such line, or there is none.
    """
    entries = []
    for number, line in enumerate(read_private_file(option, path).decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or len(words[1].encode()) < MIN_KEY_BYTES:
            raise ConfigError(
                f"{option} {path}: line {number} is not PATTERN KEY, a key of {MIN_KEY_BYTES} bytes or more"
            )
        entries.append((words[0], words[1].encode()))
    if not entries:
        raise ConfigError(f"{option} {path}: no key in it")
    return PublishKeys(entries)


@attrs.frozen(kw_only=True)
class AccessRules:
    """What is checked here.

    Args:
        allow, deny: networks by action.
        publish_keys: what encoders must know.
        signing: what URLs are signed with.
        signed: for which actions a signature is wanted.
    """

    allow: Mapping[str, Sequence[Network]] = attrs.field(factory=dict)
    deny: Mapping[str, Sequence[Network]] = attrs.field(factory=dict)
    publish_keys: PublishKeys | None = None
    signing: SigningKeys | None = None
    signed: frozenset[str] = frozenset()

    @property
    def are_none(self) -> bool:
        """Is everybody let in?"""
        return not (any(self.allow.values()) or any(self.deny.values()) or self.publish_keys or self.signed)

    def check(self, request: AccessRequest, now: float) -> None:
        """``now``: seconds since 1970.

        Raises:
            AccessRefused: it may not be.
        """
        self._check_address(request)
        keys = self.publish_keys if request.action == PUBLISH else None
        if keys is not None and "key" in request.query and keys.allow(request.name, request.query["key"]):
            return
        if request.action in self.signed:
            self._check_signature(request, now, has_keys=keys is not None)
        elif keys is not None:
            if "key" in request.query:
                raise AccessRefused("key", f"this is not a key for {request.name}")
            raise AccessRefused("key", f"a key for {request.name} is wanted: NAME?key=KEY")

    def _check_address(self, request: AccessRequest) -> None:
        address = address_of(request.host)
        if address is None:
            return  # a UNIX socket: its permissions decide
        allowed = self.allow.get(request.action, ())
        is_denied = is_in(request.host, self.deny.get(request.action, ()))
        if is_denied or (allowed and not is_in(request.host, allowed)):
            raise AccessRefused("address", f"{address} may not {request.action} here")

    def _check_signature(self, request: AccessRequest, now: float, *, has_keys: bool) -> None:
        assert self.signing is not None
        if "sig" not in request.query:
            words = "a key or a signed URL" if has_keys else "a signed URL"
            raise AccessRefused("signature", f"{words} is wanted to {request.action} {request.name}")
        grant = self.signing.verify(request.action, request.name, request.query)
        if grant is None:
            raise AccessRefused("signature", f"this URL is not signed to {request.action} {request.name}")
        if now >= grant.expires:
            raise AccessRefused("expired", "this URL has expired")
        if grant.network is not None and not is_in(request.host, (grant.network,)):
            raise AccessRefused("signature", "this URL is for another address")


class BackEnd:
    """What :class:`Access` asks of a back-end (:class:`relay.net.hooks.Hooks`); this one knows none."""

    def wants(self, action: str) -> bool:
        """Is it to be asked about this, or told of it?"""
        return False

    def ask(self, action: str, fields: Mapping[str, Any]) -> Deferred[None]:
        """Fails with :class:`AccessRefused`."""
        return succeed(None)

    def tell(self, action: str, fields: Mapping[str, Any]) -> None:
        """Nobody waits for an answer."""

    def close(self) -> Deferred[None]:
        """Tell what is to be told, then let go."""
        return succeed(None)


class Access:
    """Of one node.

    Args:
        rules: what is checked here.
        back_end: who is asked and told besides.
        now: seconds since 1970, for what expires.
        node: what this node is called.

    ``refused`` counts by reason.
    """

    def __init__(self, rules: AccessRules, back_end: BackEnd, now: Callable[[], float], node: str) -> None:
        self.refused: Counter[str] = Counter()
        self.back_end = back_end
        self._now = now
        self.node = node
        self._last_client = 0
        self.use(rules)

    def use(self, rules: AccessRules) -> None:
        """Check by these from now on; who was admitted stays."""
        self._rules = rules
        self.is_open = rules.are_none and not any(
            self.back_end.wants(f"on_{action}{done}") for action in (PUBLISH, PLAY) for done in ("", "_done")
        )

    def check(self, request: AccessRequest) -> None:
        """By the rules alone.

        Raises:
            AccessRefused: it may not be.
        """
        try:
            self._rules.check(request, self._now())
        except AccessRefused as refusal:
            self.refused[refusal.reason] += 1
            raise

    def admit(self, request: AccessRequest) -> Deferred[Visit]:
        """Fires when the peer may; fails with :class:`AccessRefused` if it may not.  Cancel it if the peer goes."""
        visit = Visit(self, request, self._next_client())
        action = f"on_{request.action}"
        if request.is_resumed:
            if self.back_end.wants(action):
                self.back_end.tell(action, visit.fields())
            return succeed(visit)
        try:
            self.check(request)
        except AccessRefused as refusal:
            return fail(refusal)
        if not self.back_end.wants(action):
            return succeed(visit)

        def refused(failure: Failure) -> Failure:
            if isinstance(failure.value, AccessRefused):
                self.refused[failure.value.reason] += 1
            return failure

        return self.back_end.ask(action, visit.fields()).addCallbacks(lambda _: visit, refused)

    def happened(self, event: Any) -> None:
        """Something has: a failover is told to the back-end (an observer of :class:`relay.admin.events.EventLog`)."""
        if event.kind in ("failover", "upstream_lost") and self.back_end.wants("on_failover"):
            app, _, stream = event.stream.partition("/")
            where = {"server_id": self.node, "app": app, "stream": stream}
            self.back_end.tell("on_failover", {**where, "kind": event.kind, "text": event.text})

    def _next_client(self) -> str:
        self._last_client += 1
        return f"{self.node}-{self._last_client}"


@attrs.define(eq=False)
class Visit:
    """A publication or a play that was admitted."""

    access: Access
    request: AccessRequest
    client_id: str

    def fields(self) -> dict[str, Any]:
        """In SRS's names (its HTTP callbacks), so that back-ends made for it know them."""
        request = self.request
        query = urlencode(request.query)
        return {
            "server_id": self.access.node,
            "client_id": self.client_id,
            "ip": request.host,
            "vhost": "__defaultVhost__",
            "app": request.name.app,
            "tcUrl": request.tc_url,
            "stream": request.name.name,
            "param": f"?{query}" if query else "",
            "pageUrl": request.page_url,
            "stream_url": f"/{request.name}",
            "resumed": request.is_resumed,
        }

    def over(self) -> None:
        """It has ended."""
        action = f"on_{self.request.action}_done"
        if self.access.back_end.wants(action):
            self.access.back_end.tell(action, self.fields())


class Visits:
    """What one connection was admitted to, and what it waits for, by a key of its own."""

    log = Logger()

    def __init__(self, access: Access) -> None:
        self._access = access
        self._asking: dict[int, Deferred[Any]] = {}
        self._admitted: dict[int, Visit] = {}

    @property
    def is_asking(self) -> bool:
        """Is an answer waited for?"""
        return bool(self._asking)

    def ask(
        self,
        key: int,
        request: AccessRequest | None,
        admitted: Callable[[], None],
        refused: Callable[[AccessRefused], None],
        failed: Callable[[], None],
    ) -> None:
        """Calls one of the three, now or later; none if ``leave`` comes first.

        Args:
            request: ``None`` of somebody who may do anything.
        """
        if request is None or self._access.is_open:
            admitted()
            return

        def answered(visit: Visit) -> None:
            self._asking.pop(key, None)
            self._admitted[key] = visit
            admitted()

        def not_admitted(failure: Failure) -> None:
            self._asking.pop(key, None)
            if isinstance(failure.value, AccessRefused):
                refused(failure.value)
            elif failure.check(CancelledError) is None:
                self.log.failure("asking who may", failure)
                failed()

        self._asking[key] = answer = self._access.admit(request)  # one that has fired may wait for another
        answer.addCallbacks(answered, not_admitted)

    def leave(self, key: int) -> None:
        """One is over, or not wanted any more."""
        asking = self._asking.pop(key, None)
        if asking is not None:
            asking.cancel()
        visit = self._admitted.pop(key, None)
        if visit is not None:
            visit.over()

    def leave_all(self) -> None:
        """The connection goes."""
        for key in [*self._asking, *self._admitted]:
            self.leave(key)
