"""Socket options that Twisted does not set, and what the kernel says of a socket, in one place.

Called by every protocol in ``connectionMade``.  Figures: without ``TCP_USER_TIMEOUT`` a sender notices a peer that is
cut off after about 15 minutes (tcp_retries2), without keep-alive a receiver after two hours.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from contextlib import suppress
from typing import Any

from twisted.internet import tcp

from relay.limits import Limits

NODE_TIMEOUT_MS = 3_000  # between nodes: data unacknowledged for this long ends the connection
VIEWER_SLACK_SECONDS = 5.0  # after our own last deadline for a viewer
NOTSENT_LOWAT = 128 << 10  # bytes the kernel holds unsent for a viewer: what a slow one costs
# tcpi_state, the first byte of TCP_INFO, after the peer's FIN or reset (linux/tcp_states.h)
_TCP_CLOSE, _TCP_CLOSE_WAIT, _TCP_LAST_ACK = 7, 8, 9


def host_of(transport: Any) -> str:
    """The peer's address as text; empty for a UNIX socket."""
    return getattr(transport.getPeer(), "host", "") or ""


def family_of(descriptor: int) -> int:
    """Address family of a socket that is a bare descriptor."""
    with socket.socket(fileno=descriptor) as handle:
        family = int(handle.family)
        handle.detach()
    return family


def viewer_timeout_ms(limits: Limits) -> int:
    """``TCP_USER_TIMEOUT`` for a viewer.

    Linux counts it from the first byte that a peer does not take, also while a living peer answers that its window is
    closed, and then drops the connection without a word to either end.  So it comes after our own rule, which counts
    the outcome and resets the connection.
    """
    return int((limits.viewer_close_seconds + limits.close_seconds + VIEWER_SLACK_SECONDS) * 1000)


def has_unwritten(transport: tcp.Connection) -> bool:
    """Does the transport hold bytes that the socket has not taken?"""
    return bool(transport._tempDataBuffer or transport.dataBuffer)


def write_now(transport: Any, data: bytes) -> None:
    """Write without waiting for the reactor, as far as the socket takes it at once.

    Twisted's ``write`` takes a turn and two ``epoll_ctl``, which is more than a ping costs otherwise.
    """
    is_open = isinstance(transport, tcp.Connection) and transport.connected
    if is_open and not transport.TLS and not has_unwritten(transport):
        try:
            data = data[transport.getHandle().send(data) :]
        except OSError:
            pass  # full, or broken: the transport finds out
    if data:
        transport.write(data)


def wake_from(handle: socket.socket, count: int) -> None:
    """Let epoll tell of the socket when so many bytes wait (``SO_RCVLOWAT``); of an end and an error in any case."""
    with suppress(OSError):  # closed by somebody else, who tells whom it concerns
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


def acknowledge_late(handle: socket.socket) -> None:
    """Let the kernel acknowledge two pieces of a stream together, or after its 40 ms; not each as soon as it is read.

    An acknowledgement is a packet, and costs 3 us.  The kernel goes back to the other way when one was late; so whoever
    reads says it again, about once a second.
    """
    with suppress(OSError):  # no TCP, or closed by somebody else
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)


def tune(transport: Any, timeout_ms: int, notsent_lowat: int = 0) -> None:
    """Set no-delay, keep-alive and the timeouts on a TCP transport; other transports are left as they are."""
    handle = _socket_of(transport)
    if handle is None or handle.family not in (socket.AF_INET, socket.AF_INET6):
        return
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, timeout_ms // 3000))
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, timeout_ms // 3000))
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    if notsent_lowat:
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, notsent_lowat)


def _socket_of(transport: Any) -> socket.socket | None:
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    return handle if isinstance(handle, socket.socket) else None


def in_flight(transport: Any) -> int:
    """What :func:`unacknowledged` says of a transport's socket; 0 if it has none.  It stands still while the peer takes
    nothing."""
    handle = _socket_of(transport)
    return 0 if handle is None else unacknowledged(handle)


def unacknowledged(handle: socket.socket) -> int:
    """Bytes in the kernel that the peer has not acknowledged yet (SIOCOUTQ, which is TIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))[0])


def has_peer_ended(handle: socket.socket) -> bool:
    """Has the peer sent FIN or a reset, even if bytes before it are unread?  Never true of a UNIX socket."""
    return _tcp_state(handle) in (_TCP_CLOSE, _TCP_CLOSE_WAIT, _TCP_LAST_ACK)


def was_reset(handle: socket.socket) -> bool:
    """Has the peer sent a reset, or has the kernel given it up?  Never true of a UNIX socket."""
    return _tcp_state(handle) == _TCP_CLOSE


def _tcp_state(handle: socket.socket) -> int:
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    return handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
