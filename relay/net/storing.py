"""A node at which positions begin or that keeps bytes for longer: what origins and distributors share.

Owns the store's opening, the recovery of what it has, the ingests of streams that are written here, and what is said
when the disk fails.  Called by the tiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.store import Store
from relay.log.timeline import Timeline
from relay.names import StreamName
from relay.net.ingest import Ingest, SecondPublisher
from relay.net.logs import MemoryLogs, StoredLogs, boot_id, new_epoch
from relay.net.node import Node, NodeSettings
from relay.net.streams import LiveStream

EXPIRE_EVERY = 600  # checks (seconds) between two looks for streams to remove


@attrs.frozen(kw_only=True)
class StoreSettings:
    """Where bytes are kept, and how long."""

    directory: str | None = None
    keep: LogOptions
    idle_seconds: float = 86_400.0
    """How long a stream that nobody publishes stays stored."""


@attrs.frozen(kw_only=True)
class IngestSettings:
    """The rule for publishers: see :mod:`relay.net.ingest`."""

    policy: SecondPublisher = SecondPublisher.REFUSE
    takeover_seconds: float = 3.0
    end_seconds: float = 30.0


DEFAULT_INGEST = IngestSettings()


class StoringNode(Node):
    """A node with a store (or, without a directory, with memory only)."""

    is_writer = False

    def __init__(
        self,
        settings: NodeSettings,
        clock: IReactorTime,
        store: StoreSettings,
        ingest: IngestSettings = DEFAULT_INGEST,
    ) -> None:
        super().__init__(settings, clock)
        self._store_settings = store
        self._ingest_settings = ingest
        self._ingests: dict[StreamName, Ingest] = {}
        self._checks = 0
        self.logs: StoredLogs | MemoryLogs
        if store.directory is None:
            self.logs = MemoryLogs(store.keep, settings.limits)
        else:
            opened = Store(str(Path(store.directory).absolute()), boot_id())
            self.logs = StoredLogs(opened, store.keep, settings.limits, self.is_writer)

    def ingest(self, name: StreamName) -> Ingest:
        """The writer's side of a stream that begins here; made if need be.

        Raises:
            LimitExceeded: there are too many streams.
        """
        known = self._ingests.get(name)
        if known is not None:
            return known
        stream = self.hub.get(name)
        if stream is None:
            log = self.logs.recover(name) or self.logs.make(name, new_epoch(), LogStart(), None)
            stream = self.hub.add(name, log)
        made = Ingest(
            stream,
            self.hub,
            self._timeline(stream),
            policy=self._ingest_settings.policy,
            takeover_seconds=self._ingest_settings.takeover_seconds,
            end_seconds=self._ingest_settings.end_seconds,
        )
        self._ingests[name] = made
        return made

    def storage_problems(self) -> list[str]:
        """Which streams the disk does not take, in words."""
        if self._store_settings.directory is None:
            return []
        return [f"{stream.name}: the store takes no bytes" for stream in self.hub if not stream.log.is_storing]

    def check(self) -> None:
        super().check()
        self._checks += 1
        if self._checks % EXPIRE_EVERY == 0:
            self.logs.expire(self._store_settings.idle_seconds)

    def stop_after(self, first: Sequence[Deferred[Any]]) -> Deferred[None]:
        for ingest in self._ingests.values():
            ingest.close()
        return super().stop_after(first).addCallback(lambda _: self.logs.close())

    def _timeline(self, stream: LiveStream) -> Timeline:
        """The stream's clock goes on where its log ends."""
        if stream.log.end == 0 and stream.log.end_time_ms == 0:
            return Timeline()
        return Timeline.resume(stream.log.end_time_ms, int(self.clock.seconds() * 1000))
