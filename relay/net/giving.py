"""The process that hands its sockets over: the giver's side of the conversation.

Owns who may take over, what rests meanwhile, and the way back.  The order of things, and why, is in
:mod:`relay.net.handover`; the socket where successors knock is :mod:`relay.net.door`.  Called by
:mod:`relay.net.succession`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from relay.net.balancing import BalancerFactory
from relay.net.handover import (
    GREETING_SECONDS,
    HALT_SECONDS,
    HALT_SECONDS_A_VIEWER,
    PREPARE_SECONDS,
    VERSION,
    Batches,
    Frame,
    FrameProtocol,
    HandoverFailed,
    peer_credentials,
)
from relay.net.links import ControlLink
from relay.net.ports import Ports
from relay.net.viewer_state import ViewerState

VIEWERS_AT_ONCE = 16  # told between two looks at the other sockets: those who stay are served meanwhile


class Stage(Enum):
    """How far a conversation is."""

    NEW = auto()
    GREETED = auto()
    BARRED = auto()
    HALTED = auto()
    GIVEN = auto()
    OVER = auto()


class Giver:
    """What a process has to give, and to whom it gives it.

    Args:
        reactor: the real one.
        name: of the balancer.
        factory, links, ports: all that is given, or heard through.
        given: called with the number of viewers when another process has them.
        is_allowed: may the process of this user take over?
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        factory: BalancerFactory,
        links: Sequence[ControlLink],
        ports: Ports,
        given: Callable[[int], None],
        is_allowed: Callable[[int], bool] = lambda uid: uid in (0, os.geteuid()),
    ) -> None:
        self.reactor = reactor
        self.name = name
        self.factory = factory
        self.links = links
        self.ports = ports
        self.is_allowed = is_allowed
        self.current: Giving | None = None
        self.is_given = False
        self._given = given
        self._kept: list[tuple[str, str, list[Any], Deferred[None]]] | None = None
        self._then: dict[str, float] = {}

    def make_protocol(self) -> Giving:
        """For a connection to our door."""
        return Giving(self)

    def said(self, backend: str, name: str, values: list[Any]) -> Deferred[None] | None:
        """An aggregator says something of a session.  While nobody may touch one, it waits, and so does the answer.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        if self._kept is None:
            return self.factory.session_said(backend, name, values)
        noted: Deferred[None] = Deferred()
        self._kept.append((backend, name, values, noted))
        return noted

    def aggregator_lost(self, name: str) -> None:
        """Our successor says so of one whose link is not ours any more."""
        if name in self.factory.pool.backends:
            self.factory.aggregator_lost(name)

    def note_links(self) -> list[str]:
        """Which are up now; :meth:`must_be_steady` compares."""
        self._then = {link.name: link.since for link in self.links if link.state != "down"}
        return list(self._then)

    def must_be_steady(self) -> None:
        """No link may have come up since: words would come on it that have overtaken others.

        Raises:
            HandoverFailed: one has.
        """
        for link in self.links:
            if link.state != "down" and self._then.get(link.name) != link.since:
                raise HandoverFailed(f"{link.shown} has come back in the middle of it")

    def when_barred(self) -> Deferred[Any]:
        """Fires when nothing is on the way on our links."""
        return DeferredList([link.when_heard_all() for link in self.links])

    def halt(self, known: frozenset[str]) -> list[ViewerState]:
        """Touch nothing any more that the other process will have."""
        self._kept = []
        self.ports.rest()
        return self.factory.halt(known)

    def go_on(self) -> None:
        """It has not become anything; as if nothing had been."""
        kept, self._kept = self._kept or [], None
        self.factory.go_on()
        self.ports.open()
        for backend, name, values, noted in kept:
            self.factory.session_said_late(backend, name, values, noted)

    def forsake(self) -> None:
        """The other process has it all.  What aggregators have said last, it hears itself, or they give up."""
        self.is_given = True
        self._kept = []
        self.ports.forsake()
        self._given(self.factory.forsake())

    def stop(self) -> None:
        """We end."""
        if self.current is not None:
            self.current.call_off("the process there is stopped")


class Giving(FrameProtocol):
    """One successor, or somebody who would like to be one."""

    def __init__(self, giver: Giver) -> None:
        super().__init__()
        self.stage = Stage.NEW
        self.pid = 0
        self._giver = giver
        self._known: frozenset[str] = frozenset()
        self._unsaid: Iterator[ViewerState] = iter(())
        self._count = 0

    def connectionMade(self) -> None:
        self.pid, uid = peer_credentials(self.transport.getHandle())
        if not self._giver.is_allowed(uid):
            self._refuse(f"user {uid} may not")
        elif self._giver.current is not None or self._giver.is_given:
            self._refuse("another process takes over already")
        else:
            self._giver.current = self
            self._within(GREETING_SECONDS)

    def heard(self, frame: Frame) -> None:
        frame.close()  # a successor has none that we could want
        say = {
            (Stage.NEW, "hello"): self._greeted,
            (Stage.GREETED, "linked"): self._linked,
            (Stage.BARRED, "word"): self._word,
            (Stage.BARRED, "take"): self._take,
            (Stage.HALTED, "commit"): self._commit,
            (Stage.GIVEN, "word"): self._word,
            (Stage.GIVEN, "lost"): self._lost,
        }.get((self.stage, frame.word))
        if say is None:
            raise HandoverFailed(f"it says {frame.word[:32]!r} when nobody expects it")
        try:
            say(frame.values)
        except (KeyError, TypeError, ValueError) as error:
            raise HandoverFailed(f"it says {frame.word!r} and means {error!r}") from None

    def failed(self, why: HandoverFailed) -> None:
        if self.stage is Stage.GIVEN:
            self._end(str(why))
            self.transport.abortConnection()
        else:
            self.call_off(str(why))

    def over(self) -> None:
        """The successor has gone, and all that it had sent has been heard (H2)."""
        self._end("the process is gone")

    def call_off(self, why: str) -> None:
        """Go on ourselves, if the other process has not gone on already, and can't any more (H2)."""
        if self.stage is Stage.HALTED:
            self._last_words()
        if self.stage is Stage.GIVEN:
            return
        was_halted = self.stage is Stage.HALTED
        self._end(why)
        if was_halted:
            self.transport.abortConnection()  # with viewers that wait to be read by a process that may hang
        else:
            self._refuse(why)

    def _last_words(self) -> None:
        handle = self.transport.getHandle()
        with contextlib.suppress(OSError):
            handle.shutdown(socket.SHUT_RD)
            while data := handle.recv(1 << 16):
                self._reader.feed(data)
        with contextlib.suppress(HandoverFailed):
            while self.stage is Stage.HALTED and (frame := self._reader.next()) is not None:
                self.heard(frame)

    def _refuse(self, why: str) -> None:
        self._is_over = True
        self.stage = Stage.OVER
        self.say("refused", why=why)
        self.transport.loseConnection()

    def _end(self, why: str) -> None:
        stage, self.stage = self.stage, Stage.OVER
        self._is_over = True
        self.stop_timer()
        giver = self._giver
        if giver.current is not self:
            return
        giver.current = None
        if stage is Stage.HALTED:
            giver.go_on()
        if stage is Stage.GIVEN:
            giver.factory.distrust()  # nobody passes on what aggregators say of those who have stayed
        elif stage is not Stage.NEW:
            giver.log.warn(
                "process {pid} was to take over from {name}, and has not: {why}; nothing has changed here",
                pid=self.pid,
                name=giver.name,
                why=why,
            )

    # what it says

    def _greeted(self, values: dict[str, Any]) -> None:
        giver = self._giver
        if values["version"] != VERSION:
            raise HandoverFailed(f"it speaks version {values['version']}, this one {VERSION}")
        if values["name"] != giver.name:
            raise HandoverFailed(f"it is called {values['name']}, this one {giver.name}")
        self._known = frozenset(map(str, values["aggregators"]))
        self.stage = Stage.GREETED
        self._within(PREPARE_SECONDS)
        asked, descriptors = giver.ports.handles()
        self.say("hello", descriptors, version=VERSION, ports=asked, links=giver.note_links())
        giver.log.info("process {pid} begins to take over from {name}", pid=self.pid, name=giver.name)

    def _linked(self, _: dict[str, Any]) -> None:
        self._giver.must_be_steady()
        self._giver.when_barred().addCallback(self._barred)

    def _barred(self, _: object) -> None:
        if self.stage is Stage.GREETED:
            self.stage = Stage.BARRED
            self.say("barred")

    def _word(self, values: dict[str, Any]) -> None:
        if self.stage is Stage.BARRED:
            self._giver.must_be_steady()
        number = values["number"]
        noted: Deferred[None] = Deferred()
        noted.addCallback(lambda _: self.say("noted", number=number))
        self._giver.factory.session_said_late(values["backend"], values["name"], values["values"], noted)

    def _take(self, _: dict[str, Any]) -> None:
        self._giver.must_be_steady()
        states = self._giver.halt(self._known)
        self.stage = Stage.HALTED
        self._within(HALT_SECONDS + HALT_SECONDS_A_VIEWER * len(states))
        self._unsaid, self._count = iter(states), len(states)
        Batches(self.transport, self._say_some)

    def _say_some(self) -> bool:
        for state in islice(self._unsaid, VIEWERS_AT_ONCE):
            values, descriptors = state.to_wire()
            self.say("viewer", descriptors, **values)
            self._count -= 1
        if not self._count:
            self.say("all", counts=self._giver.factory.counts())
        return bool(self._count)

    def _commit(self, _: dict[str, Any]) -> None:
        self.stop_timer()
        self.stage = Stage.GIVEN
        self._giver.forsake()

    def _lost(self, values: dict[str, Any]) -> None:
        self._giver.aggregator_lost(values["name"])

    def _within(self, seconds: float) -> None:
        self.set_timer(self._giver.reactor, seconds, self.call_off, f"it has taken more than {seconds:g} s")
