"""Bytes of a log arrive exactly, whatever the socket does, and no reader costs memory."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from relay.log.cursor import CursorState
from relay.log.options import LogOptions
from relay.net.following import READ_SIZE, WritingFollower, following
from relay.testing import CongestibleTransport, ManualReactor, make_hub, memory_log, publish
from tests.log.model import gops
from tests.net.driving import Recorder, TcpPair, log_bytes

SMALL = 4 << 10  # bytes of socket buffers for a peer that is soon congested
ROLLING = LogOptions(segment_bytes=10_000, keep_bytes=64 << 20)
BIG = gops(20, size=5_000)  # about 1 MB in about 100 segments


def never(state: CursorState) -> bool:
    """The owner has nothing to say and nowhere to go."""
    return False


class TcpFollowingTests(SynchronousTestCase):
    """A FollowingTransport on a real loopback connection, its reactor turned by hand."""

    def setUp(self) -> None:
        self.reactor = ManualReactor()
        self.protocol = Recorder()
        self.log = memory_log(options=ROLLING)
        self.pair = TcpPair(self.protocol, self.reactor, send_buffer=SMALL, receive_buffer=SMALL)
        self.addCleanup(self.log.close)
        self.addCleanup(self.pair.close)

    def follow(self, blocked=never):
        cursor = self.log.rtmp.cursor(self.log.rtmp.start)
        self.addCleanup(cursor.close)
        self.pair.transport.follow(cursor, blocked)
        return cursor

    def write(self, messages) -> bytes:
        for message in messages:
            self.log.append(message)
            self.log.flush()
        return log_bytes(messages)

    def test_slow_reader_gets_every_byte_across_segments(self) -> None:
        """A peer with tiny buffers that reads 1000 bytes at a time is sent the log, byte for byte."""
        expected = self.write(BIG)
        self.assertGreater(len(self.log.rtmp.segments), 50)
        self.follow()
        self.assertTrue(self.pair.transport.is_congested())
        self.assertEqual(expected, self.pair.run(1000))
        self.assertFalse(self.pair.transport.is_congested())
        self.assertEqual([], self.reactor.getWriters())

    def test_bytes_appended_while_congested_follow(self) -> None:
        expected = b""
        self.follow()
        for message in BIG:
            expected += self.write([message])
            self.pair.transport.pump()
            self.pair.read(700)
        self.assertEqual(expected, self.pair.run())

    def test_wake_up_of_a_congested_reader_is_no_work(self) -> None:
        self.write(BIG)
        cursor = self.follow()
        offset = cursor.offset
        self.pair.read()
        for _ in range(100):
            self.pair.transport.pump()
        self.assertEqual(offset, cursor.offset)

    def test_what_was_written_before_goes_first(self) -> None:
        """A preamble larger than the socket takes at once, then the log."""
        expected = self.write(BIG)
        preamble = b"preamble" * 10_000
        self.pair.transport.write(preamble)
        cursor = self.follow()
        self.assertEqual(0, cursor.offset)
        self.assertEqual(preamble + expected, self.pair.run())

    def test_reader_that_has_everything_waits_for_the_next_wake_up(self) -> None:
        first = self.write(BIG[:1])
        self.follow()
        self.assertEqual(first, self.pair.run())
        second = self.write(BIG[1:2])
        self.assertEqual(first, self.pair.run())
        self.pair.transport.pump()
        self.assertEqual(first + second, self.pair.run())

    def test_stop_halts_there_and_the_owner_is_asked_once(self) -> None:
        expected = self.write(BIG)
        states = []
        cursor = self.log.rtmp.cursor(0)
        self.addCleanup(cursor.close)
        cursor.stop = self.log.boundary_at_or_after(len(expected) // 2)
        self.pair.transport.follow(cursor, lambda state: states.append(state) is not None)
        self.assertEqual(expected[: cursor.stop], self.pair.run())
        self.assertEqual([CursorState.AT_STOP], states)

    def test_what_the_owner_writes_at_a_stop_lands_exactly_there(self) -> None:
        """The rest of the log follows what was written, also when that is more than the socket takes."""
        expected = self.write(BIG)
        words = b"words" * 20_000
        cursor = self.log.rtmp.cursor(0)
        self.addCleanup(cursor.close)
        stop = cursor.stop = self.log.boundary_at_or_after(len(expected) // 3)

        def speak(state):
            self.assertIs(CursorState.AT_STOP, state)
            cursor.stop = None
            self.pair.transport.write(words)
            return True

        self.pair.transport.follow(cursor, speak)
        self.assertEqual(expected[:stop] + words + expected[stop:], self.pair.run(5_000))

    def test_unfollowed_transport_is_an_ordinary_one(self) -> None:
        self.write(BIG)
        cursor = self.follow()
        self.pair.transport.unfollow()
        cursor.close()
        sent = self.pair.run()
        self.pair.transport.write(b"tail")
        self.assertEqual(sent + b"tail", self.pair.run())
        self.assertEqual([], self.reactor.getWriters())

    def test_close_while_congested_sends_what_was_written_and_ends(self) -> None:
        """loseConnection waits for Twisted's buffer, not for the log."""
        self.write(BIG)
        cursor = self.follow()
        offset = cursor.offset
        self.pair.transport.unfollow()
        self.pair.transport.write(b"goodbye")
        self.pair.transport.loseConnection()
        received = self.pair.run()
        self.assertEqual((offset, b"goodbye", True), (len(received) - 7, received[-7:], self.pair.is_ended))
        self.assertEqual(1, len(self.protocol.ends))

    def test_reset_by_the_peer_ends_the_connection_once(self) -> None:
        self.write(BIG)
        cursor = self.follow()
        self.pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.pair.peer.close()
        for _ in range(3):
            self.reactor.turn()
            self.pair.transport.pump()
        self.assertEqual(1, len(self.protocol.ends))
        self.assertEqual(([], []), (self.reactor.getReaders(), self.reactor.getWriters()))
        cursor.close()

    def test_failed_send_is_reported_by_the_reactor_not_by_the_wake_up(self) -> None:
        """A wake-up never runs a protocol's connectionLost: it may be in the middle of a loop over viewers."""
        self.follow()
        self.pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.pair.peer.close()
        self.write(BIG)
        self.pair.transport.pump()
        self.assertEqual([], self.protocol.ends)
        self.reactor.turn()
        self.assertEqual(1, len(self.protocol.ends))

    def test_segment_that_somebody_cut_costs_its_reader_and_no_more(self) -> None:
        """What isn't there will never come: a reader that waited for it would take the whole processor."""
        self.write(BIG)
        for segment in self.log.rtmp.segments:
            os.ftruncate(segment.fd, 10)
        self.follow()
        self.reactor.turn()
        self.assertEqual((1, []), (len(self.protocol.ends), self.reactor.getWriters()))
        cursor = self.log.rtmp.cursor(0)
        self.assertEqual(10, len(cursor.read(1 << 16)))
        with self.assertRaises(OSError):
            cursor.read(1 << 16)
        cursor.close()

    def test_segment_dropped_by_retention_stays_for_the_reader_inside_it(self) -> None:
        """Then the reader finds a gap, and its owner is asked."""
        states = []
        self.write(BIG[:5])
        self.log.options = LogOptions(segment_bytes=10_000, keep_bytes=64 << 20, keep_ms=1)
        cursor = self.follow(lambda state: states.append(state) is not None)
        end = cursor.segment.end
        expected = log_bytes(BIG)
        self.write(BIG[5:])
        self.assertGreater(self.log.start, end)
        received = self.pair.run()
        self.assertEqual(expected[: len(received)], received)
        self.assertEqual([CursorState.GAP], states)

    def test_following_of_a_tcp_transport_is_itself(self) -> None:
        self.assertIs(self.pair.transport, following(self.pair.transport))


