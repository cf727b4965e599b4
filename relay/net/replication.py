"""Copying a stream from the next tier up, byte for byte.

Owns one stream's copy: where it goes on, what a gap or another epoch means, whether the bytes may be trusted.  Which
upstream is asked is :mod:`relay.net.failover`'s business; which streams are copied is :mod:`relay.net.gathering`'s.

Theory.  The copy always asks for its log's end (epoch, offset).  What the upstream says decides:

    this epoch, this offset     go on
    this epoch, further on      the bytes between are gone everywhere we look: a gap, counted, readers jump over it
    this epoch, further back    the upstream can't go on from where we are.  It repeats bytes; they are compared
                                with ours and dropped.  If they differ, the upstream contradicts itself or us: said
                                loudly, counted, and nothing of it is written (I1)
    an epoch that we have left  the upstream is behind us: another is asked, or this one again later
    another epoch               the log begins again there; readers of the old one cross over when they have read it
    no position                 not one of our nodes: this copy can't be made (pull such servers instead)
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from relay.errors import LogDiverged, RelayError, RemoteProtocolError
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.record import record_size
from relay.names import StreamName
from relay.net.failover import FailoverFactory, Upstream
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


class _ReplicaProtocol(RtmpClientProtocol):
    """One connection that plays the stream from a position on."""

    def __init__(self, settings: ClientSettings, replica: Replica, upstream: Upstream) -> None:
        super().__init__(settings, replica.name.app, f"rtmp://{upstream.name}/{replica.name.app}")
        self._replica = replica

    def created(self, message_stream_id: int) -> None:
        if self.peer_node is None:
            self.log.warn("{name} is no node of this cluster", name=self._tc_url)
            self.give_up("foreign")
            return
        epoch, offset = self._replica.position()
        self.session.play(message_stream_id, f"{self._replica.name.name}?epoch={epoch}&offset={offset}")

    def received(self, event: Event) -> None:
        if isinstance(event, MediaReceived):
            self._replica.copy(event.message)
        elif isinstance(event, PlayStarted):
            self.is_ready()
            self._moved(event.info)
        elif isinstance(event, StatusReceived):
            if event.code == "Relay.Position":
                self._moved(event.info)
            elif event.code == "Relay.Ended":
                self._replica.ended()
            elif event.level == "error":
                self.give_up(event.code)
        elif isinstance(event, StreamEnded):
            self.give_up("upstream_ended")

    def _moved(self, info: dict[str, object]) -> None:
        told = read_position(info)
        if told is None:
            raise RemoteProtocolError("no position in Play.Start")
        try:
            self._replica.moved(told)
        except UpstreamBehind as error:
            self.log.info("{stream}: {error}", stream=str(self._replica.name), error=str(error))
            self.give_up("behind")

    def read_done(self) -> None:
        self._replica.flush()

    def over(self, outcome: str) -> None:
        self._replica.lost(outcome)


class Replica:
    """The copy of one stream.

    Args:
        name: of the stream.
        hub: where it is shown.
        maker: where the log is kept.
        members: the upstreams, in order of preference.
        settings: who we are.
        counts: of the node.
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
    ) -> None:
        self.name = name
        self.factory = FailoverFactory(members, self._build, settings.clock)
        self.is_upstream_live = False
        self._hub = hub
        self._maker = maker
        self._settings = settings
        self._counts = counts
        self._stream: LiveStream | None = None
        self._repeated_until = 0
        self._repeat_offset = 0

    def start(self) -> None:
        """Begin, from what is stored if there is anything."""
        log = self._maker.recover(self.name)
        if log is not None:
            self._stream = self._hub.add(self.name, log)
        self.factory.start()

    def stop(self) -> Deferred[None]:
        """End; the stream stays as it is."""
        return self.factory.stop()

    def position(self) -> tuple[int, int]:
        """(epoch, offset) to go on from; (0, 0) if there is nothing yet."""
        return (0, 0) if self._stream is None else (self._stream.log.epoch, self._stream.log.end)

    def set_live(self, is_live: bool) -> None:
        """The upstream says whether somebody publishes."""
        self.is_upstream_live = is_live
        self._show()

    # told by the protocol

    def moved(self, told: ToldPosition) -> None:
        """The bytes that follow stand there.

        Raises:
            RemoteProtocolError: they can't.
            UpstreamBehind: they are of an epoch that we have left behind.
        """
        stream = self._stream
        self._repeated_until = 0
        if stream is not None and stream.log.epoch != told.epoch and stream.find_epoch(told.epoch) is not None:
            raise UpstreamBehind(f"{self._from} is still in epoch {told.epoch}")
        if stream is None or stream.log.epoch != told.epoch:
            self._begin(told)
        elif told.offset > stream.log.end:
            self._jump(stream, told)
        elif told.offset < stream.log.end:
            self._repeat_offset, self._repeated_until = told.offset, stream.log.end
        self._show()

    def copy(self, message: MediaMessage) -> None:
        """One message of the log."""
        assert self._stream is not None
        log = self._stream.log
        if self._repeated_until:
            self._compare(log, message)
            return
        log.reopen()
        log.append(message)
        self._counts.bytes_copied += record_size(message)
        self.factory.media_arrived()

    def flush(self) -> None:
        """A read is done."""
        if self._stream is not None:
            self._stream.flush()

    def ended(self) -> None:
        """The broadcast is over, and we have all of it."""
        if self._stream is not None:
            self._stream.flush()
            self._stream.end()

    def lost(self, outcome: str) -> None:
        """The connection is gone."""
        if outcome not in ("stopped", "return_to_preferred"):
            self._counts.failovers += 1
            self.log.info(
                "{stream}: lost {upstream}: {outcome}", stream=str(self.name), upstream=self._from, outcome=outcome
            )
        self.flush()
        self.factory.lost(outcome)
        self._show()

    @property
    def _from(self) -> str:
        current = self.factory.current
        return "nobody" if current is None else current.name

    def _build(self, upstream: Upstream) -> RtmpClientProtocol:
        return _ReplicaProtocol(self._settings, self, upstream)

    def _show(self) -> None:
        if self._stream is not None:
            current = self.factory.current
            self._hub.set_live(self._stream, self.is_upstream_live, "" if current is None else current.name)

    def _begin(self, told: ToldPosition) -> None:
        if told.start is None:
            raise RemoteProtocolError("another epoch begins without saying how")
        stream = self._stream
        log = self._maker.make(self.name, told.epoch, told.start, None if stream is None else stream.log)
        self.log.info(
            "{stream}: epoch {epoch} from {offset} at {upstream}",
            stream=str(self.name),
            epoch=told.epoch,
            offset=told.offset,
            upstream=self._from,
        )
        if stream is None:
            self._stream = self._hub.add(self.name, log)
        else:
            self._counts.epochs += 1
            stream.succeed(log)

    def _jump(self, stream: LiveStream, told: ToldPosition) -> None:
        if told.start is None:
            raise RemoteProtocolError("a gap without saying what comes after it")
        missing = told.offset - stream.log.end
        self._counts.bytes_missing += missing
        self._counts.gaps += 1
        self.log.warn(
            "{stream}: {missing} bytes are missing: {upstream} has nothing between {end} and {offset}",
            stream=str(self.name),
            missing=missing,
            upstream=self._from,
            end=stream.log.end,
            offset=told.offset,
        )
        stream.log.skip_to(told.start)

    def _compare(self, log: StreamLog, message: MediaMessage) -> None:
        """The upstream repeats what we have: it must be the same."""
        try:
            self._repeat_offset = log.check(self._repeat_offset, message)
        except LogDiverged as error:
            self._counts.diverged += 1
            self.log.error(
                "{stream}: {upstream} has other bytes than we have, nothing of it is copied: {error}",
                stream=str(self.name),
                upstream=self._from,
                error=str(error),
            )
            raise RemoteProtocolError("the log differs from ours") from None
        if self._repeat_offset >= self._repeated_until:
            self._repeated_until = 0
