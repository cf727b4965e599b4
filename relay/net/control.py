"""The control connection between neighbours: which streams there are, and how the node is.

Owns what the serving node tells (:class:`ControlServer`) and what the asking node knows (:class:`ControlLink`).
Called by the RTMP server protocol on one side, by gatherers and balancers on the other.

The asking (downstream) node dials and says ``relayHello [entry, …]``, what it has itself; from then on the serving
node tells, unasked:

    relayCatalogue   [entry, …]      every stream it has; first of all
    relayStream      entry           one has appeared, or changed
    relayGone        "app/name"      one has disappeared
    relayHealth      state, [why]    "normal" | "degraded" | "down"

entry = {name, epoch, start, end, time, live}.  The asking node pings; the session answers at once.  A peer that is
silent and leaves a ping unanswered for the dead time is dead, even if its socket is open (it was stopped, or cut
off).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import NameRefused, RemoteProtocolError
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.rendition import Rendition
from relay.names import StreamName
from relay.net.failover import Backoff, FailoverFactory, Upstream
from relay.net.positions import position_info, start_info
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.sessions import BalancerLost
from relay.net.streams import Hub, LiveStream
from relay.net.viewer import beginning_of
from relay.rtmp.events import CommandReceived, Event, PlayRequested

if TYPE_CHECKING:
    from relay.net.rtmp_server import RtmpServerProtocol

LinkState = Literal["up", "down", "foreign"]

SESSION_COMMANDS = ("relayCheckpoint", "relaySuspend", "relayOver")

APP = "relay"  # the application name of node-to-node connections that play nothing
DEAD_SECONDS = 0.6  # silence with a ping unanswered; a stopped process is found in this time
GOOD_SECONDS = 5.0  # a link that has been up this long no longer counts as flapping


@attrs.frozen(kw_only=True)
class CatalogueEntry:
    """One stream of a neighbour, as it was when it told."""

    name: StreamName
    epoch: int
    start: int
    end: int
    time_ms: int
    is_live: bool

    def to_wire(self) -> dict[str, Any]:
        """AMF0 object."""
        return {
            "name": str(self.name),
            "epoch": float(self.epoch),
            "start": float(self.start),
            "end": float(self.end),
            "time": float(self.time_ms),
            "live": self.is_live,
        }

    @classmethod
    def from_wire(cls, value: Any) -> CatalogueEntry:
        """Raises :class:`RemoteProtocolError` if it is no entry."""
        try:
            return cls(
                name=StreamName.parse(value["name"]),
                epoch=int(value["epoch"]),
                start=int(value["start"]),
                end=int(value["end"]),
                time_ms=int(value["time"]),
                is_live=bool(value["live"]),
            )
        except (NameRefused, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RemoteProtocolError(f"not a catalogue entry: {error}") from None


def entry_of(stream: LiveStream) -> CatalogueEntry:
    """What is told of a stream."""
    log = stream.log
    return CatalogueEntry(
        name=stream.name,
        epoch=log.epoch,
        start=log.start,
        end=log.end,
        time_ms=log.end_time_ms,
        is_live=stream.is_live,
    )


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
        hub.observe(self._changed)

    @property
    def neighbours(self) -> list[str]:
        """Names of those connected."""
        return [protocol.peer_node.name for protocol in self._neighbours if protocol.peer_node is not None]

    def command(self, protocol: RtmpServerProtocol, event: CommandReceived) -> None:
        """A neighbour asks."""
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

    def replicate(
        self, protocol: RtmpServerProtocol, request: PlayRequested, name: StreamName, query: dict[str, str]
    ) -> None:
        """A neighbour copies a stream from a position on, or from wherever it can."""
        stream = self._hub.get(name)
        epoch, offset = _number(query.get("epoch")), _number(query.get("offset"))
        session = protocol.session
        if self.on_report is not None and epoch > 0:
            time_ms = max(0, _number(query.get("time")))
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
                stream.when_reached(offset), lambda _: self._resume(protocol, request, stream, epoch, offset)
            )
        else:
            self._resume(protocol, request, stream, epoch, offset)

    def _resume(
        self, protocol: RtmpServerProtocol, request: PlayRequested, stream: LiveStream, epoch: int, offset: int
    ) -> None:
        """Exactly where it asked if that is here; the next epoch, if that one is over; else the newest join point."""
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
            start = log.newest_join_point() or log.end_point()
        protocol.session.accept_play(request, start_info(log.epoch, start))
        protocol.start_replica(stream, form).start_at(log, start)

    def _changed(self, event: str, stream: LiveStream) -> None:
        if event == "disappeared":
            self._tell("relayGone", str(stream.name))
        else:
            self._tell("relayStream", entry_of(stream).to_wire())

    def _tell(self, name: str, *values: Any) -> None:
        for protocol in list(self._neighbours):
            protocol.session.send_command(name, 0, *values)
            protocol.flush()


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 17 else -1


class _ControlProtocol(RtmpClientProtocol):
    """Our end of one control connection."""

    def __init__(self, settings: ClientSettings, link: ControlLink) -> None:
        super().__init__(settings, link.app, f"rtmp://{link.name}/{link.app}")
        self._link = link
        self._pings = LoopingCall(self._ping)
        self._pings.clock = settings.clock
        self._pinged_at: float | None = None
        self._looked_at = settings.clock.seconds()

    def accepted(self, properties: dict[str, Any]) -> None:
        self.is_ready()
        if self.peer_node is None:
            self._link.found_foreign()
            return
        self.session.send_command("relayHello", 0, [entry.to_wire() for entry in self._link.report()])
        self._link.up(self.peer_node.name)
        self._pings.start(self._link.dead_seconds / 3, now=False).addErrback(self._ping_failed)

    def received(self, event: Event) -> None:
        if isinstance(event, CommandReceived):
            self._link.told(event)
            if event.transaction_id:
                self.session.answer_command(event.transaction_id)

    def over(self, outcome: str) -> None:
        if self._pings.running:
            self._pings.stop()
        self._link.down(outcome)

    def _ping(self) -> None:
        now = self.settings.clock.seconds()
        has_stood_still = now - self._looked_at > self._link.dead_seconds * 2 / 3
        self._looked_at = now
        if self._pinged_at is not None and (has_stood_still or self.heard_at >= self._pinged_at):
            self._pinged_at = None  # it has said something since; or we were not there to hear it
        if self._pinged_at is None:
            self._pinged_at = now
            self.session.send_ping(int(now * 1000) & 0xFFFFFFFF)
            self.flush()
        elif now - self._pinged_at >= self._link.dead_seconds:
            self.give_up("dead")

    def _ping_failed(self, failure: Failure) -> None:
        self.log.failure("pinging a neighbour", failure)
        self.give_up("internal_error")


class ControlLink:
    """What we know of one neighbour upstream, and the connection that tells us.

    ``state``: "down" (no connection), "up", or "foreign" (a plain RTMP server: it has no catalogue and no positions).

    Args:
        name: what the operator calls the neighbour.
        endpoint: where it is.
        settings: who we are.
        changed: called with the link after each change of what it knows.
        report: what we have ourselves, told at each hello.
        on_session: called with what an aggregator says of a session (:mod:`relay.net.sessions`).
        app: what is connected to.  Nodes don't care; a plain RTMP server hangs up if it does not know it.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        settings: ClientSettings,
        changed: Callable[[ControlLink], None],
        dead_seconds: float = DEAD_SECONDS,
        report: Callable[[], list[CatalogueEntry]] = list,
        on_session: Callable[[ControlLink, str, list[Any]], None] = lambda link, name, values: None,
        app: str = APP,
    ) -> None:
        self.name = name
        self.app = app
        self.report = report
        self.peer = ""  # what the neighbour calls itself
        self._on_session = on_session
        self.dead_seconds = dead_seconds
        self.state: LinkState = "down"
        self.why = "not reached yet"
        self.since = settings.clock.seconds()
        self.catalogue: dict[StreamName, CatalogueEntry] = {}
        self.health: tuple[str, list[str]] = ("down", ["not reached yet"])
        self._settings = settings
        self._changed = changed
        self._factory = FailoverFactory(
            [Upstream(name=name, endpoint=endpoint)],
            lambda _: _ControlProtocol(settings, self),
            settings.clock,
            Backoff(maximum=1.0),
        )

    @property
    def shown(self) -> str:
        """For people."""
        return self.peer or self.name

    def start(self) -> None:
        """Connect, and stay connected."""
        self._factory.start()

    def stop(self) -> Deferred[None]:
        """Let go."""
        return self._factory.stop()

    # told by the protocol

    def up(self, peer: str) -> None:
        """The neighbour is one of ours, called ``peer``; how it is, it says next."""
        self.peer = peer
        self.health = ("unknown", [])
        self._set("up", "")

    def found_foreign(self) -> None:
        """It speaks RTMP, but is no node of ours.  We leave it alone: such servers dislike idle connections."""
        self._set("foreign", "a plain RTMP server")
        self._factory.stop()

    def down(self, outcome: str) -> None:
        """The connection is over."""
        if self.state == "up" and self._settings.clock.seconds() - self.since > GOOD_SECONDS:
            self._factory.media_arrived()
        if self.state != "foreign":
            self.health = ("down", [outcome])
            self._set("down", outcome)
        self._factory.lost(outcome)

    def told(self, event: CommandReceived) -> None:
        """The neighbour told something.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        values = event.values
        if event.name in SESSION_COMMANDS:
            self._on_session(self, event.name, values)
            return
        if event.name == "relayCatalogue" and values and isinstance(values[0], list):
            entries = [CatalogueEntry.from_wire(value) for value in values[0]]
            self.catalogue = {entry.name: entry for entry in entries[: self._settings.limits.streams]}
        elif event.name == "relayStream" and values:
            entry = CatalogueEntry.from_wire(values[0])
            if entry.name in self.catalogue or len(self.catalogue) < self._settings.limits.streams:
                self.catalogue[entry.name] = entry
        elif event.name == "relayGone" and values and isinstance(values[0], str):
            self.catalogue.pop(StreamName.parse(values[0]), None)
        elif event.name == "relayHealth" and len(values) >= 2 and isinstance(values[1], list):
            self.health = (str(values[0])[:32], [str(why)[:256] for why in values[1][:16]])
        else:
            return
        self._changed(self)

    def _set(self, state: LinkState, why: str) -> None:
        if (state, why) != (self.state, self.why):
            level = "info" if state != "down" else "warn"
            getattr(self.log, level)(
                "{name} is {state}{why}", name=self.shown, state=state, why=f" ({why})" if why else ""
            )
        self.state, self.why = state, why
        self.since = self._settings.clock.seconds()
        self._changed(self)
