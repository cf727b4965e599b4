"""``srv:`` in the place of an endpoint: the options and the resolver of tiers that find their neighbours by DNS.

Called by the balancer (``--aggregator``) and the distributor (``--upstream``); what is found is
:mod:`relay.net.discovery`'s.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from relay.errors import ConfigError
from relay.net.discovery import Resolver

DNS_SECONDS = (1, 2)  # to wait for the first and the second question
SERVICE = "srv:"
DNS = [
    "dns", None, None, "HOST:PORT of the name server to ask for srv: names. Default: as /etc/resolv.conf says.",
]  # fmt: skip


def make_resolver(reactor: Any, server: str | None) -> Resolver:
    """Who is asked for ``srv:`` names.

    Args:
        server: ``--dns``.

    Raises:
        ConfigError: it is none.
    """
    from twisted.names.client import Resolver  # noqa: PLC0415 (it looks for a reactor)

    if server is None:
        return Resolver("/etc/resolv.conf", reactor=reactor, timeout=DNS_SECONDS)
    host, _, port = server.rpartition(":")
    try:
        ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ConfigError(f"--dns {server!r} is not ADDRESS:PORT") from None
    return Resolver(servers=[(host.strip("[]"), number)], reactor=reactor, timeout=DNS_SECONDS)
