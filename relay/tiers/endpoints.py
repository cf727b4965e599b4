"""Endpoint strings of a cluster file, checked without opening anything.

Owns a reading of Twisted's ``type:argument:key=value`` notation that tells a good string from a bad one on any machine.
Twisted's own parser can't: it opens the certificates of an ``ssl:`` endpoint, which lie on the one machine that will
use them.  The node that uses the string still has Twisted parse it.
"""

from __future__ import annotations

import re

import attrs

_PART = re.compile(r"(?:[^\\:]|\\.)*", re.DOTALL)
_SERVER_TYPES = ("tcp", "tcp6", "ssl", "unix", "systemd")
_CLIENT_TYPES = ("tcp", "tcp6", "ssl", "tls", "unix")


_EVERYWHERE = ("", "0.0.0.0", "::")


@attrs.frozen(kw_only=True)
class Endpoint:
    """An endpoint string that was checked.

    Args:
        text: as it was written.
        kind: its type, ``tcp`` and so on.
        port: the port, for those that have one; 0 is any.
        interface: the address that it listens on, "" for all.
        path: of a UNIX socket.
    """

    text: str
    kind: str
    port: int = 0
    interface: str = ""
    path: str = ""

    @property
    def address(self) -> str | None:
        """The one address that it listens on, if it is one."""
        return None if self.interface in _EVERYWHERE else self.interface

    @property
    def is_plain_tcp(self) -> bool:
        """Can a ``tcp:`` client endpoint be made from the port alone?"""
        return self.kind in ("tcp", "tcp6") and self.port != 0

    def moved(self, by: int) -> Endpoint:
        """The same with a port ``by`` higher."""
        port = self.port + by
        text = re.sub(rf"(?<=:)(port=)?{self.port}(?=:|$)", rf"\g<1>{port}", self.text, count=1)
        return attrs.evolve(self, text=text, port=port)

    def collides_with(self, other: Endpoint) -> bool:
        """Would the second of the two fail to listen, on one machine?"""
        if self.path or other.path:
            return self.path == other.path
        is_one_address = self.address is None or other.address is None or self.address == other.address
        return self.port == other.port != 0 and is_one_address


def parse_server_endpoint(text: str) -> Endpoint:
    """Check a string to listen on.

    Raises:
        ValueError: it can't be one; the text says why.
    """
    kind, arguments, named = _split(text, _SERVER_TYPES)
    if kind == "systemd":
        return Endpoint(text=text, kind=kind)
    if kind == "unix":
        return Endpoint(text=text, kind=kind, path=_argument("address", 0, arguments, named))
    port = _port(_argument("port", 0, arguments, named))
    interface = named.get("interface", "")
    return Endpoint(text=text, kind=kind, port=port, interface=interface)


def parse_client_endpoint(text: str) -> Endpoint:
    """Check a string to connect to.

    Raises:
        ValueError: it can't be one; the text says why.
    """
    kind, arguments, named = _split(text, _CLIENT_TYPES)
    if kind == "unix":
        return Endpoint(text=text, kind=kind, path=_argument("path", 0, arguments, named))
    _argument("host", 0, arguments, named)
    return Endpoint(text=text, kind=kind, port=_port(_argument("port", 1, arguments, named)))


def _split(text: str, types: tuple[str, ...]) -> tuple[str, list[str], dict[str, str]]:
    parts = [re.sub(r"\\(.)", r"\1", part) for part in _split_colons(text)]
    kind, arguments, named = parts[0], [], {}
    if kind not in types or len(parts) == 1:
        raise ValueError(f"no endpoint; one begins with {', '.join(f'{each}:' for each in types)}")
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if equals:
            named[key] = value
        else:
            arguments.append(part)
    return kind, arguments, named


def _split_colons(text: str) -> list[str]:
    """Cut at colons that no backslash protects."""
    parts, at = [], 0
    while at <= len(text):
        match = _PART.match(text, at)
        assert match is not None  # it matches the empty string
        parts.append(match.group())
        at = match.end() + 1
    return parts


def _argument(name: str, index: int, arguments: list[str], named: dict[str, str]) -> str:
    value = named.get(name, arguments[index] if len(arguments) > index else "")
    if not value:
        raise ValueError(f"the endpoint has no {name}")
    return value


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError(f"{text!r} is no port (0 to 65535)")
    return int(text)
