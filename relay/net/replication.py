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

Then each message: the one that belongs at the log's end is appended, whichever reading brings it; one that the log has
is compared with it and dropped.  If they differ, the upstream contradicts itself or us: said loudly, counted, and
nothing more of it is written (I1).  So in merge the death of an upstream needs no detection at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from relay.errors import LogDiverged, RelayError, RemoteProtocolError
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.record import record_size
from relay.names import StreamName
from relay.net.failover import RETURN, FailoverFactory, Upstream
from relay.net.positions import ToldPosition, read_position
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.streams import Hub, LiveStream
from relay.rtmp.events import Event, MediaReceived, PlayStarted, StatusReceived, StreamEnded
from relay.rtmp.messages import MediaMessage


class LogMaker(Protocol):
    """Where a node keeps its logs: on disk or in memory."""

    def recover(self, name: StreamName) -> StreamLog | None:
        """The newest log of this stream that is there already."""

    def make(self, name: StreamName, epoch: int, start: LogStart, predecessor: StreamLog | None) -> StreamLog:
        """An empty log that begins at ``start``; ``predecessor`` is the epoch before, if we have it."""

    def forget(self, name: StreamName) -> None:
        """The stream is gone for good."""


class UpstreamBehind(RelayError):
    """An upstream is so far behind that nothing can be read from it now."""


class Counts:
    """What happened to the copies of a node, for metrics."""

    def __init__(self) -> None:
        self.bytes_copied = 0
        self.bytes_missing = 0
        self.gaps = 0
        self.epochs = 0
        self.diverged = 0
        self.failovers = 0


EPOCHS_REMEMBERED = 16  # that were left; a server that comes back with one of them is behind, not ahead


class ReadMode(Enum):
    """How many upstreams of a group are read at once."""

    ACTIVE_STANDBY = "active-standby"
    MERGE = "merge"


