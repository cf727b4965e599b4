"""The balancer: splices each viewer to an aggregator.

Composition only.  ``twistd -n relay-balancer --help``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python import usage

from relay.net.backends import Backend, BackendPool, BackendState, Policy
from relay.net.balancing import CONNECT_SECONDS, BalancerFactory, BalancingOptions
from relay.net.dialing import dialing_endpoint
from relay.net.discovery import Found, Resolver, ServiceWatcher
from relay.net.links import ControlLink
from relay.net.listening import ListeningService
from relay.net.neighbours import Neighbourhood
from relay.net.node import NodeSettings
from relay.net.ports import Ports
from relay.net.returning import AT_ONCE, ReturnRule
from relay.net.rtmp_client import ClientSettings
from relay.net.succession import Succession, SuccessionOptions
from relay.net.timings import DEAD_SECONDS
from relay.tiers.coercion import named, not_negative, positive
from relay.tiers.options import parse_endpoint, run_node, serve
from relay.tiers.patience import DEAD_MS
from relay.tiers.peering import PeerOptions, make_neighbourhood
from relay.tiers.services import DNS, SERVICE, make_resolver
from relay.tiers.succeeding import HandoverOptions, end_process
from relay.tiers.views import BalancerView, balancer_health

LEAVE_LOOK_SECONDS = 0.5
PINNED_DOWN = ("hold", "fall-back")
NOT_REACHED = "not reached yet"  # viewers that come before any is reached are held, like those who find none
OPERATOR = ""  # in the place of a service: he names an aggregator, and it stays
HEALTH_STATES = {
    "normal": BackendState.UP,
    "degraded": BackendState.DEGRADED,
    "down": BackendState.PARTIAL,
    "draining": BackendState.DRAINING,
}


class Options(PeerOptions, HandoverOptions):
    """Command line of ``relay-balancer``."""

    tier = "balancer"
    synopsis = "[options] --name NAME --aggregator NAME=ENDPOINT [--aggregator ...]"
    longdesc = (
        "Accepts viewers and splices each to an aggregator, in the kernel: to the one that --pin names; to any by "
        "--policy if all are normal; else to one that is normal; else to one that serves through a backup. A viewer "
        "that comes when there is none is held for --hold-seconds."
    )
    optParameters = [
        ["policy", None, "any", "How to choose among equals: any (in turn), source-hash, least-viewers."],
        ["pin", None, None, "Name of the one aggregator to use."],
        ["when-pinned-down", None, "hold",
         "What happens when that one serves nobody: hold (viewers wait, --hold-seconds) or fall-back (to others)."],
        ["rise-seconds", None, 1.0, "How long an aggregator that was lost must be well before it is given viewers "
         "again, unless there is no other. Doubled, up to 30, each time that it is lost again within a minute.",
         not_negative("--rise-seconds")],
        ["slow-start-seconds", None, 10.0, "How long its share of new viewers then grows, from a tenth to all of it.",
         not_negative("--slow-start-seconds")],
        DEAD_MS,
        ["connect-seconds", None, CONNECT_SECONDS,
         "How long an aggregator may take to accept a connection; then a viewer is sent to another.",
         positive("--connect-seconds")],
        DNS,
        ["merge-ms", None, 0.0,
         "How long bytes for each of many viewers (over 64) are gathered for before they are passed on, ms: spares "
         "processor time from about twice the aggregators' --merge-ms on. 0: nothing waits.",
         not_negative("--merge-ms")],
        ["hold-seconds", None, 10.0,
         "How long a viewer is held when no aggregator is usable.", not_negative("--hold-seconds")],
    ]  # fmt: skip
    optFlags = [
        ["reuse-port", None,
         "Share the port of --listen with other processes that do, too (SO_REUSEPORT): one each for several cores."],
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["aggregators"] = []
        self["services"] = []

    def opt_aggregator(self, aggregator: str) -> None:
        """NAME=ENDPOINT of an aggregator (agg1=tcp:host:1935); or srv:_SERVICE._tcp.DOMAIN, whose members are looked up
        again and again. May be repeated."""
        if aggregator.startswith(SERVICE):
            self["services"].append(aggregator.removeprefix(SERVICE))
        else:
            self["aggregators"].append(named("--aggregator", aggregator, "NAME=ENDPOINT", self["aggregators"]))

    def postOptions(self) -> None:
        super().postOptions()
        names = [name for name, _ in self["aggregators"]]
        if not names and not self["services"]:
            raise usage.UsageError("at least one --aggregator is required")
        for option in ("handover", "take-over-from"):
            if self["services"] and self[option]:
                raise usage.UsageError(
                    f"--{option} {self[option]}: not with --aggregator srv:, whose members may change"
                )
        if self["pin"] is not None and self["pin"] not in names:
            raise usage.UsageError(f"--pin {self['pin']!r} is none of {', '.join(names)}")
        if self["reuse-port"] and not self["listen"].startswith(("tcp:", "tcp6:", "ssl:")):
            raise usage.UsageError(f"--reuse-port: --listen {self['listen']!r} is no TCP port")
        if self["when-pinned-down"] not in PINNED_DOWN:
            choices = ", ".join(PINNED_DOWN)
            raise usage.UsageError(f"--when-pinned-down {self['when-pinned-down']!r} is none of {choices}")
        policies = [policy.value for policy in Policy]
        if self["policy"] not in policies:
            raise usage.UsageError(f"--policy {self['policy']!r} is none of {', '.join(policies)}")


class Balancer(MultiService):
    """A running balancer: viewers' side in :mod:`relay.net.balancing`, what it knows of aggregators from control links.

    Args:
        settings: who we are.
        reactor: the real one: splicing needs its file descriptors.
        aggregators: (name, endpoint).
        policy: how to choose among equals.
        options: for viewers.
        rule: how an aggregator that was lost comes back.
        falls_back: viewers of a pinned aggregator that serves nobody are given another.
        dead_seconds: an aggregator that is silent, and leaves a ping unanswered, for so long is dead.
    """

    log = Logger()

    def __init__(
        self,
        settings: NodeSettings,
        reactor: Any,
        aggregators: Sequence[tuple[str, IStreamClientEndpoint]],
        policy: Policy,
        options: BalancingOptions,
        rule: ReturnRule = AT_ONCE,
        *,
        falls_back: bool = False,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:
        super().__init__()
        self.setName(settings.identity.name)
        self.identity = settings.identity
        self.clock: IReactorTime = reactor
        client = ClientSettings(identity=settings.identity, limits=settings.limits, clock=reactor)
        unknown = [Backend(name, endpoint, BackendState.DOWN, NOT_REACHED) for name, endpoint in aggregators]
        self.pool = BackendPool(unknown, reactor.seconds, policy, rule, falls_back=falls_back)
        self._reached: set[str] = set()
        self.factory = BalancerFactory(reactor, self.pool, limits=settings.limits, options=options)
        self._make_link = lambda name, endpoint: ControlLink(
            name,
            endpoint,
            client,
            self._changed,
            dead_seconds,
            on_session=self._session_said,
            connect_seconds=options.connect_seconds,
        )
        self.links = [self._make_link(name, endpoint) for name, endpoint in aggregators]
        self.watchers: list[ServiceWatcher] = []
        self._named_by = {name: {OPERATOR} for name, _ in aggregators}  # the services that have an aggregator
        self._leaving: set[str] = set()
        self._leaver = TimerService(LEAVE_LOOK_SECONDS, self._forget_left)
        self._leaver.clock = reactor
        self.neighbourhood: Neighbourhood | None = None
        self.succession: Succession | None = None
        self._is_handed_over = False
        self._listeners: list[ListeningService] = []

    def listen(self, endpoint: IStreamServerEndpoint) -> None:
        """Take viewers on this endpoint while running."""
        service = ListeningService(endpoint, self.factory)
        service.setServiceParent(self)
        self._listeners.append(service)

    def join(self, neighbourhood: Neighbourhood) -> None:
        """Share a virtual IP with others."""
        self.neighbourhood = neighbourhood
        self.factory.observers.append(neighbourhood)
        self.pool.add_observer(neighbourhood.tell_health)
        neighbourhood.setServiceParent(self)

    def succeed(self, ports: Ports, options: SuccessionOptions, ended: Callable[[str | None], None]) -> None:
        """Take over from another process, and hand over to the next; called before :meth:`listen` and :meth:`join`.

        Args:
            ports: what this process listens with.
            ended: called when there is nothing left to do here; with a reason if it failed.
        """
        name = self.identity.name
        self.succession = Succession(
            self.clock, name, self.factory, self.links, ports, options, given=self._handed_over, ended=ended
        )
        self.succession.setServiceParent(self)

    def watch(self, service: str, resolver: Resolver, endpoint: Callable[[str], IStreamClientEndpoint]) -> None:
        """Let this service's members be aggregators, besides those that are named."""
        watcher = ServiceWatcher(
            service,
            resolver,
            self.clock,
            lambda member: self._joined(service, member, endpoint),
            lambda member: self._left(service, member),
        )
        watcher.setServiceParent(self)
        self.watchers.append(watcher)
        if self._leaver.parent is None:
            self._leaver.setServiceParent(self)

    def _joined(self, service: str, member: Found, endpoint: Callable[[str], IStreamClientEndpoint]) -> None:
        self._named_by.setdefault(member.name, set()).add(service)
        self._leaving.discard(member.name)
        link = self._link(member.name)
        if link is not None:
            self._changed(link)
            return
        where = endpoint(member.endpoint)
        link = self._make_link(member.name, where)
        self.pool.add(Backend(member.name, where, BackendState.DOWN, NOT_REACHED))
        self.links.append(link)
        link.start()

    def _left(self, service: str, member: Found) -> None:
        """It stays while somebody else names it."""
        named_by = self._named_by.get(member.name, set())
        named_by.discard(service)
        link = self._link(member.name)
        if link is not None and not named_by:
            self._leaving.add(member.name)
            self._set_state(link, BackendState.DRAINING, "the name server names it no more")

    def _link(self, name: str) -> ControlLink | None:
        return next((link for link in self.links if link.name == name), None)

    def _forget_left(self) -> None:
        """Those who are named no more, and have no viewer left."""
        for link in [link for link in self.links if link.name in self._leaving]:
            if not self.pool.backends[link.name].viewers:
                self._leaving.discard(link.name)
                self._reached.discard(link.name)
                self._named_by.pop(link.name, None)
                self.links.remove(link)
                self.pool.remove(link.name)
                link.stop()

    def when_listening(self) -> Deferred[IListeningPort]:
        """Fires with the first port."""
        return self._listeners[0].when_listening()

    def startService(self) -> None:
        super().startService()
        for link in self.links:
            link.start()

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        ends = [maybeDeferred(service.stopService) for service in self]
        ends += [link.stop() for link in self.links]
        ends.append(self.factory.close())
        return DeferredList(ends, consumeErrors=True)

    def _handed_over(self) -> None:
        """Another process is this balancer now, and its neighbours are told by that one.

        For those who stay, what was known of aggregators is still known: a link that we leave is none that is lost.
        """
        self._is_handed_over = True
        for link in self.links:
            link.stop()
        if self.neighbourhood is not None:
            self.neighbourhood.disownServiceParent()

    def _changed(self, link: ControlLink) -> None:
        if self._is_handed_over or link.name not in self.pool.backends:
            return
        if self.succession is not None:
            self.succession.links_changed()
        if link.state == "up":
            self._reached.add(link.name)
            state, why = link.health
            if link.name not in self._leaving:
                self._set_state(link, HEALTH_STATES.get(state, BackendState.PARTIAL), "; ".join(why))
        elif link.state == "foreign":
            self._set_state(link, BackendState.UP, "")
        else:
            self._set_state(link, BackendState.DOWN, link.why)
            if link.name in self._reached and self.running:
                self._reached.discard(link.name)
                self.factory.aggregator_lost(link.name)
                if self.succession is not None:
                    self.succession.aggregator_lost(link.name)

    def _set_state(self, link: ControlLink, state: BackendState, why: str) -> None:
        backend = self.pool.backends[link.name]
        was = backend.state
        self.pool.set_state(link.name, state, why)
        if state is not was:
            seconds = self.pool.rises_in(backend)
            self.log.info(
                "{name} is {state} for viewers{why}{when}",
                event="aggregator",
                name=link.name,
                state=state.value,
                why=f" ({why})" if why else "",
                when=f", if it stays so for {seconds:.3g} s" if seconds else "",
            )

    def _session_said(self, link: ControlLink, name: str, values: list[Any]) -> Deferred[None] | None:
        said = self.factory.session_said if self.succession is None else self.succession.said
        return said(link.name, name, values)


