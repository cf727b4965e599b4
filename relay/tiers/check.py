"""``relay-check``: is a cluster file right, what does it describe, and (``--live``) how are its nodes?

Owns the command line, the warnings and the table.  It starts nothing; with ``--live`` it asks each node's admin site,
as :mod:`relay.admin.command` does, and blocks meanwhile.

    relay-check cluster.toml
    relay-check --live cluster.toml

Exit status: 0 the file is good (and all nodes are normal); 1 a node is not normal; 2 the file, or the command line, is
not good.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from relay import __version__
from relay.admin.command import NoAnswer, Remote
from relay.errors import ConfigError, RelayError
from relay.net.identity import read_secret_file
from relay.tiers.clusterfile import ClusterSpec, NodeSpec, load
from relay.tiers.clusterpage import admin_url
from relay.tiers.verifying import file_faults

GOOD, NOT_NORMAL, BAD = range(3)


def warnings(spec: ClusterSpec) -> Iterator[str]:
    """What is allowed, and not what one would want where it matters."""
    is_spread = len(spec.hosts) > 1
    for pair in spec.pairs:
        first, second = pair.distributors
        if is_spread and first.host == second.host:
            yield f"pair {pair.name}: {first.name} and {second.name} are on one machine ({first.host})"
    for word, nodes in (("aggregator", spec.aggregators), ("balancer", spec.balancers)):
        if len(nodes) == 1:
            yield f"there is one {word}, {nodes[0].name}: when it dies, viewers are cut"
        elif is_spread and len({node.host for node in nodes}) == 1:
            yield f"all {word}s are on one machine ({nodes[0].host})"
    if is_spread and spec.secret_file is None:
        yield "there is no secret_file: nodes believe only neighbours on their own machine, and these are on several"
    if spec.store is None:
        yield "there is no store: streams are gone when the cluster stops"
    for node in spec:
        if node.admin is None:
            yield f"{node.name} has no admin endpoint: nobody can ask how it is"


def check_secret(spec: ClusterSpec) -> None:
    """Raises ConfigError if the secret file, where it is here, can't be used."""
    if spec.secret_file is not None and spec.secret_file.exists():
        read_secret_file(str(spec.secret_file))


def describe(spec: ClusterSpec) -> Iterator[str]:
    """What the file describes, a node a line."""
    for tier, nodes in (("origin", spec.origins), ("aggregator", spec.aggregators), ("balancer", spec.balancers)):
        if tier == "aggregator":
            for pair in spec.pairs:
                members = ", ".join(f"{node.name} ({node.listen.text})" for node in pair.distributors)
                yield f"pair        {pair.name}: {members}; streams {' '.join(pair.streams)}"
        for node in nodes:
            yield f"{tier:<11} {node.name} on {node.host}, {node.listen.text}"


def look(node: NodeSpec) -> tuple[str, str]:
    """(state, more words) of one node."""
    url = admin_url(node)
    if url is None:
        return "unknown", "it has no admin endpoint that can be asked from here"
    try:
        told = Remote.parse(url).node()
    except NoAnswer as error:
        return "no answer", str(error)
    words = [*told["why"]]
    if (told["name"], told["tier"]) != (node.name, node.tier):
        return "another", f"{told['name']} ({told['tier']}) answers at {url}"
    if told.get("version") != __version__:
        words.append(f"version {told.get('version')}")
    return str(told["state"]), "; ".join([f"{told['viewers']} viewers", *words])


def show_live(spec: ClusterSpec) -> int:
    """Ask all, and print a table."""
    nodes = list(spec)
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = list(pool.map(look, nodes))
    width = max(len(node.name) for node in nodes)
    for node, (state, words) in zip(nodes, found, strict=True):
        print(f"{node.name:<{width}}  {node.tier:<11}  {state:<9}  {words}")
    return GOOD if all(state == "normal" for state, _ in found) else NOT_NORMAL


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="relay-check",
        description="Check a cluster file: what is wrong in it, what it describes, and how its nodes are (--live). "
        "Exit status: 0 good; 1 a node is not normal; 2 the file is not good.",
    )
    parser.add_argument("file", metavar="CLUSTER.toml")
    parser.add_argument("--live", action="store_true", help="ask every node how it is, by its admin endpoint")
    parser.add_argument("--strict", action="store_true", help="warnings count as faults")
    parser.add_argument("--version", action="version", version=f"relay-check {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        spec = load(options.file)
        check_secret(spec)
        if options.live:
            return show_live(spec)
        for line in describe(spec):
            print(line)
        found = [*warnings(spec), *(f"{fault} (on this machine)" for fault in file_faults(spec))]
        for warning in found:
            sys.stderr.write(f"relay-check: warning: {warning}\n")
        return BAD if found and options.strict else GOOD
    except ConfigError as error:
        sys.stderr.write(f"relay-check: {error}\n")
        return BAD
    except RelayError as error:
        sys.stderr.write(f"relay-check: {error}\n")
        return NOT_NORMAL
