"""The control connection between neighbours: which streams there are, and how the node is.

Owns what the serving node tells and answers; the asking end is :mod:`relay.net.links`.  Called by the RTMP server
protocol.

The asking (downstream) node dials and says ``relayHello [entry, …]``, what it has itself; from then on the serving
node tells, unasked:

    relayCatalogue   [entry, …]      every stream it has; first of all
    relayStream      entry           one has appeared, or changed
    relayGone        "app/name"      one has disappeared
    relayHealth      state, [why]    "normal" | "degraded" | "down"
    relayProgress    lines           how far streams are that have grown since the last one; not for balancers

The asking node may say ``relayEcho``, too: it is answered, and behind the answer nothing is on its way any more.

An entry is :class:`relay.net.catalogue.CatalogueEntry`.  The asking node pings; the session answers at once.  A peer
that is silent and leaves a ping unanswered for the dead time is dead, even if its socket is open (it was stopped, or
cut off).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.rendition import Rendition
from relay.names import StreamName
from relay.net.catalogue import CatalogueEntry, entry_of, place_of
from relay.net.positions import position_info, start_info
from relay.net.sessions import BalancerLost
from relay.net.streams import Hub, LiveStream
from relay.net.viewer import beginning_of
from relay.rtmp.events import CommandReceived, PlayRequested

if TYPE_CHECKING:
    from relay.net.rtmp_server import RtmpServerProtocol

PROGRESS_SECONDS = 0.25  # often within what a member may be behind; 1000 streams: 2 % of a core to tell, 3 % to hear
PROGRESS_STREAMS = 500  # in one command: 25 KB


class ReplicaForm:
    """The log's bytes for a neighbour that copies them: told where they are at each jump, never skipped for being
    slow."""

    name = "rtmp"
    may_skip = False
    is_kept_at_end = True

    def __init__(self, protocol: RtmpServerProtocol, message_stream_id: int) -> None:
        self._protocol = protocol
        self._message_stream_id = message_stream_id

    def rendition(self, log: StreamLog, start: LogStart) -> Rendition:
        return log.rtmp

    def offset_of(self, start: LogStart) -> int:
        return start.offset

    def landing(self, log: StreamLog, join: LogStart) -> bytes:
        return self._status("Relay.Position", start_info(log.epoch, join))

    crossing = landing

    def ending(self) -> bytes:
        return self._status("Relay.Ended", {})

    def _status(self, code: str, info: dict[str, Any]) -> bytes:
        session = self._protocol.session
        session.send_status(self._message_stream_id, "status", code, "", info)
        return session.data_to_send()


class ControlServer:
    """Tells neighbours what this node has, and serves their copies.

    Args:
        hub: the streams.

    ``on_ahead`` and ``on_report`` are set by the origin: a copy that is ahead of the log's writer has bytes that were
    lost here; what copies have tells an origin that lost its store how far media time had come.
    """

    log = Logger()

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._neighbours: dict[RtmpServerProtocol, None] = {}
        self._health: tuple[str, list[str]] = ("normal", [])
        self.on_ahead: Callable[[LiveStream, int], None] | None = None
        self.on_report: Callable[[CatalogueEntry], None] | None = None
        self._asked: dict[RtmpServerProtocol, dict[float, Deferred[None]]] = {}
        self._transaction_id = 0
        self._told: dict[StreamName, tuple[int, int]] = {}  # (epoch, end) that all neighbours know
        hub.observe(self._changed)

    @property
    def neighbours(self) -> list[str]:
        """Names of those connected."""
        return [protocol.peer_node.name for protocol in self._neighbours if protocol.peer_node is not None]

    def command(self, protocol: RtmpServerProtocol, event: CommandReceived) -> None:
        """A neighbour asks."""
        if event.name == "relayEcho":
            protocol.session.answer_command(event.transaction_id)
            return
        if event.name != "relayHello":
            protocol.session.refuse_command(event.transaction_id, f"unknown command {event.name[:64]}")
            return
        self._neighbours[protocol] = None
        if self.on_report is not None and event.values and isinstance(event.values[0], list):
            for value in event.values[0][: self._hub.limits.streams]:
                self.on_report(CatalogueEntry.from_wire(value))
        entries = [entry_of(stream).to_wire() for stream in self._hub]
        protocol.session.send_command("relayCatalogue", 0, entries)
        protocol.session.send_command("relayHealth", 0, self._health[0], self._health[1])

    def detach(self, protocol: RtmpServerProtocol) -> None:
        """A neighbour is gone; nobody waits for its answers any more."""
        self._neighbours.pop(protocol, None)
        for asked in self._asked.pop(protocol, {}).values():
            asked.errback(BalancerLost("the balancer's control connection is gone"))

    def tell_balancer(self, balancer: str, name: str, *values: Any) -> bool:
        """Say something of a session."""
        protocol = self._neighbour_called(balancer)
        if protocol is not None:
            protocol.session.send_command(name, 0, *values)
            protocol.flush()
        return protocol is not None

    def ask_balancer(self, balancer: str, name: str, *values: Any) -> Deferred[None] | None:
        """Say something of a session that must be answered."""
        protocol = self._neighbour_called(balancer)
        if protocol is None:
            return None
        self._transaction_id += 1
        asked: Deferred[None] = Deferred()
        self._asked.setdefault(protocol, {})[self._transaction_id] = asked
        protocol.session.send_command(name, self._transaction_id, *values)
        protocol.flush()
        return asked

    def answered(self, protocol: RtmpServerProtocol, transaction_id: float) -> None:
        """A neighbour answered, or somebody says so."""
        asked = self._asked.get(protocol, {}).pop(transaction_id, None)
        if asked is not None:
            asked.callback(None)

    def _neighbour_called(self, name: str) -> RtmpServerProtocol | None:
        """The newest connection of that neighbour: after a restart the former may still be open."""
        for protocol in reversed(self._neighbours):
            if protocol.peer_node is not None and protocol.peer_node.name == name:
                return protocol
        return None

    def set_health(self, state: str, why: list[str]) -> None:
        """How the node is; told when it changes."""
        if (state, why) != self._health:
            self._health = (state, why)
            self._tell("relayHealth", state, why)

    def tell_progress(self) -> None:
        """Say how far streams are; every ``PROGRESS_SECONDS``."""
        copiers = [protocol for protocol in self._neighbours if _may_copy(protocol)]
        if not copiers:
            return
        places: list[str] = []
        for stream in self._hub:
            at = (stream.log.epoch, stream.log.end)
            if self._told.get(stream.name) != at:
                self._told[stream.name] = at
                places.append(place_of(stream))
        for first in range(0, len(places), PROGRESS_STREAMS):
            for protocol in copiers:
                protocol.session.send_command("relayProgress", 0, "\n".join(places[first : first + PROGRESS_STREAMS]))
                protocol.flush()

    def replicate(
        self, protocol: RtmpServerProtocol, request: PlayRequested, name: StreamName, query: dict[str, str]
    ) -> None:
        """A neighbour copies a stream from a position on, or from wherever it can."""
        stream = self._hub.get(name)
        epoch, offset = _number(query.get("epoch")), _number(query.get("offset"))
        session = protocol.session
        time_ms = max(0, _number(query.get("time")))
        if self.on_report is not None and epoch > 0:
            self.on_report(CatalogueEntry(name=name, epoch=epoch, start=0, end=offset, time_ms=time_ms, is_live=False))
        if stream is None:
            session.refuse_play(request, "NetStream.Play.StreamNotFound", f"no stream {name} here")
            protocol.close("play_refused")
            return
        if self.on_ahead is not None and epoch == stream.log.epoch and offset > stream.log.end:
            self.on_ahead(stream, offset)
        log = stream.find_epoch(epoch)
        if log is not None and offset > log.end and log is stream.log:
            # It has read on at another node that is ahead of us: the bytes will come.
            protocol.wait_for(
                stream.when_reached(offset), lambda _: self._resume(protocol, request, stream, epoch, offset, time_ms)
            )
        else:
            self._resume(protocol, request, stream, epoch, offset, time_ms)

    def _resume(
        self,
        protocol: RtmpServerProtocol,
        request: PlayRequested,
        stream: LiveStream,
        epoch: int,
        offset: int,
        time_ms: int,
    ) -> None:
        """Exactly where it asked if that is here; the next epoch, if that one is over; else a little back."""
        form = ReplicaForm(protocol, request.message_stream_id)
        log = stream.find_epoch(epoch)
        if log is not None and log.start <= offset and (offset == log.end or log.rtmp.find(offset) is not None):
            protocol.session.accept_play(request, position_info(epoch, offset))
            protocol.start_replica(stream, form).start_at(log, LogStart(offset))
            return
        if log is not None and log.successor is not None and offset > log.end:
            log = log.successor
            start = beginning_of(log)
        else:
            log = stream.log
            start = log.copy_start()
            if 0 < epoch != log.epoch and start.time_ms <= time_ms:  # readers would see again what they saw in theirs
                start = log.newest_join_point() or log.end_point()
        protocol.session.accept_play(request, start_info(log.epoch, start, log.end))
        protocol.start_replica(stream, form).start_at(log, start)

    def _changed(self, event: str, stream: LiveStream) -> None:
        if event == "disappeared":
            self._told.pop(stream.name, None)
            self._tell("relayGone", str(stream.name))
        else:
            self._tell("relayStream", entry_of(stream).to_wire())

    def _tell(self, name: str, *values: Any) -> None:
        for protocol in list(self._neighbours):
            protocol.session.send_command(name, 0, *values)
            protocol.flush()


def _may_copy(protocol: RtmpServerProtocol) -> bool:
    return protocol.peer_node is not None and protocol.peer_node.tier != "balancer"


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 17 else -1
