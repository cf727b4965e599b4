"""Two balancers, one virtual IP: what each knows of the other's viewers, and who is told to connect anew.

Owns the links to peers, what they have said, and the rule below.  Does not own the address (keepalived moves it), its
arrival (:mod:`relay.net.addresses`), the packet (:mod:`relay.net.tickle`), or what we say of ourselves
(:mod:`relay.net.telling`).  Built by the balancer tier when it has peers.

Theory.  A viewer whose balancer is cut off waits for ever, unless the balancer that gets the address makes it notice.
So balancers tell each other the addresses of their viewers, while all is well.  A peer's viewer is *orphaned* when

    this machine has the address that it is connected to, and
    its peer is lost (its link is down), or lives and says that its machine doesn't have the address.

Three things can make it so, in any order, and each is an event: our addresses change, the link goes down, the peer's
addresses change.  An orphan that isn't connected to us is tickled.  What is known of a peer is kept while its link is
down, which is when it is wanted, and forgotten when a new link tells anew.

Two masters, both alive (each thinks that the other is lost, or a killed keepalived has left the address behind): the
peer says that it has the address, so its viewers are left to it.  Where the network takes their packets is then not
known here; those that come to us are answered with RST by the kernel, as they are without us.  When one gives the
address up it says so, and the other tickles those who were left.

An upgrade of a balancer looks like its death until the new process is there; its address stays, so nobody is orphaned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.logger import Logger

from relay.errors import RemoteProtocolError
from relay.net.four_tuple import FourTuple
from relay.net.links import ControlLink
from relay.net.node import NodeSettings
from relay.net.rtmp_client import ClientSettings
from relay.net.telling import PeerPort
from relay.net.tickle import RawSender, Sender, Tickler
from relay.rtmp.events import CommandReceived

PEER_DEAD_SECONDS = 0.4  # VRRP with adverts of 0.1 s moves the address in 0.35 s; finding out later delays the resets
MAX_ADDRESSES = 1024  # that a peer may say its machine has


class PeerLink(ControlLink):
    """One peer: what it has said of its viewers and addresses.

    Args:
        came: called with viewers that the peer tells of.
    """

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        settings: ClientSettings,
        changed: Callable[[ControlLink], None],
        came: Callable[[PeerLink, list[FourTuple]], None],
    ) -> None:
        super().__init__(name, endpoint, settings, changed, PEER_DEAD_SECONDS)
        self.viewers: dict[int, FourTuple] = {}
        self.addresses: frozenset[str] | None = None  # None: it hasn't said yet
        self._is_full = False  # has the limit been met on this connection?
        self._came = came
        self._limit = settings.limits.peer_viewers

    def has(self, address: str) -> bool:
        """Does its machine have this address, for all we know?"""
        return self.state == "up" and (self.addresses is None or address in self.addresses)

    def up(self, peer: str) -> None:
        self.addresses = None
        super().up(peer)

    def told(self, event: CommandReceived) -> None:
        values = event.values
        if event.name == "relayAddresses" and values and isinstance(values[0], list):
            self.addresses = frozenset(str(address)[:64] for address in values[0][:MAX_ADDRESSES])
            self._changed(self)
        elif event.name == "relayViewers" and len(values) >= 2 and isinstance(values[1], list):
            self._viewers_came(is_first=values[0] is True, entries=values[1])
        elif event.name == "relayViewersGone" and values and isinstance(values[0], list):
            for number in values[0]:
                self.viewers.pop(_id(number), None)
        else:
            super().told(event)

    def _viewers_came(self, *, is_first: bool, entries: list[Any]) -> None:
        if is_first:
            self.viewers.clear()
            self._is_full = False
        room = self._limit - len(self.viewers)
        if len(entries) > room and not self._is_full:
            self._is_full = True
            self.log.warn(
                "{name} has more viewers than the limit of {limit} (--limit peer_viewers): the rest would not be reset",
                name=self.shown,
                limit=self._limit,
            )
        came = {_id(entry): FourTuple.from_wire(entry) for entry in entries[:room]}
        self.viewers.update(came)
        self._came(self, list(came.values()))


def _id(value: Any) -> int:
    try:
        return int(value["id"] if isinstance(value, dict) else value)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise RemoteProtocolError("a viewer without an id") from None


class Addresses(Protocol):
    """This machine's addresses (:class:`relay.net.addresses.AddressWatch`)."""

    addresses: frozenset[str]

    def start(self) -> None:
        """Watch."""

    def stop(self) -> None:
        """Watch no more."""


