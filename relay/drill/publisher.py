"""Who publishes during a drill: an encoder that sends the stamped stream and comes back when it is cut.

Owns its connection.  As a live encoder does, it sends what is due now, and drops what fell due while it had no
connection; then it goes on with headers and a keyframe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger

from relay.drill.stamps import headers, stamped
from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.failover import Backoff, FailoverFactory, Upstream
from relay.net.publisher import PublishingProtocol
from relay.net.rtmp_client import ClientSettings
from relay.rtmp.media import describe
from relay.rtmp.messages import MediaMessage, MessageType

RETRY_SECONDS = 0.5  # at the most


class _Encoder(PublishingProtocol):
    """One connection."""

    def __init__(self, settings: ClientSettings, owner: StampedPublisher) -> None:
        super().__init__(settings, owner.host, owner.stream)
        self._owner = owner

    def accepted_publish(self) -> None:
        self._owner.connected(self)

    def send(self, messages: list[MediaMessage]) -> None:
        for message in messages:
            self.session.send_media(self.message_stream_id, message)
        self.flush()

    def over(self, outcome: str) -> None:
        self._owner.disconnected(outcome)


class StampedPublisher(Service):
    """Publishes while it runs.

    Args:
        host: of the server, for its URL.
        endpoint: of the server.
    """

    log = Logger()

    def __init__(self, reactor: Any, host: str, endpoint: IStreamClientEndpoint, stream: StreamName) -> None:
        self.host = host
        self.stream = stream
        self.dropped = 0
        self._reactor = reactor
        self._messages: Iterator[MediaMessage] = stamped()
        self._next = next(self._messages)
        self._began = 0.0
        self._encoder: _Encoder | None = None
        self._timer: IDelayedCall | None = None
        settings = ClientSettings(limits=DEFAULT_LIMITS, clock=reactor)
        self._factory = FailoverFactory(
            [Upstream(name=host, endpoint=endpoint)],
            lambda _: _Encoder(settings, self),
            reactor,
            Backoff(maximum=RETRY_SECONDS),
        )

    def startService(self) -> None:
        super().startService()
        self._began = self._reactor.seconds()
        self._factory.start()
        self._tick()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
        return self._factory.stop()

    def connected(self, encoder: _Encoder) -> None:
        """A server takes the stream (called by the encoder)."""
        self._factory.media_arrived()
        while not _is_keyframe(self._next):
            self._drop()
        encoder.send(headers_at(self._next.timestamp))
        self._encoder = encoder

    def disconnected(self, outcome: str) -> None:
        """It is gone (called by the encoder)."""
        self._encoder = None
        self._factory.lost(outcome)

    def _tick(self) -> None:
        now_ms = (self._reactor.seconds() - self._began) * 1000
        due: list[MediaMessage] = []
        while self._next.timestamp <= now_ms:
            if self._encoder is None:
                self._drop()
            else:
                due.append(self._next)
                self._next = next(self._messages)
        if self._encoder is not None and due:
            self._encoder.send(due)
        self._timer = self._reactor.callLater(max(0.0, (self._next.timestamp - now_ms) / 1000), self._tick)

    def _drop(self) -> None:
        self.dropped += 1
        self._next = next(self._messages)


def headers_at(timestamp: int) -> list[MediaMessage]:
    """The stream's headers, stamped with this time."""
    return [MediaMessage(header.message_type, timestamp, header.payload) for header in headers()]


def _is_keyframe(message: MediaMessage) -> bool:
    return message.message_type == MessageType.VIDEO and describe(message.message_type, message.payload).is_keyframe