class Reading(RtmpClientProtocol):
    """One connection that plays the stream from a position on: its next message stands at ``(epoch, offset)``."""

    factory: FailoverFactory

    def __init__(self, settings: ClientSettings, replica: Replica, upstream: Upstream) -> None:
        super().__init__(settings, replica.name.app, f"rtmp://{upstream.name}/{replica.name.app}")
        self.upstream = upstream
        self.epoch = 0
        self.offset = 0
        self._replica = replica

    def created(self, message_stream_id: int) -> None:
        if self.peer_node is None:
            self.log.warn("{name} is no node of this cluster", name=self._tc_url)
            self.give_up("foreign")
            return
        self.session.play(message_stream_id, f"{self._replica.name.name}?{self._replica.query()}")

    def received(self, event: Event) -> None:
        if isinstance(event, MediaReceived):
            self._replica.copy(self, event.message)
        elif isinstance(event, PlayStarted):
            self.is_ready()
            self._moved(event.info)
        elif isinstance(event, StatusReceived):
            if event.code == "Relay.Position":
                self._moved(event.info)
            elif event.code == "Relay.Ended":
                self._replica.ended(self)
            elif event.level == "error":
                self.give_up(event.code)
        elif isinstance(event, StreamEnded):
            self.give_up("upstream_ended")

    def _moved(self, info: dict[str, object]) -> None:
        told = read_position(info)
        if told is None:
            raise RemoteProtocolError("no position in Play.Start")
        try:
            self._replica.moved(self, told)
        except UpstreamBehind as error:
            self.log.info("{stream}: {error}", stream=str(self._replica.name), error=str(error))
            self.give_up("behind")

    def read_done(self) -> None:
        self._replica.flush()

    def over(self, outcome: str) -> None:
        self._replica.lost(self, outcome)


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
    ) -> None:
        self.name = name
        self.is_upstream_live = False
        groups = [members] if mode is ReadMode.ACTIVE_STANDBY else [[member] for member in members]
        self.factories = [FailoverFactory(group, self._build, settings.clock) for group in groups]
        self._hub = hub
        self._maker = maker
        self._settings = settings
        self._counts = counts
        self._stream: LiveStream | None = None
        self._readings: dict[Reading, None] = {}
        self._left: deque[int] = deque(maxlen=EPOCHS_REMEMBERED)
        self._end = 0  # the log's, with what was appended since the last flush

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

    def leave(self, upstream: Upstream, why: str) -> None:
        """This upstream is known to be dead."""
        for factory in self.factories:
            if factory.current is upstream:
                factory.leave(why)

    def return_to(self, preferred: Upstream) -> bool:
        """Go back to the preferred upstream, if another is read in its place."""
        for factory in self.factories:
            if factory.current not in (None, preferred) and preferred in factory.members:
                factory.turn_to(preferred)
                return True
        return False

    # told by the readings

    def moved(self, reading: Reading, told: ToldPosition) -> None:
        """The bytes that follow stand there.

        Raises:
            RemoteProtocolError: they can't.
            UpstreamBehind: they are of an epoch that we have left behind.
        """
        stream = self._stream
        if told.epoch in self._left:
            raise UpstreamBehind(f"{reading.upstream.shown} is still in epoch {told.epoch}")
        if stream is None or stream.log.epoch != told.epoch:
            self._begin(reading, told)
        elif told.offset > self._end and not self._is_filled_by_another(reading):
            self._jump(reading, stream, told)
        reading.epoch, reading.offset = told.epoch, told.offset
        self._readings[reading] = None
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
        reading.factory.media_arrived()

    def flush(self) -> None:
        """A read is done."""
        if self._stream is not None:
            self._stream.flush()

    def ended(self, reading: Reading) -> None:
        """The broadcast is over, and this reading has brought all of it."""
        stream = self._stream
        if stream is not None and (reading.epoch, reading.offset) == (stream.log.epoch, self._end):
            stream.flush()
            stream.end()

    def lost(self, reading: Reading, outcome: str) -> None:
        """A connection is gone."""
        if outcome not in ("stopped", RETURN):
            self._counts.failovers += 1
            self.log.info(
                "{stream}: lost {upstream}: {outcome}",
                stream=str(self.name),
                upstream=reading.upstream.shown,
                outcome=outcome,
            )
        self.flush()
        self._readings.pop(reading, None)
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

    def _build(self, upstream: Upstream) -> RtmpClientProtocol:
        return Reading(self._settings, self, upstream)

    def _show(self) -> None:
        if self._stream is not None:
            self._hub.set_live(self._stream, self.is_upstream_live, "+".join(source.shown for source in self.sources))

    def _begin(self, reading: Reading, told: ToldPosition) -> None:
        if told.start is None:
            raise RemoteProtocolError("another epoch begins without saying how")
        stream = self._stream
        log = self._maker.make(self.name, told.epoch, told.start, None if stream is None else stream.log)
        self.log.info(
            "{stream}: epoch {epoch} from {offset} at {upstream}",
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
        self._end = told.offset

    def _jump(self, reading: Reading, stream: LiveStream, told: ToldPosition) -> None:
        if told.start is None:
            raise RemoteProtocolError("a gap without saying what comes after it")
        missing = told.offset - self._end
        self._counts.bytes_missing += missing
        self._counts.gaps += 1
        self.log.warn(
            "{stream}: {missing} bytes are missing: {upstream} has nothing between {end} and {offset}",
            stream=str(self.name),
            missing=missing,
            upstream=reading.upstream.shown,
            end=self._end,
            offset=told.offset,
        )
        stream.log.skip_to(told.start)
        self._end = told.offset

    def _compare(self, reading: Reading, log: StreamLog, offset: int, message: MediaMessage) -> None:
        """The upstream repeats what we have: it must be the same."""
        try:
            log.check(offset, message)
        except LogDiverged as error:
            self._counts.diverged += 1
            self.log.error(
                "{stream}: {upstream} has other bytes than we have, nothing of it is copied: {error}",
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
