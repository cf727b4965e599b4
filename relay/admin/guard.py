"""Who may change a node by its admin site: not a page of another site that an operator happens to look at.

Owns the judgement of one request's headers.  Called by :mod:`relay.admin.site` for whatever changes something; what
only shows something is not guarded, since checks and scrapers come by any name.

Without ``--admin-token-file``, only who is on the same machine may change something; with it, who knows the token,
from wherever: ``Authorization: Bearer TOKEN``, or Basic with the token for the password.  Two ways lead around the
first, both through an operator's browser.  A page of another site sends a POST
across (CSRF): the browser says so in ``Origin`` and ``Sec-Fetch-Site``.  Or the page's own name is made to point at
this address (DNS rebinding): then nothing is across, but ``Host`` has that page's name.  So the name must be one that
nobody else can have made up:

    an IP address            a browser sends one only if the operator typed it
    localhost, *.localhost   never asked of a name server
    this machine's own name
    what ``--admin-host`` says
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any

import attrs

from relay.hosts import is_loopback

HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[0-9a-z._-]+))(:[0-9]*)?", re.ASCII)
SAME_SITE = ("same-origin", "none")  # of Sec-Fetch-Site; "none" is the address bar


def own_names() -> frozenset[str]:
    """What this machine calls itself, with and without its domain.  No name server is asked."""
    name = socket.gethostname().lower()
    return frozenset(filter(None, (name, name.partition(".")[0])))


CHALLENGES = ['Bearer realm="relay"', 'Basic realm="relay", charset="UTF-8"']
"""For ``WWW-Authenticate``."""


@attrs.frozen
class Credentials:
    """What proves that somebody may change something: the token, or, if there is none, to be on this machine."""

    token: bytes | None = attrs.field(default=None, repr=False)

    def objection(self, authorization: str | None, peer: Any) -> str | None:
        """Why this header from this address is refused; None if it is not."""
        if self.token is None:
            if is_here(getattr(peer, "host", "")):
                return None
            return "Only who is on this machine may change something: start the node with --admin-token-file."
        if authorization is None:
            return "This changes something: say the token (Authorization: Bearer ...)."
        if not hmac.compare_digest(_said_token(authorization), self.token):
            return "This is not the token."
        return None


def is_here(host: str) -> bool:
    """Is it a loopback address, or a UNIX socket's (empty)?"""
    return not host or is_loopback(host)


def _said_token(authorization: str) -> bytes:
    """Of ``Bearer TOKEN`` and ``Basic base64(anybody:TOKEN)``; empty if it is neither."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


@attrs.frozen
class Guard:
    """The judgement.

    Args:
        names: by which the site may be asked, besides addresses and localhost.
        credentials: what is to be proved besides.
    """

    names: frozenset[str] = attrs.field(factory=own_names)
    credentials: Credentials = Credentials()

    @classmethod
    def make(cls, more: Iterable[str] = (), token: bytes | None = None) -> Guard:
        """This machine's names and these."""
        return cls(own_names() | {name.lower().rstrip(".") for name in more}, Credentials(token))

    def objection(self, host: str | None, origin: str | None, fetch_site: str | None) -> str | None:
        """Why these headers are refused; None if they are not."""
        if not host or not self._is_ours(host):
            return f"This site is not called {host or 'nothing'!r:.100}: use its address, or name it with --admin-host."
        if origin is not None and not _is_same(origin, host):
            return "A page of another site may not do this."
        if fetch_site is not None and fetch_site not in SAME_SITE:
            return "A page of another site may not do this."
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if name == "localhost" or name.endswith(".localhost") or name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name_of(host: str) -> str:
    """``Host`` without the port, and an IPv6 address without its brackets; "" if it is none."""
    found = HOST.fullmatch(host.lower())
    return (found["address"] or found["name"]).removesuffix(".") if found else ""


def _is_same(origin: str, host: str) -> bool:
    """Does the origin (``http://host:port``) lead here?"""
    scheme, _, place = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme.lower())
    return default is not None and place.lower().removesuffix(default) == host.lower().removesuffix(default)
