"""Which of its members a stream's copy should be read from, by what the members say of themselves.

Owns one copy's watch over its upstreams: leaves the one that is read when it is behind another, goes back to the
preferred one when that is well and has caught up.  The rules are :mod:`relay.net.progress`'s; deaths are the control
links' and the connections'.  Called by :mod:`relay.net.gathering`.

Only positions of one epoch can be compared; a member in another epoch is not taken for being ahead.  A member that is
so far ahead that it no longer has our next byte is none that we could go on at without a loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from relay.net.catalogue import CatalogueEntry
from relay.net.failover import RETURN, Upstream
from relay.net.links import ControlLink
from relay.net.progress import BehindWatch, Place, ReturnWait
from relay.net.replication import Replica
from relay.net.timings import Timings


class Standby:
    """For one copy that is read from one member at a time.

    Args:
        replica: the copy.
        members: upstreams with their control links, the preferred one first.
        timings: how patient we are.
        clock: the reactor.

    ``is_behind``: the preferred member was left for being behind, and has not been returned to.
    """

    def __init__(
        self,
        replica: Replica,
        members: Sequence[tuple[Upstream, ControlLink]],
        timings: Timings,
        clock: IReactorTime,
    ) -> None:
        self.is_behind = False
        self._replica = replica
        self._members = members
        self._clock = clock
        self._watch = BehindWatch(timings.behind)
        self._wait = ReturnWait(timings.return_)
        self._read: Upstream | None = None
        self._end_before = (0, 0)  # (epoch, end) of ours at the last check

    def judge(self) -> None:
        """A member has told how far it is: is the one that is read behind?"""
        now = self._clock.seconds()
        current = self._replica.current
        self._note(current, now)
        if current is None:
            return
        best = self._furthest_but(current)
        why = self._watch.why_behind(now, self._place(best), None if best is None else _place_of(best[1]))
        if why and best is not None and self._replica.turn_to(best[0], "behind", why):
            self._watch.moved(now)
            self.is_behind = current is self._members[0][0]

    def check(self) -> None:
        """Once a second: may the preferred member be read again?"""
        self.judge()
        now = self._clock.seconds()
        preferred, link = self._members[0]
        is_well = self._replica.current not in (None, preferred) and preferred.is_usable and self._has_caught_up(link)
        seconds = self._wait.seconds
        if self._wait.is_due(now, is_well=is_well) and self._replica.turn_to(
            preferred, RETURN, f"well for {seconds:g} s"
        ):
            self._wait.returned(now)
        self._end_before = (self._replica.epoch, self._replica.end)

    def preferred_lost(self) -> None:
        """The preferred member is not to be read now, be it for a moment."""
        self._wait.unwell()

    def preferred_changed(self) -> None:
        """Another member is the preferred one: what is known of the former says nothing of it."""
        self._wait.unwell()
        if self._replica.current is self._members[0][0]:
            self.is_behind = False

    def _note(self, current: Upstream | None, now: float) -> None:
        """Has another member been turned to?"""
        if current is None or current is self._read:
            return
        preferred = self._members[0][0]
        if self._read is preferred and not preferred.is_draining:
            self._wait.failed(now)
        self._read = current
        self._watch.restart()
        if current is preferred:
            self.is_behind = False

    def _place(self, best: tuple[Upstream, CatalogueEntry] | None) -> Place:
        """Where we are; before everything, if we have nothing yet."""
        if self._replica.epoch:
            return Place(self._replica.end, self._replica.time_ms)
        return Place(-1, best[1].time_ms if best is not None else 0)

    def _furthest_but(self, current: Upstream) -> tuple[Upstream, CatalogueEntry] | None:
        """Of the others that we could go on at."""
        epoch, end = self._replica.epoch, self._replica.end
        found: tuple[Upstream, CatalogueEntry] | None = None
        for upstream, link in self._members:
            entry = link.catalogue.get(self._replica.name)
            if upstream is current or not upstream.is_usable or entry is None:
                continue
            if epoch and (entry.epoch != epoch or entry.start > end):
                continue
            if found is None or entry.end > found[1].end:
                found = upstream, entry
        return found

    def _has_caught_up(self, link: ControlLink) -> bool:
        """Has it what we had a second ago, or a later epoch?  (Epochs are numbered by time.)"""
        entry = link.catalogue.get(self._replica.name)
        if entry is None or self._replica.has_left(entry.epoch):
            return False
        epoch, end = self._end_before
        if entry.epoch != self._replica.epoch:
            return entry.epoch > self._replica.epoch
        return entry.start <= self._replica.end and (entry.epoch != epoch or entry.end >= end)


def _place_of(entry: CatalogueEntry) -> Place:
    return Place(entry.end, entry.time_ms)
