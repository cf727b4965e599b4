"""A node at which positions begin or that keeps bytes for longer: what origins and distributors share.

Owns the store's opening, the recovery of what it has, the ingests of streams that are written here, and what is said
when the disk fails.  Called by the tiers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
from twisted.internet.interfaces import IReactorTime

from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.store import Store
from relay.log.timeline import Timeline
from relay.names import StreamName
from relay.net.ingest import Ingest, Publisher, SecondPublisher
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
        self.pulled: set[StreamName] = set()
        """Streams that are kept however long their servers are away: whoever pulls them holds on to their ingests."""
        self.reported_ms: dict[StreamName, int] = {}
        """How far media time has come in the copies of neighbours."""
        self.logs: StoredLogs | MemoryLogs
        if store.directory is None:
            self.logs = MemoryLogs(store.keep, settings.limits)
        else:
            opened = Store(str(Path(store.directory).absolute()), boot_id())
            self.logs = StoredLogs(opened, store.keep, settings.limits, self.is_writer)

    @property
    def publishers(self) -> int:
        """How many encoders publish; what we pull ourselves is not counted."""
        written = (ingest for name, ingest in self._ingests.items() if name not in self.pulled)
        return sum(ingest.publisher is not None for ingest in written)

    def written(self) -> Iterator[tuple[StreamName, Publisher]]:
        """Streams that begin here and are live, with who feeds them."""
        for name, ingest in self._ingests.items():
            if ingest.publisher is not None:
                yield name, ingest.publisher

    def dismiss(self, name: StreamName) -> bool:
        """Send the encoder of a stream away; false if there is none."""
        ingest = None if name in self.pulled else self._ingests.get(name)
        return ingest is not None and ingest.dismiss()

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
            self._make_room()
            start = LogStart(time_ms=self.reported_ms.get(name, 0))
            log = self.logs.recover(name) or self.logs.make(name, new_epoch(), start, None)
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

    def renew(self, stream: LiveStream) -> None:
        """Begin a new epoch of a stream that is written here, later in media time than any copy that was reported."""
        stream.succeed(self.logs.new_life(stream.name, stream.log, self.reported_ms.get(stream.name, 0)))
        self.ingest(stream.name).begin_log(self._timeline(stream))

    def storage_problems(self) -> list[str]:
        """Which streams the disk does not take, in words."""
        if self._store_settings.directory is None:
            return []
        return [f"{stream.name}: the store takes no bytes" for stream in self.hub if not stream.log.is_storing]

    def check(self) -> None:
        super().check()
        self._checks += 1
        if self._checks % EXPIRE_EVERY == 0:
            self.expire()

    def expire(self) -> None:
        """Forget streams that nobody has published for ``idle_seconds``."""
        idle_seconds = self._store_settings.idle_seconds
        for name in self._idle():
            if self.clock.seconds() - self._ingests[name].stream.idle_since > idle_seconds:
                self._forget(name)
        self.logs.expire(idle_seconds)

    def _idle(self) -> list[StreamName]:
        """Streams that nobody publishes or watches, the longest idle first; copies of neighbours keep none."""
        unpublished = {name for name, ingest in self._ingests.items() if not ingest.stream.is_live}
        idle = unpublished - self.pulled
        unwatched = [name for name in idle if not self._ingests[name].stream.watching]
        return sorted(unwatched, key=lambda name: self._ingests[name].stream.idle_since)

    def _make_room(self) -> None:
        """A new stream is worth more than one that is over: names that were used once must not use the limit up."""
        if len(self.hub) >= self.limits.streams:
            for name in self._idle()[:1]:
                self._forget(name)

    def _forget(self, name: StreamName) -> None:
        self._ingests.pop(name).close()
        self.hub.remove(name)
        self.logs.forget(name)

    def release(self) -> None:
        """The last publishers have left, which starts their streams' ends: no more of that."""
        for ingest in self._ingests.values():
            ingest.close()
        self.logs.close()

    def _timeline(self, stream: LiveStream) -> Timeline:
        """The stream's clock goes on where its log ends, or where its copies do if the log was lost."""
        last_ms = max(stream.log.end_time_ms, self.reported_ms.get(stream.name, 0))
        if stream.log.end == 0 and last_ms == 0:
            return Timeline()
        return Timeline.resume(last_ms, int(self.clock.seconds() * 1000))