class Neighbourhood(MultiService):
    """A balancer's peers, from its own point of view.

    Args:
        settings: who we are.
        clock: the reactor.
        peers: (name, endpoint of their ``--peer-listen``).
        health: how this balancer is: ("normal" | "degraded" | "down", reasons).
        watch: makes the watch of our addresses, given what to call at a change.
        make_sender: opens what sends packets; an ``OSError`` is said once in the log.
    """

    log = Logger()

    def __init__(
        self,
        settings: NodeSettings,
        clock: IReactorTime,
        peers: Sequence[tuple[str, IStreamClientEndpoint]],
        health: Callable[[], tuple[str, list[str]]],
        watch: Callable[[Callable[[], None]], Addresses],
        make_sender: Callable[[], Sender] = RawSender,
    ) -> None:
        super().__init__()
        client = ClientSettings(identity=settings.identity, limits=settings.limits, clock=clock)
        self.port = PeerPort(settings, clock, health)
        self._health = health
        self.port.setServiceParent(self)
        self.tickler = Tickler(clock, None, self._is_orphan)
        self.links = [PeerLink(name, endpoint, client, self._changed, self._came) for name, endpoint in peers]
        self._make_sender = make_sender
        self._has_tried = False
        self._watch = watch(self._moved)
        self._known: frozenset[str] | None = None  # our addresses, as they were last looked at
        self._orphaned: set[tuple[str, str]] = set()  # (peer, address)

    def listen(self, endpoint: IStreamServerEndpoint) -> None:
        """Let peers connect here while running."""
        self.port.listen(endpoint)

    def privilegedStartService(self) -> None:
        """Raw sockets are opened while we may."""
        self._open_sender()
        super().privilegedStartService()

    def startService(self) -> None:
        self._open_sender()
        super().startService()
        self.tell_health()
        self._watch.start()
        for link in self.links:
            link.start()

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        self._watch.stop()
        ends = [maybeDeferred(service.stopService) for service in self]
        ends += [link.stop() for link in self.links]
        return DeferredList(ends, consumeErrors=True).addCallback(lambda _: self.tickler.close())

    # the balancer's viewers

    def viewer_made(self, viewer: Hashable, transport: Any) -> None:
        """One is connected."""
        self.port.peers.viewer_made(viewer, transport)

    def viewer_gone(self, viewer: Hashable) -> None:
        """It isn't any more."""
        self.port.peers.viewer_gone(viewer)

    # the balancer's health

    def tell_health(self) -> None:
        """It may have changed."""
        self.port.tell_health()

    @property
    def gives_way(self) -> bool:
        """Should another have the address?  We can serve nobody, and there is a peer that may, or that we can't ask.

        When it can't be asked, either it is dead and doesn't care, or we are cut off.  When no peer can serve anybody
        either, the address had better stay where it is.
        """
        is_down = self._health()[0] == "down"
        return is_down and not all(link.state == "up" and link.health[0] == "down" for link in self.links)

    # what happens

    def _open_sender(self) -> None:
        """Once; with no peers there is nobody to tell."""
        if self._has_tried or not self.links:
            return
        self._has_tried = True
        try:
            self.tickler.sender = self._make_sender()
        except OSError as error:
            self.log.warn(
                "{name} can't open a raw socket ({why}; CAP_NET_RAW is needed): after a take-over, viewers of a lost "
                "peer are not told to connect anew, and hang until they notice themselves",
                name=self.port.identity.name,
                why=error.strerror,
            )

    def _moved(self) -> None:
        before, self._known = self._known, self._watch.addresses
        if before is not None:
            for what, which in (("has got", self._known - before), ("has lost", before - self._known)):
                if which:
                    self.log.info("this machine {what} {which}", what=what, which=", ".join(sorted(which)))
        self.port.peers.set_addresses(self._known)
        self._look()

    def _changed(self, link: ControlLink) -> None:
        if self.running:
            self._look()

    def _came(self, link: PeerLink, viewers: list[FourTuple]) -> None:
        """A peer that lives tells of viewers that it can't serve any more, or could never."""
        for viewer in viewers:
            if (link.name, viewer.local) in self._orphaned:
                self._tickle(viewer)

    def _look(self) -> None:
        """Which of our addresses have lost a peer, and whom does that leave alone?"""
        orphaned = {
            (link.name, address) for link in self.links for address in self._watch.addresses if not link.has(address)
        }
        fresh, self._orphaned = orphaned - self._orphaned, orphaned
        for link in self.links:
            addresses = {address for name, address in fresh if name == link.name}
            if addresses:
                self._adopt(link, [viewer for viewer in link.viewers.values() if viewer.local in addresses])

    def _adopt(self, link: PeerLink, viewers: Iterable[FourTuple]) -> None:
        count = sum(self._tickle(viewer) for viewer in viewers)
        if count:
            self.log.info(
                "{peer} {how}, and its viewers' address is here now; told to connect anew: {count}",
                event="takeover",
                peer=link.shown,
                how="has lost the address" if link.state == "up" else f"is lost ({link.why})",
                count=count,
            )

    def _tickle(self, viewer: FourTuple) -> bool:
        is_orphan = self._is_orphan(viewer)
        if is_orphan:
            self.tickler.add(viewer)
        return is_orphan

    def _is_orphan(self, viewer: FourTuple) -> bool:
        return viewer.local in self._watch.addresses and not self.port.peers.has(viewer)
