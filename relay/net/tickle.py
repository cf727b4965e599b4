"""Making a viewer of a dead balancer notice: one packet that its TCP can't leave unanswered.

Owns the packet, the raw sockets that send it and their pace.  Who is to be told is decided in
:mod:`relay.net.neighbours`, which calls it.

Theory.  A viewer sends nothing but acknowledgements of what it receives.  When the balancer that serves it is cut off,
it receives nothing, so it sends nothing, so whoever has the address now never gets the chance to say that the
connection is gone: the viewer waits for ever.  (Samba's CTDB met this first; its "tickle ACK" is the cure.)  The new
owner of the address sends, in the dead one's name, a bare ACK whose sequence number is wrong.  By RFC 9293, 3.10.7.4,
the viewer's TCP answers with an ACK of its own; that reaches the new owner, whose kernel knows no such connection and
answers with RST.  The player sees ECONNRESET, and connects anew.

Nothing is forged here but the number: if the connection is alive after all, wherever the viewer's answer is delivered
it is a duplicate ACK and changes nothing.  The packet carries no byte and no RST.

A viewer answers at most one such packet in 500 ms (``tcp_invalid_ratelimit``), and the first may come before the
network has learnt where the address is now.  So each is told ``TIMES`` times, with ``AGAIN_SECONDS`` between.  Should
one of the numbers by chance be in the viewer's window, the next is not.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from relay.net.four_tuple import FourTuple

SEQUENCES = (0, 0x55555555, 0xAAAAAAAA)  # a third of the space apart; a window is at most a quarter of it
TIMES = len(SEQUENCES)
AGAIN_SECONDS = 1.0  # twice what the viewer's kernel wants between two
FIRST_SECONDS = 0.05  # until a new owner's gratuitous ARP has gone round
# 1,000 a second: about what one balancer accepts, and each who is told comes at once.
TOLD_AT_ONCE = 20
PACE_SECONDS = 0.02

_ACK = 0x10
_WINDOW = 1024
_HOPS = 64


def stale_ack(viewer: FourTuple, sequence: int) -> bytes:
    """A whole IP packet from the balancer to the viewer."""
    local, remote = ipaddress.ip_address(viewer.local), ipaddress.ip_address(viewer.remote)
    segment = struct.pack("!HHIIBBHHH", viewer.local_port, viewer.remote_port, sequence, 0, 5 << 4, _ACK, _WINDOW, 0, 0)
    pseudo = local.packed + remote.packed + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
    segment = segment[:16] + _checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]
    if local.version == 4:  # the kernel fills in the header's checksum and identification
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, _HOPS, socket.IPPROTO_TCP, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(segment), socket.IPPROTO_TCP, _HOPS)
    return head + local.packed + remote.packed + segment


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Sender(Protocol):
    """Sends a packet to a host, or raises ``OSError``."""

    def send(self, packet: bytes, host: str) -> None:
        """All of it."""


class RawSender:
    """Raw sockets of both families.  They need CAP_NET_RAW, once: when they are opened.

    Raises (from the constructor): ``OSError``, ``PermissionError`` above all.
    """

    def __init__(self) -> None:
        # IPPROTO_RAW takes whole packets, and receives none.
        self._ipv4 = self._open(socket.AF_INET)
        self._ipv6: socket.socket | None = None
        try:
            self._ipv6 = self._open(socket.AF_INET6)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a machine without IPv6 has no such viewers
                self._ipv4.close()
                raise

    @staticmethod
    def _open(family: socket.AddressFamily) -> socket.socket:
        opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        opened.setblocking(False)
        return opened

    def send(self, packet: bytes, host: str) -> None:
        if packet[0] >> 4 == 4:
            self._ipv4.sendto(packet, (host, 0))
        elif self._ipv6 is not None:
            self._ipv6.sendto(packet, (host, 0, 0, 0))

    def close(self) -> None:
        """Let go of the sockets."""
        self._ipv4.close()
        if self._ipv6 is not None:
            self._ipv6.close()


@attrs.define
class _Due:
    """A connection that is told when it is its turn."""

    viewer: FourTuple
    at: float
    told: int = 0


class Tickler:
    """Tells viewers in turn, ``TIMES`` times each, at a bounded pace.

    ``told`` counts connections that were sent the first packet, ``failed`` those of which the first couldn't be sent.

    Args:
        clock: when.
        sender: how; ``None``: it is not allowed, and every one fails.
        is_wanted: asked before each packet; the connection may have come to life, or the address gone.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, sender: Sender | None, is_wanted: Callable[[FourTuple], bool]) -> None:
        self.told = 0
        self.failed = 0
        self.sender = sender
        self._clock = clock
        self._is_wanted = is_wanted
        self._queue: deque[_Due] = deque()  # in the order of their time: each is put back AGAIN_SECONDS later
        self._first: deque[_Due] = deque()
        self._queued: set[FourTuple] = set()
        self._call: IDelayedCall | None = None
        self._paced_until = 0.0

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, viewer: FourTuple) -> None:
        """Tell this one; nothing if that is under way."""
        if viewer not in self._queued:
            self._queued.add(viewer)
            self._first.append(_Due(viewer, self._clock.seconds() + FIRST_SECONDS))
            self._plan()

    def close(self) -> None:
        """Tell nobody any more."""
        self._first.clear()
        self._queue.clear()
        self._queued.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _plan(self) -> None:
        """See to it that there is a turn for the one who is due first, but none before its time."""
        waiting = [queue[0].at for queue in (self._first, self._queue) if queue]
        if not waiting:
            return
        seconds = max(0.0, max(self._paced_until, min(waiting)) - self._clock.seconds())
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._turn)
        elif self._call.getTime() > self._clock.seconds() + seconds:
            self._call.reset(seconds)

    def _turn(self) -> None:
        self._call = None
        now = self._clock.seconds()
        self._paced_until = now + PACE_SECONDS
        for _ in range(TOLD_AT_ONCE):
            due = self._next(now)
            if due is None:
                break
            self._tell(due, now)
        self._plan()

    def _next(self, now: float) -> _Due | None:
        """Those who were not told yet go first."""
        for queue in (self._first, self._queue):
            if queue and queue[0].at <= now:
                return queue.popleft()
        return None

    def _tell(self, due: _Due, now: float) -> None:
        viewer = due.viewer
        is_first = due.told == 0
        if not self._is_wanted(viewer):
            self._queued.discard(viewer)
            return
        is_sent = self._send(viewer, SEQUENCES[due.told])
        if is_first:
            self.told += is_sent
            self.failed += not is_sent
        due.told += 1
        if due.told < TIMES and self.sender is not None:
            due.at = now + AGAIN_SECONDS
            self._queue.append(due)
        else:
            self._queued.discard(viewer)

    def _send(self, viewer: FourTuple, sequence: int) -> bool:
        if self.sender is None:
            return False
        try:
            self.sender.send(stale_ack(viewer, sequence), viewer.remote)
        except OSError as error:
            self.log.debug("{host}: can't be told: {why}", host=viewer.remote, why=str(error))
            return False
        return True
