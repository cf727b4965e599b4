"""What a cluster is made of: the TOML file that describes one, and the built-in one for this machine.

Owns the file's keys, their checks and the command line that each node gets.  Starts nothing, opens no socket, imports
no Twisted: :mod:`relay.tiers.cluster` does.  ``examples/cluster.toml`` explains every key.

A file is wrong in one way at a time: the first fault found is a :class:`relay.errors.ConfigError` that names the place,
the key, the value and the reason, so that it can stand on one line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path

import attrs

from relay.errors import ConfigError
from relay.names import StreamName, check_part
from relay.tiers.configtable import Table
from relay.tiers.endpoints import Endpoint, parse_client_endpoint, parse_server_endpoint

LOCALHOST = "127.0.0.1"
DEMO_STREAM = StreamName("live", "demo")
MAX_PROCESSES = 64  # of one node; a number with a digit too many is a mistake
PROCESS_NUMBER = "{process}"  # in options of a node that is several processes


@attrs.frozen(kw_only=True)
class NodeSpec:
    """One node: what it is called, where it runs and listens, and the options that only its tier has."""

    tier: str
    name: str
    host: str = LOCALHOST
    listen: Endpoint
    connect: str
    admin: Endpoint | None = None
    trust_proxy: tuple[str, ...] = ()
    is_storing: bool = False
    own_arguments: tuple[str, ...] = ()
    port_group: str = ""
    """Nodes of one group listen on one port together."""

    def arguments(self, *, store: Path | None, secret_file: Path | None) -> list[str]:
        """What follows ``twistd -n``: the plugin's name and its options."""
        arguments = [f"relay-{self.tier}", "--name", self.name, "--listen", self.listen.text]
        if self.admin is not None:
            arguments += ["--admin", self.admin.text]
        if self.is_storing and store is not None:
            arguments += ["--store", str(store / self.name)]
        if secret_file is not None:
            arguments += ["--secret-file", str(secret_file)]
        for network in self.trust_proxy:
            arguments += ["--trust-proxy", network]
        return [*arguments, *self.own_arguments]


@attrs.frozen(kw_only=True)
class PairSpec:
    """Two distributors that back each other up, and the streams that they carry."""

    name: str
    streams: tuple[str, ...]
    distributors: tuple[NodeSpec, NodeSpec]


@attrs.frozen(kw_only=True)
class ClusterSpec:
    """All nodes, in the order in which a stream passes them."""

    origins: tuple[NodeSpec, ...]
    pairs: tuple[PairSpec, ...]
    aggregators: tuple[NodeSpec, ...]
    balancers: tuple[NodeSpec, ...]
    store: Path | None = None
    secret_file: Path | None = None
    demo: StreamName | None = None

    def __iter__(self) -> Iterator[NodeSpec]:
        yield from self.origins
        for pair in self.pairs:
            yield from pair.distributors
        yield from self.aggregators
        yield from self.balancers

    def node(self, name: str) -> NodeSpec:
        """The node that is called ``name``.

        Raises:
            ConfigError: none is.
        """
        for node in self:
            if node.name == name:
                return node
        raise ConfigError(f"no node is called {name!r}; there are {', '.join(node.name for node in self)}")

    def arguments(self, node: NodeSpec) -> list[str]:
        """The plugin's name and options for one of the nodes."""
        return node.arguments(store=self.store, secret_file=self.secret_file)

    def command_line(self, node: NodeSpec) -> list[str]:
        """What an operator would type to run the node by hand."""
        return ["twistd", "-n", *self.arguments(node)]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every machine that some node runs on, in order of appearance."""
        return tuple(dict.fromkeys(node.host for node in self))


def default_cluster() -> ClusterSpec:
    """What ``twistd -n relay`` runs: 1 origin, 2 pairs, 2 aggregators and a balancer on port 1935 of this machine."""
    return _read_cluster(Table("built-in cluster", tomllib.loads(DEFAULT_TOML)), Path.cwd())


def load(path: str | Path) -> ClusterSpec:
    """Read a cluster file.

    Raises:
        ConfigError: it can't be read, or something in it can't be used.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return _read_cluster(Table(str(path), document), path.absolute().parent)


def _read_cluster(top: Table, directory: Path) -> ClusterSpec:
    store, secret_file = top.text("store"), top.text("secret_file")
    demo = top.checked("demo", StreamName.parse)
    origins = tuple(_read_origin(table) for table in top.tables("origin"))
    pairs = tuple(_read_pair(table, origins) for table in top.tables("pair"))
    _refuse_equal_names("pair", [pair.name for pair in pairs], top)
    aggregators = tuple(
        node for number, table in enumerate(top.tables("aggregator")) for node in _read_aggregator(table, number, pairs)
    )
    balancers = tuple(node for table in top.tables("balancer") for node in _read_balancer(table, aggregators))
    top.finish()
    spec = ClusterSpec(
        origins=origins,
        pairs=pairs,
        aggregators=aggregators,
        balancers=balancers,
        store=directory / store if store else None,
        secret_file=directory / secret_file if secret_file else None,
        demo=demo,
    )
    _refuse_equal_names("node", [node.name for node in spec], top)
    _refuse_equal_ports(spec, top)
    return spec


