"""The PROXY protocol (HAProxy, versions 1 and 2): who the peer of a relayed connection really is.

Owns: reading a header that comes in any pieces, writing version 2, and the two TLVs of our own: the session id, and the
proof that the sender knows the cluster secret.  Does not own: who may send one (the port that accepts decides, by
address or by :func:`is_authentic`), nor any socket.  Read by the port, written by the balancer.

Version 1 is one line, at most 107 bytes::

    PROXY TCP4 192.0.2.7 198.51.100.1 56324 1935\\r\\n

Version 2 is binary.  What our balancer sends for the same connection, 0x52 (82) bytes after the first 16::

    0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a     bytes  0-11  signature
    21                                      byte   12    version 2, command PROXY (0x20: LOCAL)
    11                                      byte   13    TCP over IPv4
    00 42                                   bytes 14-15  length of all that follows
    c0 00 02 07                             bytes 16-19  source address
    c6 33 64 01                             bytes 20-23  destination address
    dc 04                                   bytes 24-25  source port
    07 8f                                   bytes 26-27  destination port
    e0 00 10 (16 bytes)                     bytes 28-46  our session id
    e1 00 20 (32 bytes)                     bytes 47-81  HMAC-SHA256 over bytes 0-46

The proof covers the whole header before it and is always the last TLV.  It carries no time: whoever can record a header
between two nodes can send it again, and gains only the right to name a viewer's address.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import re
import socket
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import NoReturn

import attrs

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import Limits

V1_PREFIX = b"PROXY "
V1_MAX_BYTES = 107  # with CR LF: two full IPv6 addresses (specification, 2.1)
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2_FIXED_BYTES = 16

TLV_CRC32C = 0x03  # PP2_TYPE_CRC32C
TLV_SESSION_ID = 0xE0  # 0xE0-0xEF are left to applications (PP2_TYPE_MIN_CUSTOM)
TLV_PROOF = 0xE1
TLV_BALANCER = 0xE2  # the name of the balancer, as its control connection says it
TLV_RESUME = 0xE3  # where an interrupted session goes on (relay.net.sessions.ResumePoint)
TLV_SEED = 0xE4  # what the handshake's random bytes are made from, so that another node can say them again
SESSION_ID_BYTES = 16
_PROOF_BYTES = 32
_PROOF_HEAD = struct.pack("!BH", TLV_PROOF, _PROOF_BYTES)

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED = 0x00
# Byte 13 to the length of the address block.  Any other value is one that the specification tells us to drop.
_ADDRESS_BYTES = {
    _UNSPECIFIED: 0,
    0x11: 12,  # TCP over IPv4
    0x12: 12,  # UDP over IPv4
    0x21: 36,  # TCP over IPv6
    0x22: 36,  # UDP over IPv6
    0x31: 216,  # UNIX stream
    0x32: 216,  # UNIX datagram
}
_PORT = re.compile(r"(?:0|[1-9][0-9]{0,4})\Z")


class Family(enum.IntEnum):
    """What an address is of; the value is byte 13 of version 2."""

    TCP4 = 0x11
    TCP6 = 0x21


@attrs.frozen
class ProxyAddress:
    """One end of the connection that the sender accepted."""

    host: str
    port: int
    family: Family

    @classmethod
    def make(cls, host: str, port: int) -> ProxyAddress:
        """From a numeric host.

        Raises:
            ValueError: ``host`` is no IP address.
        """
        address = ipaddress.ip_address(host.partition("%")[0])
        return cls(str(address), port, Family.TCP4 if address.version == 4 else Family.TCP6)


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """A header, read in full.

    ``source`` and ``destination`` are ``None`` when the sender speaks for itself (``is_local``: a health check) or when
    the connection that it relays has no IP addresses.
    """

    version: int
    is_local: bool = False
    source: ProxyAddress | None = None
    destination: ProxyAddress | None = None
    tlvs: dict[int, bytes] = attrs.field(factory=dict)
    raw: bytes = attrs.field(default=b"", repr=False)

    @property
    def session_id(self) -> bytes | None:
        """The balancer's id of the viewer's session, or ``None`` when there is no well-formed one."""
        session_id = self.tlvs.get(TLV_SESSION_ID, b"")
        return session_id if len(session_id) == SESSION_ID_BYTES else None


def make_header(
    source: ProxyAddress | None,
    destination: ProxyAddress | None,
    session_id: bytes,
    secret: bytes = b"",
    tlvs: Mapping[int, bytes] | None = None,
) -> bytes:
    """A version 2 header; without a secret it carries no proof.

    Both addresses are given, of one family, or neither.  ``tlvs`` are more of our own.

    Raises:
        LocalProtocolError: the addresses are of two families, or the session id is not 16 bytes.
    """
    if len(session_id) != SESSION_ID_BYTES:
        raise LocalProtocolError(f"a session id has {SESSION_ID_BYTES} bytes, not {len(session_id)}")
    family, addresses = _pack_addresses(source, destination)
    body = addresses + _pack_tlv(TLV_SESSION_ID, session_id)
    body += b"".join(_pack_tlv(kind, value) for kind, value in (tlvs or {}).items())
    proof_bytes = len(_PROOF_HEAD) + _PROOF_BYTES if secret else 0
    header = V2_SIGNATURE + struct.pack("!BBH", _PROXY, family, len(body) + proof_bytes) + body
    return header + _PROOF_HEAD + _proof(secret, header) if secret else header


def _pack_tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def is_authentic(header: ProxyHeader, secret: bytes) -> bool:
    """Did one who knows ``secret`` write this header?  Never true of an empty secret."""
    signed, head, proof = header.raw[:-35], header.raw[-35:-32], header.raw[-32:]
    if not secret or header.version != 2 or head != _PROOF_HEAD or header.tlvs.get(TLV_PROOF) != proof:
        return False
    return hmac.compare_digest(proof, _proof(secret, signed))


class ProxyReader:
    """Takes bytes until one header is whole.  Holds at most ``limits.proxy_header_bytes`` of them.

    After an error or a result it is used up.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        """The header and the bytes behind it, or ``None`` while it is not whole.

        Raises:
            RemoteProtocolError: these bytes are no PROXY header, or a broken one.
            LimitExceeded: the header is longer than ``limits.proxy_header_bytes``.
        """
        self._buffer += data
        start = bytes(self._buffer[: len(V2_SIGNATURE)])
        if V2_SIGNATURE.startswith(start) or start == V2_SIGNATURE:
            return self._read_v2()
        if start.startswith(V1_PREFIX) or V1_PREFIX.startswith(start):
            return self._read_v1()
        _refuse(f"no PROXY header starts with {start[:12]!r}")

    def _read_v1(self) -> tuple[ProxyHeader, bytes] | None:
        longest = int(min(V1_MAX_BYTES, self._limits.proxy_header_bytes))
        end = self._buffer.find(b"\r\n", 0, longest)
        if end < 0:
            if len(self._buffer) >= longest:
                raise LimitExceeded("proxy_header_bytes", longest, len(self._buffer))
            return None
        line, rest = bytes(self._buffer[:end]), bytes(self._buffer[end + 2 :])
        return _parse_v1(line), rest

    def _read_v2(self) -> tuple[ProxyHeader, bytes] | None:
        if len(self._buffer) < V2_FIXED_BYTES:
            return None
        command, family, length = struct.unpack_from("!BBH", self._buffer, len(V2_SIGNATURE))
        if command not in (_LOCAL, _PROXY):
            _refuse(f"version and command 0x{command:02x}")
        if command == _PROXY and family not in _ADDRESS_BYTES:
            _refuse(f"address family and protocol 0x{family:02x}")
        end = V2_FIXED_BYTES + length
        if end > self._limits.proxy_header_bytes:
            raise LimitExceeded("proxy_header_bytes", self._limits.proxy_header_bytes, end)
        if len(self._buffer) < end:
            return None
        return _parse_v2(bytes(self._buffer[:end])), bytes(self._buffer[end:])


