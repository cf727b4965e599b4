"""The origin: where encoders publish, and where the positions of a stream begin.

Composition only.  ``twistd -n relay-origin --help``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python import usage

from relay.errors import ConfigError, NameRefused
from relay.names import StreamName
from relay.net.catalogue import CatalogueEntry
from relay.net.failover import Upstream
from relay.net.ingest import Publication, PublishRefused, SecondPublisher
from relay.net.node import NodeSettings
from relay.net.pulling import Pull
from relay.net.rtmp_server import RtmpServerProtocol
from relay.net.storing import DEFAULT_INGEST, IngestSettings, StoreSettings, StoringNode
from relay.net.streams import LiveStream
from relay.net.urls import RtmpUrl, parse_rtmp_url
from relay.tiers.access import PublishAccessOptions
from relay.tiers.coercion import positive
from relay.tiers.options import StoreOptions, run_node, serve
from relay.tiers.views import MediaNodeView

COPIES_APART_MS = 1_000  # the copies of a log that was lost end at about the same time; the next log begins after all


class Options(StoreOptions, PublishAccessOptions):
    """Command line of ``relay-origin``."""

    tier = "origin"
    synopsis = "[options] --name NAME [--store DIR]"
    longdesc = (
        "Encoders publish here: rtmp://HOST:PORT/APP/NAME (in OBS: server rtmp://HOST:PORT/APP, stream key NAME). "
        "With --store, an origin that is killed goes on in the same log when it comes back."
    )
    optParameters = [
        ["second-publisher", None, "refuse",
         "A second publisher of a live name is: refuse(d), kept as a warm standby, or put in its place (replace)."],
        ["takeover-seconds", None, 3.0,
         "A publisher that is silent for so long no longer holds its name.", positive("--takeover-seconds")],
        ["end-seconds", None, 30.0,
         "The broadcast is over so long after its publisher left.", positive("--end-seconds")],
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["pulls"] = []

    def opt_pull(self, pull: str) -> None:
        """APP/NAME=rtmp://HOST/APP/NAME: take this stream from another RTMP server, for ever. May be repeated."""
        name, equals, url = pull.partition("=")
        if not equals:
            raise usage.UsageError(f"--pull {pull!r} is not APP/NAME=rtmp://HOST/APP/NAME")
        try:
            self["pulls"].append((StreamName.parse(name), parse_rtmp_url(url)))
        except (NameRefused, ConfigError) as error:
            raise usage.UsageError(f"--pull {name}: {error}") from None

    def postOptions(self) -> None:
        super().postOptions()
        choices = [policy.value for policy in SecondPublisher]
        if self["second-publisher"] not in choices:
            raise usage.UsageError(f"--second-publisher {self['second-publisher']!r} is none of {', '.join(choices)}")


class Origin(StoringNode):
    """A running origin.

    Args:
        pulls: streams to take from other servers: (name here, where).
    """

    log = Logger()
    is_writer = True
    is_left = False  # one that drains takes no new broadcast; those that are here are read to their end

    def __init__(
        self,
        settings: NodeSettings,
        clock: IReactorTime,
        store: StoreSettings,
        ingest: IngestSettings = DEFAULT_INGEST,
        pulls: Sequence[tuple[StreamName, RtmpUrl]] = (),
    ) -> None:
        super().__init__(settings, clock, store, ingest)
        self._pull_urls = pulls
        self._reactor = clock
        self.pulls: list[Pull] = []
        self.control.on_ahead = self._replica_is_ahead
        self.control.on_report = self._replica_reports

    def startService(self) -> None:
        self.expire()
        for name in self.logs.names():
            self.ingest(name).await_publisher()
        super().startService()
        for name, url in self._pull_urls:
            self.pulled.add(name)
            upstream = Upstream(name=url.server, endpoint=url.endpoint(self._reactor))
            pull = Pull(name, self.ingest(name), [upstream], (url.app, url.tc_url, url.stream), self.upstream_settings)
            self.pulls.append(pull)
            pull.start()

    def stop_reading(self) -> Sequence[Deferred[Any]]:
        return [pull.stop() for pull in self.pulls]

    def publish(self, name: StreamName, publisher: RtmpServerProtocol) -> Publication:
        """An encoder publishes.

        Raises:
            PublishRefused: the name is taken, or the node drains and this is no broadcast that goes on here.
            LimitExceeded: there are too many streams.
        """
        if self.drain.why and not self._goes_on(name):
            raise PublishRefused("NetStream.Publish.Denied", f"{self.identity.name} drains: publish elsewhere")
        publication = self.ingest(name).admit(publisher)
        publisher.log.info("{stream}: {who} publishes", event="publish", stream=str(name), who=publisher.describe())
        return publication

    def health(self) -> tuple[str, list[str]]:
        """Normal while the store takes bytes."""
        why = self.storage_problems()
        return ("degraded" if why else "normal"), why

    def _goes_on(self, name: StreamName) -> bool:
        """Is this broadcast here, and not over?"""
        stream = self.hub.get(name)
        return stream is not None and not stream.log.is_finished

    def _replica_reports(self, entry: CatalogueEntry) -> None:
        """A copy of an epoch that was lost here: what is published now must come later in media time."""
        stream = self.hub.get(entry.name)
        if stream is not None and stream.find_epoch(entry.epoch) is not None:
            return
        if entry.name in self.reported_ms or len(self.reported_ms) < self.limits.streams:
            after_all_ms = entry.time_ms + COPIES_APART_MS
            self.reported_ms[entry.name] = max(after_all_ms, self.reported_ms.get(entry.name, 0))
        if stream is not None and entry.time_ms >= stream.log.end_time_ms:
            self.log.warn(
                "{stream}: a copy of epoch {epoch}, which was lost here, is ahead in media time; a new epoch begins",
                event="epoch",
                stream=str(entry.name),
                epoch=entry.epoch,
            )
            self.renew(stream)

    def _replica_is_ahead(self, stream: LiveStream, offset: int) -> None:
        """A copy has bytes that were lost here: this log must not go on at offsets that it has used before."""
        ours = stream.log
        self.log.error(
            "{stream}: a copy has {offset} bytes of epoch {epoch}, we have {end}",
            event="diverged",
            stream=str(stream.name),
            offset=offset,
            epoch=ours.epoch,
            end=ours.end,
        )
        self.renew(stream)


def make_origin(options: Options, reactor: Any) -> Origin:
    """Build what the options say.

    Raises:
        ConfigError: they can't be used.
    """
    ingest = IngestSettings(
        policy=SecondPublisher(options["second-publisher"]),
        takeover_seconds=options["takeover-seconds"],
        end_seconds=options["end-seconds"],
    )
    origin = Origin(options.settings(), reactor, options.store_settings(), ingest, options["pulls"])
    return serve(origin, MediaNodeView(origin), options, reactor)


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """What ``twistd`` calls."""
    return run_node(options, make_origin, reactor)
