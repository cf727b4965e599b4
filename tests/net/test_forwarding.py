"""Forwards of one node, without a network: which there are, what they read, and what a slow target holds."""

from __future__ import annotations

import socket
from typing import Any

import attrs
from twisted.internet import tcp
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.log.log import StreamLog
from relay.log.options import LogOptions
from relay.log.points import ORIGIN_START
from relay.log.segment import MemorySource
from relay.names import StreamName
from relay.net.forward_connection import ForwardConnection, ForwardOwner
from relay.net.forward_rules import parse_rule
from relay.net.forwarding import Forward, Forwarder
from relay.net.rtmp_client import ClientSettings
from relay.net.streams import Hub, LiveStream
from relay.net.urls import parse_rtmp_url
from relay.rtmp.messages import MediaMessage
from relay.testing import CongestibleTransport, ManualReactor
from tests.log.model import fill, gops, video
from tests.net.driving import TcpPair

TARGET = "rtmp://192.0.2.1/live/{name}"


def make_stream(hub: Hub, name: str = "show") -> LiveStream:
    """Live, with three groups of pictures."""
    log = StreamLog(7, MemorySource(), ORIGIN_START, LogOptions(segment_bytes=1 << 20))
    stream = hub.add(StreamName("live", name), fill(log, gops(3)))
    hub.set_live(stream, True, "an encoder")
    return stream


class ForwarderTests(SynchronousTestCase):
    """Which forwards there are."""

    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.hub = Hub(self.clock, DEFAULT_LIMITS)
        self.addCleanup(self.hub.close)

    def forwarder(self, *rules: str, **limits: int) -> Forwarder:
        settings = ClientSettings(limits=attrs.evolve(DEFAULT_LIMITS, **limits), clock=self.clock, identity=None)
        self.patch(Forward, "start", lambda _: None)  # connect to nobody
        return Forwarder([parse_rule(rule) for rule in rules], self.hub, settings)

    def names(self, forwarder: Forwarder) -> list[str]:
        return [str(forward.stream.name) for forward in forwarder]

    def test_streams_that_match_and_are_live(self) -> None:
        """Each rule by itself; those that come later, too; until the broadcast is over."""
        forwarder = self.forwarder(f"live/sh*={TARGET}", f"live/show={TARGET}", f"other/*={TARGET}")
        stream = make_stream(self.hub)
        make_stream(self.hub, "another")
        self.assertEqual(["live/show"] * 2, self.names(forwarder))
        self.hub.set_live(stream, False, "")
        forwarder.check()
        self.assertEqual(2, len(self.names(forwarder)))
        stream.end()
        forwarder.check()
        self.assertEqual([], self.names(forwarder))

    def test_forwards(self) -> None:
        """More than the limit are not begun, and it is said once."""
        forwarder = self.forwarder(f"live/*={TARGET}", forwards=2)
        for name in ("one", "two", "three"):
            make_stream(self.hub, name)
        forwarder.check()
        self.assertEqual(["live/one", "live/two"], self.names(forwarder))
        self.hub.get(StreamName("live", "one")).end()
        forwarder.check()
        forwarder.check()
        self.assertEqual(["live/two", "live/three"], self.names(forwarder))


class Target(ForwardOwner):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def began(self) -> None:
        self.said.append("began")

    def refused(self, why: str) -> None:
        self.said.append(why)

    def ended(self, outcome: str, why: str) -> None:
        self.said.append(outcome)