def _refuse(what: str) -> NoReturn:
    raise RemoteProtocolError(f"PROXY header: {what}")


def _proof(secret: bytes, signed: bytes) -> bytes:
    return hmac.new(secret, signed, hashlib.sha256).digest()


@lru_cache(maxsize=1024)  # a viewer that moves is announced again
def _pack_addresses(source: ProxyAddress | None, destination: ProxyAddress | None) -> tuple[int, bytes]:
    if source is None or destination is None:
        return _UNSPECIFIED, b""
    if source.family != destination.family:
        raise LocalProtocolError(f"{source.host} and {destination.host} are of two address families")
    packed = [ipaddress.ip_address(end.host).packed for end in (source, destination)]
    return source.family, b"".join(packed) + struct.pack("!HH", source.port, destination.port)


def _parse_v1(line: bytes) -> ProxyHeader:
    """``PROXY TCP4 source destination source-port destination-port``, one space between, nothing more."""
    words = line.decode("ascii", "replace").split(" ")
    if words[1] == "UNKNOWN":  # anything may follow and is ignored (specification, 2.1)
        return ProxyHeader(version=1, raw=line)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        _refuse(f"version 1 line {line!r}")
    source = _parse_v1_address(words[1], words[2], words[4])
    destination = _parse_v1_address(words[1], words[3], words[5])
    return ProxyHeader(version=1, source=source, destination=destination, raw=line)


