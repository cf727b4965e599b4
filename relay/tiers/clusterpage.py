"""What the page of a cluster has to know of its file: how nodes are asked, where viewers come to, what to paste.

Owns the translation from a :class:`relay.tiers.clusterfile.ClusterSpec`.  Called by :mod:`relay.tiers.cluster`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import HostnameEndpoint

from relay.admin.cluster import PasteLine, Place
from relay.admin.polling import Member
from relay.names import StreamName
from relay.tiers.clusterfile import LOCALHOST, ClusterSpec, NodeSpec
from relay.tiers.endpoints import Endpoint


def make_member(node: NodeSpec, reactor: Any) -> Member:
    """How a node is asked how it is: at the address of its admin endpoint, or of its machine."""
    url, endpoint = admin_url(node), None
    if node.admin is not None and url is not None:
        endpoint = HostnameEndpoint(reactor, _reachable(node.admin, node.host).strip("[]"), node.admin.port)
    return Member(name=node.name, tier=node.tier, listen=node.listen.text, admin_url=url, endpoint=endpoint)


def admin_url(node: NodeSpec) -> str | None:
    """Of its admin site; None if it has none that can be reached over TCP."""
    if node.admin is None or not node.admin.is_plain_tcp:
        return None
    return f"http://{_reachable(node.admin, node.host)}:{node.admin.port}/"


def _reachable(endpoint: Endpoint, host: str = LOCALHOST) -> str:
    """An address that the endpoint, of a node on ``host``, answers on, as URLs want it."""
    address = endpoint.address or host
    return f"[{address}]" if ":" in address else address


def paste_lines(spec: ClusterSpec) -> list[PasteLine]:
    """URLs and commands to watch and publish, for the first balancer and origin."""
    balancer, origin = spec.balancers[0], spec.origins[0]
    listen, publish = balancer.listen, origin.listen
    stream = spec.demo or StreamName("live", "NAME")
    lines: list[PasteLine] = []
    if listen.is_plain_tcp:
        place = f"{_reachable(listen, balancer.host)}:{listen.port}"
        rtmp, flv = f"rtmp://{place}/{stream}", f"http://{place}/{stream}.flv"
        lines += [
            PasteLine("RTMP, any player", rtmp),
            PasteLine("HTTP-FLV", flv),
            PasteLine("watch", f"ffplay -fflags nobuffer {rtmp}"),
            PasteLine("4 s of frames", f"ffmpeg -i {rtmp} -t 4 -f framecrc -"),
            PasteLine("codecs", f"curl -sN {flv} | head -c 1000000 | ffprobe -"),
        ]
    if publish.is_plain_tcp:
        url = f"rtmp://{_reachable(publish, origin.host)}:{publish.port}/live"
        lines += [
            PasteLine("publish a file", f"ffmpeg -re -i FILE -c copy -f flv {url}/NAME"),
            PasteLine("OBS: server", url),
            PasteLine("OBS: stream key", "NAME"),
        ]
    return lines


def places(spec: ClusterSpec) -> list[Place]:
    """Where a page can play from."""
    is_here = len(spec.hosts) == 1
    found = [
        Place(
            host=balancer.listen.address or ("" if is_here else balancer.host),
            port=balancer.listen.port,
            is_tls=balancer.listen.kind == "ssl",
        )
        for balancer in spec.balancers
        if balancer.listen.port
    ]
    return list(dict.fromkeys(found))
