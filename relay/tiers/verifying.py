"""Can the nodes of a cluster file start as it describes them?  Asked before one is stopped that runs.

Owns the reading of ``options``, which a file's reader passes on as they are, by the tier that gets them.  Called by
:mod:`relay.tiers.cluster` and ``relay-check``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.python.reflect import namedAny

from relay.errors import ConfigError
from relay.tiers.clusterfile import ClusterSpec, NodeSpec


def options_of(spec: ClusterSpec, node: NodeSpec) -> Any:
    """The options that a node gets (:class:`relay.tiers.options.NodeOptions`): those of the file's ``options`` are
    read as its tier reads them.

    Raises:
        ConfigError: one is wrong.
    """
    options = namedAny(f"relay.tiers.{node.tier}").Options()
    try:
        options.parse(spec.arguments(node)[1:])
    except ConfigError as error:
        raise ConfigError(f"{node.name}: {error}") from None
    except SystemExit:
        raise ConfigError(f"{node.name}: its options have one that only shows something") from None
    return options


def file_faults(spec: ClusterSpec) -> Iterator[str]:
    """Files that nodes name in their options, and that can't be used here.

    Raises:
        ConfigError: an option is wrong.
    """
    for node in spec:
        options = options_of(spec, node)
        try:
            options.read_files()
        except ConfigError as error:
            yield f"{node.name}: {error}"


def check_options(spec: ClusterSpec) -> None:
    """Can all nodes, on this machine, start as they are described?

    Raises:
        ConfigError: an option is wrong, or a file that it names can't be used.
    """
    for fault in file_faults(spec):
        raise ConfigError(fault)