class WritingFollowerTests(SynchronousTestCase):
    """The same over a transport that only takes writes."""

    def setUp(self) -> None:
        self.reactor = ManualReactor()
        self.transport = CongestibleTransport(self.reactor)
        self.transport.connect(Recorder())
        self.log = memory_log(BIG, options=ROLLING)
        self.addCleanup(self.log.close)
        self.cursor = self.log.rtmp.cursor(0)
        self.addCleanup(self.cursor.close)
        self.follower = WritingFollower(self.transport)

    def test_every_byte_arrives_and_little_is_ever_held(self) -> None:
        """Past 64 KiB unsent it waits: a peer that does not read costs that and one piece more."""
        self.follower.follow(self.cursor, never)
        received = b""
        while piece := self.transport.drain(3_000):
            received += piece
            self.assertLessEqual(self.transport.unsent, 64 * 1024 + READ_SIZE)
            self.follower.pump()
        self.assertEqual(log_bytes(BIG), received)

    def test_peer_that_does_not_read_is_congested(self) -> None:
        self.follower.follow(self.cursor, never)
        unsent = self.transport.unsent
        self.assertTrue(self.follower.is_congested())
        for _ in range(100):
            self.follower.pump()
        self.assertEqual(unsent, self.transport.unsent)
        self.transport.drain()
        self.assertFalse(self.follower.is_congested())

    def test_what_the_owner_writes_at_a_stop_lands_exactly_there(self) -> None:
        stop = self.cursor.stop = self.log.boundary_at_or_after(300_000)

        def speak(state):
            self.cursor.stop = None
            self.transport.write(b"words" * 20_000)
            return True

        self.follower.follow(self.cursor, speak)
        expected = log_bytes(BIG)
        self.assertEqual(expected[:stop] + b"words" * 20_000 + expected[stop:], self.transport.drain())

    def test_close_after_unfollow_ends_the_connection(self) -> None:
        """A producer that stays registered would keep the connection open for ever."""
        self.follower.follow(self.cursor, never)
        self.follower.unfollow()
        self.transport.loseConnection()
        self.transport.drain()
        self.assertFalse(self.transport.connected)

    def test_lost_connection_ends_the_following(self) -> None:
        self.follower.follow(self.cursor, never)
        offset = self.cursor.offset
        self.transport.lose(ConnectionError())
        self.follower.pump()
        self.follower.resumeProducing()
        self.assertEqual(offset, self.cursor.offset)

    def test_follow_again_after_unfollow(self) -> None:
        self.follower.follow(self.cursor, never)
        self.follower.unfollow()
        self.follower.follow(self.cursor, never)
        self.assertEqual(log_bytes(BIG), self.transport.drain())

    def test_following_of_any_other_transport_writes(self) -> None:
        self.assertIsInstance(following(self.transport), WritingFollower)


