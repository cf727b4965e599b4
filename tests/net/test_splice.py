"""A viewer and a backend joined: every byte arrives, every end is passed on, nothing is left behind.

The same cases run over the kernel's splice and over the copying pair; what only one of them can do is in a class of its
own.
"""

import contextlib
import functools
import hashlib
import os
import socket

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from relay import native
from relay.limits import Limits
from relay.net.copying import CopyPair
from relay.net.joining import SWEEPS_PER_CLOSE, Splicer
from relay.net.legs import Leg, can_splice
from relay.net.splice import STREAMS_FROM, SplicePair
from relay.net.viewer_connection import LegProtocol
from tests.net.peers import Listener, NoMoreDescriptors, Peer, eventually, open_descriptors

LIMITS = Limits(splice_idle_seconds=120, close_seconds=5)
SMALL = 4 << 10  # bytes of receive buffer of a peer that is to be congested
FLOOD = 12 << 20  # bytes: more than all the buffers of two loopback connections hold


class Recorder(LegProtocol):
    """A leg's protocol that remembers its end."""

    losses = 0

    def connectionLost(self, reason):
        self.losses += 1
        super().connectionLost(reason)


class Owner:
    """The default policy: a lost backend closes the viewer."""

    def __init__(self):
        self.lost = []
        self.outcomes = []
        self.keeps_viewer = False

    def backend_lost(self, pair, reason):
        self.lost.append(reason)
        if not self.keeps_viewer:
            pair.finish(reason)

    def splice_ended(self, pair, outcome):
        self.outcomes.append(outcome)


class SpliceTestCase(TestCase):
    """Builds one pair; checks at the end that every descriptor is back and every protocol heard of its end once."""

    can_splice = staticmethod(can_splice)

    async def setUp(self):
        from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

        self.reactor = reactor
        await deferLater(reactor, 0)  # so that it runs, and has the descriptors that it needs for itself
        self.descriptors = open_descriptors()
        self.clock = Clock()
        self.owner = Owner()
        self.splicer = Splicer(reactor, LIMITS, clock=self.clock, can_splice=self.can_splice)
        self.protocols = []
        self.peers = []

    async def accept_viewer(self, receive_buffer=0):
        """A viewer's two ends: ours as a protocol with a transport, its own as a peer."""
        listener = Listener()
        peer = Peer.connect(listener.port, receive_buffer)
        accepted = await eventually(listener.try_accept)
        protocol = Recorder()
        factory = Factory.forProtocol(lambda: protocol)
        self.reactor.adoptStreamConnection(accepted.fileno(), socket.AF_INET, factory)
        accepted.close()
        listener.close()
        self.protocols.append(protocol)
        self.peers.append(peer)
        return protocol, peer

    async def dial_backend(self, receive_buffer=0):
        """The same for a backend."""
        listener = Listener(receive_buffer=receive_buffer)
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", listener.port)
        protocol = await endpoint.connect(Factory.forProtocol(Recorder))
        peer = await listener.accept()
        listener.close()
        self.protocols.append(protocol)
        self.peers.append(peer)
        return protocol, peer

    def make_pair(self, viewer, backend):
        return self.splicer.join(viewer.transport, backend.transport, self.owner)

    async def join(self, viewer_buffer=0, backend_buffer=0):
        """A pair, and its two far ends."""
        viewer, viewer_peer = await self.accept_viewer(viewer_buffer)
        backend, backend_peer = await self.dial_backend(backend_buffer)
        pair = self.make_pair(viewer, backend)
        viewer.join(pair)
        backend.join(pair)
        return pair, viewer_peer, backend_peer

    async def expect_end(self, *outcomes):
        """The owner heard once, each protocol heard once, each descriptor is back."""
        await eventually(lambda: self.owner.outcomes and all(protocol.losses for protocol in self.protocols))
        self.assertIn(self.owner.outcomes, [[outcome] for outcome in outcomes])
        self.assertEqual([1] * len(self.protocols), [protocol.losses for protocol in self.protocols])
        for peer in self.peers:
            peer.close()
        self.splicer.close()
        self.assertEqual((0, 0), (self.splicer.pipes.open_pipes, len(self.splicer.pairs)))
        self.assertEqual(self.descriptors, open_descriptors())

    async def congest(self, pair, viewer, backend):
        """The backend sends until the viewer, who does not read, has everything full; how much it got rid of."""
        sent = 0
        quiet = 0
        block = os.urandom(1 << 16)
        while quiet < 20:
            count = backend.try_send(memoryview(block))
            sent += count
            quiet = 0 if count else quiet + 1
            await deferLater(self.reactor, 0 if count else 0.002)
        self.assertGreater(sent, pair.to_viewer)
        return sent


