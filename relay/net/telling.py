"""Telling the other balancers of a virtual IP which viewers are here: what they need when this machine is gone.

Owns the list of our viewers' connections and the port that peers dial.  What they make of it is
:mod:`relay.net.neighbours`, which builds this.

A peer's connection is a control connection (:mod:`relay.net.control`), with the same proof of identity, on a port of
its own: what comes in on the viewers' port is spliced to an aggregator unread.  After the peer's ``relayHello`` it is
told, unasked:

    relayHealth       state, [why]          of this balancer; again at each change
    relayAddresses    [address, …]          of this machine: all there are; again at each change
    relayViewers      is_first, [entry, …]  they are here; is_first: forget what was told on an earlier connection
    relayViewersGone  [id, …]

An entry is a :class:`relay.net.four_tuple.FourTuple` with an id.  Comings and goings are collected for
``TELL_SECONDS``, so a crowd costs few messages; what a new peer has to be told is dealt out over many turns of the
reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relay.net.control import ControlServer
from relay.net.four_tuple import FourTuple
from relay.net.node import Node, NodeSettings
from relay.net.streams import Hub
from relay.rtmp.events import CommandReceived

if TYPE_CHECKING:
    from relay.net.rtmp_server import RtmpServerProtocol

TELL_SECONDS = 0.05  # between two messages; of a crowd, those of the last moment before a power cut are not known
BATCH = 500  # entries in one message: 40 kB, encoded in about 4 ms


class PeerControl(ControlServer):
    """The control connections of peers, and what they are told."""

    def __init__(self, hub: Hub, clock: IReactorTime) -> None:
        super().__init__(hub)
        self._clock = clock
        self._addresses: list[str] = []
        self._ids: dict[Hashable, int] = {}
        self._viewers: dict[int, FourTuple] = {}
        self._tuples: dict[FourTuple, int] = {}
        self._next_id = 1
        self._came: dict[int, FourTuple] = {}
        self._gone: list[int] = []
        self._call: IDelayedCall | None = None
        self._told_at = -TELL_SECONDS
        self._dealing: dict[RtmpServerProtocol, IDelayedCall] = {}

    def has(self, connection: FourTuple) -> bool:
        """Is this one of ours?"""
        return connection in self._tuples

    # the balancer's side

    def viewer_made(self, viewer: Hashable, transport: Any) -> None:
        """A viewer is connected."""
        connection = FourTuple.of(transport)
        if connection is None:
            return
        number, self._next_id = self._next_id, self._next_id + 1
        self._ids[viewer] = number
        self._viewers[number] = self._came[number] = connection
        self._tuples[connection] = number
        self._tell_soon()

    def viewer_gone(self, viewer: Hashable) -> None:
        """It isn't any more."""
        number = self._ids.pop(viewer, None)
        if number is None:
            return
        connection = self._viewers.pop(number)
        if self._tuples.get(connection) == number:  # its successor may have the same addresses
            del self._tuples[connection]
        if self._came.pop(number, None) is None:
            self._gone.append(number)
            self._tell_soon()

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """This machine's."""
        self._addresses = sorted(addresses)
        self._tell("relayAddresses", self._addresses)

    def close(self) -> None:
        """The balancer stops."""
        for call in [*self._dealing.values(), *([self._call] if self._call is not None else [])]:
            call.cancel()
        self._dealing.clear()
        self._call = None

    # the peers' side

    def command(self, protocol: RtmpServerProtocol, event: CommandReceived) -> None:
        """A peer asks."""
        self._tell_changes()
        super().command(protocol, event)
        if event.name == "relayHello":
            protocol.session.send_command("relayAddresses", 0, self._addresses)
            self._deal(protocol, list(self._viewers), is_first=True)

    def detach(self, protocol: RtmpServerProtocol) -> None:
        """A peer is gone."""
        super().detach(protocol)
        call = self._dealing.pop(protocol, None)
        if call is not None:
            call.cancel()

    def _deal(self, protocol: RtmpServerProtocol, numbers: list[int], *, is_first: bool = False) -> None:
        """One batch of what was there when the peer came; those who have left since are left out."""
        self._dealing.pop(protocol, None)
        batch, rest = numbers[:BATCH], numbers[BATCH:]
        entries = {number: self._viewers[number] for number in batch if number in self._viewers}
        protocol.session.send_command("relayViewers", 0, is_first, _entries(entries))
        protocol.flush()
        if rest:
            self._dealing[protocol] = self._clock.callLater(0, self._deal, protocol, rest)

    def _tell_soon(self) -> None:
        """At once, unless something was told a moment ago."""
        if self._call is None:
            seconds = max(0.0, self._told_at + TELL_SECONDS - self._clock.seconds())
            self._call = self._clock.callLater(seconds, self._tell_changes)

    def _tell_changes(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._told_at = self._clock.seconds()
        came, self._came = self._came, {}
        gone, self._gone = self._gone, []
        if gone:
            self._tell("relayViewersGone", [float(number) for number in gone])
        if came:
            self._tell("relayViewers", False, _entries(came))


def _entries(viewers: dict[int, FourTuple]) -> list[dict[str, Any]]:
    return [{"id": float(number), **viewer.to_wire()} for number, viewer in viewers.items()]


class PeerPort(Node):
    """Where peers connect: a node without streams, as well as the balancer is."""

    def __init__(
        self, settings: NodeSettings, clock: IReactorTime, health: Callable[[], tuple[str, list[str]]]
    ) -> None:
        super().__init__(attrs.evolve(settings, trusted=()), clock)
        self.peers = PeerControl(self.hub, clock)
        self.control = self.peers
        self._balancer_health = health

    def health(self) -> tuple[str, list[str]]:
        return self._balancer_health()

    def release(self) -> None:
        super().release()
        self.peers.close()
