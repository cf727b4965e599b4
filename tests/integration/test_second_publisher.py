"""Two encoders, one name, real sockets: what each policy of the origin means for both, and for who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString

from relay.limits import DEFAULT_LIMITS
from relay.log.options import LogOptions
from relay.names import StreamName
from relay.net.identity import NodeIdentity
from relay.net.ingest import SecondPublisher
from relay.net.node import NodeSettings
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.net.storing import IngestSettings, StoreSettings
from relay.rtmp.events import Event, MediaReceived, PublishStarted, StatusReceived
from relay.rtmp.messages import MediaMessage, MessageType
from relay.tiers.origin import Origin
from tests import wire

NAME = StreamName("live", "show")
TIMEOUT_SECONDS = 10
SETTINGS = ClientSettings(identity=NodeIdentity(name="test", tier="client"), limits=DEFAULT_LIMITS, clock=reactor)
HEADERS = [wire.metadata(), wire.avc_header(), wire.aac_header()]


class Client(RtmpClientProtocol):
    """A client that remembers what happened, and says when something did."""

    noisy = False

    def __init__(self, is_publisher: bool) -> None:
        super().__init__(SETTINGS, NAME.app, f"rtmp://test/{NAME.app}")
        self.happened: list[Event] = []
        self.outcome: str | None = None
        self._is_publisher = is_publisher
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def created(self, message_stream_id: int) -> None:
        self.is_ready()
        begin = self.session.publish if self._is_publisher else self.session.play
        begin(message_stream_id, NAME.name)

    def received(self, event: Event) -> None:
        self.happened.append(event)
        self._check()

    def over(self, outcome: str) -> None:
        self.outcome = outcome
        self._check()

    def send(self, *messages: MediaMessage) -> None:
        """Publish these."""
        for message in messages:
            self.session.send_media(1, message)
        self.flush()

    def when(self, is_true: Callable[[], bool]) -> Deferred[None]:
        """Fires when ``is_true``, which is asked after each event."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((is_true, waiting.addTimeout(TIMEOUT_SECONDS, reactor)))
        self._check()
        return waiting

    def _check(self) -> None:
        ready = [entry for entry in self._waiting if entry[0]()]
        self._waiting = [entry for entry in self._waiting if entry not in ready]
        for _, waiting in ready:
            waiting.callback(None)

    def codes(self) -> list[str]:
        """The status codes that came."""
        return [event.code for event in self.happened if isinstance(event, StatusReceived)]

    def pictures(self) -> list[bytes]:
        """The video frames that came."""
        media = [event.message for event in self.happened if isinstance(event, MediaReceived)]
        return [m.payload for m in media if m.message_type == MessageType.VIDEO and m.payload[1] == 1]

    def timestamps(self) -> list[int]:
        """Of those frames."""
        media = [event.message for event in self.happened if isinstance(event, MediaReceived)]
        return [m.timestamp for m in media if m.message_type == MessageType.VIDEO and m.payload[1] == 1]


@pytest.fixture
def make_origin() -> Iterator[Callable[[SecondPublisher, float], Any]]:
    """Start an origin on a free port, in memory, by policy and take-over time; it is stopped after the test."""
    started: list[Origin] = []

    def make(policy: SecondPublisher, takeover_seconds: float) -> Origin:
        origin = Origin(
            NodeSettings(identity=NodeIdentity(name="o1", tier="origin"), merge_seconds=0),
            reactor,
            StoreSettings(keep=LogOptions()),
            IngestSettings(policy=policy, takeover_seconds=takeover_seconds),
        )
        origin.listen(serverFromString(reactor, "tcp:0:interface=127.0.0.1"))
        origin.startService()
        started.append(origin)
        return origin

    yield make
    for origin in started:
        pytest_twisted.blockon(origin.stopService())


async def connect(origin: Origin, is_publisher: bool = True) -> Client:
    """A client of ``origin``, which has asked to publish or play."""
    port = (await origin.when_listening()).getHost().port
    client = Client(is_publisher)
    await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{port}"), client)
    return client


async def hang_up(*clients: Client) -> None:
    """Close, and wait until it is done."""
    for client in clients:
        client.give_up("done")
        await client.when(lambda client=client: client.outcome is not None)


def is_publishing(client: Client) -> bool:
    """Was it let in?"""
    return any(isinstance(event, PublishStarted) for event in client.happened)


def frames(start: int, mark: int) -> list[MediaMessage]:
    """A GOP whose pictures are told from others' by ``mark``."""
    return [
        wire.avc_frame(message.timestamp, index == 0, bytes([mark, index]) * 50)
        for index, message in enumerate(wire.h264_gop(5, start))
    ]


@pytest.mark.parametrize("policy", list(SecondPublisher))
@pytest_twisted.ensureDeferred
async def test_second_publisher_of_a_live_name(policy: SecondPublisher, make_origin: Callable[..., Origin]) -> None:
    """Refused, kept warm until the first leaves, or put in its place; whoever watches sees one stream that goes on."""
    origin = make_origin(policy, 60)
    first = await connect(origin)
    await first.when(lambda: is_publishing(first))
    first.send(*HEADERS, *frames(0, 1))
    viewer = await connect(origin, is_publisher=False)
    await viewer.when(lambda: len(viewer.pictures()) == 5)

    second = await connect(origin)
    if policy is SecondPublisher.REFUSE:
        await second.when(lambda: second.outcome is not None)
        assert second.codes() == ["NetStream.Publish.BadName"]
        first.send(*frames(200, 1))
    else:
        await second.when(lambda: is_publishing(second))
        if policy is SecondPublisher.STANDBY:
            second.send(*HEADERS, *frames(7000, 2))
            first.send(*frames(200, 1)[:1])
            await viewer.when(lambda: len(viewer.pictures()) == 6)
            await hang_up(first)
            await origin_notices(origin)
        second.send(*HEADERS, *frames(8000, 2))
    await viewer.when(lambda: len(viewer.pictures()) >= 10)

    stamps = viewer.timestamps()
    assert stamps == sorted(stamps)
    assert viewer.outcome is None
    marks = {picture[5] for picture in viewer.pictures()[-4:]}
    assert marks == ({1} if policy is SecondPublisher.REFUSE else {2})
    if policy is SecondPublisher.REPLACE:
        await first.when(lambda: first.outcome is not None)
        assert "NetStream.Publish.BadName" in first.codes()
    await hang_up(*(client for client in (first, second, viewer) if client.outcome is None))


@pytest_twisted.ensureDeferred
async def test_silent_publisher_does_not_block_its_own_return(make_origin: Callable[..., Origin]) -> None:
    """An encoder whose old connection is half dead gets in again, even where a second one is refused."""
    origin = make_origin(SecondPublisher.REFUSE, 0.05)
    first = await connect(origin)
    await first.when(lambda: is_publishing(first))
    first.send(*HEADERS, *frames(0, 1))
    silent: Deferred[None] = Deferred()
    reactor.callLater(0.1, silent.callback, None)  # the take-over time itself, on the real clock
    await silent
    second = await connect(origin)
    await second.when(lambda: is_publishing(second))
    await first.when(lambda: first.outcome is not None)
    await hang_up(second)


async def origin_notices(origin: Origin) -> None:
    """Until the origin knows that the active publisher is gone."""
    gone: Deferred[None] = Deferred()
    origin.hub.observe(lambda event, stream: gone.callback(None) if not stream.is_live and not gone.called else None)
    stream = origin.hub.get(NAME)
    assert stream is not None
    if stream.is_live:
        await gone.addTimeout(TIMEOUT_SECONDS, reactor)
