"""Readers in step are sent exactly what each would be sent alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.log.options import LogOptions
from relay.net.cohort import Cohorts
from relay.net.viewer import BUFFERED_BYTES, FlvForm, RtmpForm, Viewer
from relay.rtmp.messages import MessageType
from relay.testing import ManualReactor, make_hub, memory_log, publish
from tests import wire
from tests.log.model import gops
from tests.net.driving import Recorder, TcpPair, flv_tags, log_bytes, read_messages
from tests.wire import avc_header

SMALL = 4 << 10  # bytes of socket buffers for a peer that is soon congested
ROLLING = LogOptions(segment_bytes=10_000, keep_bytes=64 << 20, keep_ms=3_600_000)
PINGS = [wire.user_control(6, bytes([number, 0, 0, 0])) for number in range(256)]


class CohortTests(SynchronousTestCase):
    """Transports on real connections, whose reactor is turned by hand."""

    def setUp(self) -> None:
        self.reactor = ManualReactor()
        self.log = memory_log(options=ROLLING)
        self.addCleanup(self.log.close)
        self.left: list[str] = []
        self.cohorts: Cohorts[str] = Cohorts(self.left.append)
        self.pairs: dict[str, TcpPair] = {}

    def write(self, count: int = 3, size: int = 1000) -> bytes:
        messages = gops(1, frames=count, size=size, start=self.log.end)
        for message in messages:
            self.log.append(message)
            self.log.flush()
        return log_bytes(messages)

    def reader(self, name: str, buffers: int = 0, blocked=lambda state: False) -> TcpPair:
        """One that has had everything, and has been asked to fall in."""
        pair = TcpPair(Recorder(), self.reactor, send_buffer=buffers, receive_buffer=buffers)
        self.addCleanup(pair.close)
        pair.transport.setTcpNoDelay(True)
        cursor = self.log.rtmp.cursor(self.log.end)
        self.addCleanup(cursor.close)
        pair.transport.follow(cursor, blocked)
        self.assertTrue(pair.transport.fall_in(self.cohorts, name))
        self.pairs[name] = pair
        return pair

    def steps(self) -> list[str]:
        """Who is in step."""
        return [name for name, pair in self.pairs.items() if pair.transport.is_in_step]

    def test_all_are_sent_the_same(self) -> None:
        """Across segments, and each time that there is more."""
        for name in "abc":
            self.reader(name)
        expected = b""
        for _ in range(5):
            expected += self.write(20)
            self.cohorts.pump()
            self.assertEqual([expected] * 3, [pair.run() for pair in self.pairs.values()])
        self.assertGreater(len(self.log.rtmp.segments), 3)
        self.assertEqual((3, ["a", "b", "c"], []), (len(self.cohorts), self.steps(), self.left))
        self.assertEqual([], self.reactor.getWriters())

    def test_one_that_has_not_everything_stays_alone(self) -> None:
        """It falls in when it has."""
        first = self.write(40)
        pair = TcpPair(Recorder(), self.reactor, send_buffer=SMALL, receive_buffer=SMALL)
        self.addCleanup(pair.close)
        cursor = self.log.rtmp.cursor(0)
        self.addCleanup(cursor.close)
        pair.transport.follow(cursor, lambda state: False)
        self.assertFalse(pair.transport.fall_in(self.cohorts, "slow"))
        self.assertEqual(first, pair.run())
        self.assertTrue(pair.transport.fall_in(self.cohorts, "slow"))

    def test_one_that_is_elsewhere_than_the_others_stays_alone(self) -> None:
        """Those in step have yet to be sent what it was sent already."""
        self.reader("a")
        self.write()
        pair = TcpPair(Recorder(), self.reactor)
        self.addCleanup(pair.close)
        cursor = self.log.rtmp.cursor(self.log.end)
        self.addCleanup(cursor.close)
        pair.transport.follow(cursor, lambda state: False)
        self.assertFalse(pair.transport.fall_in(self.cohorts, "b"))
        self.cohorts.pump()
        self.assertTrue(pair.transport.fall_in(self.cohorts, "b"))

    def test_full_socket_falls_out_and_loses_nothing(self) -> None:
        """In the middle of a message or before it; the others don't notice."""
        quick, slow = self.reader("quick"), self.reader("slow", SMALL)
        expected = b""
        for _ in range(4):
            expected += self.write(20)
            self.cohorts.pump()
            quick.run()
        self.assertEqual(expected, bytes(quick.received))
        self.assertEqual((["slow"], ["quick"]), (self.left, self.steps()))
        self.assertTrue(slow.transport.is_congested())
        self.assertEqual(expected, slow.run(1000))
        self.assertTrue(slow.transport.fall_in(self.cohorts, "slow"))
        expected += self.write()
        self.cohorts.pump()
        self.assertEqual([expected] * 2, [quick.run(), slow.run()])

    def test_what_concerns_one_alone_makes_it_fall_out(self) -> None:
        """It goes on from the byte where the others are."""
        for name, act in (
            ("write", lambda transport: transport.write(b"words")),
            ("writeSequence", lambda transport: transport.writeSequence([b"wor", b"ds"])),
            ("fall_out", lambda transport: transport.fall_out()),
            ("pump", lambda transport: transport.pump()),
        ):
            self.reader("other")
            pair = self.reader(name)
            before = self.write()
            self.cohorts.pump()
            act(pair.transport)
            self.assertFalse(pair.transport.is_in_step)
            after = self.write()
            self.cohorts.pump()
            pair.run()
            pair.transport.pump()
            words = b"words" if name.startswith("write") else b""
            self.assertEqual(before + words + after, pair.run(), name)

    def test_one_that_is_unfollowed_or_lost_is_sent_nothing_more(self) -> None:
        """Not even when its descriptor's number is somebody else's."""
        other = self.reader("other")
        for name in ("unfollow", "abort", "peer"):
            pair = self.reader(name)
            if name == "unfollow":
                pair.transport.unfollow()
            elif name == "abort":
                pair.transport.abortConnection()
            else:
                pair.peer.close()
            self.reactor.turn()
            stranger = TcpPair(Recorder(), self.reactor)
            self.addCleanup(stranger.close)
            self.write()
            self.cohorts.pump()
            self.assertEqual(b"", stranger.run())
        self.assertEqual((["unfollow", "abort", "peer"], ["other"]), (self.left, self.steps()))
        self.assertEqual(self.log.end, len(other.run()))

    def test_broken_socket_costs_itself_alone(self) -> None:
        """The reactor is told by its next event, as of any other."""
        broken, other = self.reader("broken"), self.reader("other")
        broken.transport.stopReading()  # or the reactor would have seen it first
        broken.peer.close()
        expected = b""
        for _ in range(3):
            expected += self.write()
            self.cohorts.pump()
        self.assertEqual((["broken"], expected), (self.left, other.run()))
        self.assertEqual(1, len(broken.transport.protocol.ends) if broken.transport.connected else 1)
        self.assertFalse(broken.transport.connected)

    def test_all_fall_out_where_the_bytes_do_not_simply_go_on(self) -> None:
        """At the log's end; each is asked what comes next when it is pumped."""
        states: list[str] = []
        pairs = [self.reader(name, blocked=lambda state: bool(states.append(state.value))) for name in "ab"]
        expected = self.write()
        self.log.finish(None)
        self.cohorts.pump()
        self.assertEqual((["a", "b"], []), (self.left, self.steps()))
        for pair in pairs:
            pair.transport.pump()
            self.assertEqual(expected, pair.run())
        self.assertEqual(["ended", "ended"], states)

    def test_segments_are_held_once_and_let_go(self) -> None:
        """Cursors of readers in step hold none, and nothing is held when nobody is left."""
        self.reader("a")
        self.reader("b")
        for _ in range(3):
            self.write(20)
            self.cohorts.pump()
        segments = self.log.rtmp.segments
        self.assertEqual([0] * (len(segments) - 1) + [1], [segment.readers for segment in segments])
        self.assertEqual(3, self.log.rtmp.cursors)
        self.cohorts.disband()
        self.assertEqual((2, 2, 0), (self.log.rtmp.cursors, segments[-1].readers, len(self.cohorts)))


