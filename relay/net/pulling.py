"""Taking a stream from a plain RTMP server, which knows no positions.

Owns one such connection and its conversation.  What it plays is ingested exactly as if an encoder had published it
here: the node that pulls is where the stream's positions begin.  Called by the origin (``--pull``) and by a
distributor whose upstream is such a server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from relay.names import StreamName
from relay.net.failover import Backoff, FailoverFactory, Upstream
from relay.net.ingest import Ingest, Publication, PublishRefused
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.timings import DEFAULT_TIMINGS, Timings
from relay.rtmp.events import Event, MediaReceived, PlayStarted, StatusReceived, StreamEnded

SILENT_SECONDS = 10.0  # a server that plays nothing for so long is asked anew: it may have lost its own source


class _PullProtocol(RtmpClientProtocol):
    """Plays one stream into a publication."""

    def __init__(
        self, settings: ClientSettings, pull: Pull, upstream: Upstream, app: str, tc_url: str, play: str
    ) -> None:
        super().__init__(settings, app, tc_url)
        self._pull = pull
        self._upstream = upstream
        self._play = play
        self._publication: Publication | None = None
        self._silence: IDelayedCall | None = None

    # The ingest's view of us

    def describe(self) -> str:
        """Who this is, for people."""
        return f"pull from {self._upstream.name}"

    def sent_away(self, description: str, outcome: str = "replaced") -> None:
        """An encoder publishes the name here."""
        self.give_up("replaced")

    # the conversation

    def created(self, message_stream_id: int) -> None:
        self.session.play(message_stream_id, self._play)

    def received(self, event: Event) -> None:
        if isinstance(event, MediaReceived):
            self._media(event)
        elif isinstance(event, PlayStarted):
            self.is_ready()
            self._silence = self.settings.clock.callLater(SILENT_SECONDS, self._silent)
        elif isinstance(event, StreamEnded):
            self.give_up("upstream_ended")
        elif isinstance(event, StatusReceived) and event.level == "error":
            self.give_up(event.code)

    def _media(self, event: MediaReceived) -> None:
        if self._publication is None:
            try:
                self._publication = self._pull.ingest.admit(self)
            except PublishRefused as refusal:
                self.log.warn("{name}: {why}", name=str(self._pull.name), why=str(refusal))
                self.give_up("name_taken")
                return
        self._publication.receive(event.message)
        self._pull.factory.media_arrived()
        if self._silence is not None:
            self._silence.reset(SILENT_SECONDS)

    def read_done(self) -> None:
        if self._publication is not None:
            self._publication.flush()

    def over(self, outcome: str) -> None:
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        if self._publication is not None:
            self._publication.end()
        self._pull.lost(outcome)

    def _silent(self) -> None:
        self.give_up("silent")


class Pull:
    """One stream, pulled for ever, from the first of its upstreams that has it.

    Args:
        name: what it is called here.
        ingest: where it goes.
        upstreams: servers, in order.
        address: (app, tc_url, stream to play) at the upstream.
        settings: who we are.
        timings: how patient we are.
    """

    log = Logger()

    def __init__(
        self,
        name: StreamName,
        ingest: Ingest,
        upstreams: Sequence[Upstream],
        address: tuple[str, str, str],
        settings: ClientSettings,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.name = name
        self.ingest = ingest
        self._address = address
        self._settings = settings
        self.factory = FailoverFactory(
            upstreams, self._build, settings.clock, Backoff(maximum=timings.retry), connect_seconds=timings.connect
        )

    def start(self) -> None:
        """Begin."""
        self.factory.start()

    def stop(self) -> Deferred[None]:
        """End."""
        return self.factory.stop()

    def lost(self, outcome: str) -> None:
        """The connection is gone."""
        if outcome != "stopped":
            self.log.info("{stream}: pull ended: {outcome}", stream=str(self.name), outcome=outcome)
        self.factory.lost(outcome)

    def _build(self, upstream: Upstream) -> RtmpClientProtocol:
        return _PullProtocol(self._settings, self, upstream, *self._address)


PullMaker = Callable[[StreamName, Sequence[Upstream]], Pull]