def make_balancer(options: Options, reactor: Any) -> Balancer:
    """Build what the options say.

    Raises:
        ConfigError: they can't be used.
    """
    settings = options.settings()
    secret = settings.identity.secret
    balancing = BalancingOptions(
        connect_seconds=options["connect-seconds"],
        hold_seconds=options["hold-seconds"],
        merge_seconds=options["merge-ms"] / 1000,
        pin=options["pin"],
        secret=b"" if secret is None else secret.key,
        name=options["name"],
    )
    aggregators = [
        (name, parse_endpoint(dialing_endpoint, reactor, f"--aggregator {name}", text))
        for name, text in options["aggregators"]
    ]
    rule = ReturnRule(rise_seconds=options["rise-seconds"], slow_start_seconds=options["slow-start-seconds"])
    falls_back = options["when-pinned-down"] == "fall-back"
    policy = Policy(options["policy"])
    dead_seconds = options["dead-ms"] / 1000
    balancer = Balancer(
        settings, reactor, aggregators, policy, balancing, rule, falls_back=falls_back, dead_seconds=dead_seconds
    )
    ports = Ports(reactor)
    balancer.succeed(ports, options.succession(), lambda why: end_process(reactor, why))
    neighbourhood = make_neighbourhood(options, settings, reactor, lambda: balancer_health(balancer.factory), ports)
    if neighbourhood is not None:
        balancer.join(neighbourhood)
    if options["services"]:
        resolver = make_resolver(reactor, options["dns"])
        for service in options["services"]:
            balancer.watch(service, resolver, lambda text: dialing_endpoint(reactor, text))
    addresses = dict(options["aggregators"])
    view = BalancerView(balancer.factory, options["name"], addresses, neighbourhood, balancer.watchers)
    return serve(balancer, view, options, reactor, ports, ports.shared if options["reuse-port"] else None)


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """What ``twistd`` calls."""
    return run_node(options, make_balancer, reactor)
