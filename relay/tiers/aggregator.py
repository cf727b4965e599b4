"""The aggregator: gathers one distributor of every pair, in memory, and serves viewers.

Composition only.  ``twistd -n relay-aggregator --help``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.python import usage

from relay.log.options import LogOptions
from relay.net.gathering import Gatherer
from relay.net.logs import MemoryLogs
from relay.net.node import Node, NodeSettings
from relay.net.replication import Counts, ReadMode
from relay.net.timings import DEFAULT_TIMINGS, Timings
from relay.tiers.coercion import keep_options, named, positive
from relay.tiers.options import DRAIN_SECONDS, MediaOptions, client_endpoint, run_node, serve
from relay.tiers.patience import UpstreamOptions
from relay.tiers.views import MediaNodeView

Pair = tuple[str, list[tuple[str, IStreamClientEndpoint]]]


class Options(MediaOptions, UpstreamOptions):
    """Command line of ``relay-aggregator``."""

    tier = "aggregator"
    synopsis = "[options] --name NAME --pair NAME=PREFERRED,BACKUP [--pair ...]"
    longdesc = (
        "Gathers one distributor of every pair and serves viewers: rtmp://HOST:PORT/app/name and "
        "http://HOST:PORT/app/name.flv on one port. The first distributor of a pair is preferred; when it dies, "
        "reading goes on from the next byte at the other."
    )
    optParameters = [
        ["read", None, "active-standby",
         "How a pair is read: active-standby (the preferred one, then its backup) or merge (both at once)."],
        ["keep-seconds", None, 60.0, "Seconds of each stream kept in memory.", positive("--keep-seconds")],
        ["keep-mbytes", None, 128.0, "Megabytes of each stream kept in memory.", positive("--keep-mbytes")],
        DRAIN_SECONDS,
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["pairs"] = []

    def opt_pair(self, pair: str) -> None:
        """NAME=ENDPOINT,ENDPOINT: a pair's distributors, the preferred first (a=tcp:host1:1935,tcp:host2:1935)."""
        name, endpoints = named("--pair", pair, "NAME=ENDPOINT,ENDPOINT", self["pairs"])
        members = endpoints.split(",")
        if not all(members):
            raise usage.UsageError(f"--pair {pair!r} is not NAME=ENDPOINT,ENDPOINT")
        self["pairs"].append((name, members))

    def postOptions(self) -> None:
        super().postOptions()
        if not self["pairs"]:
            raise usage.UsageError("at least one --pair is required")
        modes = [mode.value for mode in ReadMode]
        if self["read"] not in modes:
            raise usage.UsageError(f"--read {self['read']!r} is none of {', '.join(modes)}")


class Aggregator(Node):
    """A running aggregator: see :mod:`relay.net.gathering` for how it copies."""

    def __init__(
        self,
        settings: NodeSettings,
        clock: IReactorTime,
        pairs: Sequence[Pair],
        keep: LogOptions,
        mode: ReadMode,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        super().__init__(settings, clock)
        self.counts = Counts()
        logs = MemoryLogs(keep, settings.limits)
        self.gatherers = [
            Gatherer(
                f"pair {name}",
                members,
                patterns=("*",),
                hub=self.hub,
                maker=logs,
                settings=self.upstream_settings,
                counts=self.counts,
                on_change=self.tell_health,
                mode=mode,
                timings=timings,
            )
            for name, members in pairs
        ]

    def startService(self) -> None:
        super().startService()
        for gatherer in self.gatherers:
            gatherer.start()

    def stop_reading(self) -> Sequence[Deferred[Any]]:
        return [gatherer.stop() for gatherer in self.gatherers]

    def health(self) -> tuple[str, list[str]]:
        """Normal when every preferred distributor runs, degraded when a backup serves, down when a pair is lost."""
        why = [reason for gatherer in self.gatherers for reason in gatherer.why_not_normal()]
        if any(gatherer.is_down() for gatherer in self.gatherers):
            return "down", why
        return ("degraded" if why else "normal"), why

    def check(self) -> None:
        super().check()
        for gatherer in self.gatherers:
            gatherer.check()


def make_aggregator(options: Options, reactor: Any) -> Aggregator:
    """Build what the options say.

    Raises:
        ConfigError: they can't be used.
    """
    pairs = [
        (name, [(text, client_endpoint(reactor, f"--pair {name}", text)) for text in texts])
        for name, texts in options["pairs"]
    ]
    keep = keep_options(options["keep-seconds"], options["keep-mbytes"])
    mode = ReadMode(options["read"])
    aggregator = Aggregator(options.settings(), reactor, pairs, keep, mode, options.timings())
    view = MediaNodeView(aggregator, aggregator.gatherers, aggregator.counts)
    return serve(aggregator, view, options, reactor)


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """What ``twistd`` calls."""
    return run_node(options, make_aggregator, reactor)
