"""The live streams of one node: who feeds them, who reads them, who waits for them.

Owns the map from names to streams and the rule by which a reader waits.  Does not know where bytes come from (ingest,
replication) or go to (protocols).  Called by everything in ``net`` that has to do with streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from relay.errors import LimitExceeded, RelayError
from relay.limits import Limits
from relay.log.log import StreamLog
from relay.names import StreamName
from relay.net.flushing import FlushQueue
from relay.net.intake import Intake
from relay.net.wakeup import Follower, Wakeup


class StreamNotFound(RelayError):
    """The stream did not come within the time that a reader waits."""


class Reader(Follower, Protocol):
    """What reads a stream: a viewer, a neighbour's copy, a forward."""

    @property
    def is_copy(self) -> bool:
        """Is it not somebody who watches?"""

    @property
    def sent_bytes(self) -> int:
        """So far."""

    def check(self, now: float, skip_seconds: float, close_seconds: float) -> None:
        """Once a second, unless it is in step: is it too slow?"""

    def dismiss(self) -> None:
        """The stream is forgotten here."""


class LiveStream:
    """One stream on this node: its log (of the present epoch), its readers, its state.

    ``is_live``: somebody feeds it now.  A stream that is not live keeps its log and its readers: its feed may come
    back.
    """

    def __init__(
        self, name: StreamName, log: StreamLog, clock: IReactorTime, merge_seconds: float, flushes: FlushQueue
    ) -> None:
        self.name = name
        self._flushes = flushes
        self.log = log
        self.wakeup: Wakeup[Reader] = Wakeup(clock, merge_seconds, self)
        self.intakes: dict[Intake, None] = {}  # that its bytes come from, if they may wait
        self.viewers: dict[Reader, None] = {}
        self.is_live = False
        self.source = ""  # who feeds it, in words, for people
        self.idle_since = clock.seconds()  # when it was last live, or came to be here
        self.bits_per_second = 0.0
        self.skips = 0
        self.on_flush: Callable[[LiveStream], None] | None = None
        self.sent_before = 0  # to readers that have gone, bytes
        self._metered = (0.0, 0)
        self._ahead: list[tuple[int, bool, Deferred[LiveStream]]] = []

    def __repr__(self) -> str:
        return f"<LiveStream {self.name} {'live' if self.is_live else 'idle'} end={self.log.end}>"

    @property
    def watching(self) -> int:
        """How many watch; neighbours' copies are not counted."""
        return sum(not viewer.is_copy for viewer in self.viewers)

    @property
    def sent_bytes(self) -> int:
        """To all readers that are and were here, copies included."""
        return self.sent_before + sum(viewer.sent_bytes for viewer in self.viewers)

    @property
    def is_joinable(self) -> bool:
        """Is there somewhere to start?  A broadcast that is over is as good as none: its last picture and its end."""
        return not self.log.is_finished and self.log.newest_join_point() is not None

    def add_viewer(self, viewer: Reader) -> None:
        """Wake ``viewer`` from now on; adding it again is harmless."""
        self.viewers[viewer] = None
        self.wakeup.add(viewer)

    def remove_viewer(self, viewer: Reader) -> None:
        """Wake it no more."""
        self.viewers.pop(viewer, None)
        self.wakeup.remove(viewer)

    def find_epoch(self, epoch: int) -> StreamLog | None:
        """The log of this epoch, if it is still here."""
        log: StreamLog | None = self.log
        while log is not None and log.epoch != epoch:
            log = log.predecessor
        return log

    def when_reached(self, offset: int, is_flv: bool = False) -> Deferred[LiveStream]:
        """Fires when the present log ends at ``offset`` or later, or is no longer the present one.

        May be cancelled.  ``is_flv``: it is an offset of the FLV rendition.
        """
        reached: Deferred[LiveStream] = Deferred(self._forget)
        self._ahead.append((offset, is_flv, reached))
        self.watch()
        return reached

    def flush_soon(self) -> None:
        """As :meth:`flush`, at once or a little later (:mod:`relay.net.flushing`): what follows a read."""
        self._flushes.add(self)

    def flush(self) -> None:
        """Write what was appended, then tell the readers (I5: in this order)."""
        if self.log.flush():
            self.wakeup.notify()
            if self._ahead:
                self._tell_ahead(self.log.end, self.log.flv_end)
            if self.on_flush is not None:
                self.on_flush(self)
            if self.wakeup.is_patient and not self._ahead:
                for intake in self.intakes:
                    intake.hold()

    def draw(self) -> None:
        """Take in what upstream has sent, and write it: readers are about to be woken (:mod:`relay.net.intake`)."""
        for intake in list(self.intakes):
            intake.draw()
        if self.intakes:
            self._flushes.hurry(self)

    def watch(self) -> None:
        """Take in what comes from now on as it comes."""
        for intake in self.intakes:
            intake.release()

    def succeed(self, log: StreamLog) -> None:
        """A new epoch goes on where the present one ends."""
        if self.log.successor is not log:
            self.log.finish(log)
        self.log = log
        self.wakeup.notify()
        self._tell_ahead(1 << 63, 1 << 63)

    def end(self) -> None:
        """The broadcast is over: readers are told when they have read everything."""
        self.log.finish(None)
        self.wakeup.notify()

    def _tell_ahead(self, end: int, flv_end: int) -> None:
        reached = [entry for entry in self._ahead if entry[0] <= (flv_end if entry[1] else end)]
        self._ahead = [entry for entry in self._ahead if entry not in reached]
        for _, _, deferred in reached:
            if not deferred.called:  # one that was told may have cancelled another
                deferred.callback(self)

    def _forget(self, cancelled: Deferred[LiveStream]) -> None:
        self._ahead = [entry for entry in self._ahead if entry[2] is not cancelled]

    def meter(self, now: float) -> None:
        """Once a second: measure the bit rate."""
        then, offset = self._metered
        if now > then > 0 and self.log.end >= offset:
            self.bits_per_second = 8 * (self.log.end - offset) / (now - then)
        self._metered = (now, self.log.end)

    def close(self) -> None:
        """Let go of everything; readers that are left are told to go."""
        self._flushes.discard(self)
        for viewer in list(self.viewers):
            viewer.dismiss()
        self.wakeup.close()
        self.log.close()


