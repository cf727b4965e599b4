"""A copy goes on exactly where it ends, says what it misses, and never mixes two logs."""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.names import StreamName, split_query
from relay.net import replication
from relay.net.failover import Upstream
from relay.net.flushing import AT_ONCE
from relay.net.identity import NodeIdentity
from relay.net.logs import MemoryLogs
from relay.net.positions import position_info, start_info
from relay.net.replication import Counts, ReadMode, Replica
from relay.net.rtmp_client import ClientSettings
from relay.net.streams import Hub
from relay.rtmp.events import ConnectRequested, PlayRequested
from relay.rtmp.server import ServerSession
from relay.testing import MemoryNetwork, memory_log
from tests import wire
from tests.log.model import contents, gops, video
from tests.net.driving import log_bytes
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
HEADERS = [metadata(), avc_header(), aac_header()]
MESSAGES = HEADERS + gops(4)
EPOCH = 7
LOGS = LogOptions(segment_bytes=1000, keep_ms=3_600_000)


def size(messages) -> int:
    return len(log_bytes(messages))


class Server(Protocol):
    """An upstream that does what the test says: answers, sends, contradicts itself."""

    def __init__(self, is_node: bool = True) -> None:
        self.session = ServerSession(DEFAULT_LIMITS, wire.NONCE)
        self.asked: tuple[int, int] | None = None
        self.request: PlayRequested | None = None
        self.ends = 0
        self._is_node = is_node

    def dataReceived(self, data: bytes) -> None:
        for event in self.session.receive_data(data, 0.0):
            if isinstance(event, ConnectRequested):
                said = {"relayNode": "o1", "relayTier": "origin"} if self._is_node else {}
                self.session.accept_connect(event, said)
            elif isinstance(event, PlayRequested):
                _, query = split_query(event.stream)
                self.request, self.asked = event, (int(query["epoch"]), int(query["offset"]))
        self.flush()

    def connectionLost(self, reason) -> None:
        self.ends += 1

    def flush(self) -> None:
        self.transport.write(self.session.data_to_send())

    def start(self, info) -> None:
        self.session.accept_play(self.request, info)
        self.flush()

    def send(self, messages) -> None:
        self.flush()
        self.transport.write(log_bytes(messages))

    def say(self, code: str, info=None) -> None:
        self.session.send_status(1, "status", code, "", info or {})
        self.flush()


class ReplicaTestCase(SynchronousTestCase):
    mode = ReadMode.ACTIVE_STANDBY
    is_node = True

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.hub = Hub(self.network.reactor, DEFAULT_LIMITS)
        self.counts = Counts()
        self.servers: dict[str, list[Server]] = {"a": [], "b": []}
        self.endpoints = {name: self.network.endpoint(Factory.forProtocol(self.maker(name))) for name in "ab"}
        self.members = [Upstream(name=name, endpoint=endpoint) for name, endpoint in self.endpoints.items()]
        self.log_maker = MemoryLogs(LOGS, DEFAULT_LIMITS)
        self.replica = self.make()
        self.replica.start()
        self.network.carry()

    def tearDown(self) -> None:
        self.replica.stop()
        self.network.advance(1)
        self.hub.close()
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def maker(self, name: str):
        def make() -> Server:
            self.servers[name].append(Server(self.is_node))
            return self.servers[name][-1]

        return make

    def make(self) -> Replica:
        settings = ClientSettings(
            identity=NodeIdentity(name="a1", tier="distributor"), limits=DEFAULT_LIMITS, clock=self.network.reactor
        )
        return Replica(NAME, self.hub, self.log_maker, self.members, settings, self.counts, self.mode)

    @property
    def a(self) -> Server:
        """The present connection at the preferred upstream."""
        return self.servers["a"][-1]

    @property
    def b(self) -> Server:
        return self.servers["b"][-1]

    @property
    def stream(self):
        return self.hub.get(NAME)

    @property
    def copy(self) -> bytes:
        return contents(self.stream.log.rtmp, self.stream.log.start)

    def begin(self, server=None, messages=MESSAGES, epoch=EPOCH, start=None, end=0) -> None:
        """The upstream answers with a new log and sends these messages."""
        server = server or self.a
        server.start(start_info(epoch, start or LogStart(), end))
        server.send(messages)
        self.network.carry()

    def kill(self, name: str) -> None:
        self.endpoints[name].open_links[0].kill_server()
        self.network.carry()


