"""Options that every node has, and how a bad one is said: one line on standard error, exit status 2.

Owns the parsing of endpoints, secrets and networks.  The tiers' ``Options`` derive from it.
"""

from __future__ import annotations

import atexit
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python import usage

from relay.admin.events import EventLog
from relay.admin.guard import Guard
from relay.admin.node import make_site
from relay.admin.site import BoundedFactory
from relay.admin.views import NodeView
from relay.errors import ConfigError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.net.identity import NodeIdentity, read_secret_file
from relay.net.listening import ListeningService
from relay.net.node import Node, NodeSettings
from relay.net.sniffing import LOOPBACK, Network, parse_networks
from relay.net.storing import StoreSettings
from relay.tiers.access import PlayAccessOptions
from relay.tiers.coercion import keep_options, not_negative, positive
from relay.tiers.forwarding import ForwardOptions
from relay.tiers.jsonlogs import FLAG as JSON_FLAG
from relay.tiers.jsonlogs import log_as_json
from relay.tiers.memory import settle_memory

log = Logger()

EXIT_CONFIG = 2  # a bad option, or a port in use: starting again won't help

T = TypeVar("T")


def refuse(command: str, error: object) -> NoReturn:
    """Say what is wrong and exit.  Once ``twistd`` runs, ``sys.stderr`` is its log: the line goes to the real one."""
    stderr = sys.__stderr__ or sys.stderr
    stderr.write(f"{command}: {error}\n")
    raise SystemExit(EXIT_CONFIG)


def end_with(status: int, line: str = "") -> None:
    """Make ``status`` that of this process when it ends, and ``line`` the last one on standard error.

    ``twistd`` has no way to say a status once it runs, and writes standard error to its log.  So it ends as it always
    does, and then this happens.
    """

    def end() -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        if line:
            os.write(2, line.encode() + b"\n")
        os._exit(status)

    atexit.register(end)


DRAIN_SECONDS = [
    "drain-seconds", None, 10.0,
    "At SIGTERM, wait at most so long until viewers and copies have moved elsewhere; 0: don't wait. Who can't move is "
    "not waited for.", not_negative("--drain-seconds"),
]  # fmt: skip
"""For the tiers whose readers can go elsewhere."""


class NodeOptions(usage.Options):
    """What every tier takes.  Subclasses set ``tier`` and call ``super().__init__()``."""

    tier = "node"

    optParameters = [
        ["name", "n", None, "What this node is called, in logs, pages and by its neighbours (required)."],
        ["listen", "l", "tcp:1935",
         "Twisted endpoint to serve on: tcp:1935, tcp:1935:interface=127.0.0.1, ssl:…, unix:…"],
        ["admin", "a", None, "Endpoint for health, metrics, API and page (HTTP), e.g. tcp:8081:interface=127.0.0.1"],
        ["admin-token-file", None, None, "File with a token (mode 0600, 16 bytes or more) that whoever wants to change "
         "something at the admin site has to say. Without it, only who is on this machine may."],
        ["secret-file", None, None, "File with the cluster's shared secret (mode 0600, 16 bytes or more). Without it, "
         "only neighbours on this host are believed."],
    ]  # fmt: skip

    optFlags = [JSON_FLAG]

    def __init__(self) -> None:
        super().__init__()
        self["trust-proxy"] = []
        self["limits"] = {}
        self["admin-hosts"] = []

    @property
    def command(self) -> str:
        """What the operator typed."""
        return f"relay-{self.tier}"

    def opt_trust_proxy(self, network: str) -> None:
        """Address or network (CIDR) that may send PROXY protocol headers. May be repeated. Default: loopback."""
        self["trust-proxy"].append(network)

    def opt_admin_host(self, name: str) -> None:
        """Another name by which the admin site may be asked to change something (drain). May be repeated. By its
        address, as localhost and by this machine's name it may always."""
        self["admin-hosts"].append(name)

    def opt_limit(self, limit: str) -> None:
        """NAME=VALUE: change a bound on what peers may do (see relay/limits.py). May be repeated."""
        name, equals, text = limit.partition("=")
        field = attrs.fields_dict(Limits).get(name)
        if not equals or field is None:
            known = ", ".join(attrs.fields_dict(Limits))
            raise usage.UsageError(f"--limit {limit!r}: NAME=VALUE, and NAME one of {known}")
        value = positive(f"--limit {name}")(text)
        if str(field.type) == "float":  # annotations are text here
            self["limits"][name] = value
        elif value == int(value):
            self["limits"][name] = int(value)
        else:
            raise usage.UsageError(f"--limit {name} {text}: must be a whole number")

    def opt_version(self) -> NoReturn:
        """Show the version and exit."""
        from relay import __version__  # noqa: PLC0415

        sys.stdout.write(f"{self.command} {__version__}\n")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and say what is wrong in one line."""
        try:
            self.parse(options)
        except ConfigError as error:
            refuse(self.command, f"{error} (see {self.command} --help)")
        log_as_json(self, node=self["name"], tier=self.tier)

    def parse(self, options: Sequence[str] | None = None) -> None:
        """As :meth:`parseOptions`, for whoever goes on if they are wrong.

        Raises:
            ConfigError: they are.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise ConfigError(str(error)) from None

    def read_files(self) -> None:
        """Are the files that the options name good?

        Raises:
            ConfigError: one can't be used.
        """
        self.settings()
        self.admin_token()

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        super().postOptions()
        if not self["name"]:
            raise usage.UsageError("--name is required")
        self.networks()

    def networks(self) -> tuple[Network, ...]:
        """``--trust-proxy``."""
        try:
            return parse_networks(self["trust-proxy"]) or LOOPBACK
        except ValueError as error:
            raise ConfigError(f"--trust-proxy: {error}") from None

    def admin_token(self) -> bytes | None:
        """``--admin-token-file``.

        Raises:
            ConfigError: it can't be used.
        """
        path = self["admin-token-file"]
        return read_secret_file(path, "--admin-token-file").key if path else None

    @property
    def limits(self) -> Limits:
        """The defaults with ``--limit``."""
        return attrs.evolve(DEFAULT_LIMITS, **self["limits"])

    def settings(self) -> NodeSettings:
        """Everything that any node is told.

        Raises:
            ConfigError: the secret file can't be used.
        """
        secret = read_secret_file(self["secret-file"]) if self["secret-file"] else None
        return NodeSettings(
            identity=NodeIdentity(name=self["name"], tier=self.tier, secret=secret),
            limits=self.limits,
            trusted=self.networks(),
        )


