"""Planned work on a node: those who read from it go elsewhere first, and nobody misses a byte.

Owns: whether the node drains and why, the count of those who are still to move, the wait before a stop.  Does not own
the moves: a balancer that hears "draining" takes its sessions elsewhere, a neighbour goes on at the other member of the
pair.  Called by the node, when it is stopped, and by the admin site.

A node that drains does everything that it did before.  It only says that it would rather not: to its neighbours over
the control connection, to others by ``/healthz``.  So draining can be called off at any time, and whoever can't be
moved stays: viewers that came directly, and sessions and copies of neighbours that are not connected.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from relay.net.control import ControlServer
from relay.net.sniffing import PortFactory

LOOK_SECONDS = 0.05  # between two counts while a stop waits; 16,000 connections are counted in 3 ms


@attrs.frozen(kw_only=True)
class Remaining:
    """Who reads from a node."""

    sessions: int = 0  # viewers of balancers that are connected: they can move
    copies: int = 0  # of neighbours that are connected: they can, too
    publishers: int = 0  # they can't, but they end
    others: int = 0  # nobody can move these

    @property
    def is_empty(self) -> bool:
        """Has everybody moved who can?"""
        return not (self.sessions or self.copies or self.publishers)


class DrainingNode(Protocol):
    """What is asked of the node."""

    name: Any
    ports: PortFactory
    control: ControlServer
    is_left: bool

    @property
    def publishers(self) -> int:
        """How many publish here."""

    def tell_health(self) -> None:
        """Let the neighbours know how the node is."""


class Drain:
    """Whether a node drains.

    Args:
        node: which.
        clock: the reactor.

    ``why`` is empty while it does not.
    """

    log = Logger()

    def __init__(self, node: DrainingNode, clock: IReactorTime) -> None:
        self.why = ""
        self.is_stopping = False
        self._node = node
        self._clock = clock
        self._until = 0.0  # a stop that waits does so at most until then

    def begin(self, why: str) -> None:
        """Ask everybody to go."""
        if not self.why:
            self.log.info("{name} drains: {why}", event="drain", name=self._node.name, why=why)
        self.why = why
        self._node.tell_health()

    def end(self) -> None:
        """Take everybody again."""
        if self.why and not self.is_stopping:
            self.log.info("{name} does not drain any more", event="drain", name=self._node.name)
            self.why = ""
            self._node.tell_health()

    def remaining(self) -> Remaining:
        """Count."""
        helpers = set(self._node.control.neighbours) if self._node.is_left else set()
        sessions = copies = others = 0
        for connection in self._node.ports.connections.values():
            speaker: Any = connection.speaker
            viewer = getattr(speaker, "viewer", None)
            feed = getattr(speaker, "feed", None)
            if feed is not None and feed.balancer in helpers:
                sessions += 1
            elif viewer is not None and viewer.is_copy and speaker.peer_node.name in helpers:
                copies += 1
            elif viewer is not None:
                others += 1
        return Remaining(sessions=sessions, copies=copies, publishers=self._node.publishers, others=others)

    async def before_stop(self, seconds: float) -> None:
        """Drain for at most ``seconds``."""
        if seconds <= 0:
            return
        self.is_stopping = True
        self.begin("it is stopped")
        before = self.remaining()
        began = self._clock.seconds()
        self._until = began + seconds
        left = await self._when_empty()
        if not before.is_empty:
            self.log.info(
                "{name} stops after {seconds:.1f} s: {moved} of {all} sessions and copies have moved{rest}",
                name=self._node.name,
                seconds=self._clock.seconds() - began,
                moved=before.sessions + before.copies - left.sessions - left.copies,
                all=before.sessions + before.copies,
                rest="" if left.is_empty else "; the others are cut off",
            )

    def hurry(self) -> None:
        """A stop waits no longer."""
        self._until = 0.0

    def _when_empty(self) -> Deferred[Remaining]:
        """Fires with who is left, when nobody is who can move, or when the time is over."""
        empty: Deferred[Remaining] = Deferred()

        def look() -> None:
            left = self.remaining()
            if left.is_empty or self._clock.seconds() >= self._until:
                empty.callback(left)
            else:
                self._clock.callLater(LOOK_SECONDS, look)

        look()
        return empty