class PairCases:
    """What holds for every pair."""

    async def test_bytes_pass_both_ways_and_are_counted(self):
        """The viewer's words to the backend, the backend's to the viewer."""
        pair, viewer, backend = await self.join()
        await viewer.send(b"connect")
        self.assertEqual(b"connect", await backend.read(7))
        await backend.send(b"a result")
        self.assertEqual(b"a result", await viewer.read(8))
        self.assertEqual((8, 7), (pair.to_viewer, pair.to_backend))
        viewer.close()
        backend.close()
        await self.expect_end("viewer_closed", "backend_closed", "viewer_reset", "backend_reset")
        self.assertEqual((8, 7), (self.splicer.bytes_to_viewers, self.splicer.bytes_to_backends))

    async def test_bulk_arrives_whole_in_both_directions(self):
        """64 MiB down while 8 MiB go up."""
        pair, viewer, backend = await self.join()
        down, up = os.urandom(64 << 20), os.urandom(8 << 20)
        sending = [Deferred.fromCoroutine(backend.send(down)), Deferred.fromCoroutine(viewer.send(up))]
        reading = [
            Deferred.fromCoroutine(self.digest(viewer, len(down))),
            Deferred.fromCoroutine(self.digest(backend, len(up))),
        ]
        for task in sending:
            await task
        self.assertEqual(hashlib.sha256(down).digest(), await reading[0])
        self.assertEqual(hashlib.sha256(up).digest(), await reading[1])
        self.assertEqual((len(down), len(up)), (pair.to_viewer, pair.to_backend))
        pair.abort("done")
        await self.expect_end("done")

    async def digest(self, peer, count):
        digest = hashlib.sha256()
        while count:
            data = await peer.read(min(count, 1 << 18))
            digest.update(data)
            count -= len(data)
        return digest.digest()

    async def test_viewer_that_is_done_talking_still_hears_the_answer(self):
        """Half-close, as ``printf 'GET ...' | nc`` does it."""
        _pair, viewer, backend = await self.join()
        await viewer.send(b"GET")
        viewer.send_fin()
        self.assertEqual((b"GET", "fin"), (await backend.read_to_end(), backend.end))
        await backend.send(b"a long answer")
        self.assertEqual(b"a long answer", await viewer.read(13))
        backend.close()
        self.assertEqual((b"", "fin"), (await viewer.read_to_end(), viewer.end))
        await self.expect_end("viewer_closed")

    async def test_backend_that_ends_closes_the_viewer_after_its_last_byte(self):
        """The default policy, in order."""
        _pair, viewer, backend = await self.join()
        await backend.send(b"the last words")
        backend.send_fin()
        self.assertEqual((b"the last words", "fin"), (await viewer.read_to_end(), viewer.end))
        viewer.close()
        await self.expect_end("backend_closed")
        self.assertEqual(["backend_closed"], self.owner.lost)

    async def test_congested_viewer_gets_all_that_an_ended_backend_sent(self):
        """Several megabytes are under way when the FIN comes."""
        _pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        data = os.urandom(FLOOD)
        sending = Deferred.fromCoroutine(backend.send(data))
        reading = Deferred.fromCoroutine(self.digest(viewer, len(data)))
        await sending
        backend.close()
        self.assertEqual(hashlib.sha256(data).digest(), await reading)
        self.assertEqual((b"", "fin"), (await viewer.read_to_end(), viewer.end))
        viewer.close()
        await self.expect_end("backend_closed")

    async def test_reset_by_the_viewer_ends_the_backend(self):
        """At once, and it is counted as what it was."""
        _pair, viewer, backend = await self.join()
        await viewer.send(b"x")
        await backend.read(1)
        viewer.reset()
        await backend.read_to_end()
        await self.expect_end("viewer_reset", "viewer_closed")

    async def test_reset_by_the_backend_closes_the_viewer(self):
        """Its last bytes arrive, since they were sent before."""
        _pair, viewer, backend = await self.join()
        await backend.send(b"last")
        self.assertEqual(b"last", await viewer.read(4))
        backend.reset()
        self.assertEqual((b"", "fin"), (await viewer.read_to_end(), viewer.end))
        viewer.close()
        await self.expect_end("backend_reset", "backend_closed")

    async def test_reset_by_a_congested_viewer_leaks_nothing(self):
        """Its pipe is dirty, the backend's source is not watched."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        await self.congest(pair, viewer, backend)
        viewer.reset()
        await backend.read_to_end()
        await self.expect_end("viewer_reset", "viewer_closed")

    async def test_reset_by_the_backend_of_a_congested_viewer_leaks_nothing(self):
        """What was under way to the viewer still arrives, then FIN."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        await self.congest(pair, viewer, backend)
        accepted = pair.to_viewer
        backend.reset()
        data = await viewer.read_to_end()
        self.assertEqual("fin", viewer.end)
        self.assertGreaterEqual(len(data), accepted)
        self.assertEqual(pair.to_viewer, len(data))
        viewer.close()
        await self.expect_end("backend_reset", "backend_closed")

    async def test_reset_by_a_congested_backend_leaks_nothing(self):
        """The other direction, as when somebody uploads."""
        _pair, viewer, backend = await self.join(backend_buffer=SMALL)
        flood = memoryview(bytes(1 << 18))
        await eventually(lambda: not viewer.try_send(flood))
        backend.reset()
        await viewer.read_to_end()
        viewer.close()
        await self.expect_end("backend_reset", "backend_closed", "viewer_closed", "viewer_reset")

    async def test_silent_pair_is_closed_when_its_time_is_over(self):
        """``splice_idle_seconds`` without a byte either way; one byte and it counts anew."""
        _pair, viewer, backend = await self.join()
        await backend.send(b"x")
        await viewer.read(1)
        self.clock.pump([1.0] * 119)
        self.assertEqual([], self.owner.outcomes)
        await backend.send(b"y")
        await viewer.read(1)
        self.clock.pump([1.0] * 119)
        self.assertEqual([], self.owner.outcomes)
        self.clock.pump([1.0] * 3)
        await viewer.read_to_end()
        await self.expect_end("idle")

    async def test_viewer_that_never_closes_is_let_go(self):
        """It has all its bytes; it has ``close_seconds``."""
        _pair, viewer, backend = await self.join()
        await backend.send(b"last")
        self.assertEqual(b"last", await viewer.read(4))
        backend.close()
        self.assertEqual(b"", await viewer.read_to_end())
        self.clock.pump([1.0] * 4)
        self.assertEqual([], self.owner.outcomes)
        self.clock.pump([1.0] * 3)
        await self.expect_end("backend_closed")

    async def test_stuck_viewer_of_an_ended_backend_is_aborted(self):
        """It took no byte for ``close_seconds``."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        await self.congest(pair, viewer, backend)
        backend.close()
        self.clock.pump([1.0] * 3)
        self.assertEqual([], self.owner.outcomes)
        self.clock.pump([1.0] * 125)
        await viewer.read_to_end()
        self.assertEqual("reset", viewer.end)
        await self.expect_end("backend_closed", "idle")

    async def test_transport_closed_by_somebody_else_ends_the_pair(self):
        """A stopping service closes what it knows."""
        for side in (0, 1):
            await self.setUp()
            await self.join()
            self.protocols[side].transport.abortConnection()
            await eventually(lambda: self.protocols[0].losses or self.protocols[1].losses)
            self.peers[0].close()
            await self.expect_end("viewer_reset", "viewer_closed", "backend_reset", "backend_closed")

    async def test_abort_resets_both(self):
        """The balancer stops."""
        pair, viewer, backend = await self.join()
        await backend.send(b"x")
        await viewer.read(1)
        pair.abort("stopped")
        pair.abort("again")
        await viewer.read_to_end()
        await backend.read_to_end()
        self.assertEqual(("reset", "reset"), (viewer.end, backend.end))
        await self.expect_end("stopped")

    async def test_closing_the_splicer_aborts_every_pair(self):
        """And their pipes are closed as they come back."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        await self.congest(pair, viewer, backend)
        self.splicer.close()
        await self.expect_end("stopped")

    async def test_backend_is_replaced_while_the_viewer_stays(self):
        """The seam for sessions: F counts from each backend's own start."""
        self.owner.keeps_viewer = True
        pair, viewer, first = await self.join()
        await first.send(b"from one;")
        self.assertEqual(b"from one;", await viewer.read(9))
        first.reset()
        await eventually(lambda: self.owner.lost)
        await viewer.send(b"an acknowledgement into the void")
        protocol, second = await self.dial_backend()
        pair.attach_backend(protocol.transport)
        protocol.join(pair)
        self.assertEqual((9, 9), (pair.to_viewer, pair.attached_at))
        await second.send(b"from two")
        self.assertEqual(b"from two", await viewer.read(8))
        self.assertEqual(8, pair.to_viewer - pair.attached_at)
        self.assertEqual(1, len(self.owner.lost))
        await viewer.send(b"heard")
        self.assertEqual(b"heard", await second.read(5))
        self.owner.keeps_viewer = False
        viewer.close()
        await second.read_to_end()
        second.close()
        await self.expect_end("viewer_closed")