Observer = Callable[[str, LiveStream], None]
"""Told ("appeared" | "changed" | "disappeared", stream)."""


class Hub:
    """All streams of a node.

    Args:
        clock: the reactor.
        limits: how many streams; how long readers wait; how slow they may be.
        merge_seconds: longest time that wake-ups of a stream's readers are merged for.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, limits: Limits, merge_seconds: float = 0.1) -> None:
        self.clock = clock
        self.limits = limits
        self.merge_seconds = merge_seconds
        self._streams: dict[StreamName, LiveStream] = {}
        self._waiting: dict[StreamName, list[Deferred[LiveStream]]] = {}
        self._observers: list[Observer] = []
        self._copied_by: dict[StreamName, object] = {}
        self._flushes = FlushQueue(clock, lambda: len(self._streams))

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[LiveStream]:
        return iter(list(self._streams.values()))

    @property
    def waiting(self) -> int:
        """How many readers wait for a stream that is not there yet."""
        return sum(map(len, self._waiting.values()))

    def get(self, name: StreamName) -> LiveStream | None:
        """The stream, if it is known here."""
        return self._streams.get(name)

    def add(self, name: StreamName, log: StreamLog) -> LiveStream:
        """A stream begins to exist here.

        Raises:
            LimitExceeded: there are too many.
        """
        if len(self._streams) >= self.limits.streams:
            raise LimitExceeded("streams", self.limits.streams)
        stream = LiveStream(name, log, self.clock, self.merge_seconds, self._flushes)
        stream.on_flush = self._flushed
        self._streams[name] = stream
        self.tell("appeared", stream)
        self._flushed(stream)
        return stream

    def claim(self, name: StreamName, copier: object) -> bool:
        """May ``copier`` feed the stream?  One of all who see it upstream does, until it releases it."""
        return self._copied_by.setdefault(name, copier) is copier

    def release(self, name: StreamName) -> None:
        """Whoever sees the stream upstream may feed it now."""
        self._copied_by.pop(name, None)

    def remove(self, name: StreamName) -> None:
        """A stream is forgotten; its readers are let go."""
        stream = self._streams.pop(name, None)
        if stream is not None:
            self.tell("disappeared", stream)
            stream.close()

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of every change from now on."""
        self._observers.append(observer)

    def tell(self, event: str, stream: LiveStream) -> None:
        """Tell all observers."""
        for observer in list(self._observers):
            observer(event, stream)

    def set_live(self, stream: LiveStream, is_live: bool, source: str) -> None:
        """Somebody feeds the stream now, or nobody does."""
        stream.source = source
        if stream.is_live != is_live:
            stream.is_live = is_live
            stream.idle_since = self.clock.seconds()
            self.tell("changed", stream)

    def when_joinable(self, name: StreamName) -> Deferred[LiveStream]:
        """Fires when a reader can start, at once if it can now.

        Fails with :class:`StreamNotFound` after ``stream_wait_seconds``.  Cancel it when the reader goes.
        """
        stream = self._streams.get(name)
        waiting: Deferred[LiveStream] = Deferred(lambda deferred: self._forget(name, deferred))
        if stream is not None and stream.is_joinable:
            waiting.callback(stream)
            return waiting
        self._waiting.setdefault(name, []).append(waiting)
        timeout = self.clock.callLater(self.limits.stream_wait_seconds, self._give_up, name, waiting)

        def over(result: object) -> object:
            if timeout.active():
                timeout.cancel()
            return result

        return waiting.addBoth(over)

    def check(self) -> None:
        """Once a second: meter streams, look for slow readers."""
        now = self.clock.seconds()
        for stream in self:
            stream.meter(now)
            for viewer in stream.wakeup.alone():
                viewer.check(now, self.limits.viewer_skip_seconds, self.limits.viewer_close_seconds)

    def close(self) -> None:
        """Let go of everything; whoever waits is told that the stream is not there."""
        for name, waiting in list(self._waiting.items()):
            for deferred in list(waiting):
                self._give_up(name, deferred)
        self._flushes.close()
        for stream in self:
            stream.close()
        self._streams.clear()
        self._observers.clear()

    def _flushed(self, stream: LiveStream) -> None:
        if stream.name in self._waiting and stream.is_joinable:
            for deferred in self._waiting.pop(stream.name):
                if not deferred.called:  # one that was started may have cancelled another
                    deferred.callback(stream)

    def _forget(self, name: StreamName, deferred: Deferred[LiveStream]) -> None:
        waiting = self._waiting.get(name, [])
        if deferred in waiting:
            waiting.remove(deferred)
            if not waiting:
                del self._waiting[name]

    def _give_up(self, name: StreamName, deferred: Deferred[LiveStream]) -> None:
        self._forget(name, deferred)
        deferred.errback(StreamNotFound(f"no stream {name} here"))
