"""Forwarding: copies of live streams, pushed to other RTMP servers.

Owns which stream goes where, one :class:`Forward` for each, and what is known of it.  The connection is
:mod:`relay.net.forward_connection`'s.  Called by the origin and the distributor.

    waiting ──live──> connecting ──accepted──> sending ──lost──> connecting (waits longer each time)
       ^                  │ refused: as lost                         │
       └──────────────────┴────────── the broadcast is over ─────────┘

What was wrong with a target is forgotten when it has taken the stream for a while, not when it accepts: one that
accepts and hangs up is asked less often each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from relay.names import StreamName
from relay.net.failover import Backoff, FailoverFactory, Upstream
from relay.net.forward_connection import ENDED, ForwardConnection, ForwardOwner
from relay.net.forward_rules import ForwardRule
from relay.net.rtmp_client import ClientSettings
from relay.net.streams import Hub, LiveStream
from relay.net.urls import RtmpUrl

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0
GOOD_SECONDS = 10.0  # of sending, after which what was before does not count


class Forward(ForwardOwner):
    """One stream to one target.

    Args:
        stream: of this node.
        url: the target's; never shown but for its server.
        settings: for connections, without an identity: the target is no node of ours.
    """

    log = Logger()

    def __init__(self, stream: LiveStream, url: RtmpUrl, settings: ClientSettings) -> None:
        self.stream = stream
        self.target = url.server
        self.why = ""
        self.reconnects = 0
        self.connection: ForwardConnection | None = None
        self._url = url
        self._settings = settings
        self._is_sending = False
        self._is_refused = False  # by the present connection
        self._began_at = 0.0
        self._since = settings.clock.seconds()
        self._sent_before = 0
        self._skips_before = 0
        backoff = Backoff(initial=FIRST_RETRY_SECONDS, maximum=LAST_RETRY_SECONDS)
        upstream = Upstream(name=url.server, endpoint=url.endpoint(settings.clock))
        self.factory = FailoverFactory([upstream], self._build, settings.clock, backoff)
        self._upstream = upstream

    @property
    def is_sending(self) -> bool:
        """Does the target take the stream?"""
        return self._is_sending

    @property
    def seconds(self) -> float:
        """Since it is in this state."""
        return self._settings.clock.seconds() - self._since

    @property
    def problem(self) -> str:
        """Why it does not send; empty while it does."""
        return "" if self._is_sending else self.why or self.factory.complaint(self._upstream)

    @property
    def sent_bytes(self) -> int:
        """Of all its connections."""
        return self._sent_before + (0 if self.connection is None else self.connection.sent_bytes)

    @property
    def skips(self) -> int:
        """Times that it was so far behind that media were left out."""
        return self._skips_before + (0 if self.connection is None else self.connection.skips)

    @property
    def lag_ms(self) -> int:
        """Media time that is here and not sent."""
        return self.connection.behind_ms if self._is_sending and self.connection is not None else 0

    def start(self) -> None:
        """Connect, again and again."""
        self.factory.start()

    def stop(self) -> Deferred[None]:
        """The broadcast is over, or the node stops: say so to the target; fires when the connection is gone."""
        done = self.factory.finish()
        if self.connection is not None:
            if self._is_sending:
                self.connection.finish()
            else:
                self.connection.give_up(ENDED)
        return done

    def check(self) -> None:
        """Once a second."""
        if self._is_sending and self._settings.clock.seconds() - self._began_at > GOOD_SECONDS:
            self.factory.media_arrived()

    # told by the connection

    def began(self) -> None:
        self._is_sending = True
        self.why = ""
        self._began_at = self._since = self._settings.clock.seconds()
        self._say("forwarded to {target}")

    def refused(self, why: str) -> None:
        self._is_refused = True
        self._complain("{target} refuses it: {why}", why)

    def ended(self, outcome: str, why: str) -> None:
        if self.connection is not None:
            self._sent_before += self.connection.sent_bytes
            self._skips_before += self.connection.skips
            self.connection = None
        if self._is_sending:
            self._is_sending = False
            self._since = self._settings.clock.seconds()
            if outcome == ENDED:
                self._say("no longer forwarded to {target}: the broadcast is over")
            else:
                self.why = why
                self.reconnects += 1
                self._say("the connection to {target} is lost ({why}); it is tried again", is_bad=True, why=self.why)
        elif outcome != ENDED and not self._is_refused:
            self._complain("{target} does not take it: {why}", why)
        self._is_refused = False
        self.factory.lost(outcome)

    def _complain(self, words: str, why: str) -> None:
        """Once for as long as it goes on."""
        if why != self.why:
            self._say(words, is_bad=True, why=why)
        self.why = why

    def _build(self, _: Upstream) -> ForwardConnection:
        self.connection = ForwardConnection(self._settings, self.stream, self._url, self)
        return self.connection

    def _say(self, words: str, *, is_bad: bool = False, why: str = "") -> None:
        say = self.log.warn if is_bad else self.log.info
        say("{stream}: " + words, event="forward", stream=str(self.stream.name), target=self.target, why=why)


class Forwarder:
    """All forwards of one node.

    Args:
        rules: which streams go where.
        hub: of the node.
        settings: for connections; their identity is not used.
    """

    log = Logger()

    def __init__(self, rules: Sequence[ForwardRule], hub: Hub, settings: ClientSettings) -> None:
        self._rules = rules
        self._hub = hub
        self._settings = ClientSettings(limits=settings.limits, clock=settings.clock, identity=None)
        self._forwards: dict[tuple[StreamName, int], Forward] = {}
        self._refused: set[tuple[StreamName, int]] = set()
        self._ending: list[Deferred[Any]] = []
        if rules:
            hub.observe(self._changed)

    def __iter__(self) -> Iterator[Forward]:
        return iter(list(self._forwards.values()))

    def check(self) -> None:
        """Once a second: begin what can be begun, end what is over."""
        if self._rules:
            for stream in self._hub:
                self._look_at(stream)
        for forward in self:
            forward.check()

    def stop(self) -> Deferred[Any]:
        """End all; fires when no connection is left."""
        self._rules = ()
        ends = [forward.stop() for forward in self]
        self._forwards.clear()
        return DeferredList([*ends, *self._ending], consumeErrors=True)

    def _changed(self, event: str, stream: LiveStream) -> None:
        if event == "disappeared":
            self._end(stream)
        else:
            self._look_at(stream)

    def _look_at(self, stream: LiveStream) -> None:
        if stream.log.is_finished and stream.log.successor is None:
            self._end(stream)
        elif stream.is_joinable and stream.is_live:
            for number, rule in enumerate(self._rules):
                if (stream.name, number) not in self._forwards and rule.matches(stream.name):
                    self._begin(stream, number, rule)

    def _begin(self, stream: LiveStream, number: int, rule: ForwardRule) -> None:
        key = (stream.name, number)
        limit = self._settings.limits.forwards
        if len(self._forwards) >= limit:
            if key not in self._refused:
                self._refused.add(key)
                self.log.error(
                    "{stream} is not forwarded to {target}: {limit:g} connections are the limit (--limit forwards)",
                    event="forward",
                    stream=str(stream.name),
                    target=rule.url.server,
                    limit=limit,
                )
            return
        self._refused.discard(key)
        self._forwards[key] = Forward(stream, rule.url_of(stream.name), self._settings)
        self._forwards[key].start()

    def _end(self, stream: LiveStream) -> None:
        for key in [key for key, forward in self._forwards.items() if forward.stream is stream]:
            ending = self._forwards.pop(key).stop()
            self._ending.append(ending)
            ending.addBoth(self._ended, ending)

    def _ended(self, _: object, ending: Deferred[None]) -> None:
        self._ending.remove(ending)