class ConnectionTests(SynchronousTestCase):
    """What is sent to a target that has said yes."""

    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.hub = Hub(self.clock, DEFAULT_LIMITS)
        self.addCleanup(self.hub.close)
        self.stream = make_stream(self.hub)
        settings = ClientSettings(limits=DEFAULT_LIMITS, clock=self.clock, identity=None)
        self.owner = Target()
        self.connection = ForwardConnection(settings, self.stream, parse_rtmp_url("rtmp://h/live/x"), self.owner)
        self.transport = StringTransport()
        self.connection.transport = self.transport
        self.sent: list[MediaMessage] = []
        self.patch(self.connection.session, "send_media", lambda _, message: self.sent.append(message))
        self.patch(self.connection.session, "unpublish", lambda *_: self.sent.append("unpublish"))
        self.connection.connectionMade()
        self.connection.is_ready()
        self.connection._begin()

    def add(self, *messages: MediaMessage) -> None:
        for message in messages:
            self.stream.log.append(message)
        self.stream.flush()
        self.clock.advance(1)

    def times(self) -> list[int]:
        return [message.timestamp for message in self.sent]

    def test_begins_at_the_newest_keyframe_with_time_0(self) -> None:
        join = self.stream.log.newest_join_point()
        self.assertEqual((["began"], 0), (self.owner.said, self.sent[0].timestamp))
        self.add(video(join.time_ms + 5000, True))
        self.assertEqual(5000, self.times()[-1])

    def test_slow_target_holds_no_more_than_it_was_given(self) -> None:
        """It goes on when it takes bytes again, and where it is too far behind, at the newest keyframe."""
        self.connection.pauseProducing()
        before = len(self.sent)
        start = self.stream.log.end_time_ms
        self.add(*(video(start + 1000 * number, True) for number in range(1, 31)))
        self.assertEqual(before, len(self.sent))
        self.assertGreater(self.connection.behind_ms, 29_000)
        self.connection.check(self.clock.seconds(), 10.0, 1000.0)
        self.connection.resumeProducing()
        self.assertEqual((1, 1), (self.connection.skips, len(self.sent) - before))
        self.assertLess(self.connection.behind_ms, 10)

    def test_target_that_takes_nothing_is_given_up(self) -> None:
        self.connection.pauseProducing()
        for _ in range(40):
            self.clock.advance(1)
            self.connection.check(self.clock.seconds(), 1000.0, 30.0)
        self.assertTrue(self.transport.disconnecting or self.transport.disconnected)

    def test_end_of_the_broadcast_is_said(self) -> None:
        self.stream.end()
        self.clock.advance(1)
        self.assertEqual("unpublish", self.sent[-1])
        self.connection.connectionLost()
        self.assertEqual("ended", self.owner.said[-1])
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_next_epoch_follows_in_the_same_connection(self) -> None:
        end = self.stream.log.end_time_ms
        log = StreamLog(8, MemorySource(), ORIGIN_START, LogOptions())
        self.stream.succeed(fill(log, [video(end + 100, True), video(end + 140, False)]))
        self.clock.advance(1)
        self.assertEqual(40, self.times()[-1] - self.times()[-2])
        self.assertEqual(0, len([each for each in self.sent if each == "unpublish"]))


class SlowTargetTests(SynchronousTestCase):
    """A network that takes so much a second, and no more."""

    def setUp(self) -> None:
        self.reactor: Any = ManualReactor()
        self.hub = Hub(self.reactor, DEFAULT_LIMITS)
        self.addCleanup(self.hub.close)
        self.stream = make_stream(self.hub)
        settings = ClientSettings(limits=DEFAULT_LIMITS, clock=self.reactor, identity=None)
        self.connection = ForwardConnection(settings, self.stream, parse_rtmp_url("rtmp://h/live/x"), Target())
        encoded = bytearray()
        self.patch(self.connection.session, "send_media", lambda _, message: encoded.extend(message.payload))
        self.patch(self.connection.session, "unpublish", lambda *_: None)

        def taken() -> bytes:
            data = bytes(encoded)
            encoded.clear()
            return data

        self.patch(self.connection.session, "data_to_send", taken)

    def begin(self) -> None:
        self.connection.is_ready()
        self.connection._begin()

    def add(self, size: int) -> None:
        """A frame of so many bytes."""
        frame = attrs.evolve(video(self.stream.log.end_time_ms + 100, True), payload=b"\x17\x01" + bytes(size))
        self.stream.log.append(frame)
        self.stream.flush()

    def check(self) -> None:
        self.connection.check(self.reactor.seconds(), 1000.0, 30.0)

    def test_target_that_takes_nearly_all_is_kept_and_one_that_stops_is_not(self) -> None:
        """It is paused whenever somebody looks."""
        transport = CongestibleTransport(self.reactor)
        transport.connect(self.connection)
        self.begin()
        for network, seconds, is_kept in ((18_000, 90, True), (0, 29, True), (0, 6, False)):
            for tick in range(seconds * 10):
                self.add(20_000)
                self.reactor.advance(0.1)
                transport.drain(network)
                if tick % 10 == 5:
                    self.check()
            self.assertEqual(is_kept, not transport.is_aborted, (network, seconds))

    def test_target_that_takes_a_large_frame_slowly_is_kept(self) -> None:
        """A connection is resumed only when all of it is gone; the kernel knows what is taken before."""
        pair = TcpPair(self.connection, self.reactor, tcp.Server, send_buffer=1 << 17, receive_buffer=1 << 15)
        self.addCleanup(pair.close)
        timeout_ms = pair.transport.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        self.assertGreater(timeout_ms, 30_000, "or the kernel cuts the connection first")
        self.begin()
        self.add(4 << 20)
        for count, seconds, is_kept in ((1 << 15, 60, True), (0, 29, True), (0, 6, False)):
            for _ in range(seconds):
                self.reactor.advance(1)
                while self.reactor.turn():
                    pass
                if count:
                    pair.read(count)
                if pair.transport.connected:
                    self.check()
            self.assertEqual(is_kept, pair.transport.connected == 1, (count, seconds))
