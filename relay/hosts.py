"""Which address a peer has, and whether it is in a network.

Owns one rule: a listener on ``::`` sees an IPv4 peer as ``::ffff:192.0.2.7`` (RFC 4291, 2.5.5.2), and that is
192.0.2.7 to whoever asks, also where a network is written so.  Called by what lets peers in or believes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

MAPPED_BITS = 96  # of ::ffff:0:0/96


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """``None`` if it is no address: empty (a UNIX socket), or a name.  Brackets and a zone don't count."""
    try:
        address = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_in(host: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Is it an address of one of these?"""
    address = address_of(host)
    return address is not None and any(address in _unmapped(network) for network in networks)


def is_loopback(host: str) -> bool:
    """Is it an address of the machine that we run on, and of no other?"""
    address = address_of(host)
    return address is not None and address.is_loopback


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - MAPPED_BITS))
