"""The process that takes over: from the hello that was answered to the moment at which all is its own, and after.

Owns what has come and is not ours yet, and what aggregators say meanwhile.  The order of things, and why, is in
:mod:`relay.net.handover`.  Called by :mod:`relay.net.succession`.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.logger import Logger

from relay.errors import RelayError
from relay.net.balancing import BalancerFactory
from relay.net.door import OneProtocol
from relay.net.handover import PREPARE_SECONDS, Frame, FrameProtocol, Greeting, HandoverFailed, close_all
from relay.net.links import ControlLink
from relay.net.portable_viewer import PortableViewer
from relay.net.ports import Ports
from relay.net.sockets import family_of, has_unwritten
from relay.net.viewer_connection import BackendConnection
from relay.net.viewer_state import ViewerState

LINK_SECONDS = 10.0  # for the aggregators that the giver has to be there for us too
BARRIER_SECONDS = 5.0
GONE_SECONDS = 1.0  # from the end of a process's sockets to its end
LOOK_SECONDS = 0.01


class Stage(Enum):
    """How far a take-over is."""

    GREETED = auto()
    LINKED = auto()
    TAKING = auto()
    TAKEN = auto()
    OVER = auto()
    """Taken, and the process before is gone."""
    FAILED = auto()
    """The process before goes on: nothing is ours, nothing is answered, and we end."""


class Taker(FrameProtocol):
    """One take-over.

    Args:
        reactor: the real one.
        greeting: what the giver has said.
        factory, links, ports: of this process.
        taken: called with the number of viewers, when they are ours.
        failed: called with the reason when it has not come about; the giver goes on.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        greeting: Greeting,
        factory: BalancerFactory,
        links: Sequence[ControlLink],
        ports: Ports,
        taken: Callable[[int], None],
        failed: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.stage = Stage.GREETED
        self._reactor = reactor
        self._greeting = greeting
        self._factory = factory
        self._links = links
        self._ports = ports
        self._taken = taken
        self._failed = failed
        self._since: dict[str, float] = {}
        self._kept: list[tuple[str, str, list[Any], Deferred[None]]] = []
        self._asked: dict[int, Deferred[None]] = {}
        self._number = 0
        self._looking: IDelayedCall | None = None
        self._came: list[tuple[PortableViewer, ViewerState]] = []
        self._asked_at = 0.0
        self.rest_seconds = 0.0
        """How long nobody has touched the viewers, at most."""

    def start(self) -> None:
        """From here on the reactor runs."""
        connection = self._greeting.connection
        self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, OneProtocol(self))
        connection.close()
        self._within(LINK_SECONDS, "not reached: ")
        self.links_changed()

    def stop(self) -> None:
        """We end."""
        if self.stage not in (Stage.TAKEN, Stage.OVER, Stage.FAILED):
            self._give_up("this process is stopped")

    # told by the balancer

    def said(self, backend: str, name: str, values: list[Any]) -> Deferred[None] | None:
        """An aggregator says something of a session.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        if self.stage in (Stage.TAKEN, Stage.OVER):
            return self._factory.session_said(backend, name, values)
        noted: Deferred[None] = Deferred()
        if self.stage is Stage.FAILED:
            return noted
        self._kept.append((backend, name, values, noted))
        if len(self._kept) > self._factory.limits.kept_words:
            self._give_up(f"aggregators say more than {self._factory.limits.kept_words} things meanwhile")
        return noted

    def pass_on(self, backend: str, name: str, values: list[Any]) -> Deferred[None] | None:
        """The same of a session that is none of ours: it may be of one that has stayed."""
        if self.stage is not Stage.TAKEN:
            return None
        noted: Deferred[None] = Deferred()
        self._pass_on(backend, name, values, noted)
        return noted

    def aggregator_lost(self, name: str) -> None:
        """The giver has no link any more that would tell it."""
        if self.stage is Stage.TAKEN:
            self.say("lost", name=name)

    def links_changed(self) -> None:
        """One of our links has come or gone."""
        if self.stage is Stage.GREETED and not self._missing():
            self.stage = Stage.LINKED
            self._since = {link.name: link.since for link in self._wanted()}
            self._within(BARRIER_SECONDS, "no answer")
            self.say("linked")
        elif self.stage in (Stage.LINKED, Stage.TAKING):
            for link in self._wanted():
                if link.since != self._since[link.name]:
                    self._give_up(f"{link.shown} was lost in the middle of it")
                    return

    def _wanted(self) -> list[ControlLink]:
        """Those that the giver has, too."""
        theirs = self._greeting.frame.values["links"]
        return [link for link in self._links if link.name in theirs]

    def _missing(self) -> list[str]:
        return [link.name for link in self._wanted() if not link.is_heard]

    # told by the giver

    def heard(self, frame: Frame) -> None:
        try:
            self._hear(frame)
        except (RelayError, KeyError, TypeError, ValueError) as error:
            frame.close()
            raise HandoverFailed(f"it says {frame.word[:32]!r}, which makes no sense: {error}") from None

    def _hear(self, frame: Frame) -> None:
        if frame.word == "noted":
            self._asked.pop(int(frame.values["number"])).callback(None)
        elif frame.word == "refused":
            self._give_up(str(frame.values["why"]))
        elif (self.stage, frame.word) == (Stage.LINKED, "barred"):
            self._take()
        elif (self.stage, frame.word) == (Stage.TAKING, "viewer"):
            state = ViewerState.from_wire(frame.values, frame.descriptors)
            self._came.append((PortableViewer.taken(self._factory, state), state))
        elif (self.stage, frame.word) == (Stage.TAKING, "all"):
            self._factory.add_counts(frame.values["counts"])
            self._commit()
        else:
            raise ValueError("nobody expects it")

    def failed(self, why: HandoverFailed) -> None:
        if self.stage is Stage.TAKEN:
            self.transport.abortConnection()
        else:
            self._give_up(str(why))

    def over(self) -> None:
        """The connection has ended: those who had stayed are gone, or the giver is, before its time."""
        if self.stage is Stage.TAKEN:
            self.stage = Stage.OVER
            self._answer_all()
        elif self.stage not in (Stage.OVER, Stage.FAILED):
            self._within(GONE_SECONDS, "it has changed its mind")
            self._look_for_death()

    # the steps

    def _take(self) -> None:
        self.stage = Stage.TAKING
        self._within(PREPARE_SECONDS, "no answer")  # the giver's own time is shorter
        kept, self._kept = self._kept, []
        for word in kept:
            self._pass_on(*word)
        self._asked_at = self._reactor.seconds()
        self.say("take")

    def _pass_on(self, backend: str, name: str, values: list[Any], noted: Deferred[None]) -> None:
        self._number += 1
        self._asked[self._number] = noted
        self.say("word", number=self._number, backend=backend, name=name, values=values)

    def _commit(self) -> None:
        """After this they are ours, or never (H1)."""
        frame = Frame("commit", {}).encode()
        try:
            if has_unwritten(self.transport) or self.transport.getHandle().send(frame) != len(frame):
                raise HandoverFailed("the other process does not listen")
        except OSError:
            raise HandoverFailed("it has changed its mind") from None
        self._go_on()

    def _go_on(self) -> None:
        """They are ours."""
        self.stage = Stage.TAKEN
        self.stop_timer()
        came, self._came = self._came, []
        count = sum(self._adopt(viewer, state) for viewer, state in came)
        self._ports.open()
        kept, self._kept = self._kept, []
        for word in kept:
            self._factory.session_said_late(*word)
        self.rest_seconds = self._reactor.seconds() - self._asked_at
        self._close_pidfd()
        self._taken(count)

    def _adopt(self, viewer: PortableViewer, state: ViewerState) -> bool:
        """Give one viewer its transports.  An error of ours costs that viewer alone."""
        self._factory.expect(viewer)
        connection: BackendConnection | None = None
        try:
            self._connect(state.viewer, viewer)
            if state.pair is not None and state.pair.backend is not None:
                connection = BackendConnection(b"")
                self._connect(state.pair.backend, connection)
            viewer.restore(state, connection)
        except Exception:
            self.log.failure("taking over a viewer")
            if viewer.transport is None:
                self._factory.viewer_gone(viewer, "fault")
            else:
                viewer.close("fault")
            return False
        return True

    def _connect(self, descriptor: int, protocol: IProtocol) -> None:
        """The transport has a descriptor of its own; ours is closed."""
        try:
            family = family_of(descriptor)
            self._reactor.adoptStreamConnection(descriptor, family, OneProtocol(protocol))
        finally:
            os.close(descriptor)

    def _look_for_death(self) -> None:
        """If the giver has died, what we have is ours: nobody else has it."""
        if self.stage in (Stage.TAKEN, Stage.OVER, Stage.FAILED):
            return
        if _has_ended(self._greeting.pidfd):
            self.log.warn("the process before has died; going on with {count} of its viewers", count=len(self._came))
            self._go_on()
            self.stage = Stage.OVER
            self._answer_all()
        else:
            self._looking = self._reactor.callLater(LOOK_SECONDS, self._look_for_death)

    def _answer_all(self) -> None:
        """Nobody is there any more who could have noted it.  (As long as somebody may be, it isn't answered: I3.)"""
        asked, self._asked = self._asked, {}
        for noted in asked.values():
            noted.callback(None)

    def _give_up(self, why: str) -> None:
        if self.stage in (Stage.TAKEN, Stage.OVER, Stage.FAILED):
            return
        self.stage = Stage.FAILED
        self.stop_timer()
        if self._looking is not None and self._looking.active():
            self._looking.cancel()
        self._kept.clear()
        for _, state in self._came:
            close_all(state.to_wire()[1])
        self._came.clear()
        self._ports.forsake()
        self._close_pidfd()
        if self.transport is not None and not self._is_over:
            self._is_over = True
            self.transport.abortConnection()
        self._failed(why)

    def _within(self, seconds: float, words: str) -> None:
        self.set_timer(self._reactor, seconds, self._too_late, words)

    def _too_late(self, words: str) -> None:
        self._give_up(words + ", ".join(self._missing()) if self.stage is Stage.GREETED else words)

    def _close_pidfd(self) -> None:
        if self._greeting.pidfd >= 0:
            os.close(self._greeting.pidfd)


def _has_ended(pidfd: int) -> bool:
    """Has the process ended?  Not known without a pidfd."""
    if pidfd < 0:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