class ResumeTests(ReplicaTestCase):
    def test_new_copy_asks_for_anything_and_begins_where_it_is_told(self) -> None:
        self.assertEqual((0, 0), self.a.asked)
        start = memory_log(MESSAGES).newest_join_point()
        self.begin(start=start, messages=gops(4)[30:])
        log = self.stream.log
        self.assertEqual((EPOCH, start.offset), (log.epoch, log.start))
        self.assertEqual(log_bytes(gops(4)[30:]), self.copy)
        original = memory_log(MESSAGES)
        self.assertEqual((original.end, original.flv_end, original.headers), (log.end, log.flv_end, log.headers))
        self.assertEqual(original.end_time_ms, log.end_time_ms)

    def test_copy_is_byte_for_byte_the_log(self) -> None:
        self.begin()
        self.assertEqual((log_bytes(MESSAGES), size(MESSAGES)), (self.copy, self.counts.bytes_copied))

    def test_death_goes_on_at_the_other_with_the_next_byte(self) -> None:
        self.begin(messages=MESSAGES[:20])
        self.kill("a")
        self.assertEqual((EPOCH, size(MESSAGES[:20])), self.b.asked)
        self.b.start(position_info(*self.b.asked))
        self.b.send(MESSAGES[20:])
        self.network.carry()
        self.assertEqual(
            (log_bytes(MESSAGES), 1, 0), (self.copy, self.counts.failovers.total(), self.counts.bytes_missing)
        )

    def test_bytes_may_wait_at_whoever_is_read(self) -> None:
        """And at nobody else (relay.net.intake)."""
        self.begin(messages=MESSAGES[:20])
        (first,) = self.stream.intakes
        self.kill("a")
        self.assertFalse(self.stream.intakes)
        self.b.start(position_info(*self.b.asked))
        self.network.carry()
        (second,) = self.stream.intakes
        self.assertIsNot(first, second)

    def test_bytes_published_while_an_upstream_was_lost_are_counted(self) -> None:
        """That is, as far into the media as the loss took; what is published later is not."""
        self.begin(messages=MESSAGES[:20])
        self.kill("a")
        self.network.advance(0.1)
        self.b.start(position_info(*self.b.asked))
        self.b.send(MESSAGES[20:])
        self.network.carry()
        resumed = [message for message in MESSAGES[20:] if message.timestamp - MESSAGES[19].timestamp <= 100]
        self.assertTrue(0 < len(resumed) < len(MESSAGES[20:]))
        self.assertEqual(size(resumed), self.counts.bytes_resumed)

    def test_message_cut_in_the_middle_by_a_death_is_read_whole_from_the_other(self) -> None:
        """What was not a whole message was never in the log."""
        self.begin(messages=MESSAGES[:20])
        self.a.transport.write(log_bytes(MESSAGES[20:21])[:30])
        self.network.carry()
        self.kill("a")
        self.assertEqual((EPOCH, size(MESSAGES[:20])), self.b.asked)

    def test_copy_goes_on_from_what_its_maker_recovered(self) -> None:
        """A restarted distributor asks for the end of its store."""
        stored = memory_log(MESSAGES[:20], epoch=EPOCH, options=LOGS)
        self.replica.stop()
        self.network.advance(1)
        self.log_maker.recover = lambda name: stored
        self.replica = self.make()
        self.replica.start()
        self.network.carry()
        self.assertEqual((EPOCH, size(MESSAGES[:20])), self.a.asked)
        self.a.start(position_info(*self.a.asked))
        self.a.send(MESSAGES[20:])
        self.network.carry()
        self.assertEqual(log_bytes(MESSAGES), self.copy)

    def test_upstream_that_says_error_is_left(self) -> None:
        self.a.session.refuse_play(self.a.request, "NetStream.Play.StreamNotFound", "no")
        self.a.flush()
        self.network.carry()
        self.assertEqual((0, 0), self.b.asked)

    def test_upstream_is_named_and_liveness_is_the_upstream_s(self) -> None:
        self.begin()
        self.assertEqual(("a", False), (self.stream.source, self.stream.is_live))
        self.replica.set_live(True)
        self.assertTrue(self.stream.is_live)

    def test_end_of_broadcast_ends_the_copy_and_a_return_opens_it(self) -> None:
        self.begin(messages=MESSAGES[:20])
        self.a.say("Relay.Ended")
        self.network.carry()
        self.assertTrue(self.stream.log.is_finished)
        self.a.send(MESSAGES[20:])
        self.network.carry()
        self.assertEqual((False, log_bytes(MESSAGES)), (self.stream.log.is_finished, self.copy))


