"""What a process and the kernel hold in memory for it, from ``/proc``.

Owns the reading of ``/proc``.  Called by ``slow_viewers.py``, once a second.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system


@attrs.frozen
class Memory:
    """Bytes at one moment."""

    resident: int
    """Of the process: VmRSS."""
    log: int
    """In its memfds: the streams' logs, which are no part of VmRSS."""
    sockets: int
    """In the buffers of all TCP sockets of this network namespace."""


def memory_of(pid: int) -> Memory:
    """Look now.

    Raises:
        OSError: there is no such process, or it isn't ours.
    """
    return Memory(resident=_resident(pid), log=_memfds(pid), sockets=_sockets())


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise ProcessLookupError(f"process {pid} has ended")  # a zombie has no VmRSS


def _memfds(pid: int) -> int:
    total, seen = 0, set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not str(descriptor.readlink()).startswith("/memfd:"):
                continue
            found = descriptor.stat()
        except FileNotFoundError:
            continue  # closed since
        if found.st_ino not in seen:
            seen.add(found.st_ino)
            total += found.st_blocks * BLOCK_BYTES
    return total


def _sockets() -> int:
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1]) * PAGE_BYTES
    return 0
