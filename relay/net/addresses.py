"""The addresses of this machine, and word when one comes or goes: what a virtual IP looks like from inside.

Owns a route netlink socket and what it says.  The kernel tells it whoever moves the address (keepalived, Pacemaker, a
hand with ``ip addr``), so no notify script is needed.  Called by :mod:`relay.net.neighbours`.

A message is a header (length, type, flags, sequence, port), an ``ifaddrmsg`` (family, prefix length, flags, scope,
interface) and attributes (length, type, value).  ``ip addr add 10.77.0.100/24 dev eth0`` comes as

    50000000 1400 0000 …   02 18 80 00 03000000   0800 0100 0a4d0064   0800 0200 0a4d0064   …
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

# From linux/rtnetlink.h, linux/netlink.h and linux/if_addr.h; Python's socket module has few of them.
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40

_HEADER = struct.Struct("=IHHII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")

DATAGRAM_BYTES = 32 << 10  # the kernel's own largest in a dump
DATAGRAMS_AT_ONCE = 64  # then the reactor gets its turn


def _align(length: int) -> int:
    return (length + 3) & ~3


@attrs.frozen
class AddressChange:
    """An address of an interface is there, or is gone.  One that isn't usable yet (IPv6 asks the link first whether
    anybody else has it) counts as gone."""

    interface: int
    address: str
    is_there: bool


def read_changes(data: bytes) -> Iterator[AddressChange | None]:
    """The changes in one datagram; ``None`` where a dump ends, or is refused."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        if kind in (NLMSG_DONE, NLMSG_ERROR):
            yield None
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            change = _read_change(kind, data[at + _HEADER.size : at + length])
            if change is not None:
                yield change
        at += _align(length)


def _read_change(kind: int, body: bytes) -> AddressChange | None:
    if len(body) < _ADDRESS.size:
        return None
    family, _, flags, _, interface = _ADDRESS.unpack_from(body)
    attributes = dict(_attributes(body[_align(_ADDRESS.size) :]))
    value = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS))  # on a point-to-point link ADDRESS is the peer's
    if family not in (socket.AF_INET, socket.AF_INET6) or value is None or len(value) not in (4, 16):
        return None
    wide = attributes.get(IFA_FLAGS, b"")
    if len(wide) == 4:
        flags = int.from_bytes(wide, "little" if struct.pack("=H", 1) == b"\x01\x00" else "big")
    is_usable = not flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)
    return AddressChange(interface, str(ipaddress.ip_address(value)), kind == RTM_NEWADDR and is_usable)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += _align(length)


def dump_request() -> bytes:
    """Ask for all addresses there are."""
    return _HEADER.pack(_HEADER.size + _ADDRESS.size, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + _ADDRESS.pack(
        socket.AF_UNSPEC, 0, 0, 0, 0
    )


def open_netlink() -> socket.socket:
    """A socket that hears of every address that comes or goes."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.setblocking(False)
    opened.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
    return opened


@implementer(IReadDescriptor)
class AddressWatch:
    """The set of this machine's addresses, kept up to date while it runs.

    ``addresses`` is empty until the kernel has answered the first question, which it does in the next turn.

    Args:
        reactor: with ``addReader``.
        changed: called after each change of the set.
        open_socket: opens what the kernel speaks on.  If it can't (a sandbox, usually), that is said in the log, and
            there are no addresses.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, changed: Callable[[], None], open_socket: Callable[[], socket.socket] = open_netlink
    ) -> None:
        self.addresses: frozenset[str] = frozenset()
        self._reactor = reactor
        self._changed = changed
        self._there: set[tuple[int, str]] = set()
        self._dumped: set[tuple[int, str]] | None = None  # what a dump under way has said so far
        self._open_socket = open_socket
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen, and ask what is there now."""
        try:
            self._socket = self._open_socket()
        except OSError as error:
            self.log.error(
                "can't watch the addresses of this machine ({why}): what should be done when one comes is not done",
                why=error.strerror,
            )
            return
        self._reactor.addReader(self)
        self._ask()

    def stop(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "addresses"

    def doRead(self) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, sender = self._socket.recvfrom(DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._ask()  # more changes than the socket holds: start from what is there now
                continue
            if sender[0] == 0:  # the kernel; any process may send to a netlink socket
                self._read(data)
        self._settle()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, or gives the socket up and has said why."""
        self.stop()

    def _ask(self) -> None:
        assert self._socket is not None
        self._dumped = set()
        try:
            self._socket.send(dump_request())
        except OSError as error:
            self._dumped = None
            self.log.error("can't ask for this machine's addresses: {why}", why=os.strerror(error.errno or 0))

    def _read(self, data: bytes) -> None:
        for change in read_changes(data):
            if change is None:
                if self._dumped is not None:
                    self._there, self._dumped = self._dumped, None
                continue
            for known in (self._there, self._dumped):
                if known is None:
                    continue
                if change.is_there:
                    known.add((change.interface, change.address))
                else:
                    known.discard((change.interface, change.address))

    def _settle(self) -> None:
        addresses = frozenset(address for _, address in self._there)
        if self._dumped is None and addresses != self.addresses:
            self.addresses = addresses
            self._changed()