class GapTests(ReplicaTestCase):
    def test_gap_is_counted_and_the_copy_goes_on_after_it(self) -> None:
        self.begin(messages=MESSAGES[:15])
        self.kill("a")
        start = memory_log(MESSAGES).newest_join_point()
        self.begin(self.b, start=start, messages=MESSAGES[33:])
        missing = start.offset - size(MESSAGES[:15])
        self.assertEqual((1, missing), (self.counts.gaps, self.counts.bytes_missing))
        self.assertEqual(missing, self.stream.log.missing_bytes)
        self.assertEqual(size(MESSAGES), self.stream.log.end)
        self.assertEqual(start.offset, self.stream.log.newest_join_point().offset)

    def test_jump_within_a_connection_is_a_gap_as_well(self) -> None:
        """Our place was dropped by the upstream's retention while we read."""
        self.begin(messages=MESSAGES[:15])
        start = memory_log(MESSAGES).newest_join_point()
        self.a.say("Relay.Position", start_info(EPOCH, start))
        self.a.send(MESSAGES[33:])
        self.network.carry()
        self.assertEqual((1, size(MESSAGES)), (self.counts.gaps, self.stream.log.end))

    def test_gap_without_its_state_is_refused(self) -> None:
        self.begin(messages=MESSAGES[:15])
        self.a.say("Relay.Position", position_info(EPOCH, 10_000))
        self.network.carry()
        self.assertEqual((1, 0), (self.a.ends, self.counts.gaps))


class CatchUpTests(ReplicaTestCase):
    """A copy begins a little back; it is there for readers when it has come to where they would start."""

    def test_nobody_starts_before_the_copy_has_caught_up(self) -> None:
        waiting = self.hub.when_joinable(NAME)
        self.begin(messages=MESSAGES[:25], end=size(MESSAGES))
        self.assertNoResult(waiting)
        self.a.send(MESSAGES[25:])
        self.network.carry()
        stream = self.successResultOf(waiting)
        self.assertEqual(log_bytes(MESSAGES), self.copy)
        self.assertEqual(memory_log(MESSAGES).newest_join_point().offset, stream.log.newest_join_point().offset)

    def test_what_has_come_is_written_when_the_upstream_dies(self) -> None:
        self.begin(messages=MESSAGES[:25], end=size(MESSAGES))
        self.kill("a")
        self.assertEqual((EPOCH, size(MESSAGES[:25])), self.b.asked)
        self.assertEqual(log_bytes(MESSAGES[:25]), self.copy)
        self.b.start(position_info(*self.b.asked))
        self.b.send(MESSAGES[25:30])
        self.network.carry()
        self.assertEqual(log_bytes(MESSAGES[:30]), self.copy)

    def test_upstream_that_promises_too_much_fills_no_memory(self) -> None:
        self.patch(replication, "COPY_BACK_BYTES", size(MESSAGES[:20]))
        self.begin(messages=MESSAGES[:19], end=1 << 50)
        self.assertEqual(b"", self.copy)
        self.a.send(MESSAGES[19:21])
        self.network.carry()
        self.assertEqual(log_bytes(MESSAGES[:21]), self.copy)

    def test_after_a_gap_readers_wait_as_well(self) -> None:
        self.begin()
        end = size(MESSAGES)
        after = LogStart(end + 500, end + 700, 5000)
        self.a.say("Relay.Position", start_info(EPOCH, after, after.offset + size(gops(2, start=5000))))
        self.a.send(gops(2, start=5000)[:15])
        self.network.carry()
        self.assertEqual(end + 500, self.stream.log.end)
        self.a.send(gops(2, start=5000)[15:])
        self.network.carry()
        self.assertEqual(after.offset + size(gops(2, start=5000)), self.stream.log.end)


