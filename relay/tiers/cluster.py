"""A whole cluster on this machine: a child process a node, a test stream, and a page that shows them.

Composition only.  ``twistd -n relay --help``.  The nodes are what the cluster file says
(:mod:`relay.tiers.clusterfile`), or the built-in ones; :mod:`relay.tiers.supervise` keeps them running.

With ``--node`` one node of the file runs in this process instead.  Its tier's module is found by name, as ``twistd``
finds a plugin's: tiers do not import each other.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.reflect import namedAny

from relay import __version__
from relay.admin.cluster import PasteLine, Place, Report, make_cluster_site
from relay.admin.events import EventLog
from relay.admin.polling import NO_PAGE, Answer, Member, NodePoller
from relay.admin.site import BoundedFactory
from relay.demo import read_clip
from relay.errors import ConfigError
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.identity import NodeIdentity, read_secret_file
from relay.net.listening import ListeningService
from relay.net.publisher import PublisherService
from relay.net.rtmp_client import ClientSettings
from relay.tiers.clusterfile import ClusterSpec, NodeSpec, default_cluster, load
from relay.tiers.clusterpage import make_member, paste_lines, places
from relay.tiers.endpoints import parse_server_endpoint
from relay.tiers.jsonlogs import FLAG as JSON_FLAG
from relay.tiers.jsonlogs import log_as_json
from relay.tiers.options import EXIT_CONFIG, NodeRunner, client_endpoint, end_with, refuse, server_endpoint
from relay.tiers.reloading import Changes, Reloader, compare
from relay.tiers.supervise import Supervisor
from relay.tiers.verifying import check_options, options_of

COMMAND = "relay"

BLIND_SECONDS = 10.0
"""A node that can't be asked is believed when its process has run so long: one that can't start has ended by then."""


class Options(usage.Options):
    """Command line of ``twistd relay``."""

    synopsis = "[--config FILE [--node NAME]] [options]"
    longdesc = (
        "Runs a whole live relay on this machine, one process a node: an origin (RTMP on port 1936), two pairs of "
        "distributors, two aggregators and a balancer, to which viewers come (RTMP and HTTP-FLV on port 1935). A test "
        "stream is published: play rtmp://127.0.0.1:1935/live/demo or http://127.0.0.1:1935/live/demo.flv. "
        "http://127.0.0.1:8080/ shows all nodes and lines to paste. A node that dies is started again. SIGTERM or "
        "Ctrl-C ends everything. A file describes a cluster of your own: see examples/cluster.toml; SIGHUP reads it "
        "again, and only what has changed in it is touched."
    )
    optParameters = [
        ["config", "c", None, "Cluster file (TOML). Without it: the built-in cluster."],
        ["node", None, None, "Run only this node of the cluster, in this process."],
        ["admin", "a", "tcp:8080:interface=127.0.0.1", "Endpoint for the cluster's page, API and metrics (HTTP)."],
        ["listen", "l", None, "Endpoint of the balancer, in place of the cluster's own: tcp:1935, ssl:..."],
        ["store", "s", None, "Directory where streams are stored, a directory a node. Without it, and without a store "
         "in the file: a temporary one that is removed at the end (with --node: none, memory only)."],
    ]  # fmt: skip
    optFlags = [
        ["no-demo", None, "Publish no test stream."],
        JSON_FLAG,
        ["page-only", None, "Run no node: only the page, API and metrics of a cluster whose nodes run elsewhere, each "
         "with --node. Their admin endpoints must be reachable from here."],
    ]  # fmt: skip

    def opt_version(self) -> NoReturn:
        """Show the version and exit."""
        sys.stdout.write(f"{COMMAND} {__version__}\n")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and say what is wrong in one line."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            refuse(COMMAND, f"{error} (see {COMMAND} --help)")

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        log_as_json(self, **({"node": self["node"]} if self["node"] else {"tier": "cluster"}))

    def cluster(self) -> ClusterSpec:
        """The cluster that is meant.

        Raises:
            ConfigError: the file, or an option, can't be used.
        """
        spec = load(self["config"]) if self["config"] else default_cluster()
        if self["store"]:
            spec = attrs.evolve(spec, store=Path(self["store"]).absolute())
        if self["no-demo"]:
            spec = attrs.evolve(spec, demo=None)
        if self["listen"]:
            spec = listen_elsewhere(spec, self["listen"])
        return spec


def listen_elsewhere(spec: ClusterSpec, text: str) -> ClusterSpec:
    """The same cluster with another endpoint for its balancer.

    Raises:
        ConfigError: it is no endpoint, or there are several balancers.
    """
    try:
        endpoint = parse_server_endpoint(text)
    except ValueError as error:
        raise ConfigError(f"--listen {text!r}: {error}") from None
    if len({balancer.listen.text for balancer in spec.balancers}) != 1:
        raise ConfigError(f"--listen {text!r}: there are {len(spec.balancers)} balancers; say it in the file")
    balancers = tuple(attrs.evolve(balancer, listen=endpoint) for balancer in spec.balancers)
    return attrs.evolve(spec, balancers=balancers)


class Cluster(MultiService):
    """All nodes as child processes, the demo's publisher, and the cluster's page.

    Args:
        spec: the nodes.
        admin: text of the page's endpoint.
        reactor: runs everything.
        is_page_only: the nodes run elsewhere.
        more: arguments that every node gets.
    """

    log = Logger()

    def __init__(
        self,
        spec: ClusterSpec,
        admin: str,
        reactor: Any,
        *,
        is_page_only: bool = False,
        more: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._more = more
        self._reactor = reactor
        self._scratch: Path | None = None
        self._arguments: dict[str, list[str]] = {}
        self._runs_as: dict[str, NodeSpec] = {}  # of each that was started; the file may say something else by now
        self._first: set[str] = set()  # nodes that the cluster began with, and no reload has restarted
        self._is_reloading = False
        self._publisher: PublisherService | None = None
        self.supervisor: Supervisor | None = None
        if not is_page_only:
            self.supervisor = Supervisor(reactor, self._refused)
            self.supervisor.setServiceParent(self)
        self.events = EventLog()
        self.events.setServiceParent(self)
        self.poller = NodePoller(reactor, self.events)
        self.poller.setServiceParent(self)
        self._show(spec)
        site = BoundedFactory(make_cluster_site(self, reactor, self.events), DEFAULT_LIMITS.admin_connections)
        self.listener = ListeningService(server_endpoint(reactor, "--admin", admin), site)
        self.listener.setServiceParent(self)
        if not is_page_only:
            self._publish()

    def startService(self) -> None:
        if self.supervisor is not None:
            spec = self._stored(self._spec)
            self._first = {node.name for node in spec}
            for node in spec:
                self.add_node(node.name, spec.arguments(node))
        super().startService()

    def _show(self, spec: ClusterSpec) -> None:
        """What the page shows."""
        self._spec = spec
        self._names = {node.connect: node.name for node in spec}
        self._look()

    def _look(self) -> None:
        """Ask each node where it runs now: one that the file has moved is where it was until it is restarted."""
        self._members = [make_member(self._runs_as.get(node.name, node), self._reactor) for node in self._spec]
        self.poller.ask_these(self._members)

    def _stored(self, spec: ClusterSpec) -> ClusterSpec:
        """With somewhere to store streams."""
        if spec.store is not None:
            return spec
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="relay-"))
        return attrs.evolve(spec, store=self._scratch)

    def _publish(self) -> None:
        """The test stream, if there is one."""
        if self._spec.demo is not None:
            self._publisher = make_publisher(self._spec, self._spec.demo, self._reactor)
            self._publisher.setServiceParent(self)

    def add_node(self, name: str, arguments: Sequence[str]) -> None:
        """Run a node."""
        assert self.supervisor is not None
        self._arguments[name] = list(arguments)
        self._runs_as[name] = self._spec.node(name)
        self._look()
        self.poller.forget(name)
        self.supervisor.add_node(name, [*arguments, *self._more])

    def end_node(self, name: str) -> Deferred[None]:
        """Stop one."""
        assert self.supervisor is not None
        del self._arguments[name], self._runs_as[name]
        self._first.discard(name)
        return self.supervisor.end_node(name)

    def reload(self, read: Callable[[], ClusterSpec]) -> None:
        """Follow the file as it is now (:mod:`relay.tiers.reloading`), and let nodes read their keys again.

        If it is wrong, nothing changes.
        """
        assert self.supervisor is not None
        if self._is_reloading:
            self.log.warn("the last reload goes on; say it again when it is done", event="reload")
            return
        try:
            spec = self._stored(read())
            if len(spec.hosts) > 1:
                raise ConfigError(f"the nodes are on {len(spec.hosts)} machines ({', '.join(spec.hosts)})")
            check_options(spec)
        except ConfigError as error:
            self.log.error("nothing is changed: {error}", event="reload", error=str(error))
            return
        changes = compare(self._arguments, spec)
        touched = {*changes.removed, *(node.name for node in changes.changed)}
        for name in self._arguments.keys() - touched:
            self.supervisor.hang_up(name)
        self.log.info("the cluster file is read again: {changes}", event="reload", changes=changes.describe())
        self._is_reloading = True
        following = Deferred.fromCoroutine(self._follow(spec, changes))
        following.addErrback(lambda failure: self.log.failure("following the cluster file", failure))

    async def _follow(self, spec: ClusterSpec, changes: Changes) -> None:
        try:
            former = self._spec
            self._show(spec)
            if await Reloader(self, spec, self._is_well, self._reactor).follow(changes):
                self.log.info("the cluster is as the file says", event="reload")
            where = [(each.demo, [origin.connect for origin in each.origins]) for each in (former, spec)]
            if where[0] != where[1]:
                if self._publisher is not None:
                    await maybeDeferred(self._publisher.disownServiceParent)
                    self._publisher = None
                self._publish()
        finally:
            self._is_reloading = False

    def _is_well(self, node: NodeSpec) -> bool:
        """Does it serve, and do balancers send it viewers, if it is an aggregator?  Each must have said so."""
        assert self.supervisor is not None
        balancers = [self._answer(each.name) for each in self._spec.balancers if node.tier == "aggregator"]
        asked = [self._answer(node.name), *balancers]
        if any(answer.state not in ("normal", "degraded", NO_PAGE.state) for answer in asked):
            return False
        if NO_PAGE in asked and self.supervisor.seconds_running(node.name) < BLIND_SECONDS:
            return False
        links = [link for answer in balancers for link in answer.links if link.get("endpoint") == node.connect]
        return all(link.get("state") == "up" and not link.get("why") for link in links)

    def stopService(self) -> Deferred[None]:
        async def stop() -> None:
            await super(Cluster, self).stopService()
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

        return Deferred.fromCoroutine(stop())

    def reports(self) -> list[Report]:
        """All nodes as they are now: a node whose process has just ended does not look well until it is asked again."""
        return [self._report(member) for member in self._members]

    def paste_lines(self) -> list[PasteLine]:
        """For the page."""
        return paste_lines(self._spec)

    def places(self) -> list[Place]:
        """For the page's player."""
        return places(self._spec)

    def _report(self, member: Member) -> Report:
        """A node knows its neighbours by their endpoints; here their names are known too."""
        answer = self._answer(member.name)
        restarts = 0 if self.supervisor is None else self.supervisor.restarts(member.name)
        links = [{**link, "name": self._names.get(link.get("endpoint"), link.get("name"))} for link in answer.links]
        answer = attrs.evolve(answer, links=links)
        return Report(member=member, answer=answer, restarts=restarts)

    def _answer(self, name: str) -> Answer:
        """What a node last said; nothing that its process has said counts when it has ended."""
        if self.supervisor is not None and name not in self.supervisor.protocols:
            return Answer(state="down", why=("its process has ended",))
        return self.poller.answers[name]

    def _refused(self, name: str, why: str) -> None:
        """A node ended its first start: it can't start as the file describes it.

        If it is one of those that the cluster began with, the cluster doesn't start either.  If a reload added or
        changed it, the others serve viewers and go on; it is started again like any other that ends.
        """
        if name not in self._first:
            self.log.critical(
                "{name} can't start: {why}. It is tried again and again; the others go on. Correct it in the cluster "
                "file and send SIGHUP, or take away what is in its way",
                event="reload",
                name=name,
                why=why,
            )
            return
        self.log.critical("{name} can't start: {why}", name=name, why=why)
        end_with(EXIT_CONFIG, f"{COMMAND}: {name} can't start: {why}")
        self._reactor.stop()


