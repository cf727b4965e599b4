"""Watching a cluster that runs already, while its operator breaks it himself.

Owns the rhythm of looking; says each thing that a viewer saw as it happens.  Called by :mod:`relay.drill.command`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import deferLater

from relay.drill.judge import Findings
from relay.drill.publisher import StampedPublisher
from relay.drill.report import Row, unbroken
from relay.drill.viewers import Audience, NobodyServed, Viewer
from relay.names import StreamName

LOOK_SECONDS = 0.25
NOTABLE_PAUSE = 0.5  # seconds


class Watch:
    """Viewers at one address, until ``stop``.

    Args:
        size: viewers of each protocol.
        publisher: of the stamped stream, if we publish it.
        say: told in words what happens.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        stream: StreamName,
        size: int,
        publisher: StampedPublisher | None,
        say: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._stream = stream
        self._publisher = publisher
        self._say = say
        self._audience = Audience(reactor, host, port, [stream], size, self._cut)
        self._size = 2 * size
        self._found = Findings()
        self._cut_count = 0
        self._is_stopped = False
        self._began = 0.0

    def stop(self) -> None:
        """Enough."""
        self._is_stopped = True

    async def run(self, seconds: float | None) -> Row:
        """Watch for so long, or until ``stop``.

        Raises:
            NobodyServed: from the beginning nobody is served.
        """
        self._began = self._reactor.seconds()
        try:
            if self._publisher is not None:
                self._publisher.startService()
            await self._audience.fill()
            self._say(f"{self._size} viewers watch {self._stream}; break what you like, then press Ctrl-C")
            self._began = self._reactor.seconds()
            while not self._is_stopped and (seconds is None or self._reactor.seconds() < self._began + seconds):
                await deferLater(self._reactor, LOOK_SECONDS)
                await self._look()
        finally:
            self._audience.empty()
            if self._publisher is not None and self._publisher.running:
                await self._publisher.stopService()
        return unbroken("yours", self._size, self._cut_count, self._found)

    async def _look(self) -> None:
        cut, found = self._audience.take()
        self._cut_count += cut
        for name in ("missing", "repeated", "out_of_order", "backwards"):
            if count := getattr(found, name):
                self._tell(f"{count} messages {name.replace('_', ' ')}")
        longest = max(found.pauses, default=0.0)
        if longest >= NOTABLE_PAUSE:
            self._tell(f"a viewer waits for {longest:.1f} s")
        self._found.add(found)
        if cut:
            try:
                await self._audience.fill()
            except NobodyServed as error:
                self._tell(f"not served again: {error}")

    def _cut(self, viewer: Viewer) -> None:
        self._tell(f"a viewer over {viewer.protocol} is cut: {viewer.outcome}")

    def _tell(self, text: str) -> None:
        self._say(f"{self._reactor.seconds() - self._began:7.1f} s  {text}")
