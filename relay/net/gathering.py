"""Which streams a node copies, from whom, and when it goes back to the one it prefers.

Owns a *group*: upstreams that have the same streams (the origins of a distributor; the two distributors of a pair).
Watches each member by a control link, keeps one :class:`relay.net.replication.Replica` per stream of their
catalogues.  Called by the tiers: a distributor has one group, an aggregator one per pair.

A stream that the members no longer list is kept for ``FORGET_SECONDS``: an origin that has lost its store lists nothing
until its publishers are back, and what the copies have is then all that there is.

A member that runs but says that it is down has lost its own upstreams: its bytes have stopped, and no connection tells
so.  It is left like a dead one, as long as another member is better off.  So is one that drains, which is going to
stop: those who read from it go on from the very next byte elsewhere, while it still serves.

The preferred member is the first.  When it goes back to that, and when a member is left that lives and is behind
another, :mod:`relay.net.standby` decides for each stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from relay.names import StreamName
from relay.net.catalogue import CatalogueEntry, entry_of
from relay.net.failover import Upstream
from relay.net.links import APP, ControlLink
from relay.net.pulling import Pull, PullMaker
from relay.net.replication import Counts, LogMaker, ReadMode, Replica
from relay.net.rtmp_client import ClientSettings
from relay.net.standby import Standby
from relay.net.streams import Hub
from relay.net.timings import DEFAULT_TIMINGS, Timings

WILDCARDS = frozenset("*?[")
WELL, DRAINING, STARVED = range(3)  # the lower, the better to read from
UNFITNESS = {"draining": DRAINING, "down": STARVED}
FORGET_SECONDS = 600.0  # a publisher whose origin was rebuilt is back by then


class Gatherer:
    """The copies made from one group.

    Args:
        name: of the group, for people ("pair a").
        members: (name, endpoint), the preferred one first.
        patterns: which streams; literal names among them are what a plain RTMP server is asked for.
        hub, maker, settings, counts: of the node.
        make_pull: how a stream of a plain RTMP server is taken in; None if this tier does not.
        mode: read one member at a time, or all at once.
        timings: how patient we are.
        on_change: called when a member has come or gone, or has told something.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        members: Sequence[tuple[str, IStreamClientEndpoint]],
        *,
        patterns: tuple[str, ...],
        hub: Hub,
        maker: LogMaker,
        settings: ClientSettings,
        counts: Counts,
        make_pull: PullMaker | None = None,
        on_change: Callable[[], None] = lambda: None,
        mode: ReadMode = ReadMode.ACTIVE_STANDBY,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.name = name
        self.upstreams: list[Upstream] = []
        self.links: list[ControlLink] = []
        self._named = [StreamName.parse(pattern) for pattern in patterns if not WILDCARDS.intersection(pattern)]
        self.replicas: dict[StreamName, Replica] = {}
        self.pulls: dict[StreamName, Pull] = {}
        self._patterns = patterns
        self._hub = hub
        self._maker = maker
        self._settings = settings
        self._counts = counts
        self._make_pull = make_pull
        self._timings = timings
        self._standbys: dict[StreamName, Standby] = {}
        self._on_change = on_change
        self._mode = mode
        self._refused: set[StreamName] = set()
        self._listed: dict[str, set[StreamName]] = {}
        self._members: list[tuple[Upstream, ControlLink]] = []  # upstreams and links, for those who go by both
        self._leaving: set[str] = set()
        self._is_running = False
        for member, endpoint in members:
            self.add_member(member, endpoint)

    def start(self) -> None:
        """Connect to all members."""
        self._is_running = True
        for link in self.links:
            link.start()

    def add_member(self, name: str, endpoint: IStreamClientEndpoint) -> None:
        """One more, the last in the order of preference; one that is there, or was about to leave, stays."""
        if name in self._listed:
            self._leaving.discard(name)
            self._judge()
            return
        settings, timings = self._settings, self._timings
        link = ControlLink(
            name,
            endpoint,
            settings,
            self._changed,
            timings.dead,
            report=self._report,
            app=self._named[0].app if self._named else APP,
            progressed=self._progressed,
            connect_seconds=timings.connect,
        )
        upstream = Upstream(name=name, endpoint=endpoint, is_usable=False)
        self.upstreams.append(upstream)
        self.links.append(link)
        self._members.append((upstream, link))
        self._listed[name] = set()
        if self._is_running:
            link.start()

    def let_go(self, name: str) -> None:
        """One less: as if it drained; forgotten when nothing is read from it."""
        if name in self._listed:
            self._leaving.add(name)
            self._judge()
            self._forget_left()

    def arrange(self, names: Sequence[str]) -> None:
        """The order of preference from now on; who is not named comes last."""
        places = {name: place for place, name in enumerate(names)}
        preferred = self.upstreams[:1]
        for members in (self.upstreams, self.links):
            members.sort(key=lambda each: places.get(each.name, len(places)))
        self._members[:] = zip(self.upstreams, self.links, strict=True)
        if self.upstreams[:1] != preferred:
            for standby in self._standbys.values():
                standby.preferred_changed()
            self._on_change()

    def _forget_left(self) -> None:
        for link in [link for link in self.links if link.name in self._leaving]:
            if not self.reads_from(link) or link.state == "down":
                at = self.links.index(link)
                self._leaving.discard(link.name)
                del self.upstreams[at], self.links[at], self._members[at], self._listed[link.name]
                link.stop()
                self._on_change()

    def stop(self) -> Deferred[Any]:
        """Stop copying and let go of all members."""
        ends = [replica.stop() for replica in self.replicas.values()]
        ends += [pull.stop() for pull in self.pulls.values()]
        ends += [link.stop() for link in self.links]
        return DeferredList(ends, consumeErrors=True)

    def check(self) -> None:
        """Once a second: is another member to be read?  Is a stream gone for good?"""
        for standby in self._standbys.values():
            standby.check()
        for name, replica in self.replicas.items():
            self._hear(name, replica)  # whose word counts may have changed since it was said
        self._drop_gone()
        self._forget_left()

    def lead_ms(self, link: ControlLink) -> tuple[int, int]:
        """How far this member is (ahead of, behind) the copies here: of all streams, the furthest."""
        leads = [0]
        for name, replica in self.replicas.items():
            entry = link.catalogue.get(name)
            if entry is not None and entry.epoch == replica.epoch:
                leads.append(entry.time_ms - replica.time_ms)
        return max(leads), -min(leads)

    def reads_from(self, link: ControlLink) -> int:
        """How many streams come from this member now."""
        upstream = self.upstreams[self.links.index(link)]
        replicas = sum(upstream in replica.sources for replica in self.replicas.values())
        return replicas + sum(pull.factory.current is upstream for pull in self.pulls.values())

    def _progressed(self, link: ControlLink, names: list[StreamName]) -> None:
        for name in names:
            standby = self._standbys.get(name)
            if standby is not None:
                standby.judge()

    def why_not_normal(self) -> list[str]:
        """What is wrong, in words; empty when the preferred member runs and keeps up."""
        if not self.links:
            return [f"{self.name}: nobody is known yet"]
        link = self.links[0]
        if link.state == "down":
            return [f"{self.name}: {link.shown} is down ({link.why})"]
        if link.state == "up" and link.health[0] == "unknown":
            return [f"{self.name}: {link.shown} has not said yet how it is"]
        if link.state == "up" and self._unfitness(link) == DRAINING:
            return [f"{self.name}: {link.shown} drains ({'; '.join(link.health[1])})"]
        if link.state == "up" and not self.upstreams[0].is_usable:
            return [f"{self.name}: {link.shown} says that it is down ({'; '.join(link.health[1])})"]
        behind = sum(standby.is_behind for standby in self._standbys.values())
        return [f"{self.name}: {link.shown} is behind (streams: {behind})"] if behind else []

    def is_down(self) -> bool:
        """Is there nobody to read from?"""
        return all(link.state == "down" for link in self.links)

    def _report(self) -> list[CatalogueEntry]:
        return [entry_of(stream) for stream in self._hub]

    def _changed(self, link: ControlLink) -> None:
        if link not in self.links:
            return  # it was let go
        upstream = self.upstreams[self.links.index(link)]
        upstream.title = link.peer
        if link.state == "foreign":
            self._pull_all(upstream)
        self._judge()
        if link.state == "up":
            self._adopt(link)
        self._on_change()

    def _judge(self) -> None:
        """Read from a member that is up; from one that drains, or has lost its own upstreams, if there is no better."""
        were_usable = [upstream.is_usable for upstream in self.upstreams]
        best = min((self._unfitness(link) for link in self.links if link.state == "up"), default=WELL)
        for upstream, link in zip(self.upstreams, self.links, strict=True):
            is_best = self._unfitness(link) == best or self._is_harmless(link)
            upstream.is_usable = link.state == "up" and is_best
            upstream.is_draining = self._unfitness(link) == DRAINING and not upstream.is_usable
        for upstream, link, was_usable in zip(self.upstreams, self.links, were_usable, strict=True):
            if was_usable and not upstream.is_usable:
                self._tell_standbys(upstream)
                for replica in list(self.replicas.values()):
                    replica.leave(upstream, link.why or ("draining" if upstream.is_draining else "starved"))
            elif upstream.is_usable and not was_usable:
                for replica in list(self.replicas.values()):
                    replica.wake()

    def _tell_standbys(self, lost: Upstream) -> None:
        if lost is self.upstreams[0]:
            for standby in self._standbys.values():
                standby.preferred_lost()

    def _is_harmless(self, link: ControlLink) -> bool:
        """A starved member may go on being read in merge mode: the other member's bytes come all the same."""
        return self._mode is ReadMode.MERGE and self._unfitness(link) == STARVED

    def _unfitness(self, link: ControlLink) -> int:
        """How bad it is to read from this member, by what it says of itself, or by what is said of it."""
        return DRAINING if link.name in self._leaving else UNFITNESS.get(link.health[0], WELL)

    def _adopt(self, link: ControlLink) -> None:
        """Copy what the member lists; what it lists again is asked for at once."""
        for name in link.catalogue:
            replica = self.replicas.get(name)
            if replica is None and name.matches(self._patterns):
                replica = self._begin(name)
            if replica is not None:
                self._hear(name, replica)
        self._wake_listed(link)

    def _hear(self, name: StreamName, replica: Replica) -> None:
        """Is the stream live, as those say whose word counts?"""
        heard = [link for link in self.links if link.state == "up" and _hears(replica, link)]
        said = [link.catalogue[name].is_live for link in heard if name in link.catalogue]
        if said:
            replica.set_live(any(said))

    def _wake_listed(self, link: ControlLink) -> None:
        before, listed = self._listed[link.name], set(link.catalogue)
        self._listed[link.name] = listed
        for name, replica in self.replicas.items():
            if name in listed - before:
                replica.wake()
            elif name in before - listed and _hears(replica, link):
                replica.set_live(False)

    def _begin(self, name: StreamName) -> Replica | None:
        if self._hub.get(name) is not None:
            return None  # another group carries it
        if not self._has_room():
            self._refuse(name)
            return None
        if not self._hub.claim(name, self):
            return None  # another group has asked for it
        settings, timings = self._settings, self._timings
        replica = Replica(name, self._hub, self._maker, self.upstreams, settings, self._counts, self._mode, timings)
        replica.start()
        if self._mode is ReadMode.ACTIVE_STANDBY:
            self._standbys[name] = Standby(replica, self._members, timings, settings.clock)
        self._refused.discard(name)
        self.replicas[name] = replica
        return replica

    def _has_room(self) -> bool:
        """May one more stream be copied?  Those that are asked for and not here yet count."""
        limit = self._hub.limits.streams
        if len(self._hub) + len(self.replicas) < limit:
            return True
        return len(self._hub) + sum(self._hub.get(name) is None for name in self.replicas) < limit

    def _refuse(self, name: StreamName) -> None:
        """Said once; it is tried again whenever the member tells something."""
        if name not in self._refused:
            self._refused.add(name)
            self.log.error(
                "{stream} is not copied: {limit:g} streams are the limit",
                stream=str(name),
                limit=self._hub.limits.streams,
            )

    def _drop_gone(self) -> None:
        """Forget streams that no member has had for long; while a member is down, nothing is known."""
        if any(link.state != "up" for link in self.links):
            return
        listed = set[StreamName]().union(*(link.catalogue for link in self.links))
        for name in [name for name in self.replicas if name not in listed and self._is_idle(name)]:
            self.replicas.pop(name).stop()
            self._standbys.pop(name, None)
            self._hub.remove(name)
            self._hub.release(name)
            self._maker.forget(name)

    def _is_idle(self, name: StreamName) -> bool:
        stream = self._hub.get(name)
        return stream is None or self._settings.clock.seconds() - stream.idle_since > FORGET_SECONDS

    def _pull_all(self, upstream: Upstream) -> None:
        """A plain RTMP server has no catalogue: ask it for the streams that were named."""
        if self._make_pull is None:
            return
        for name in self._named:
            if name not in self.pulls:
                self.pulls[name] = self._make_pull(name, [upstream])
                self.pulls[name].start()


def _hears(replica: Replica, link: ControlLink) -> bool:
    """Does what this member says of the stream count?  That of those who are read, or of all if none is."""
    return not replica.sources or any(source.name == link.name for source in replica.sources)