ACTIONS = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 3), st.sampled_from((50, 3_000, 60_000))),
    st.tuples(st.just("read"), st.integers(0, 4), st.sampled_from((100, 20_000, 1 << 20))),
    st.tuples(st.just("say"), st.integers(0, 4), st.integers(0, 255)),
    st.tuples(st.just("time"), st.sampled_from((0, 1, 10, 60)), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 4), st.just(0)),
)


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from((0.0, 0.1)))
def test_whatever_happens_each_reader_gets_every_byte_in_order(actions, merge_seconds: float) -> None:
    """Readers fall in and out as they are slow, spoken to, or gone; over RTMP and FLV, merged or not."""
    clock = ManualReactor()
    options = LogOptions(segment_bytes=100_000, keep_bytes=256 << 20, keep_ms=3_600_000)
    hub, stream = make_hub([avc_header()], clock=clock, merge_seconds=merge_seconds, options=options)
    published = gops(1, frames=2)
    publish(stream, published)
    pairs: list[TcpPair] = []
    viewers: list[Viewer] = []
    said: list[list[bytes]] = [[] for _ in range(5)]
    for number in range(5):
        pair = TcpPair(Recorder(), clock, send_buffer=SMALL * (number % 2), receive_buffer=SMALL * (number % 2))
        pair.transport.setTcpNoDelay(True)
        form = FlvForm() if number == 4 else RtmpForm()
        viewer = Viewer(stream, pair.transport, form, lambda outcome: None, clock.seconds())
        viewer.join(stream.log.newest_join_point())
        pairs.append(pair)
        viewers.append(viewer)

    def act(kind: str, number: int, amount: int) -> None:
        if kind == "publish":
            messages = gops(1, frames=number + 1, size=amount, start=published[-1].timestamp + 40)
            publish(stream, messages, at_once=False)
            published.extend(messages)
        elif kind == "read":
            pairs[number].read(amount)
            clock.turn()
        elif kind == "time":
            clock.pump([0.005] * number)
        elif kind == "say" and number != 4 and viewers[number].offset >= 0:
            viewers[number].interject(PINGS[amount])
            said[number].append(PINGS[amount])
        elif kind == "leave":
            viewers[number].stop()

    def settle() -> None:
        clock.pump([0.005] * 50)
        for pair in pairs:
            pair.run()
        clock.pump([0.005] * 50)
        for pair in pairs:
            pair.run()

    try:
        for _ in range(BUFFERED_BYTES // 60_000 + 1):  # until they are known to read
            act("publish", 0, 60_000)
            settle()
        for _ in range(2):
            act("publish", 0, 50)
            settle()
        assert all(pair.transport.is_in_step for pair in pairs)
        for action in actions:
            act(*action)
        gone = {number for number, viewer in enumerate(viewers) if viewer.offset < 0}
        act("publish", 0, 50)
        settle()
        for number, pair in enumerate(pairs):
            media = published[:]
            if number == 4:
                received, expected = bytes(pair.received[13 + len(flv_tags([avc_header()])) :]), flv_tags(media)
            else:
                raws = [] if number in gone else read_messages(bytes(pair.received))
                own = [raw for raw in raws if raw.message_type == MessageType.USER_CONTROL]
                assert len(own) == len(said[number]) or number in gone
                received = bytes(pair.received[len(log_bytes([avc_header()])) :])
                for ping in said[number]:
                    received = received.replace(ping, b"", 1)
                expected = log_bytes(media)
            assert expected.startswith(received) if number in gone else received == expected, number
    finally:
        hub.close()
        for pair in pairs:
            pair.close()
