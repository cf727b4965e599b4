"""Signed URLs that expire: who has one may publish or play one stream, until a time, perhaps from one address alone.

Owns what is signed and how; pure, and told the time.  Called by :mod:`relay.net.access`, which checks a URL, and
by ``relay-sign``, which mints one.

    rtmp://HOST/live/show?expires=1767225600&sig=HEX
    http://HOST/live/show.flv?expires=1767225600&ip=192.0.2.7&sig=HEX

``sig`` is the HMAC-SHA256, in lower case hexadecimal, of five lines without a line feed at the end: ``relay-url-1``,
the action (``publish`` or ``play``), ``APP/NAME``, ``expires`` (seconds since 1970) and ``ip`` (an address or a
network; empty if the URL is for everybody).  So whoever has the key can mint URLs in a line of any language.  None of
the parts can hold a line feed, hence no two sets of parts have the same lines.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import attrs

from relay.errors import ConfigError, NameRefused
from relay.names import StreamName
from relay.net.identity import MIN_SECRET_BYTES, read_private_file

ACTIONS = ("publish", "play")
SIGNED = ("expires", "ip", "sig")
"""The keys of the query that are ours."""

_EXPIRES = re.compile(r"[0-9]{1,12}", re.ASCII)
FLV_SUFFIX = ".flv"


@attrs.frozen(kw_only=True)
class Grant:
    """What a signature stands for.

    Args:
        expires: seconds since 1970; the grant is over then.
        network: who may use it; ``None``: everybody.
    """

    action: str
    name: StreamName
    expires: int
    network: IPv4Network | IPv6Network | None = None

    @property
    def ip(self) -> str:
        """``network`` as the URL has it: a network of one address is written as that address."""
        if self.network is None:
            return ""
        return str(self.network.network_address if self.network.num_addresses == 1 else self.network)


@attrs.frozen(repr=False)
class SigningKeys:
    """The keys: all of them verify, the first signs.  So a new one is put first, and the old one removed later."""

    _keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        return "SigningKeys(...)"

    def sign(self, grant: Grant) -> dict[str, str]:
        """What the URL's query must hold."""
        query = {"expires": str(grant.expires), **({"ip": grant.ip} if grant.network is not None else {})}
        return {**query, "sig": _mac(self._keys[0], grant.action, grant.name, query["expires"], grant.ip)}

    def verify(self, action: str, name: StreamName, query: Mapping[str, str]) -> Grant | None:
        """The grant that this query proves, expired or not; ``None`` if it proves none."""
        expires, ip, sig = (query.get(key, "") for key in SIGNED)
        if not _EXPIRES.fullmatch(expires):
            return None
        try:
            network = ip_network(ip) if ip else None
        except ValueError:
            return None
        given = sig.encode("utf-8", "replace")
        matches = [hmac.compare_digest(_mac(key, action, name, expires, ip).encode(), given) for key in self._keys]
        if not any(matches):
            return None
        return Grant(action=action, name=name, expires=int(expires), network=network)

    def mint(self, url: str, grant: Grant) -> str:
        """The URL with the signature in its query; other keys of the query stay."""
        parts = urlsplit(url)
        kept = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if key not in SIGNED]
        # ffmpeg takes a "/" anywhere in an RTMP URL for one of the path, and a ":" for a kind of file
        query = urlencode([*kept, *self.sign(grant).items()], quote_via=quote, safe="")
        return urlunsplit(parts._replace(query=query))


def _mac(key: bytes, action: str, name: StreamName, expires: str, ip: str) -> str:
    lines = "\n".join(("relay-url-1", action, str(name), expires, ip))
    return hmac.new(key, lines.encode(), sha256).hexdigest()


def read_signing_keys(option: str, path: str) -> SigningKeys:
    """Read ``--sign-key-file``: a key a line, ``#`` begins a comment line.

    Raises:
        ConfigError: it can't be read, others can read it, it has no key, or one of fewer than 16 bytes.
    """
    keys = []
    for number, line in enumerate(read_private_file(option, path).splitlines(), 1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if len(key) < MIN_SECRET_BYTES:
            raise ConfigError(f"{option} {path}: line {number}: fewer than {MIN_SECRET_BYTES} bytes")
        keys.append(key)
    if not keys:
        raise ConfigError(f"{option} {path}: no key in it")
    return SigningKeys(tuple(keys))


def stream_of_url(url: str) -> StreamName:
    """The stream of a viewer's or an encoder's URL: ``rtmp[s]://HOST/APP/NAME``, ``http[s]://HOST/APP/NAME.flv``.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https")
        if not (is_http or parts.scheme in ("rtmp", "rtmps")) or not parts.hostname:
            raise ConfigError(f"{url!r} is no rtmp://HOST/APP/NAME or http://HOST/APP/NAME{FLV_SUFFIX}")
        if is_http and not parts.path.endswith(FLV_SUFFIX):
            raise ConfigError(f"{url!r} does not end with {FLV_SUFFIX}")
        return StreamName.parse(parts.path.removeprefix("/").removesuffix(FLV_SUFFIX))
    except (ValueError, NameRefused) as error:
        raise ConfigError(f"{url!r}: {error}") from None
