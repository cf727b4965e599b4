"""Sessions that outlive their aggregator: what both ends know of a viewer's bytes.

Owns the records, the balancer's book of one session (:class:`SessionLedger`) and the aggregator's side of it
(:class:`SessionFeed`).  Carried by the control connection; used by :mod:`relay.net.viewer` at an aggregator and by
:mod:`relay.net.viewer_connection` at a balancer.

Theory.  The balancer counts F, the bytes that the viewer's socket has accepted from the present backend connection.
The aggregator counts K, the bytes that it has sent on it, and says:

    checkpoint(K, point)   from byte K on, the bytes are the rendition's from ``point`` on
    suspend(K)             from byte K on they are not (a reply, a jump); it sends none of those before that is answered
    over                   it closes the connection by its own decision, when that is answered

    bytes of the connection   0 ──────── K1 ═════════════ K2 ─────── K3 ═══════════
                              preamble   run of the log   preamble   run of the log
                                       checkpoint      suspend     checkpoint

So a session that stands at F inside a run can be resumed anywhere, at ``point + (F - K)``: the invariants I2 to I4 of
the design.  A session that stands anywhere else can't, and is closed, never guessed at.  The last runs are kept,
because the viewer's socket is behind what the aggregator has sent.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, fail

from relay.errors import NameRefused, RelayError, RemoteProtocolError
from relay.names import StreamName

RENDITIONS = ("rtmp", "flv")
MAX_RUNS = 8  # kept for one session; a jump a second would need 8 s of bytes on the way to outrun it
MAX_OFFSET = 1 << 53


@attrs.frozen
class ResumePoint:
    """A byte of a rendition of a stream."""

    rendition: str
    name: StreamName
    epoch: int
    offset: int

    def after(self, count: int) -> ResumePoint:
        """The byte ``count`` further on."""
        return ResumePoint(self.rendition, self.name, self.epoch, self.offset + count)

    def to_bytes(self) -> bytes:
        """For the PROXY header: four words."""
        return f"{self.rendition} {self.name} {self.epoch} {self.offset}".encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> ResumePoint:
        """Raises :class:`RemoteProtocolError` if it is none."""
        return cls.from_values(data.decode("latin-1").split(" "))

    def to_values(self) -> list[Any]:
        """For a command."""
        return [self.rendition, str(self.name), float(self.epoch), float(self.offset)]

    @classmethod
    def from_values(cls, values: list[Any]) -> ResumePoint:
        """Raises :class:`RemoteProtocolError` if it is none."""
        try:
            rendition, name, epoch, offset = values
            point = cls(rendition, StreamName.parse(name), int(epoch), int(offset))
        except (NameRefused, ValueError, TypeError, AttributeError, OverflowError):
            raise RemoteProtocolError(f"not a resume point: {values!r:.200}") from None
        if rendition not in RENDITIONS or not 0 <= point.offset < MAX_OFFSET:
            raise RemoteProtocolError(f"not a resume point: {values!r:.200}")
        return point


@attrs.define
class _Run:
    """Bytes ``at`` to ``until`` of the connection are the rendition's from ``point`` on."""

    at: int
    point: ResumePoint
    until: int | None = None


