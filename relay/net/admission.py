"""Who may connect: the node's two limits on connections, and a log that a flood can't fill.

Owns counts only.  Called by a listening factory before it makes a protocol.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from relay.limits import Limits

RESERVED_DESCRIPTORS = 512  # for listeners, links between nodes and the admin port (the reason of Limits.connections)
LOG_SECONDS = 10.0  # between two lines about refusals


def _open_file_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Admission:
    """Counts the connections of a factory.

    Args:
        descriptors: how many file descriptors are, or may soon be, in use by all of them; checked against the process's
            file limit.
    """

    log = Logger()

    def __init__(
        self,
        limits: Limits,
        clock: IReactorTime,
        descriptors: Callable[[], int],
        file_limit: Callable[[], int] = _open_file_limit,
    ) -> None:
        self.connections = 0
        self._by_address: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._descriptors = descriptors
        self._file_limit = file_limit
        self._refused: Counter[str] = Counter()  # since the last line
        self._log_again_at = -LOG_SECONDS

    def admit(self, host: str) -> str | None:
        """Count one in, or say in one word why it is refused.  ``host`` is empty for a UNIX socket."""
        refusal = self._refusal(host)
        if refusal is not None:
            self._note(refusal, host)
            return refusal
        self.connections += 1
        self._by_address[host] += 1
        return None

    def recount(self, host: str) -> None:
        """Count one in that was counted out and is not refused: it is on its way out."""
        self.connections += 1
        self._by_address[host] += 1

    def leave(self, host: str) -> None:
        """Count out one that was admitted."""
        self.connections -= 1
        self._by_address[host] -= 1
        if not self._by_address[host]:
            del self._by_address[host]

    def _refusal(self, host: str) -> str | None:
        if self.connections >= self._limits.connections:
            return "refused_limit"
        if self._descriptors() > self._file_limit() - RESERVED_DESCRIPTORS:
            return "refused_descriptors"
        if host and self._by_address[host] >= self._limits.connections_per_address:
            return "refused_address"
        return None

    def _note(self, refusal: str, host: str) -> None:
        self._refused[refusal] += 1
        now = self._clock.seconds()
        if now < self._log_again_at:
            return
        self._log_again_at = now + LOG_SECONDS
        refused, self._refused = dict(self._refused), Counter()
        self.log.warn(
            "refused viewers: {refused}; the last from {host}, with {connections} admitted",
            refused=refused,
            host=host,
            connections=self.connections,
        )