def make_publisher(spec: ClusterSpec, stream: StreamName, reactor: Any) -> PublisherService:
    """The publisher of the test stream."""
    secret = read_secret_file(str(spec.secret_file)) if spec.secret_file else None
    identity = NodeIdentity(name="demo", tier="publisher", secret=secret)
    origins = [
        (origin.name, client_endpoint(reactor, f"connect of {origin.name}", origin.connect)) for origin in spec.origins
    ]
    settings = ClientSettings(identity=identity, limits=DEFAULT_LIMITS, clock=reactor)
    return PublisherService(origins, stream, read_clip(), settings)


def make_cluster(options: Options, reactor: Any) -> Cluster:
    """Build what the options say.

    Raises:
        ConfigError: they can't be used.
    """
    spec = options.cluster()
    if len(spec.hosts) > 1 and not options["page-only"]:
        raise ConfigError(
            f"the nodes are on {len(spec.hosts)} machines ({', '.join(spec.hosts)}): use --node NAME on each, and "
            "--page-only where the page of all is wanted"
        )
    if not options["page-only"]:
        check_options(spec)
    more = ["--json-logs"] if options["json-logs"] else []
    cluster = Cluster(spec, options["admin"], reactor, is_page_only=bool(options["page-only"]), more=more)
    if cluster.supervisor is not None and options["config"]:
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(cluster.reload, options.cluster))
    return cluster


def make_node(options: Options, reactor: Any) -> MultiService:
    """Build one node of the cluster.

    Raises:
        ConfigError: there is none of that name.
    """
    spec = options.cluster()
    node = spec.node(options["node"])
    tier = namedAny(f"relay.tiers.{node.tier}")
    node_options = options_of(spec, node)
    log_as_json(node_options, node=node.name, tier=node.tier)
    service: MultiService = tier.makeService(node_options, reactor)
    return service


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """What ``twistd`` calls."""
    is_own_process = reactor is None
    if is_own_process:
        from twisted.internet import reactor as global_reactor  # noqa: PLC0415 (only twistd's own entry leaves it out)

        reactor = global_reactor
    runner = NodeRunner(COMMAND, reactor if is_own_process else None)
    try:
        make = make_node if options["node"] else make_cluster
        make(options, reactor).setServiceParent(runner)
    except ConfigError as error:
        refuse(COMMAND, error)
    return runner