class SessionLedger:
    """What a balancer knows of one session on its present backend connection.

    Invariant: ``resume_point(f)`` is the position of byte ``f`` of what the backend sends, or None.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def checkpoint(self, at: int, point: ResumePoint) -> None:
        """From byte ``at`` on, the rendition's bytes from ``point`` on."""
        if self._runs and self._runs[-1].until is None:
            self._runs[-1].until = at
        self._runs.append(_Run(at, point))
        del self._runs[:-MAX_RUNS]

    def suspend(self, at: int) -> None:
        """From byte ``at`` on, something else."""
        if self._runs and self._runs[-1].until is None:
            self._runs[-1].until = at

    def attach(self, point: ResumePoint) -> None:
        """Another backend was asked to go on from ``point``: its byte 0."""
        self._runs = [_Run(0, point)]

    @property
    def newest_point(self) -> ResumePoint | None:
        """Where the newest run began."""
        return self._runs[-1].point if self._runs else None

    def to_values(self) -> list[list[Any]]:
        """For another process."""
        return [[run.at, run.until, *run.point.to_values()] for run in self._runs]

    @classmethod
    def from_values(cls, runs: list[list[Any]]) -> SessionLedger:
        """Raises :class:`RemoteProtocolError` if these are none."""
        ledger = cls()
        for at, until, *point in runs:
            ledger._runs.append(_Run(int(at), ResumePoint.from_values(point), None if until is None else int(until)))
        return ledger

    def resume_point(self, f: int) -> ResumePoint | None:
        """Where to go on for a viewer that has ``f`` bytes; None if that is not known exactly."""
        for run in reversed(self._runs):
            if run.at <= f and (run.until is None or f <= run.until):
                return run.point.after(f - run.at)
        return None


def byte_count(values: list[Any]) -> int:
    """The first value of what is said of a session.

    Raises:
        RemoteProtocolError: it is no count.
    """
    if values and isinstance(values[0], float) and 0 <= values[0] < MAX_OFFSET and values[0].is_integer():
        return int(values[0])
    raise RemoteProtocolError(f"not a byte count: {values[:1]!r:.64}")


class BalancerLost(RelayError):
    """Nobody can say any more what a balancer knows of a session."""


class SessionCarrier(Protocol):
    """What carries an aggregator's words to a balancer: the control server."""

    def tell_balancer(self, balancer: str, name: str, *values: Any) -> bool:
        """Say something; False if that balancer is not connected."""

    def ask_balancer(self, balancer: str, name: str, *values: Any) -> Deferred[None] | None:
        """Say something and wait until it is answered; None if that balancer is not connected.

        Fails with :class:`BalancerLost` if the connection goes before the answer.
        """


class SessionFeed:
    """An aggregator's side of one session."""

    def __init__(self, carrier: SessionCarrier, balancer: str, session_id: str) -> None:
        self.balancer = balancer
        self.session_id = session_id
        self._carrier = carrier
        self._is_told = False  # does the balancer believe that a run goes on?

    def checkpoint(self, at: int, point: ResumePoint) -> None:
        """Tell it, if the balancer is connected; if not, the session is one that can't be resumed."""
        told = ("relayCheckpoint", self.session_id, float(at), *point.to_values())
        self._is_told = self._carrier.tell_balancer(self.balancer, *told)

    def resumed(self) -> None:
        """The balancer knows which bytes these are: it has asked for them."""
        self._is_told = True

    def over(self) -> Deferred[None] | None:
        """The session ends here by our own decision: it is not to be resumed.  As with :meth:`suspend`."""
        return self._carrier.ask_balancer(self.balancer, "relayOver", self.session_id)

    def suspend(self, at: int) -> Deferred[None] | None:
        """Tell it.  Fires when nothing stands against other bytes; None: nothing does now.

        Fails with :class:`BalancerLost` if the balancer may still believe that a run goes on, and can't be told: it
        would resume the session at a wrong place, so no other byte may follow on this connection, ever (I3).
        """
        answer = self._carrier.ask_balancer(self.balancer, "relaySuspend", self.session_id, float(at))
        if answer is None:
            return fail(BalancerLost("it can't be told")) if self._is_told else None
        return answer.addCallback(self._suspended)

    def _suspended(self, _: object) -> None:
        self._is_told = False


def leave(transport: Any, feed: SessionFeed | None) -> None:
    """Close a connection by our own decision: its session, if it is one, is not to be resumed elsewhere."""
    answer = None if feed is None else feed.over()
    if answer is None:
        transport.loseConnection()
    else:
        answer.addBoth(lambda _: transport.loseConnection())