class RepeatTests(ReplicaTestCase):
    def test_repeated_bytes_are_compared_and_dropped(self) -> None:
        self.begin(messages=MESSAGES[:20])
        self.kill("a")
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send(MESSAGES)
        self.network.carry()
        self.assertEqual((log_bytes(MESSAGES), 0), (self.copy, self.counts.diverged))

    def test_repeated_bytes_that_differ_are_said_loudly_and_nothing_is_written(self) -> None:
        """Also when only one message in the middle differs: the connection is left, the log stays ours."""
        self.begin(messages=MESSAGES[:20])
        self.kill("a")
        other = [*MESSAGES[:17], video(560, size=77), *MESSAGES[18:]]
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send(other)
        self.network.carry()
        self.assertEqual((log_bytes(MESSAGES[:20]), 1, 1), (self.copy, self.counts.diverged, self.b.ends))

    def test_upstream_that_differs_each_time_is_asked_less_and_less(self) -> None:
        self.endpoints["b"].is_listening = False
        self.begin(messages=MESSAGES[:20])
        self.kill("a")
        for _ in range(6):
            self.network.advance(10)
            self.assertEqual(self.a.asked, (EPOCH, size(MESSAGES[:20])))
            attempts = self.endpoints["a"].attempts
            self.a.start(start_info(EPOCH, LogStart()))
            self.a.send([video(0, size=3)])
            self.network.carry()
        self.network.advance(1.5)
        self.assertEqual(attempts, self.endpoints["a"].attempts)
        self.assertEqual(6, self.counts.diverged)


class EpochTests(ReplicaTestCase):
    def test_other_epoch_begins_a_log_that_readers_cross_to(self) -> None:
        self.begin(messages=MESSAGES[:20])
        old = self.stream.log
        self.a.say("Relay.Position", start_info(EPOCH + 1, LogStart(time_ms=5000)))
        self.a.send([avc_header(5000), *gops(1, start=5000)])
        self.network.carry()
        new = self.stream.log
        self.assertEqual((EPOCH + 1, 1, new, True), (new.epoch, self.counts.epochs, old.successor, old.is_finished))
        self.assertEqual(log_bytes([avc_header(5000), *gops(1, start=5000)]), self.copy)
        self.assertEqual(log_bytes(MESSAGES[:20]), contents(old.rtmp))

    def test_after_a_death_the_end_of_the_new_epoch_is_asked_for(self) -> None:
        self.test_other_epoch_begins_a_log_that_readers_cross_to()
        self.kill("a")
        self.assertEqual((EPOCH + 1, self.stream.log.end), self.b.asked)

    def test_upstream_still_in_an_epoch_that_we_left_is_not_believed(self) -> None:
        """The other distributor has not heard of the new epoch yet: it must not take us back."""
        self.test_other_epoch_begins_a_log_that_readers_cross_to()
        self.kill("a")
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send(MESSAGES)
        self.network.carry()
        self.assertEqual((EPOCH + 1, 1), (self.stream.log.epoch, self.b.ends))

    def test_epoch_that_we_left_long_ago_is_remembered(self) -> None:
        """Its bytes are gone here; a server that comes back with it is behind all the same."""
        self.test_other_epoch_begins_a_log_that_readers_cross_to()
        self.stream.log.predecessor = None
        self.kill("a")
        self.b.start(start_info(EPOCH, LogStart()))
        self.network.carry()
        self.assertEqual((EPOCH + 1, 1), (self.stream.log.epoch, self.b.ends))

    def test_epoch_without_its_state_is_refused(self) -> None:
        self.a.start(position_info(EPOCH, 0))
        self.network.carry()
        self.assertEqual((1, None), (self.servers["a"][0].ends, self.stream))