def _read_origin(table: Table) -> NodeSpec:
    own: list[str] = []
    policy = table.choice("second_publisher", ("refuse", "standby", "replace"))
    if policy is not None:
        own += ["--second-publisher", policy]
    for name, url in table.text_map("pull").items():
        table.check("pull", name, StreamName.parse)
        if not url.startswith(("rtmp://", "rtmps://")):
            raise table.fault(f"pull.{name}", url, "must be an rtmp:// or rtmps:// URL")
        own += ["--pull", f"{name}={url}"]
    return _read_node(table, "origin", own, is_storing=True)


def _read_pair(table: Table, origins: Sequence[NodeSpec]) -> PairSpec:
    name: str = table.check("name", table.required("name"), _check_name)
    streams = table.texts("streams") or ("*",)
    upstreams = table.texts("upstreams") or tuple(origin.name for origin in origins)
    own = [
        argument for upstream in upstreams for argument in ("--upstream", _upstream_endpoint(table, upstream, origins))
    ]
    own += [argument for pattern in streams for argument in ("--streams", pattern)]
    first, second = (
        _read_node(member, "distributor", own, is_storing=True) for member in table.tables("distributor", count=2)
    )
    table.finish()
    return PairSpec(name=name, streams=streams, distributors=(first, second))


def _upstream_endpoint(table: Table, upstream: str, origins: Sequence[NodeSpec]) -> str:
    """An origin's name, or the endpoint of a server that isn't in the file (any RTMP server will do)."""
    if ":" in upstream:
        table.check("upstreams", upstream, parse_client_endpoint)
        return upstream
    return _reference(table, "upstreams", upstream, origins).connect


def _reference(table: Table, key: str, name: str, nodes: Sequence[NodeSpec]) -> NodeSpec:
    for node in nodes:
        if node.name == name:
            return node
    raise table.fault(key, name, f"must be one of {', '.join(node.name for node in nodes)}")


def _read_aggregator(table: Table, number: int, pairs: Sequence[PairSpec]) -> list[NodeSpec]:
    """Unless it says otherwise, the first aggregator prefers the first of each pair, the second the second, and so on.

    Args:
        number: 0 for the first in the file.
    """
    prefer = table.text_map("prefer")
    for key in prefer:
        if key not in [pair.name for pair in pairs]:
            raise table.fault("prefer", key, f"must be one of {', '.join(pair.name for pair in pairs)}")
    own: list[str] = []
    for pair in pairs:
        first = pair.distributors[number % 2]
        if pair.name in prefer:
            first = _reference(table, f"prefer.{pair.name}", prefer[pair.name], pair.distributors)
        second = next(node for node in pair.distributors if node is not first)
        own += ["--pair", f"{pair.name}={first.connect},{second.connect}"]
    read = table.choice("read", ("active-standby", "merge"))
    if read is not None:
        own += ["--read", read]
    count = _read_processes(table)
    return _multiply(_read_node(table, "aggregator", own), count, table, shares_port=False)


def _read_balancer(table: Table, aggregators: Sequence[NodeSpec]) -> list[NodeSpec]:
    own = [argument for node in aggregators for argument in ("--aggregator", f"{node.name}={node.connect}")]
    policy = table.choice("policy", ("any", "source-hash", "least-viewers"))
    if policy is not None:
        own += ["--policy", policy]
    pin = table.text("pin")
    if pin is not None:
        own += ["--pin", _reference(table, "pin", pin, aggregators).name]
    count = _read_processes(table)
    if count > 1:
        own.append("--reuse-port")
    return _multiply(_read_node(table, "balancer", own), count, table, shares_port=True)


def _read_processes(table: Table) -> int:
    """How many processes a node is."""
    count = table.number("processes")
    if count is None:
        return 1
    if not 1 <= count <= MAX_PROCESSES:
        raise table.fault("processes", count, f"must be 1 to {MAX_PROCESSES}")
    return count


