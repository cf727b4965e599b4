"""What an admin site has to know of a node: the records and the protocol that a tier fills in.

Owns the vocabulary of health, API, metrics and page, and nothing that runs.  The tiers implement :class:`NodeView`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import attrs

State = Literal["normal", "degraded", "down"]

LinkState = Literal["up", "down", "waiting", "foreign"]
"""``foreign``: connected to a server that is no node of ours.  ``waiting``: not heard of yet."""


@attrs.frozen
class Health:
    """``degraded``: it serves, but something that it should have is lost.  ``why`` is empty when normal."""

    state: State = "normal"
    why: Sequence[str] = ()


@attrs.frozen(kw_only=True)
class StreamView:
    """One stream on one node.  ``start`` and ``end`` bound the bytes of the log that are here; ``source`` feeds it."""

    name: str
    epoch: int
    start: int
    end: int
    bitrate_bps: float
    viewers: int
    source: str
    is_live: bool


@attrs.frozen(kw_only=True)
class LinkView:
    """A neighbour that this node reads from, or (a balancer) sends viewers to.

    Args:
        role: "active" while streams are read from it, "standby" while they could be; "" where that makes no sense.
        streams: how many are read from it.
        behind_ms: how far it is behind what this node has, of all streams the furthest.
        viewers: how many this node (a balancer) has sent to it.
    """

    name: str
    endpoint: str
    state: LinkState
    why: str = ""
    role: Literal["active", "standby", ""] = ""
    streams: int = 0
    behind_ms: int = 0
    viewers: int = 0


@attrs.frozen(kw_only=True)
class Metric:
    """One family of numbers for ``/metrics``.

    Args:
        name: with the unit, without ``relay_`` before it or ``_total`` after it: "missing_bytes".
        help: one sentence.
        values: by the value of ``label``; by "" when there is no label.
        label: what tells the values apart; two labels with a comma between, and the values' keys have one, too.
        is_counter: it only ever grows, from 0 at the start of the process.
    """

    name: str
    help: str
    values: Mapping[str, float]
    label: str | None = None
    is_counter: bool = True


@attrs.frozen(kw_only=True)
class DrainView:
    """A node that drains: why, and who is still there.

    Args:
        sessions: viewers whom their balancers can move.
        copies: of neighbours that can read elsewhere.
        publishers: who go on until they have ended (an origin).
        others: whom nobody can move; they are cut off when the node stops.
    """

    why: str
    sessions: int = 0
    copies: int = 0
    publishers: int = 0
    others: int = 0


@attrs.frozen(kw_only=True)
class ViewerView:
    """One connection that is sent media.

    Args:
        id: for ``DELETE /api/v1/viewers/ID``; of this process.
        address: "host:port" of the viewer, also behind a balancer.
        kind: "rtmp", "flv", "copy" (a neighbour), or, at a balancer, "spliced".
        stream: "app/name"; empty while it is not known.
        seconds: since it came.
        sent_bytes: of the stream (at a balancer: all).
        behind_bytes: of the stream, that are here and not sent yet; None where that is not known.
        session: identifier of its session, in hexadecimal; empty if it has none.
        at: who serves it: at a balancer the aggregator (empty while it has none), else the balancer that it came
            through.
    """

    id: str
    address: str
    kind: str
    stream: str
    seconds: float
    sent_bytes: int
    behind_bytes: int | None
    session: str
    at: str


@attrs.frozen(kw_only=True)
class SessionView:
    """A viewer's session at a balancer.

    Args:
        id: in hexadecimal; another one after each move.
        viewer: the ``id`` of its :class:`ViewerView`.
        state: "resumable" (its position is known exactly), "unknown" (it is in its handshake, or between two runs), or
            "moving".
        at: its aggregator.
        stream, epoch, rendition, offset: where it would go on; empty, 0 if not known.
    """

    id: str
    viewer: str
    state: Literal["resumable", "unknown", "moving"]
    at: str
    stream: str = ""
    epoch: int = 0
    rendition: str = ""
    offset: int = 0


@attrs.frozen(kw_only=True)
class ForwardView:
    """A stream that is pushed to another server.

    Args:
        stream: "app/name".
        target: the server, "rtmp://host:port"; what follows it is a secret.
        seconds: since it is in this state.
        lag_ms: media time that is here and not sent.
        reconnects: how often the connection was lost.
        skips: how often media were left out because the target was too slow.
        why: what is wrong; empty while it sends.
    """

    stream: str
    target: str
    state: Literal["connecting", "sending"]
    seconds: float
    lag_ms: int
    sent_bytes: int
    reconnects: int
    skips: int
    why: str


@attrs.frozen(kw_only=True)
class PublisherView:
    """Who feeds a stream that begins at this node.

    Args:
        name: the stream, "app/name"; for ``DELETE /api/v1/publishers/APP/NAME``.
        source: who, in words.
        is_pulled: it is a server that this node plays from, and can't be sent away.
    """

    name: str
    source: str
    is_pulled: bool = False


class Connections(Protocol):
    """Who is connected to a node, one by one."""

    def viewers(self) -> Sequence[ViewerView]:
        """All that are sent media."""

    def sessions(self) -> Sequence[SessionView]:
        """Of a balancer."""

    def publishers(self) -> Sequence[PublisherView]:
        """Of an origin."""

    def kick(self, viewer: str) -> bool:
        """Close the connection with this ``id``; false if there is none."""

    def dismiss(self, stream: str) -> bool:
        """Send the publisher of this stream away; false if there is none that can be."""


class DrainControl(Protocol):
    """A node that can be drained."""

    def begin(self) -> None:
        """Ask everybody to go elsewhere."""

    def end(self) -> bool:
        """Take everybody again; false if it can't be called off."""

    def report(self) -> DrainView | None:
        """How far it is; None while it does not drain."""


class NodeView(Protocol):
    """A node as its admin site sees it.  Everything is read afresh for each request."""

    @property
    def name(self) -> str:
        """What the node is called."""

    @property
    def tier(self) -> str:
        """``origin``, ``distributor``, ``aggregator`` or ``balancer``."""

    @property
    def viewers(self) -> int:
        """How many connections it sends media to."""

    def health(self) -> Health:
        """Is it well, and if not, why?"""

    def streams(self) -> Sequence[StreamView]:
        """What is live or stored here."""

    def links(self) -> Sequence[LinkView]:
        """Its neighbours."""

    def forwards(self) -> Sequence[ForwardView]:
        """What it pushes to others."""

    @property
    def connections(self) -> Connections:
        """Who is connected."""

    @property
    def drain(self) -> DrainControl | None:
        """How it is drained; None if that makes no sense."""

    def metrics(self) -> Sequence[Metric]:
        """What only this tier counts."""
