"""One connection to an upstream node that plays a stream's log from a position on.

Owns the conversation; what becomes of the bytes is :mod:`relay.net.replication`'s, who calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import RelayError, RemoteProtocolError
from relay.net.failover import FailoverFactory, Upstream
from relay.net.intake import Intake
from relay.net.positions import read_position
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.rtmp.events import Event, MediaReceived, PlayStarted, StatusReceived, StreamEnded

if TYPE_CHECKING:
    from relay.net.replication import Replica


class UpstreamBehind(RelayError):
    """An upstream is so far behind that nothing can be read from it now."""


class Reading(RtmpClientProtocol):
    """One connection that plays the stream from a position on: its next message stands at ``(epoch, offset)``."""

    factory: FailoverFactory
    intake: Intake

    def __init__(self, settings: ClientSettings, replica: Replica, upstream: Upstream) -> None:
        super().__init__(settings, replica.name.app, f"rtmp://{upstream.name}/{replica.name.app}")
        self.upstream = upstream
        self.epoch = 0
        self.offset = 0
        self._replica = replica

    def connectionMade(self) -> None:
        self.intake = Intake(self.transport)
        super().connectionMade()

    def created(self, message_stream_id: int) -> None:
        if self.peer_node is None:
            self.log.warn("{name} is no node of this cluster", name=self._tc_url)
            self.give_up("foreign")
            return
        self.session.play(message_stream_id, f"{self._replica.name.name}?{self._replica.query()}")

    def received(self, event: Event) -> None:
        if isinstance(event, MediaReceived):
            self._replica.copy(self, event.message)
        elif isinstance(event, PlayStarted):
            self.is_ready()
            self._moved(event.info)
        elif isinstance(event, StatusReceived):
            if event.code == "Relay.Position":
                self._moved(event.info)
            elif event.code == "Relay.Ended":
                self._replica.ended(self)
            elif event.level == "error":
                self.give_up(event.code)
        elif isinstance(event, StreamEnded):
            self.give_up("upstream_ended")

    def _moved(self, info: dict[str, object]) -> None:
        told = read_position(info)
        if told is None:
            raise RemoteProtocolError("no position in Play.Start")
        try:
            self._replica.moved(self, told)
        except UpstreamBehind as error:
            self.log.info("{stream}: {error}", stream=str(self._replica.name), error=str(error))
            self.give_up("behind")

    def read_done(self) -> None:
        self._replica.read_done()

    def over(self, outcome: str) -> None:
        self._replica.lost(self, outcome)
