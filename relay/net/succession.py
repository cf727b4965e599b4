"""A balancer's place in a row of processes: it takes over from the one before, and hands over to the next.

Owns what is common to both: when the conversation begins, and who is told at its end.  The giver's side is
:mod:`relay.net.giving`, the taker's :mod:`relay.net.taking`; :mod:`relay.net.handover` has the theory.  Built by the
balancer tier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from relay.net.balancing import BalancerFactory
from relay.net.door import Door
from relay.net.giving import Giver
from relay.net.handover import Greeting, greet
from relay.net.links import ControlLink
from relay.net.ports import Ports
from relay.net.taking import Taker


@attrs.frozen(kw_only=True)
class SuccessionOptions:
    """What an operator sets."""

    take_over_from: str | None = None  # path of the UNIX socket where the process before listens
    handover: str | None = None  # where this one listens for the next
    linger_seconds: float = 300.0  # for viewers who can't be handed over


class Succession(Service):
    """Begins before anything listens, so it is the first child of its balancer.

    Args:
        reactor: the real one.
        name: of the balancer.
        factory, links, ports: of this process.
        given: called when another process has the viewers: let go of all that they have in common.
        ended: called with ``None`` when those who stayed are gone, too; with the reason when a take-over has failed.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        factory: BalancerFactory,
        links: Sequence[ControlLink],
        ports: Ports,
        options: SuccessionOptions,
        *,
        given: Callable[[], None],
        ended: Callable[[str | None], None],
    ) -> None:
        self.taker: Taker | None = None
        self.giver = Giver(reactor, name, factory, links, ports, self._have_given)
        self._reactor = reactor
        self._balancer = name
        self._factory = factory
        self._links = links
        self._ports = ports
        self._options = options
        self._given = given
        self._ended = ended
        self._door = None if options.handover is None else Door(reactor, options.handover, self.giver.make_protocol)
        self._greeting: Greeting | None = None
        self._began_at = 0.0
        self._linger: IDelayedCall | None = None
        self._is_prepared = False
        factory.elsewhere = self._pass_on

    def privilegedStartService(self) -> None:
        """Greet the process before us, while we may open what is another user's.

        Raises:
            ConfigError: it does not hand over to us.
        """
        super().privilegedStartService()
        self._is_prepared = True
        path = self._options.take_over_from
        if path is not None:
            self._greeting = greet(path, self._balancer, [link.name for link in self._links])
            if self._greeting is None:
                self.log.info("{name}: nobody answers at {path}: starting afresh", name=self._balancer, path=path)
        if self._greeting is not None:
            frame = self._greeting.frame
            self._ports.inherit(frame.values["ports"], frame.descriptors)
        if self._door is not None:
            self._door.prepare()

    def startService(self) -> None:
        if not self._is_prepared:
            self.privilegedStartService()
        super().startService()
        self._began_at = self._reactor.seconds()
        if self._greeting is None:
            self._open_door()
            return
        self.taker = Taker(
            self._reactor, self._greeting, self._factory, self._links, self._ports, self._have_taken, self._have_failed
        )
        self.taker.start()

    def stopService(self) -> None:
        super().stopService()
        self._close_door()
        self.giver.stop()
        if self.taker is not None:
            self.taker.stop()
        if self._linger is not None and self._linger.active():
            self._linger.cancel()

    # told by the balancer

    def said(self, backend: str, name: str, values: list[Any]) -> Deferred[None] | None:
        """An aggregator says something of a session; it is answered when what this returns fires, or at once.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        taker = self.taker
        return self.giver.said(backend, name, values) if taker is None else taker.said(backend, name, values)

    def links_changed(self) -> None:
        """One has come or gone."""
        if self.taker is not None:
            self.taker.links_changed()

    def aggregator_lost(self, name: str) -> None:
        """So is this one."""
        if self.taker is not None:
            self.taker.aggregator_lost(name)

    # what happens

    def _pass_on(self, backend: str, name: str, values: list[Any]) -> Deferred[None] | None:
        return None if self.taker is None else self.taker.pass_on(backend, name, values)

    def _have_taken(self, count: int) -> None:
        self.log.info(
            "{name} has taken over, with {count} viewers, in {seconds:.2f} s; they have rested for {rest:.0f} ms",
            event="handover",
            name=self._balancer,
            count=count,
            rest=0.0 if self.taker is None else self.taker.rest_seconds * 1000,
            seconds=self._reactor.seconds() - self._began_at,
        )
        for asked in self._ports.unclaimed():
            self.log.warn(
                "{name}: the process before has listened on {asked}; this one does not, and now nobody does",
                name=self._balancer,
                asked=asked,
            )
        self._open_door()

    def _have_failed(self, why: str) -> None:
        self.log.critical(
            "{name} has not taken over, and ends; the process before goes on: {why}", name=self._balancer, why=why
        )
        self._ended(why)

    def _have_given(self, count: int) -> None:
        left = len(self._factory.viewers)
        seconds = self._options.linger_seconds
        self.log.info(
            "{name} has handed {count} viewers over{rest}",
            event="handover",
            name=self._balancer,
            count=count,
            rest=f"; {left} who can't be (TLS) stay here for {seconds:g} s at most" if left else "",
        )
        self._close_door()
        self._given()
        self._linger = self._reactor.callLater(self._options.linger_seconds, self._linger_over)
        self._factory.when_empty().addCallback(self._all_gone)

    def _linger_over(self) -> None:
        self.log.warn("{count} viewers have stayed too long: closed", count=len(self._factory.viewers))
        for viewer in list(self._factory.viewers):
            viewer.close("stopped")

    def _all_gone(self, _: object) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        if self.running:
            self._ended(None)

    def _open_door(self) -> None:
        if self._door is None:
            return
        try:
            self._door.open()
        except OSError as error:
            self.log.error(
                "{name}: nobody will be able to take over from here: {path}: {error}",
                name=self._balancer,
                path=self._options.handover,
                error=error.strerror,
            )

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()
