"""Going on with a session that another aggregator had: from the exact byte, without a word.

Owns one such connection.  The PROXY header says where to go on (:class:`relay.net.sessions.ResumePoint`); what the
viewer sends is thrown away, because its conversation was with somebody else.  A position that is not here, and does
not come soon, closes the connection: the balancer then looks further, or ends the session.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import LogError
from relay.limits import Limits
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.net.access import PLAY, Access, AccessRequest, Visits
from relay.net.sessions import ResumePoint, SessionFeed, leave
from relay.net.sockets import NOTSENT_LOWAT, tune, viewer_timeout_ms
from relay.net.streams import Hub, LiveStream
from relay.net.viewer import FlvForm, RtmpForm, Viewer

CATCH_UP_SECONDS = 5.0  # how far behind the other aggregator this one may be


class ResumingNode(Protocol):
    """What the protocol asks of the node that it serves."""

    hub: Hub
    limits: Limits
    clock: IReactorTime
    outcomes: Counter[str]
    access: Access


class ResumedProtocol(TwistedProtocol):
    """One resumed session."""

    log = Logger()
    transport: Any

    def __init__(self, node: ResumingNode, peer: str, point: ResumePoint, feed: SessionFeed | None = None) -> None:
        self.node = node
        self.peer = peer
        self.viewer: Viewer | None = None
        self.feed = feed
        self._point = point
        self._visits = Visits(node.access)
        self._waiting: Deferred[LiveStream] | None = None
        self._timer: IDelayedCall | None = None
        self._outcome = ""

    def connectionMade(self) -> None:
        tune(self.transport, viewer_timeout_ms(self.node.limits), NOTSENT_LOWAT)
        stream = self.node.hub.get(self._point.name)
        log = None if stream is None else stream.find_epoch(self._point.epoch)
        if stream is None or log is None:
            self._give_up("no such log")
            return
        if log is stream.log and self._end(log) < self._point.offset:
            is_flv = self._point.rendition == FlvForm.name
            self._waiting = stream.when_reached(self._point.offset, is_flv)
            self._waiting.addTimeout(CATCH_UP_SECONDS, self.node.clock)
            self._waiting.addCallbacks(lambda _: self._start(stream, log), self._too_late)
        else:
            self._start(stream, log)

    def dataReceived(self, data: bytes) -> None:
        """Answers and acknowledgements to the aggregator before: nobody waits for them."""

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (Twisted's signature)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._visits.leave_all()
        if self._waiting is not None:
            self._waiting.cancel()
        if self.viewer is not None:
            self.viewer.stop()
        self.node.outcomes[f"resumed_{self._outcome or 'peer_closed'}"] += 1

    def close(self, outcome: str) -> None:
        """The viewer's stream is over, or the viewer too slow."""
        if not self._outcome:
            self._outcome = outcome
            leave(self.transport, self.feed)
            self._timer = self.node.clock.callLater(self.node.limits.close_seconds, self.transport.abortConnection)

    def _end(self, log: StreamLog) -> int:
        return log.end if self._point.rendition == RtmpForm.name else log.flv_end

    def _start(self, stream: LiveStream, log: StreamLog) -> None:
        self._waiting = None
        is_rtmp = self._point.rendition == RtmpForm.name
        form = RtmpForm() if is_rtmp else FlvForm(has_begun=True)
        offset = self._point.offset
        start = LogStart(offset=offset) if is_rtmp else LogStart(flv_offset=offset)
        self.viewer = Viewer(stream, self.transport, form, self.close, self.node.clock.seconds(), self.feed)
        try:
            self.viewer.start_at(log, start)
        except (LogError, OSError) as error:
            self._give_up(str(error))
        else:
            request = AccessRequest(action=PLAY, name=self._point.name, peer=self.peer, is_resumed=True)
            self._visits.ask(0, request, lambda: None, lambda _: None, lambda: None)

    def _too_late(self, failure: Failure) -> None:
        self._waiting = None
        if failure.check(CancelledError) is None:
            failure.trap(TimeoutError)
            self._give_up(f"not here within {CATCH_UP_SECONDS:g} s")

    def _give_up(self, why: str) -> None:
        """Not exactly possible, so not at all."""
        point = self._point
        self.log.warn(
            "{peer}: can't go on with {stream} at epoch {epoch} {rendition} byte {offset}: {why}",
            event="not_resumed",
            peer=self.peer,
            stream=str(point.name),
            epoch=point.epoch,
            rendition=point.rendition,
            offset=point.offset,
            why=why,
        )
        self._outcome = "impossible"
        self.transport.abortConnection()
