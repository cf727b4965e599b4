"""Copying a stream from the next tier up, byte for byte.

Owns one stream's copy: where it goes on, what a gap or another epoch means, whether the bytes may be trusted.  Which
upstream is asked is :mod:`relay.net.failover`'s business; which streams are copied is :mod:`relay.net.gathering`'s.

Theory.  A copy has one *reading* (active-standby: of the first upstream that serves) or one of each upstream at once
(merge).  A reading asks for the log's end (epoch, offset), and knows at each message which offset it stands at.  What
the upstream says first decides:

    this epoch, this offset     go on
    this epoch, further on      the bytes between are gone everywhere we look: a gap, counted, readers jump over it.
                                (Unless another reading still fills it.)
    this epoch, further back    the upstream can't go on from where we are, and repeats bytes
    an epoch that we have left  the upstream is behind us: another is asked, or this one again later
    another epoch               the log begins again there; readers of the old one cross over when they have read it
    no position                 not one of our nodes: this copy can't be made (pull such servers instead)

A copy that begins, or begins again after a gap, is sent what is a little older first.  It is written when all of that
has come, so that whoever waits for it starts at the newest join point.

Then each message: the one that belongs at the log's end is appended, whichever reading brings it; one that the log has
is compared with it and dropped.  If they differ, the upstream contradicts itself or us: said loudly, counted, and
nothing more of it is written (I1).  So in merge the death of an upstream needs no detection at all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from relay.errors import LogDiverged, RemoteProtocolError
from relay.log.log import COPY_BACK_BYTES, StreamLog
from relay.log.points import LogStart
from relay.log.record import record_size
from relay.names import StreamName
from relay.net.causes import Interruption
from relay.net.failover import RETURN, Backoff, FailoverFactory, Upstream
from relay.net.positions import ToldPosition
from relay.net.reading import Reading, UpstreamBehind
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.streams import Hub, LiveStream
from relay.net.timings import DEFAULT_TIMINGS, Timings
from relay.rtmp.messages import MediaMessage


class LogMaker(Protocol):
    """Where a node keeps its logs: on disk or in memory."""

    def recover(self, name: StreamName) -> StreamLog | None:
        """The newest log of this stream that is there already."""

    def make(self, name: StreamName, epoch: int, start: LogStart, predecessor: StreamLog | None) -> StreamLog:
        """An empty log that begins at ``start``; ``predecessor`` is the epoch before, if we have it."""

    def forget(self, name: StreamName) -> None:
        """The stream is gone for good."""


class Counts:
    """What happened to the copies of a node, for metrics."""

    def __init__(self) -> None:
        self.bytes_copied = 0
        self.bytes_resumed = 0
        """Of ``bytes_copied``, those that were published while an upstream was lost, and came from the next."""
        self.bytes_missing = 0
        self.gaps = 0
        self.epochs = 0
        self.diverged = 0
        self.failovers: Counter[str] = Counter()
        """Times that a copy went on elsewhere, by cause."""


EPOCHS_REMEMBERED = 16  # that were left; a server that comes back with one of them is behind, not ahead


class ReadMode(Enum):
    """How many upstreams of a group are read at once."""

    ACTIVE_STANDBY = "active-standby"
    MERGE = "merge"


class Replica:
    """The copy of one stream.

    Args:
        name: of the stream.
        hub: where it is shown.
        maker: where the log is kept.
        members: the upstreams, in order of preference.
        settings: who we are.
        counts: of the node.
        mode: one reading, or one of each member.
        timings: how patient we are.
    """

    log = Logger()

    def __init__(
        self,
        name: StreamName,
        hub: Hub,
        maker: LogMaker,
        members: list[Upstream],
        settings: ClientSettings,
        counts: Counts,
        mode: ReadMode = ReadMode.ACTIVE_STANDBY,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.name = name
        self.is_upstream_live = False
        self._timings = timings
        self._interruption = Interruption(str(name), counts.failovers, settings.clock, timings.dead)
        groups = [members] if mode is ReadMode.ACTIVE_STANDBY else [[member] for member in members]
        self.factories = [self._make_factory(group, settings) for group in groups]
        self._hub = hub
        self._maker = maker
        self._settings = settings
        self._counts = counts
        self._stream: LiveStream | None = None
        self._readings: dict[Reading, None] = {}
        self._left: deque[int] = deque(maxlen=EPOCHS_REMEMBERED)
        self._end = 0  # the log's, with what was appended since the last flush
        self._catch_up_to = 0  # what comes before is written with it
        self._resumed_until_ms: int | None = None  # media up to here was published while nobody was read

    def start(self) -> None:
        """Begin, from what is stored if there is anything."""
        log = self._maker.recover(self.name)
        if log is not None:
            self._stream = self._hub.add(self.name, log)
            self._end = log.end
            self._left.extendleft(_epochs_before(log))
        for factory in self.factories:
            factory.start()

    def stop(self) -> Deferred[Any]:
        """End; the stream stays as it is."""
        return DeferredList([factory.stop() for factory in self.factories])

    # what the gatherer asks and says

    def query(self) -> str:
        """The position to go on from (zeros if there is nothing yet), and the media time there."""
        if self._stream is None:
            return "epoch=0&offset=0"
        log = self._stream.log
        return f"epoch={log.epoch}&offset={log.end}&time={log.end_time_ms}"

    @property
    def sources(self) -> list[Upstream]:
        """Who is read, or asked."""
        return [factory.current for factory in self.factories if factory.current is not None]

    def set_live(self, is_live: bool) -> None:
        """The upstream says whether somebody publishes."""
        self.is_upstream_live = is_live
        self._show()

    def wake(self) -> None:
        """An upstream has become usable, or has the stream now."""
        for factory in self.factories:
            factory.wake()
        self._show()

    def leave(self, upstream: Upstream, why: str) -> None:
        """This upstream is known to be dead."""
        for factory in self.factories:
            if factory.current is upstream:
                factory.leave(why)

    def turn_to(self, member: Upstream, outcome: str, detail: str) -> bool:
        """Read from ``member`` instead of from another; false if that can't be now."""
        self._interruption.detail = detail
        for factory in self.factories:
            if factory.current is not None and factory.current is not member and member in factory.members:
                if factory.turn_to(member, outcome):
                    return True
                if outcome != RETURN:
                    factory.leave(outcome)  # it does not even answer
        return False

    # how far the copy is

    @property
    def current(self) -> Upstream | None:
        """Who is read or asked, where it is one at a time."""
        return self.factories[0].current

    @property
    def epoch(self) -> int:
        """Of the copy; 0 while there is nothing."""
        return 0 if self._stream is None else self._stream.log.epoch

    @property
    def end(self) -> int:
        """The next byte that is wanted."""
        return self._end

    @property
    def time_ms(self) -> int:
        """The latest media time that is here."""
        return 0 if self._stream is None else self._stream.log.end_time_ms

    def has_left(self, epoch: int) -> bool:
        """Is this one of the epochs before ours?"""
        return epoch in self._left

    # told by the readings

    def moved(self, reading: Reading, told: ToldPosition) -> None:
        """The bytes that follow stand there.

        Raises:
            RemoteProtocolError: they can't.
            UpstreamBehind: they are of an epoch that we have left behind.
        """
        stream = self._stream
        if self.has_left(told.epoch):
            raise UpstreamBehind(f"{reading.upstream.shown} is still in epoch {told.epoch}")
        if stream is None or stream.log.epoch != told.epoch:
            self._begin(reading, told)
        elif told.offset > self._end and not self._is_filled_by_another(reading):
            self._jump(reading, stream, told)
            self._interruption.ended(reading.upstream.shown)  # nothing of it is made good
        reading.epoch, reading.offset = told.epoch, told.offset
        if reading not in self._readings:
            self._readings[reading] = None
            assert self._stream is not None
            self._stream.intakes[reading.intake] = None
            seconds = self._interruption.ended(reading.upstream.shown)
            if seconds:
                self._resumed_until_ms = self.time_ms + int(1000 * seconds)
        self._show()

    def copy(self, reading: Reading, message: MediaMessage) -> None:
        """One message of the log."""
        assert self._stream is not None
        log, offset, size = self._stream.log, reading.offset, record_size(message)
        reading.offset += size
        if reading.epoch != log.epoch or offset > self._end:
            return  # another reading has crossed to the next epoch, or fills the place between
        if offset < self._end:
            self._compare(reading, log, offset, message)
        else:
            log.reopen()
            log.append(message)
            self._end += size
            self._counts.bytes_copied += size
            if self._resumed_until_ms is not None:
                self._count_resumed(message, size, self._resumed_until_ms)
        reading.factory.media_arrived()

    def _count_resumed(self, message: MediaMessage, size: int, until_ms: int) -> None:
        if until_ms - message.timestamp & 0xFFFFFFFF < 1 << 31:  # timestamps wrap
            self._counts.bytes_resumed += size
        else:
            self._resumed_until_ms = None

    def read_done(self) -> None:
        """All messages of a read were given."""
        stream = self._stream
        if stream is not None and (self._end >= self._catch_up_to or self._end - stream.log.end >= COPY_BACK_BYTES):
            stream.flush_soon()

    def ended(self, reading: Reading) -> None:
        """The broadcast is over, and this reading has brought all of it."""
        stream = self._stream
        if stream is not None and (reading.epoch, reading.offset) == (stream.log.epoch, self._end):
            stream.flush()
            stream.end()

    def lost(self, reading: Reading, outcome: str) -> None:
        """A connection is gone."""
        if outcome != "stopped" and reading in self._readings:
            self._interruption.began(reading.upstream.shown, outcome)
        if self._stream is not None:
            self._stream.flush()
            self._catch_up_to = 0
            if reading in self._readings:
                self._stream.intakes.pop(reading.intake, None)
        self._readings.pop(reading, None)
        for other in self._readings:  # that read on
            self._interruption.ended(other.upstream.shown)
        for other in list(self._readings):
            if other.offset > self._end and not self._is_filled_by_another(other):
                other.give_up("ahead")  # it asks again, from where we are
        reading.factory.lost(outcome)
        self._show()

    def _is_filled_by_another(self, reading: Reading) -> bool:
        """Does another reading bring the bytes that come next?"""
        assert self._stream is not None
        epoch = self._stream.log.epoch
        others = (other for other in self._readings if other is not reading)
        return any(other.epoch == epoch and other.offset <= self._end for other in others)

    def _make_factory(self, members: list[Upstream], settings: ClientSettings) -> FailoverFactory:
        return FailoverFactory(
            members,
            self._build,
            settings.clock,
            Backoff(maximum=self._timings.retry),
            connect_seconds=self._timings.connect,
            on_wait=self._interruption.found_nobody,
        )

    def _build(self, upstream: Upstream) -> RtmpClientProtocol:
        return Reading(self._settings, self, upstream)

    def _show(self) -> None:
        if self._stream is not None:
            # One that is only asked, in the hope that it is back, is not read.
            read = [source for source in self.sources if source.is_usable] or self.sources
            self._hub.set_live(self._stream, self.is_upstream_live, "+".join(source.shown for source in read))

    def _begin(self, reading: Reading, told: ToldPosition) -> None:
        if told.start is None:
            raise RemoteProtocolError("another epoch begins without saying how")
        stream = self._stream
        log = self._maker.make(self.name, told.epoch, told.start, None if stream is None else stream.log)
        self.log.info(
            "{stream}: epoch {epoch} from {offset} at {upstream}",
            event="epoch",
            stream=str(self.name),
            epoch=told.epoch,
            offset=told.offset,
            upstream=reading.upstream.shown,
        )
        if stream is None:
            self._stream = self._hub.add(self.name, log)
        else:
            self._counts.epochs += 1
            self._left.append(stream.log.epoch)
            stream.succeed(log)
        self._end, self._catch_up_to = told.offset, told.end

    def _jump(self, reading: Reading, stream: LiveStream, told: ToldPosition) -> None:
        if told.start is None:
            raise RemoteProtocolError("a gap without saying what comes after it")
        missing = told.offset - self._end
        self._counts.bytes_missing += missing
        self._counts.gaps += 1
        self.log.warn(
            "{stream}: {missing} bytes are missing: {upstream} has nothing between {end} and {offset}",
            event="gap",
            stream=str(self.name),
            missing=missing,
            upstream=reading.upstream.shown,
            end=self._end,
            offset=told.offset,
        )
        stream.flush()
        stream.log.skip_to(told.start)
        self._end, self._catch_up_to = told.offset, told.end

    def _compare(self, reading: Reading, log: StreamLog, offset: int, message: MediaMessage) -> None:
        """The upstream repeats what we have: it must be the same."""
        if self._stream is not None and offset >= log.end:
            self._stream.flush()  # it was appended, and waits to be written
        try:
            log.check(offset, message)
        except LogDiverged as error:
            self._counts.diverged += 1
            self.log.error(
                "{stream}: {upstream} has other bytes than we have, nothing of it is copied: {error}",
                event="diverged",
                stream=str(self.name),
                upstream=reading.upstream.shown,
                error=str(error),
            )
            raise RemoteProtocolError("the log differs from ours") from None


def _epochs_before(log: StreamLog) -> Iterator[int]:
    """The epochs that a recovered log comes after, the latest first."""
    before = log.predecessor
    while before is not None:
        yield before.epoch
        before = before.predecessor
