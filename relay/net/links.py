"""The asking end of control connections: what a node knows of its neighbours upstream, and whether they live.

Owns the connection, its pings and what it has heard (:mod:`relay.net.control` says what is told).  Called by gatherers
and balancers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from relay.errors import RemoteProtocolError
from relay.names import StreamName
from relay.net.catalogue import CatalogueEntry, progressed
from relay.net.failover import Backoff, FailoverFactory, Upstream
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.timings import CONNECT_SECONDS, DEAD_SECONDS
from relay.rtmp.events import CommandAnswered, CommandReceived, Event

LinkState = Literal["up", "down", "foreign"]

SESSION_COMMANDS = ("relayCheckpoint", "relaySuspend", "relayOver")

APP = "relay"  # the application name of node-to-node connections that play nothing
GOOD_SECONDS = 5.0  # a link that has been up this long no longer counts as flapping
FOREIGN_SECONDS = 30.0  # until a server that is no node of ours is asked again whether it has become one


class _ControlProtocol(RtmpClientProtocol):
    """Our end of one control connection."""

    def __init__(self, settings: ClientSettings, link: ControlLink) -> None:
        super().__init__(settings, link.app, f"rtmp://{link.name}/{link.app}")
        self._link = link
        self._pings = LoopingCall(self._ping)
        self._pings.clock = settings.clock
        self._pinged_at: float | None = None
        self._looked_at = settings.clock.seconds()
        self._echoes: dict[float, Deferred[None]] = {}

    def accepted(self, properties: dict[str, Any]) -> None:
        self.is_ready()
        if self.peer_node is None:
            self._link.found_foreign()
            return
        self.session.send_command("relayHello", 0, [entry.to_wire() for entry in self._link.report()])
        self._link.connection = self
        self._link.up(self.peer_node.name)
        self._pings.start(self._link.dead_seconds / 3, now=False).addErrback(self._ping_failed)

    def received(self, event: Event) -> None:
        if isinstance(event, CommandAnswered):
            self._echoes.pop(event.transaction_id, Deferred[None]()).callback(None)
        elif isinstance(event, CommandReceived):
            noted = self._link.told(event)
            if not event.transaction_id:
                return
            if noted is None:
                self.session.answer_command(event.transaction_id)
            else:
                noted.addCallback(self._answer, event.transaction_id)

    def echo(self) -> Deferred[None]:
        """Fires when the neighbour has heard us, and what it has said before is here."""
        echo: Deferred[None] = Deferred()
        self._echoes[self.session.call("relayEcho")] = echo
        self.flush()
        return echo

    def _answer(self, _: object, transaction_id: float) -> None:
        self.session.answer_command(transaction_id)
        self.flush()

    def over(self, outcome: str) -> None:
        if self._pings.running:
            self._pings.stop()
        for echo in list(self._echoes.values()):
            echo.callback(None)
        self._echoes.clear()
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
        elif now - self._pinged_at >= self._link.dead_seconds * 5 / 6:  # at the third look: one that came a bit early
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
        on_session: called with what an aggregator says of a session (:mod:`relay.net.sessions`); what it returns, if
            anything, fires when that is noted, and only then it is answered.
        progressed: called with the link and the names of streams that it has told to have grown.
        connect_seconds: for an attempt.
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
        on_session: Callable[[ControlLink, str, list[Any]], Deferred[None] | None] = lambda link, name, values: None,
        app: str = APP,
        *,
        progressed: Callable[[ControlLink, list[StreamName]], None] = lambda link, names: None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self.name = name
        self.app = app
        self.report = report
        self.peer = ""  # what the neighbour calls itself
        self.connection: _ControlProtocol | None = None  # while it is up
        self._on_session = on_session
        self._ask_again: IDelayedCall | None = None
        self.dead_seconds = dead_seconds
        self.state: LinkState = "down"
        self.why = "not reached yet"
        self.since = settings.clock.seconds()
        self.catalogue: dict[StreamName, CatalogueEntry] = {}
        self.health: tuple[str, list[str]] = ("down", ["not reached yet"])
        self._settings = settings
        self._changed = changed
        self._progressed = progressed
        self._factory = FailoverFactory(
            [Upstream(name=name, endpoint=endpoint)],
            lambda _: _ControlProtocol(settings, self),
            settings.clock,
            Backoff(maximum=1.0),
            connect_seconds=connect_seconds,
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
        if self._ask_again is not None and self._ask_again.active():
            self._ask_again.cancel()
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
        self._ask_again = self._settings.clock.callLater(FOREIGN_SECONDS, self._factory.start)

    def down(self, outcome: str) -> None:
        """The connection is over."""
        self.connection = None
        if self.state == "up" and self._settings.clock.seconds() - self.since > GOOD_SECONDS:
            self._factory.media_arrived()
        if self.state != "foreign":
            self.health = ("down", [outcome])
            self._set("down", outcome)
        self._factory.lost(outcome)

    @property
    def is_heard(self) -> bool:
        """Has the neighbour heard our hello, or is there nothing that it could hear?"""
        return self.state == "foreign" or (self.state == "up" and self.health[0] != "unknown")

    def when_heard_all(self) -> Deferred[None]:
        """Fires when all is here that the neighbour has said up to a moment from now on, or the connection is lost."""
        return succeed(None) if self.connection is None else self.connection.echo()

    def told(self, event: CommandReceived) -> Deferred[None] | None:
        """The neighbour told something; it is answered when what this returns fires, or at once.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        values = event.values
        if event.name in SESSION_COMMANDS:
            return self._on_session(self, event.name, values)
        if event.name == "relayProgress":
            self._note_progress(values)
            return None
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
            return None
        self._changed(self)
        return None

    def _note_progress(self, values: list[Any]) -> None:
        """Streams have grown.  That is heard often, and is no change of what there is."""
        if not values or not isinstance(values[0], str):
            raise RemoteProtocolError("progress without places")
        places = values[0].split("\n")
        grown = [entry for place in places if (entry := progressed(place, self.catalogue)) is not None]
        self.catalogue.update((entry.name, entry) for entry in grown)
        self._progressed(self, [entry.name for entry in grown])

    def _set(self, state: LinkState, why: str) -> None:
        if (state, why) != (self.state, self.why):
            level = "info" if state != "down" else "warn"
            getattr(self.log, level)(
                "{name} is {state}{why}", name=self.shown, state=state, why=f" ({why})" if why else ""
            )
        self.state, self.why = state, why
        self.since = self._settings.clock.seconds()
        self._changed(self)