class MediaOptions(NodeOptions, PlayAccessOptions):
    """What tiers that serve viewers themselves take besides."""

    optParameters = [
        ["merge-ms", None, 100.0,
         "Longest time that wake-ups of many viewers are merged for, ms.", not_negative("--merge-ms")],
        ["allow-origin", None, "*", "Access-Control-Allow-Origin of HTTP-FLV answers; empty for none."],
    ]  # fmt: skip

    def settings(self) -> NodeSettings:
        return attrs.evolve(
            super().settings(),
            merge_seconds=self["merge-ms"] / 1000,
            allow_origin=self["allow-origin"],
            drain_seconds=self.get("drain-seconds", 0.0),
            access=self.access(),
            hooks=self.hooks(),
        )


class StoreOptions(MediaOptions, ForwardOptions):
    """What tiers that store take besides."""

    optParameters = [
        ["store", "s", None, "Directory where streams are stored; without it they are in memory only."],
        ["keep-seconds", None, 300.0, "Seconds of each stream kept.", positive("--keep-seconds")],
        ["keep-mbytes", None, 1024.0, "Megabytes of each stream kept.", positive("--keep-mbytes")],
        ["keep-idle-hours", None, 24.0,
         "Hours that a stream stays stored which nobody publishes.", positive("--keep-idle-hours")],
    ]  # fmt: skip

    def settings(self) -> NodeSettings:
        return attrs.evolve(super().settings(), forwards=self.forward_rules())

    def store_settings(self) -> StoreSettings:
        """Where bytes are kept, and how long."""
        keep = keep_options(self["keep-seconds"], self["keep-mbytes"])
        return StoreSettings(directory=self["store"] or None, keep=keep, idle_seconds=self["keep-idle-hours"] * 3600)


def parse_endpoint(make: Callable[[Any, str], T], reactor: Any, option: str, text: str) -> T:
    """Parse an endpoint string.

    Raises:
        ConfigError: it is none.
    """
    try:
        return make(reactor, text)
    except (ValueError, TypeError, IndexError, OSError) as error:
        raise ConfigError(f"{option} {text!r} is no endpoint: {error}") from None


def server_endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """``tcp:1935`` and the like to listen on."""
    endpoint: IStreamServerEndpoint = parse_endpoint(serverFromString, reactor, option, text)
    return endpoint


def client_endpoint(reactor: Any, option: str, text: str) -> IStreamClientEndpoint:
    """``tcp:HOST:PORT`` and the like to connect to."""
    endpoint: IStreamClientEndpoint = parse_endpoint(clientFromString, reactor, option, text)
    return endpoint