class ForeignTests(ReplicaTestCase):
    """A server that is no node of ours has no positions: nothing of it is copied."""

    is_node = False

    def test_server_that_is_no_node_is_not_asked(self) -> None:
        self.assertEqual([None], [server.asked for server in self.servers["a"]])
        self.assertIsNone(self.stream)


class NoPositionTests(ReplicaTestCase):
    def test_answer_without_a_position_is_refused(self) -> None:
        self.a.start({})
        self.network.carry()
        self.assertEqual(1, self.servers["a"][0].ends)
        self.assertIsNone(self.stream)


class MergeTests(ReplicaTestCase):
    """Both members are read; whichever brings the next message first is believed."""

    mode = ReadMode.MERGE

    def test_death_of_either_is_not_noticed(self) -> None:
        self.begin(self.a, MESSAGES[:20])
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send(MESSAGES[:18])
        self.network.carry()
        self.kill("a")
        self.b.send(MESSAGES[18:])
        self.network.carry()
        self.assertEqual((log_bytes(MESSAGES), 0, 0), (self.copy, self.counts.bytes_missing, self.counts.diverged))

    def test_bytes_may_wait_at_both(self) -> None:
        self.begin(self.a, MESSAGES[:20])
        self.b.start(start_info(EPOCH, LogStart()))
        self.network.carry()
        self.assertEqual(2, len(self.stream.intakes))

    def test_messages_are_taken_from_whoever_is_ahead(self) -> None:
        self.begin(self.a, MESSAGES[:10])
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send(MESSAGES[:30])
        self.a.send(MESSAGES[10:20])
        self.b.send(MESSAGES[30:])
        self.a.send(MESSAGES[20:])
        self.network.carry()
        self.assertEqual(log_bytes(MESSAGES), self.copy)

    def test_what_is_not_written_yet_is_compared_too(self) -> None:
        """On a node with many streams, what came waits for a moment (relay.net.flushing)."""
        for number in range(AT_ONCE):
            self.hub.add(StreamName("live", f"other{number}"), memory_log())
        self.begin(self.a, MESSAGES[:20])
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send(MESSAGES[:15])
        self.network.carry()
        self.assertEqual((0, 0), (self.counts.diverged, self.b.ends))
        self.b.send([video(15 * 40, size=9)])
        self.network.carry()
        self.flushLoggedErrors()
        self.assertEqual((1, 1, 0), (self.counts.diverged, self.b.ends, self.a.ends))

    def test_difference_is_counted_and_the_one_that_came_second_is_left(self) -> None:
        self.begin(self.a, MESSAGES[:20])
        self.b.start(start_info(EPOCH, LogStart()))
        self.b.send([*MESSAGES[:5], video(3, size=9)])
        with capturedLogs() as events:
            self.network.carry()
        self.assertIn("live/demo: b has other bytes than we have", "\n".join(map(formatEvent, events)))
        self.assertEqual((1, 1, 0), (self.counts.diverged, self.b.ends, self.a.ends))
        self.assertEqual(log_bytes(MESSAGES[:20]), self.copy)

    def test_gap_at_one_is_none_while_the_other_fills_it(self) -> None:
        self.begin(self.a, MESSAGES[:15])
        start = memory_log(MESSAGES).newest_join_point()
        self.b.start(start_info(EPOCH, start))
        self.b.send(MESSAGES[33:36])
        self.network.carry()
        self.assertEqual((0, size(MESSAGES[:15])), (self.counts.gaps, self.stream.log.end))
        self.a.send(MESSAGES[15:36])
        self.b.send(MESSAGES[36:])
        self.network.carry()
        self.assertEqual((log_bytes(MESSAGES), 0), (self.copy, self.counts.gaps))
