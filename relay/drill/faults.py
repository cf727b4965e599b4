"""What can be done to a node, and how it is undone.

Owns the signals and the packet filter.  A silent cut is what a power failure looks like from outside: no FIN, no
reset.  It needs root, nft, and a network namespace of our own, which :func:`enter_namespace` makes, so that no rule is
ever set on the machine's own network.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from shutil import which

import attrs
from twisted.internet.utils import getProcessOutputAndValue

from relay.errors import RelayError

HANG_SECONDS = 5.0  # a node is stopped for so long
CUT_SECONDS = 2.0  # and cut off for so long: as with a hang, all is over or lost by then

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # <linux/sockios.h>, <net/if.h>


class FaultFailed(RelayError):
    """The fault could not be injected."""


@attrs.frozen
class Target:
    """The node to be broken."""

    pid: int
    address: str


@attrs.frozen
class Fault:
    """A way to break a node.

    Args:
        name: as on the command line.
        inject, undo: called with the target; ``undo`` after ``seconds``.
        ends_process: is the node started again, rather than mended?
    """

    name: str
    inject: Callable[[Target], Awaitable[None]]
    undo: Callable[[Target], Awaitable[None]]
    seconds: float
    ends_process: bool


def _signalling(number: signal.Signals) -> Callable[[Target], Awaitable[None]]:
    async def send(target: Target) -> None:
        try:
            os.kill(target.pid, number)
        except ProcessLookupError:
            pass  # it has ended meanwhile: whoever hangs may be ended by its parent

    return send


async def _nothing(target: Target) -> None:
    """It is started again by its supervisor."""


async def _cut(target: Target) -> None:
    await _nft(f"add rule inet drill input ip saddr {target.address} drop")
    await _nft(f"add rule inet drill input ip daddr {target.address} drop")


async def _join(target: Target) -> None:
    await _nft("flush chain inet drill input")


KILL = Fault("kill", _signalling(signal.SIGKILL), _nothing, 0.0, ends_process=True)
HANG = Fault("hang", _signalling(signal.SIGSTOP), _signalling(signal.SIGCONT), HANG_SECONDS, ends_process=False)
TERM = Fault("term", _signalling(signal.SIGTERM), _nothing, 0.0, ends_process=True)
CUT = Fault("cut", _cut, _join, CUT_SECONDS, ends_process=False)
FAULTS = {fault.name: fault for fault in (KILL, HANG, TERM, CUT)}


def why_no_cut() -> str | None:
    """Why a node can't be cut off here; ``None`` if it can."""
    if os.geteuid() != 0:
        return "that needs root"
    return None if which("nft") else "nft is not installed"


def enter_namespace() -> None:
    """Put this process, and those it starts, on a network of their own, that has a loopback device and nothing else.

    Raises:
        FaultFailed: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise FaultFailed(f"no network namespace to be had: {os.strerror(ctypes.get_errno())}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(probe, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


async def prepare_cuts() -> None:
    """An empty table for the rules.

    Raises:
        FaultFailed: nft refuses.
    """
    await _nft("add table inet drill")
    await _nft("add chain inet drill input { type filter hook input priority 0 ; }")


async def _nft(command: str) -> None:
    _, errors, status = await getProcessOutputAndValue(which("nft") or "nft", command.split(), os.environ)
    if status:
        raise FaultFailed(f"nft {command}: {errors.decode(errors='replace').strip()}")