class NodeRunner(MultiService):
    """The root of a node that ``twistd`` runs: what keeps it from starting is said in one line.

    A stop that was asked for by a signal, and has come to its end, is a success: exit status 0.  (``twistd`` would end
    the process by the same signal once more.)  A second signal is impatience: nothing is waited for any longer.
    SIGHUP reads again what can be read again (:attr:`on_hangup`), and never ends a node.

    Args:
        command: what the operator typed.
        reactor: of this process, if the process is the node's own.
    """

    def __init__(self, command: str, reactor: Any = None) -> None:
        super().__init__()
        self.on_hangup: Callable[[], None] = self._nothing_to_read
        self._command = command
        self._reactor = reactor
        if reactor is not None:
            signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(self.hang_up))

    def hang_up(self) -> None:
        """SIGHUP has come."""
        runners = [service for service in self if isinstance(service, NodeRunner)]
        for runner in runners:
            runner.hang_up()
        if not runners:
            self.on_hangup()

    def _nothing_to_read(self) -> None:
        log.info("{command}: SIGHUP: there is nothing to be read again", command=self._command, event="reload")

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            where = f"{error.interface or '*'}:{error.port}"
            refuse(
                self._command, f"can't listen on {where}: {getattr(error.socketError, 'strerror', error.socketError)}"
            )
        except ConfigError as error:
            refuse(self._command, error)

    def stopService(self) -> Deferred[None]:
        if self._reactor is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self._reactor.callFromThread(self.hurry))
        return maybeDeferred(super().stopService).addCallback(self._stopped)

    def hurry(self) -> None:
        """A second signal has come."""
        for service in self:
            if isinstance(service, NodeRunner):
                service.hurry()
            elif isinstance(service, Node):
                service.drain.hurry()

    def _stopped(self, _: object) -> None:
        if hasattr(self._reactor, "_exitSignal"):  # there is no public way
            self._reactor._exitSignal = None


class Listens(Protocol):
    """A node that can be told where to listen."""

    def listen(self, endpoint: IStreamServerEndpoint) -> None:
        """Serve there while running."""

    def addService(self, service: IService) -> None:
        """Run this too."""


NodeT = TypeVar("NodeT", bound=Listens)
OptionsT = TypeVar("OptionsT", bound=NodeOptions)


def serve(
    node: NodeT, view: NodeView, options: NodeOptions, reactor: Any, ports: Any = None, media_ports: Any = None
) -> NodeT:
    """Let a node listen where the options say, for media and for ``--admin``.

    Args:
        ports: listens in the place of the reactor (:class:`relay.net.ports.Ports`).
        media_ports: the same, for ``--listen`` alone.
    """
    ports = reactor if ports is None else ports
    node.listen(server_endpoint(media_ports or ports, "--listen", options["listen"]))
    if not options["secret-file"] and "interface=127." not in options["listen"]:
        log.warn("{name}: no --secret-file: every peer on this host is believed to be a node", name=options["name"])
    if options["admin"]:
        endpoint = server_endpoint(ports, "--admin", options["admin"])
        events = EventLog()
        node.addService(events)
        if isinstance(node, Node):
            events.watchers.append(node.access.happened)
        site = make_site(view, reactor, Guard.make(options["admin-hosts"], options.admin_token()), events)
        node.addService(ListeningService(endpoint, BoundedFactory(site, options.limits.admin_connections)))
    return node


def prepare_process() -> None:
    """What a process that is a node wants: all descriptors it may have, a clock that nobody sets, and no pauses.

    Twisted's reactor takes the wall clock for its timers; a step of it back would hold up everything that is timed, the
    finding of dead neighbours above all.
    """
    from twisted.internet import reactor  # noqa: PLC0415 (importing it chooses the reactor)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic  # type: ignore[method-assign]
    reactor.callWhenRunning(settle_memory)


def run_node(options: OptionsT, make: Callable[[OptionsT, Any], MultiService], reactor: Any) -> MultiService:
    """Build a node and put it under a runner; a bad option ends the process with one line."""
    is_own_process = reactor is None
    if is_own_process:
        prepare_process()
        from twisted.internet import reactor as global_reactor  # noqa: PLC0415 (only twistd's own entry leaves it out)

        reactor = global_reactor
    runner = NodeRunner(options.command, reactor if is_own_process else None)
    try:
        node = make(options, reactor)
    except ConfigError as error:
        refuse(options.command, error)
    node.setServiceParent(runner)
    if isinstance(node, Node) and isinstance(options, PlayAccessOptions):
        runner.on_hangup = functools.partial(read_keys_again, node, options)
    return runner


def read_keys_again(node: Node, options: PlayAccessOptions) -> None:
    """Follow the files that say who may publish and play, so that keys can be rotated.  A wrong one changes nothing.

    Who is there stays.
    """
    try:
        node.access.use(options.access())
    except ConfigError as error:
        log.error("{name}: nothing is changed: {error}", name=node.identity.name, error=str(error), event="reload")
    else:
        log.info("{name}: the files of keys are read again", name=node.identity.name, event="reload")
