"""The balancer's options about the other balancers of its virtual IP, and what is built from them.

Composition only; what runs is :mod:`relay.net.neighbours`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.python import usage

from relay.admin.views import Health
from relay.net.addresses import AddressWatch
from relay.net.neighbours import Neighbourhood
from relay.net.node import NodeSettings
from relay.tiers.coercion import named
from relay.tiers.options import NodeOptions, client_endpoint, server_endpoint


class PeerOptions(NodeOptions):
    """``--peer`` and ``--peer-listen``."""

    optParameters = [
        ["peer-listen", None, None, "Endpoint where the other balancers of the virtual IP connect (--peer) to hear "
         "which viewers are here, e.g. tcp:1937; not for viewers. Keep it on the inner network."],
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["peers"] = []

    def opt_peer(self, peer: str) -> None:
        """NAME=ENDPOINT of another balancer's --peer-listen (lb2=tcp:host:1937): when its address comes here, so do its
        viewers (needs CAP_NET_RAW). May be repeated."""
        self["peers"].append(named("--peer", peer, "NAME=ENDPOINT", self["peers"]))

    def postOptions(self) -> None:
        super().postOptions()
        if any(name == self["name"] for name, _ in self["peers"]):
            raise usage.UsageError(f"--peer {self['name']} is this balancer itself")


def make_neighbourhood(
    options: PeerOptions, settings: NodeSettings, reactor: Any, health: Callable[[], Health], ports: Any = None
) -> Neighbourhood | None:
    """What the options say; ``None`` for a balancer that is alone.

    Args:
        health: the balancer's.
        ports: listens in the place of the reactor.

    Raises:
        ConfigError: they can't be used.
    """
    if not options["peers"] and options["peer-listen"] is None:
        return None
    peers = [(name, client_endpoint(reactor, f"--peer {name}", text)) for name, text in options["peers"]]

    def said() -> tuple[str, list[str]]:
        now = health()
        return now.state, list(now.why)

    neighbourhood = Neighbourhood(settings, reactor, peers, said, lambda changed: AddressWatch(reactor, changed))
    if options["peer-listen"] is not None:
        neighbourhood.listen(server_endpoint(ports or reactor, "--peer-listen", options["peer-listen"]))
    return neighbourhood
