"""The distributor: copies streams from its upstreams all the time, stores them, serves copies and viewers.

Composition only.  ``twistd -n relay-distributor --help``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.python import usage

from relay.errors import NameRefused
from relay.names import StreamName
from relay.net.discovery import Found, Resolver, ServiceWatcher
from relay.net.failover import Upstream
from relay.net.gathering import Gatherer
from relay.net.node import NodeSettings
from relay.net.pulling import Pull
from relay.net.replication import Counts
from relay.net.storing import StoringNode
from relay.tiers.options import DRAIN_SECONDS, StoreOptions, client_endpoint, run_node, serve
from relay.tiers.patience import UpstreamOptions
from relay.tiers.services import DNS, SERVICE, make_resolver
from relay.tiers.views import MediaNodeView


class Options(StoreOptions, UpstreamOptions):
    """Command line of ``relay-distributor``."""

    tier = "distributor"
    synopsis = "[options] --name NAME --store DIR --upstream ENDPOINT [--upstream ENDPOINT ...]"
    longdesc = (
        "Copies streams from an origin, byte for byte, into its own store and hands them on. Distributors come in "
        "pairs that back each other up: give both the same --streams. The first --upstream is preferred. An upstream "
        "that is a plain RTMP server is asked for the streams that --streams names without wildcards."
    )

    optParameters = [DRAIN_SECONDS, DNS]

    def __init__(self) -> None:
        super().__init__()
        self["upstreams"] = []
        self["streams"] = []

    def opt_upstream(self, endpoint: str) -> None:
        """Twisted endpoint of an origin, tcp:HOST:PORT; or srv:_SERVICE._tcp.DOMAIN, whose members are looked up again
        and again. May be repeated, the preferred first."""
        self["upstreams"].append(endpoint)

    def opt_streams(self, pattern: str) -> None:
        """Which streams to copy: APP/NAME with * ? [...] wildcards. May be repeated. Default: all."""
        self["streams"].append(pattern)

    def postOptions(self) -> None:
        super().postOptions()
        if not self["upstreams"]:
            raise usage.UsageError("at least one --upstream is required")
        services = [each for each in self["upstreams"] if each.startswith(SERVICE)]
        if services and len(self["upstreams"]) > 1:
            raise usage.UsageError(f"--upstream {services[0]} must be the only one: its members are the upstreams")
        for pattern in self["streams"]:
            if not any(character in pattern for character in "*?["):
                try:
                    StreamName.parse(pattern)
                except NameRefused as error:
                    raise usage.UsageError(f"--streams {pattern}: {error}") from None


class Distributor(StoringNode):
    """A running distributor: see :mod:`relay.net.gathering` for how it copies."""

    def __init__(
        self,
        settings: NodeSettings,
        clock: IReactorTime,
        upstreams: Sequence[tuple[str, IStreamClientEndpoint]],
        patterns: Sequence[str],
        options: Options,
    ) -> None:
        super().__init__(settings, clock, options.store_settings())
        self.counts = Counts()
        self.watcher: ServiceWatcher | None = None
        self._timings = options.timings()
        self.gatherer = Gatherer(
            "upstream",
            upstreams,
            patterns=tuple(patterns) or ("*",),
            hub=self.hub,
            maker=self.logs,
            settings=self.upstream_settings,
            counts=self.counts,
            on_change=self.tell_health,
            make_pull=self._make_pull,
            timings=self._timings,
        )

    def watch(self, service: str, resolver: Resolver) -> None:
        """Let this service's members be the upstreams."""
        self.watcher = ServiceWatcher(service, resolver, self.clock, self._joined, self._left, self._arranged)
        self.watcher.setServiceParent(self)

    def _joined(self, member: Found) -> None:
        endpoint = client_endpoint(self.clock, "--upstream", member.endpoint)
        self.gatherer.add_member(member.name, endpoint)

    def _left(self, member: Found) -> None:
        self.gatherer.let_go(member.name)

    def _arranged(self, members: Sequence[Found]) -> None:
        self.gatherer.arrange([member.name for member in members])

    def startService(self) -> None:
        super().startService()
        self.gatherer.start()

    def stop_reading(self) -> Sequence[Deferred[Any]]:
        return [self.gatherer.stop()]

    def health(self) -> tuple[str, list[str]]:
        """Normal while an upstream is there and the store takes bytes; down when no upstream is."""
        why = self.storage_problems()
        if self.gatherer.is_down():
            return "down", [*self.gatherer.why_not_normal(), *why]
        why += self.gatherer.why_not_normal()
        return ("degraded" if why else "normal"), why

    def check(self) -> None:
        super().check()
        self.gatherer.check()

    def _make_pull(self, name: StreamName, upstreams: Sequence[Upstream]) -> Pull:
        self.pulled.add(name)
        ingest = self.ingest(name)
        address = (name.app, f"rtmp://{upstreams[0].name}/{name.app}", name.name)
        return Pull(name, ingest, upstreams, address, self.upstream_settings, self._timings)


def make_distributor(options: Options, reactor: Any) -> Distributor:
    """Build what the options say.

    Raises:
        ConfigError: they can't be used.
    """
    service = next((text for text in options["upstreams"] if text.startswith(SERVICE)), None)
    fixed = [] if service else options["upstreams"]
    upstreams = [(text, client_endpoint(reactor, "--upstream", text)) for text in fixed]
    distributor = Distributor(options.settings(), reactor, upstreams, options["streams"], options)
    if service:
        distributor.watch(service.removeprefix(SERVICE), make_resolver(reactor, options["dns"]))
    view = MediaNodeView(distributor, [distributor.gatherer], distributor.counts, distributor.watcher)
    return serve(distributor, view, options, reactor)


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """What ``twistd`` calls."""
    return run_node(options, make_distributor, reactor)