class SplicePairTests(PairCases, SpliceTestCase):
    """Over the kernel's splice."""

    async def test_plain_sockets_are_spliced(self):
        """No byte passes through Python."""
        pair, _viewer, _backend = await self.join()
        self.assertIsInstance(pair, SplicePair)
        pair.abort("done")
        await self.expect_end("done")

    async def test_what_the_transport_had_to_write_goes_first(self):
        """More than a socket takes at once, as a PROXY header never is."""
        viewer, viewer_peer = await self.accept_viewer()
        backend, backend_peer = await self.dial_backend(SMALL)
        head = os.urandom(FLOOD)
        backend.transport.write(head)
        await viewer_peer.send(b"behind")
        pair = self.make_pair(viewer, backend)
        viewer.join(pair)
        backend.join(pair)
        self.assertEqual(head, await backend_peer.read(len(head)))
        self.assertEqual(b"behind", await backend_peer.read(6))
        pair.abort("done")
        await self.expect_end("done")

    async def test_backend_that_dies_before_the_flush_ends_the_viewer(self):
        """The pair is made but not open yet."""
        viewer, viewer_peer = await self.accept_viewer()
        backend, backend_peer = await self.dial_backend(SMALL)
        backend.transport.write(bytes(FLOOD))
        pair = self.make_pair(viewer, backend)
        viewer.join(pair)
        backend.join(pair)
        backend_peer.reset()
        await viewer_peer.read_to_end()
        viewer_peer.close()
        await self.expect_end("backend_reset")

    async def test_stream_is_acknowledged_late(self):
        """Each piece is not, as soon as it is read; while a connection is young, it is: its sender is to get quick."""
        pair, viewer, backend = await self.join()
        handle = self.protocols[1].transport.getHandle()
        is_quick = functools.partial(handle.getsockopt, socket.IPPROTO_TCP, socket.TCP_QUICKACK)
        for count, quick in ((STREAMS_FROM, 1), (1, 0)):
            await backend.send(bytes(count))
            await viewer.read(count)
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self.clock.advance(LIMITS.close_seconds / SWEEPS_PER_CLOSE)
            self.assertEqual(quick, is_quick())
        pair.abort("done")
        await self.expect_end("done")

    async def test_pipes_are_held_only_by_flows_that_hold_bytes(self):
        """One pipe serves all pairs that keep up; a stuck viewer keeps his."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        await backend.send(b"x")
        await viewer.read(1)
        self.assertEqual((0, 1), (self.splicer.pipes.lent, self.splicer.pipes.open_pipes))
        sent = await self.congest(pair, viewer, backend)
        self.assertEqual(1, self.splicer.pipes.lent)
        self.assertEqual(sent, len(await viewer.read(sent)))
        self.assertEqual((0, sent + 1), (self.splicer.pipes.lent, pair.to_viewer))
        pair.abort("done")
        await self.expect_end("done")

    async def test_no_descriptor_for_a_pipe_costs_one_viewer(self):
        """The process is at its file limit."""
        _pair, viewer, backend = await self.join()
        await eventually(lambda: self.protocols[0].transport not in self.reactor.getWriters())
        with NoMoreDescriptors():
            backend.socket.send(b"x")
            await eventually(lambda: self.owner.outcomes)
        await viewer.read_to_end()
        await self.expect_end("no_pipe")

    async def test_last_bytes_arrive_though_the_viewer_was_talking_to_a_closed_backend(self):
        """Writing to it fails before reading from it does."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        await self.congest(pair, viewer, backend)
        accepted = pair.to_viewer
        backend.close()
        for _ in range(3):
            await viewer.send(b"an acknowledgement")
            await deferLater(self.reactor, 0.002)
        data = await viewer.read_to_end()
        self.assertEqual((pair.to_viewer, "fin"), (len(data), viewer.end))
        self.assertGreater(len(data), accepted)
        viewer.close()
        await self.expect_end("backend_closed", "backend_reset")

    async def test_slow_viewer_gets_its_last_bytes_in_its_own_time(self):
        """``close_seconds`` is time without progress; the kernel's queue is watched, too."""
        pair, viewer, backend = await self.join(viewer_buffer=SMALL)
        sent = await self.congest(pair, viewer, backend)
        backend.close()
        left = sent
        while left > sent // 2:
            left -= len(await viewer.read(1 << 18))
            self.clock.pump([1.0] * 3)
            self.assertEqual([], self.owner.outcomes)
        self.assertEqual(left, len(await viewer.read_to_end()))
        viewer.close()
        await self.expect_end("backend_closed")

    async def test_detached_backend_takes_its_bytes_in_the_pipe_with_it(self):
        """F is what the viewer's socket accepted: the next backend starts there."""
        pair, viewer, first = await self.join(viewer_buffer=SMALL)
        await self.congest(pair, viewer, first)
        self.assertGreater(pair.held, 0)
        pair.detach_backend()
        self.assertEqual((0, 0), (pair.held, self.splicer.pipes.lent))
        protocol, second = await self.dial_backend()
        pair.attach_backend(protocol.transport)
        protocol.join(pair)
        await second.send(b"NEXT")
        second.send_fin()
        data = await viewer.read_to_end()
        self.assertEqual((pair.attached_at + 4, b"NEXT"), (len(data), data[-4:]))
        viewer.close()
        await self.expect_end("backend_closed")

    async def test_viewer_that_leaves_while_there_is_no_backend_ends_when_one_comes(self):
        """Its FIN is seen, and told to the new backend."""
        self.owner.keeps_viewer = True
        pair, viewer, first = await self.join()
        first.reset()
        await eventually(lambda: self.owner.lost)
        viewer.send_fin()
        await eventually(lambda: pair.has_viewer_ended)
        pair.finish("backend_reset")
        await viewer.read_to_end()
        await self.expect_end("viewer_closed")

    async def test_viewer_that_leaves_a_stuck_backend_is_noticed(self):
        """Its socket is not watched while the backend takes nothing, and no byte is due to it."""
        _pair, viewer, backend = await self.join(backend_buffer=SMALL)
        flood = memoryview(bytes(1 << 18))
        await eventually(lambda: not viewer.try_send(flood))
        await deferLater(self.reactor, 0.05)
        viewer.reset()
        self.clock.pump([1.0] * 8)
        await backend.read_to_end()
        await self.expect_end("viewer_closed", "viewer_reset")


