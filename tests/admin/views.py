"""A node to show, as data, and a way to ask a site without sockets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import h11
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.server import Site

from relay.admin.views import (
    DrainView,
    ForwardView,
    Health,
    LinkView,
    Metric,
    PublisherView,
    SessionView,
    StreamView,
    ViewerView,
)

DEMO = StreamView(
    name="live/demo",
    epoch=7,
    start=100,
    end=1100,
    bitrate_bps=250_000.0,
    viewers=3,
    source="rtmp://127.0.0.1:5000",
    is_live=True,
)
A1 = LinkView(name="a1", endpoint="tcp:127.0.0.1:1941", state="up", role="active", streams=2)
A2 = LinkView(name="a2", endpoint="tcp:127.0.0.1:1942", state="down", why="silent")


@attrs.define
class FixedDrain:
    """A DrainControl that does as it is told."""

    is_on: bool = False
    can_end: bool = True

    def begin(self) -> None:
        self.is_on = True

    def end(self) -> bool:
        if self.can_end:
            self.is_on = False
        return self.can_end

    def report(self) -> DrainView | None:
        return DrainView(why="a test wants it", sessions=2, others=1) if self.is_on else None


VIEWER = ViewerView(
    id="7",
    address="192.0.2.1:5001",
    kind="rtmp",
    stream="live/demo",
    seconds=1.5,
    sent_bytes=1000,
    behind_bytes=0,
    session="ab01",
    at="lb1",
)
SESSION = SessionView(id="ab01", viewer="7", state="moving", at="agg1")
FORWARD = ForwardView(
    stream="live/demo",
    target="rtmp://platform.example:1935",
    state="sending",
    seconds=3.0,
    lag_ms=40,
    sent_bytes=1000,
    reconnects=1,
    skips=0,
    why="",
)
PUBLISHER = PublisherView(name="live/demo", source="rtmp://127.0.0.1:5000")


@attrs.define
class FixedConnections:
    """Connections as a test wants them; who was kicked and sent away is in lists."""

    all_viewers: Sequence[ViewerView] = (VIEWER,)
    kicked: list[str] = attrs.field(factory=list)
    dismissed: list[str] = attrs.field(factory=list)

    def viewers(self) -> Sequence[ViewerView]:
        return self.all_viewers

    def sessions(self) -> Sequence[SessionView]:
        return [SESSION]

    def publishers(self) -> Sequence[PublisherView]:
        return [PUBLISHER]

    def kick(self, viewer: str) -> bool:
        is_there = viewer in [each.id for each in self.all_viewers]
        if is_there:
            self.kicked.append(viewer)
        return is_there

    def dismiss(self, stream: str) -> bool:
        if stream == PUBLISHER.name:
            self.dismissed.append(stream)
        return stream == PUBLISHER.name


@attrs.define
class FixedView:
    """A NodeView whose answers are what a test says."""

    name: str = "agg1"
    tier: str = "aggregator"
    viewers: int = 3
    state: Health = attrs.field(factory=Health)
    all_streams: Sequence[StreamView] = (DEMO,)
    all_links: Sequence[LinkView] = (A1, A2)
    all_metrics: Sequence[Metric] = ()
    drain: FixedDrain | None = attrs.field(factory=FixedDrain)
    connections: FixedConnections = attrs.field(factory=FixedConnections)

    def health(self) -> Health:
        return self.state

    def streams(self) -> Sequence[StreamView]:
        return self.all_streams

    def links(self) -> Sequence[LinkView]:
        return self.all_links

    def forwards(self) -> Sequence[ForwardView]:
        return [FORWARD]

    def metrics(self) -> Sequence[Metric]:
        return self.all_metrics


@attrs.frozen
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    site: Site,
    path: str,
    method: str = "GET",
    host: str = "localhost",
    headers: Sequence[str] = (),
    peer: str = "127.0.0.1",
) -> Reply:
    """One request over a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    return parse(send(site, "\r\n".join(lines).encode(), peer).value(), method)


def send(site: Site, data: bytes, peer: str = "127.0.0.1") -> StringTransport:
    """A connection over which the bytes came."""
    address = IPv4Address("TCP", peer, 1)
    channel = site.buildProtocol(address)
    transport = StringTransport(peerAddress=address)
    channel.makeConnection(transport)
    transport.channel = channel  # to lose the connection
    channel.dataReceived(data)
    return transport


def parse(data: bytes, method: str = "GET") -> Reply:
    """Read an answer as a strict client does."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response), response
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage), event
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return Reply(response.status_code, headers, body)


def clock() -> Clock:
    """For a site's timeouts."""
    return Clock()
