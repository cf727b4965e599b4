"""A viewer's TCP connection by its two addresses, and how one balancer tells another of it.

Owns the record and its form on the wire, an AMF0 object {viewer, viewerPort, at, atPort}.  A receiver ignores what it
doesn't know, so there is room for what a peer would need to go on with a connection.  Said by
:mod:`relay.net.telling`, heard by :mod:`relay.net.neighbours`.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import attrs

from relay.errors import RemoteProtocolError


@attrs.frozen
class FourTuple:
    """``local`` is the balancer's side.  Hosts are IP addresses in their usual form."""

    local: str
    local_port: int
    remote: str
    remote_port: int

    @classmethod
    def of(cls, transport: Any) -> FourTuple | None:
        """The connection of a transport; ``None`` if it can't outlive this machine's address or has none.

        Loopback and link-local addresses stay where they are, and so does a UNIX socket.
        """
        local, remote = transport.getHost(), transport.getPeer()
        try:
            return cls(_host(local.host), local.port, _host(remote.host), remote.port)
        except (AttributeError, ValueError):
            return None

    def to_wire(self) -> dict[str, Any]:
        """AMF0 object."""
        return {
            "viewer": self.remote,
            "viewerPort": float(self.remote_port),
            "at": self.local,
            "atPort": float(self.local_port),
        }

    @classmethod
    def from_wire(cls, value: Any) -> FourTuple:
        """Raises :class:`RemoteProtocolError` if it is none."""
        try:
            return cls(_host(value["at"]), _port(value["atPort"]), _host(value["viewer"]), _port(value["viewerPort"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RemoteProtocolError(f"not a viewer's connection: {error}") from None


def _host(text: str) -> str:
    address = ipaddress.ip_address(str(text))
    address = getattr(address, "ipv4_mapped", None) or address  # a listener on :: sees IPv4 viewers so
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        raise ValueError(f"{address} is no address that moves")
    return str(address)


def _port(value: Any) -> int:
    port = int(value)
    if not 0 < port < 1 << 16:
        raise ValueError(f"{port} is no port")
    return port
