"""Who is connected to a node, one by one: the tiers' objects as :class:`relay.admin.views.Connections`.

Owns the translation, and the two things that an operator can do to a connection: close it, and send a publisher away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from relay.admin.site import number
from relay.admin.views import PublisherView, SessionView, ViewerView
from relay.errors import NameRefused
from relay.names import StreamName
from relay.net.balancing import BalancerFactory
from relay.net.node import Node
from relay.net.storing import StoringNode


class MediaConnections:
    """Of an origin, a distributor or an aggregator."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def viewers(self) -> Sequence[ViewerView]:
        return list(self._viewers())

    def _viewers(self) -> Iterator[ViewerView]:
        now = self._node.clock.seconds()
        for each, connection in self._node.ports.connections.items():
            speaker: Any = connection.speaker
            viewer = getattr(speaker, "viewer", None)
            if viewer is None:
                continue
            feed = speaker.feed
            yield ViewerView(
                id=str(each),
                address=speaker.peer,
                kind="copy" if viewer.is_copy else viewer.form_name,
                stream=str(viewer.stream.name),
                seconds=round(now - connection.connected_at, 1),
                sent_bytes=viewer.sent_bytes,
                behind_bytes=viewer.behind_bytes,
                session="" if feed is None else feed.session_id,
                at="" if feed is None else feed.balancer,
            )

    def sessions(self) -> Sequence[SessionView]:
        """Balancers know where sessions stand."""
        return []

    def publishers(self) -> Sequence[PublisherView]:
        if not isinstance(self._node, StoringNode):
            return []
        pulled = self._node.pulled
        return [
            PublisherView(name=str(name), source=publisher.describe(), is_pulled=name in pulled)
            for name, publisher in self._node.written()
        ]

    def kick(self, viewer: str) -> bool:
        connection = self._node.ports.connections.get(number(viewer, -1))
        speaker: Any = None if connection is None else connection.speaker
        if getattr(speaker, "viewer", None) is None:
            return False
        speaker.close("kicked")
        return True

    def dismiss(self, stream: str) -> bool:
        try:
            name = StreamName.parse(stream)
        except NameRefused:
            return False
        return isinstance(self._node, StoringNode) and self._node.dismiss(name)


class BalancerConnections:
    """Of a balancer."""

    def __init__(self, factory: BalancerFactory) -> None:
        self._factory = factory

    def viewers(self) -> Sequence[ViewerView]:
        return list(self._viewers())

    def _viewers(self) -> Iterator[ViewerView]:
        now = self._factory.clock.seconds()
        for viewer in self._factory.viewers:
            peer = viewer.transport.getPeer() if viewer.transport is not None else None
            point = viewer.newest_point
            yield ViewerView(
                id=str(viewer.number),
                address=f"{viewer.host}:{getattr(peer, 'port', 0)}",
                kind="spliced",
                stream="" if point is None else str(point.name),
                seconds=round(now - viewer.came_at, 1),
                sent_bytes=0 if viewer.pair is None else viewer.pair.to_viewer,
                behind_bytes=None,
                session=viewer.session_id.hex(),
                at="" if viewer.backend is None else viewer.backend.name,
            )

    def sessions(self) -> Sequence[SessionView]:
        return list(self._sessions())

    def _sessions(self) -> Iterator[SessionView]:
        for viewer in self._factory.viewers:
            if viewer.is_over or viewer.pair is None:
                continue
            point = viewer.resume_point
            yield SessionView(
                id=viewer.session_id.hex(),
                viewer=str(viewer.number),
                state="moving" if viewer.is_moving else "unknown" if point is None else "resumable",
                at="" if viewer.backend is None else viewer.backend.name,
                stream="" if point is None else str(point.name),
                epoch=0 if point is None else point.epoch,
                rendition="" if point is None else point.rendition,
                offset=0 if point is None else point.offset,
            )

    def publishers(self) -> Sequence[PublisherView]:
        """Nobody publishes at a balancer."""
        return []

    def kick(self, viewer: str) -> bool:
        found = [each for each in self._factory.viewers if str(each.number) == viewer and not each.is_over]
        for each in found:
            each.close("kicked")
        return bool(found)

    def dismiss(self, stream: str) -> bool:
        """There is none."""
        return False