class Pumped:
    """A transport as a follower of a stream."""

    def __init__(self, transport) -> None:
        self.pump = transport.pump

    def is_known_to_read(self) -> bool:
        return False


class MemoryTests(SynchronousTestCase):
    """A viewer is a cursor, not a queue."""

    VIEWERS = 200

    def test_viewers_that_never_read_cost_no_memory_while_the_log_grows(self) -> None:
        """200 viewers whose sockets are full, 20 MB of log: the process grows by less than a few KB for each.

        (FAULTS row 11: buffered, that would be 4 GB.)
        """
        reactor = ManualReactor()
        options = LogOptions(segment_bytes=1 << 20, keep_bytes=4 << 20)
        hub, stream = make_hub(clock=reactor, options=options, merge_seconds=0)
        publish(stream, gops(1, size=5_000))
        pairs = [TcpPair(Recorder(), reactor, send_buffer=SMALL, receive_buffer=SMALL) for _ in range(self.VIEWERS)]
        cursors = [stream.log.rtmp.cursor(0) for _ in pairs]
        for pair, cursor in zip(pairs, cursors, strict=True):
            pair.transport.follow(cursor, never)
            stream.wakeup.add(Pumped(pair.transport))
        reads = gops(400, size=5_000, start=400)
        tracemalloc.start()
        before, resident = tracemalloc.get_traced_memory()[0], _resident_bytes()
        for message in reads:
            publish(stream, [message])
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        self.assertGreater(stream.log.end, 20_000_000)
        self.assertLess(grown, 1 << 20)
        self.assertLess(_resident_bytes() - resident, 16 << 20)
        for pair, cursor in zip(pairs, cursors, strict=True):
            pair.transport.unfollow()
            cursor.close()
            pair.close()
        hub.close()


def _resident_bytes() -> int:
    """What this process holds of its own now; a memfd's pages are not mapped, so not among them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