class RouteTests(SpliceTestCase):
    """Bytes that a loop in C has passed on are counted once, and for whom they were: sessions go on by that count."""

    async def passed(self, pair, source, sink, data):
        await source.send(data)
        self.assertEqual(data, await sink.read(len(data)))

    async def test_counts_are_exact_whatever_happens_to_the_pair(self):
        """Another backend, a halt, a tap that comes and goes, a pipe that fills: each ends the route and begins one."""
        self.owner.keeps_viewer = True
        pair, viewer, backend = await self.join()
        other, other_viewer, other_backend = await self.join()
        total = 0
        for number in range(5):
            await self.passed(pair, backend, viewer, bytes(100 + number))
            await self.passed(other, other_backend, other_viewer, bytes(7))
            total += 100 + number
            self.assertEqual((total, 7 * (number + 1)), (pair.to_viewer, other.to_viewer))
            if number == 0:
                self.assertIsNotNone(pair.halt())
                self.assertEqual(total, pair.to_viewer)
                pair.go_on()
            elif number == 1:
                pair.detach_backend()
                self.assertEqual(total, pair.to_viewer)
                protocol, backend = await self.dial_backend()
                protocol.join(pair)
                pair.attach_backend(protocol.transport)
                self.assertEqual(total, pair.attached_at)
            elif number == 2:
                pair._down.tap = lambda data: data
                await self.passed(pair, backend, viewer, bytes(11))
                pair._down.tap = None
                total += 11
            elif number == 3:
                sent = await self.congest(pair, viewer, backend)
                self.assertEqual(sent, len(await viewer.read(sent)))
                total += sent
            self.assertEqual(total, pair.to_viewer)
        self.assertEqual((total + 35, 0), (self.splicer.bytes_to_viewers, self.splicer.bytes_to_backends))
        for each in (pair, other):
            each.abort("done")
        self.assertEqual(["done", "done"], self.owner.outcomes)
        self.assertEqual(total + 35, self.splicer.bytes_to_viewers)
        self.owner.outcomes.pop()
        await self.expect_end("done")

    async def test_fault_with_a_full_sink_costs_that_pair_alone(self):
        """And its bytes are not the next one's."""
        pair, _, backend = await self.join(viewer_buffer=SMALL)
        other, other_viewer, other_backend = await self.join()
        watch = Leg.watch_writing
        self.patch(
            Leg, "watch_writing", lambda leg, wanted: 1 // 0 if wanted and leg is pair._viewer else watch(leg, wanted)
        )
        part = memoryview(bytes(10_000))  # less than would be looked at in Python
        while not self.owner.outcomes:
            with contextlib.suppress(ConnectionResetError):
                backend.try_send(part)
            await deferLater(self.reactor, 0.001)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual(["fault"], self.owner.outcomes)
        await self.passed(other, other_backend, other_viewer, b"all of this, and nothing else")
        self.owner.outcomes.clear()
        other.abort("done")
        await self.expect_end("done")


class SpliceInPythonTests(PairCases, SpliceTestCase):
    """The same where no loop in C was built."""

    async def setUp(self):
        self.patch(native, "pump_ready", None)
        await super().setUp()


class CopyPairTests(PairCases, SpliceTestCase):
    """The same through Python, on the same sockets."""

    can_splice = staticmethod(lambda transport: False)

    async def test_python_moves_the_bytes(self):
        """The cases above were really run by the other class."""
        pair, _viewer, _backend = await self.join()
        self.assertIsInstance(pair, CopyPair)
        pair.abort("done")
        await self.expect_end("done")