def _parse_v1_address(family: str, host: str, port: str) -> ProxyAddress:
    try:
        address = ProxyAddress.make(host, int(port) if _PORT.match(port) else 65536)
    except ValueError:
        _refuse(f"{host!r} is no IP address")
    if address.family != Family[family] or "%" in host:
        _refuse(f"{host!r} is no {family} address")
    if address.port > 65535:
        _refuse(f"port {port!r}")
    return address


def _parse_v2(raw: bytes) -> ProxyHeader:
    command, family = raw[12], raw[13]
    if command == _LOCAL:  # everything behind byte 15 is to be skipped
        return ProxyHeader(version=2, is_local=True, raw=raw)
    tlvs_at = V2_FIXED_BYTES + _ADDRESS_BYTES[family]
    if tlvs_at > len(raw):
        _refuse(f"{len(raw) - V2_FIXED_BYTES} bytes are too few for family 0x{family:02x}")
    try:
        tlvs = _parse_tlvs(raw, tlvs_at)
    except RemoteProtocolError:
        if family != _UNSPECIFIED:
            raise
        tlvs = {}  # what comes with no family may be anything, and is skipped
    source = destination = None
    if family == Family.TCP4:
        source, destination = _unpack_addresses(raw, Family.TCP4, 4)
    elif family == Family.TCP6:
        source, destination = _unpack_addresses(raw, Family.TCP6, 16)
    return ProxyHeader(version=2, source=source, destination=destination, tlvs=tlvs, raw=raw)


def _unpack_addresses(raw: bytes, family: Family, size: int) -> tuple[ProxyAddress, ProxyAddress]:
    ports_at = V2_FIXED_BYTES + 2 * size
    show = socket.inet_ntoa if size == 4 else _show_ipv6
    hosts = [show(raw[at : at + size]) for at in (V2_FIXED_BYTES, V2_FIXED_BYTES + size)]
    ports = struct.unpack_from("!HH", raw, ports_at)
    return ProxyAddress(hosts[0], ports[0], family), ProxyAddress(hosts[1], ports[1], family)


def _show_ipv6(packed: bytes) -> str:
    """As :meth:`ProxyAddress.make` has it; ``inet_ntop`` writes some addresses otherwise."""
    return str(ipaddress.IPv6Address(packed))


def _parse_tlvs(raw: bytes, at: int) -> dict[int, bytes]:
    """Type (1 byte), length (2 bytes), value; no two of one type, the checksum right where there is one."""
    tlvs: dict[int, bytes] = {}
    while at < len(raw):
        if at + 3 > len(raw):
            _refuse("a TLV is cut short")
        kind, length = struct.unpack_from("!BH", raw, at)
        value = raw[at + 3 : at + 3 + length]
        if len(value) != length:
            _refuse(f"TLV 0x{kind:02x} says {length} bytes, {len(value)} are left")
        if kind in tlvs:
            _refuse(f"TLV 0x{kind:02x} comes twice")
        if kind == TLV_CRC32C:
            _check_crc32c(raw, at + 3, value)
        tlvs[kind] = value
        at += 3 + length
    return tlvs


def _check_crc32c(raw: bytes, at: int, value: bytes) -> None:
    """The sum is over the whole header, its own four bytes taken as zeros (specification, 2.2.3)."""
    expected = crc32c(raw[:at] + bytes(4) + raw[at + 4 :])
    if value != struct.pack("!I", expected):
        _refuse(f"checksum {value.hex()}, not {expected:08x}")


def _make_crc32c_table() -> tuple[int, ...]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)  # the Castagnoli polynomial, reflected (RFC 3720)
        table.append(entry)
    return tuple(table)


_CRC32C_TABLE = _make_crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC-32C of a few hundred bytes; ``zlib.crc32`` is the other polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