def _multiply(node: NodeSpec, count: int, table: Table, *, shares_port: bool) -> list[NodeSpec]:
    """A node as so many: NAME.1 and so on, each with its own port, or all with one, and with its own admin port."""
    if count == 1:
        return [node]
    if node.listen.kind not in ("tcp", "tcp6", *(("ssl",) if shares_port else ())) or not node.listen.port:
        raise table.fault("listen", node.listen.text, f"{count} processes need a TCP port")
    if not shares_port and node.connect != _plain(node.host, node.listen.port):
        raise table.fault("connect", node.connect, "each process has a port of its own: leave it out")
    if node.admin is not None and not node.admin.is_plain_tcp:
        raise table.fault("admin", node.admin.text, f"{count} processes need a TCP port each")
    made = []
    for at in range(count):
        listen = node.listen if shares_port else node.listen.moved(at)
        made.append(
            attrs.evolve(
                node,
                name=f"{node.name}.{at + 1}",
                listen=listen,
                connect=node.connect if shares_port else _plain(node.host, listen.port),
                admin=None if node.admin is None else node.admin.moved(at),
                own_arguments=tuple(text.replace(PROCESS_NUMBER, str(at + 1)) for text in node.own_arguments),
                port_group=node.name if shares_port else "",
            )
        )
    return made


def _read_node(table: Table, tier: str, own_arguments: Sequence[str], *, is_storing: bool = False) -> NodeSpec:
    """The keys that every node has.  They come last: whatever is left then is a wrong key."""
    name: str = table.check("name", table.required("name"), _check_name)
    listen: Endpoint = table.check("listen", table.required("listen"), parse_server_endpoint)
    host = table.checked("host", _check_host) or listen.address or LOCALHOST
    connect = table.checked("connect", parse_client_endpoint)
    admin = table.checked("admin", parse_server_endpoint)
    trust_proxy = table.texts("trust_proxy")
    for network in trust_proxy:
        table.check("trust_proxy", network, ip_network)
    options = table.texts("options")
    table.finish()
    if connect is None and not listen.is_plain_tcp:
        raise table.fault("listen", listen.text, "how others reach it can't be told from this: say connect = …")
    return NodeSpec(
        tier=tier,
        name=name,
        host=host,
        listen=listen,
        connect=connect.text if connect else _plain(host, listen.port),
        admin=admin,
        trust_proxy=trust_proxy,
        is_storing=is_storing,
        own_arguments=(*own_arguments, *options),
    )


def _plain(host: str, port: int) -> str:
    """A client endpoint; an IPv6 address has its colons escaped."""
    return f"tcp:{host.replace(':', chr(92) + ':')}:{port}"


def _check_name(text: str) -> str:
    """Names stand in metric labels, URLs, directories and ``NAME=ENDPOINT`` options."""
    return check_part(text, "name")


def _check_host(text: str) -> str:
    """An address, not a host name: nodes find each other without a name server (DNS fails at the worst moment)."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address") from None


def _refuse_equal_names(what: str, names: Sequence[str], top: Table) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{top.where}: two {what}s are called {name!r}")


def _refuse_equal_ports(spec: ClusterSpec, top: Table) -> None:
    sockets = [
        (node, key, endpoint)
        for node in spec
        for key, endpoint in (("listen", node.listen), ("admin", node.admin))
        if endpoint is not None
    ]
    for (node, key, mine), (other, other_key, theirs) in combinations(sockets, 2):
        if key == other_key == "listen" and node.port_group and node.port_group == other.port_group:
            continue
        if node.host == other.host and mine.collides_with(theirs):
            owner = f"{key} of {node.name}, {mine.text!r}"
            raise ConfigError(f"{top.where}: {other_key} of {other.name} = {theirs.text!r}: taken by {owner}")


DEFAULT_TOML = """\
demo = "live/demo"

[[origin]]
name = "o1"
listen = "tcp:1936:interface=127.0.0.1"
admin = "tcp:8081:interface=127.0.0.1"

[[pair]]
name = "a"
streams = ["*/[0-9A-Ma-m]*"]
[[pair.distributor]]
name = "a1"
listen = "tcp:1941:interface=127.0.0.1"
admin = "tcp:8082:interface=127.0.0.1"
[[pair.distributor]]
name = "a2"
listen = "tcp:1942:interface=127.0.0.1"
admin = "tcp:8083:interface=127.0.0.1"

[[pair]]
name = "b"
streams = ["*/[!0-9A-Ma-m]*"]
[[pair.distributor]]
name = "b1"
listen = "tcp:1951:interface=127.0.0.1"
admin = "tcp:8084:interface=127.0.0.1"
[[pair.distributor]]
name = "b2"
listen = "tcp:1952:interface=127.0.0.1"
admin = "tcp:8085:interface=127.0.0.1"

[[aggregator]]
name = "agg1"
listen = "tcp:1961:interface=127.0.0.1"
admin = "tcp:8086:interface=127.0.0.1"

[[aggregator]]
name = "agg2"
listen = "tcp:1962:interface=127.0.0.1"
admin = "tcp:8087:interface=127.0.0.1"

[[balancer]]
name = "lb1"
listen = "tcp:1935"
admin = "tcp:8088:interface=127.0.0.1"
"""
"""The built-in cluster, in the words of a file of one's own."""
