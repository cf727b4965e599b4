"""Viewers at a balancer: admitted, held, given a backend, joined to it, and always accounted for."""

import datetime
import os
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, serverFromString, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from relay.limits import DEFAULT_LIMITS, Limits
from relay.net.backends import Backend, BackendPool, BackendState
from relay.net.balancing import BalancerFactory, BalancingOptions
from relay.net.joining import Splicer
from relay.net.legs import can_splice
from relay.net.proxy import TLV_RESUME, TLV_SEED, ProxyReader, is_authentic
from tests.net.peers import Listener, Peer, eventually, open_descriptors

SECRET = b"0123456789abcdef"


@implementer(IStreamClientEndpoint)
class GatedEndpoint:
    """Dials when the test says so, as a slow network would; counts dials and cancellations."""

    def __init__(self, endpoint=None):
        self._endpoint = endpoint
        self.dials = []
        self.cancelled = 0

    def connect(self, factory):
        dial = Deferred(self._cancel)
        dial.addCallback(lambda _: self._endpoint.connect(factory))
        self.dials.append(dial)
        return dial

    def _cancel(self, _dial):
        self.cancelled += 1


class SlowEndpoint:
    """Connects, and says so when the test says so."""

    def __init__(self, endpoint):
        self.connection = None
        self.said = Deferred()
        self._endpoint = endpoint

    def connect(self, factory):
        self._endpoint.connect(factory).addCallback(lambda connection: setattr(self, "connection", connection))
        return self.said


class Talker(Protocol):
    """A client that collects what it hears."""

    def __init__(self):
        self.heard = b""
        self.is_lost = False

    def dataReceived(self, data):
        self.heard += data

    def connectionLost(self, reason):
        self.is_lost = True


class BalancerTestCase(TestCase):
    """A balancer on a port, with backends whose far ends are the test's."""

    limits = DEFAULT_LIMITS
    options = BalancingOptions(secret=SECRET)

    async def setUp(self):
        from twisted.internet import reactor  # noqa: PLC0415 - importing it chooses the reactor

        self.reactor = reactor
        warm = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(Factory())
        await warm.stopListening()  # so that the reactor has the descriptors that it needs for itself
        self.descriptors = open_descriptors()
        self.clock = Clock()
        self.clock.advance(1000)
        self.listeners = {name: Listener() for name in ("one", "two")}
        self.peers = []
        self.ports = []

    async def start(self, *backends, listen="tcp:0:interface=127.0.0.1", options=None):
        """Listen, with these backends or one for each of the listeners."""
        made = backends or [
            Backend(name, TCP4ClientEndpoint(self.reactor, "127.0.0.1", listener.port))
            for name, listener in self.listeners.items()
        ]
        self.pool = BackendPool(made, self.clock.seconds)
        self.factory = BalancerFactory(
            self.reactor, self.pool, limits=self.limits, options=options or self.options, clock=self.clock
        )
        port = await serverFromString(self.reactor, listen).listen(self.factory)
        self.ports.append(port)
        self.port = getattr(port.getHost(), "port", 0)

    async def tearDown(self):
        for port in self.ports:
            await port.stopListening()
        await self.factory.close()
        for peer in [*self.peers, *self.listeners.values()]:
            peer.close()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual([0] * len(self.pool.backends), [backend.viewers for backend in self.pool.backends.values()])
        await eventually(lambda: open_descriptors() <= self.descriptors)

    def watch(self):
        """A new viewer."""
        peer = Peer.connect(self.port)
        self.peers.append(peer)
        return peer

    async def serve(self, name="one"):
        """The next connection to a backend: its PROXY header, and its far end."""
        peer = await self.listeners[name].accept()
        self.peers.append(peer)
        reader = ProxyReader(DEFAULT_LIMITS)
        while (done := reader.feed(await peer.read(1))) is None:
            pass
        return done[0], peer

    async def expect_outcomes(self, **outcomes):
        await eventually(lambda: not self.factory.viewers)
        self.assertEqual(outcomes, dict(self.factory.outcomes))
        self.assertEqual(0, self.factory.admission.connections)


class ServingTests(BalancerTestCase):
    async def test_viewer_is_announced_and_joined(self):
        """The backend learns who it is; the viewer hears the backend's bytes and no others."""
        await self.start()
        viewer = self.watch()
        await viewer.send(b"\x03 the handshake")
        header, backend = await self.serve("two")
        self.assertEqual(viewer.socket.getsockname(), (header.source.host, header.source.port))
        self.assertEqual(("127.0.0.1", self.port), (header.destination.host, header.destination.port))
        self.assertTrue(is_authentic(header, SECRET))
        self.assertEqual(b"\x03 the handshake", await backend.read(15))
        await backend.send(b"an answer")
        backend.close()
        self.assertEqual((b"an answer", "fin"), (await viewer.read_to_end(), viewer.end))
        viewer.close()
        await self.expect_outcomes(backend_closed=1)

    async def test_every_viewer_has_a_session_id_of_its_own(self):
        """And each backend knows how many it has."""
        await self.start()
        for _ in range(4):
            self.watch()
        headers = [(await self.serve(name))[0] for name in ("one", "two", "one", "two")]
        self.assertEqual(4, len({header.session_id for header in headers}))
        self.assertEqual([2, 2], [backend.viewers for backend in self.pool.backends.values()])

    async def test_viewer_who_leaves_is_gone_at_the_backend(self):
        """Both closes are seen."""
        await self.start()
        viewer = self.watch()
        _header, backend = await self.serve("two")
        viewer.close()
        await backend.read_to_end()
        backend.close()
        await self.expect_outcomes(viewer_closed=1)

    async def test_reset_is_told_apart(self):
        """In the outcome."""
        await self.start()
        viewer = self.watch()
        _header, backend = await self.serve("two")
        await viewer.send(b"x")
        await backend.read(1)
        viewer.reset()
        await backend.read_to_end()
        await self.expect_outcomes(viewer_reset=1)

    async def test_pinned_viewers_all_go_to_one(self):
        """--pin."""
        await self.start(options=BalancingOptions(pin="one"))
        for _ in range(3):
            self.watch()
            await self.serve("one")
        self.assertIsNone(self.listeners["two"].try_accept())

    async def test_draining_backend_keeps_its_viewers(self):
        """Only new ones go elsewhere."""
        await self.start(options=BalancingOptions(pin="one"))
        viewer = self.watch()
        _header, backend = await self.serve("one")
        self.pool.set_state("one", BackendState.DRAINING, "upgrade")
        await backend.send(b"still here")
        self.assertEqual(b"still here", await viewer.read(10))

    async def test_unix_socket_viewer_has_no_address(self):
        """The header says so; the session id is there all the same."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "balancer")
            await self.start(listen=f"unix:{path}")
            endpoint = UNIXClientEndpoint(self.reactor, path)
            talker = await endpoint.connect(Factory.forProtocol(Talker))
            header, backend = await self.serve("two")
            self.assertIsNone(header.source)
            self.assertTrue(header.session_id)
            await backend.send(b"hello")
            await eventually(lambda: talker.heard == b"hello")
            talker.transport.loseConnection()
            await backend.read_to_end()
            backend.close()
            await eventually(lambda: talker.is_lost)
            await self.expect_outcomes(viewer_closed=1)
            await self.ports.pop().stopListening()

    async def test_stopping_ends_everybody(self):
        """Those who wait, those who are dialed for, those who watch."""
        gated = GatedEndpoint()
        await self.start(
            Backend("one", TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.listeners["one"].port)),
            Backend("gated", gated),
        )
        self.watch()  # the pool's turn starts at the second
        await eventually(lambda: gated.dials)
        watching = self.watch()
        await self.serve("one")
        self.pool.set_state("one", BackendState.DOWN)
        self.pool.set_state("gated", BackendState.DOWN)
        self.watch()
        await eventually(lambda: len(self.factory.waiting) == 1)
        await self.ports.pop().stopListening()
        await self.factory.close()
        await watching.read_to_end()
        self.assertEqual(1, gated.cancelled)
        await self.expect_outcomes(stopped=3)


class DialingTests(BalancerTestCase):
    async def test_refused_connect_goes_on_with_the_next_backend(self):
        """The viewer notices nothing; the backend is left out for a while."""
        await self.start()
        self.listeners["two"].close()
        self.watch()
        await self.serve("one")
        self.assertEqual(1, self.pool.backends["two"].connect_failures)
        self.assertEqual("one", self.pool.pick("192.0.2.7").name)

    async def test_connect_that_takes_too_long_goes_on_with_the_next_backend(self):
        """2 s, as with a machine that is cut off."""
        gated = GatedEndpoint()
        one = Backend("one", TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.listeners["one"].port))
        await self.start(one, Backend("gated", gated))
        self.watch()
        await eventually(lambda: gated.dials)
        self.clock.advance(1.9)
        self.assertEqual(0, gated.cancelled)
        self.clock.advance(0.2)
        await self.serve("one")
        self.assertEqual((1, 1), (gated.cancelled, self.pool.backends["gated"].connect_failures))

    async def test_viewer_who_leaves_while_dialing_cancels_the_dial(self):
        """FIN with nothing said, or a reset: nobody is there any more, and the backend is not to blame."""
        for end in (Peer.close, Peer.reset):
            gated = GatedEndpoint()
            await self.start(Backend("gated", gated))
            viewer = self.watch()
            await eventually(lambda gated=gated: gated.dials)
            end(viewer)
            await self.expect_outcomes(viewer_closed=1)
            self.assertEqual((1, 0), (gated.cancelled, self.pool.backends["gated"].connect_failures))

    async def test_reset_behind_bytes_while_dialing_cancels_the_dial(self):
        """A reset is a reset, whatever was said before."""
        gated = GatedEndpoint()
        await self.start(Backend("gated", gated))
        viewer = self.watch()
        await viewer.send(b"\x03")
        await eventually(lambda: gated.dials)
        viewer.reset()
        await self.expect_outcomes(viewer_closed=1)
        self.assertEqual(1, gated.cancelled)

    async def test_half_close_while_dialing_is_passed_on(self):
        """``printf 'GET ...' | nc`` has said all before the backend is there."""
        gated = GatedEndpoint(TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.listeners["one"].port))
        await self.start(Backend("gated", gated))
        viewer = self.watch()
        await viewer.send(b"GET")
        viewer.send_fin()
        await eventually(lambda: gated.dials)
        await deferLater(self.reactor, 0.02)
        gated.dials[0].callback(None)
        _header, backend = await self.serve("one")
        self.assertEqual((b"GET", "fin"), (await backend.read_to_end(), backend.end))
        await backend.send(b"answer")
        backend.close()
        self.assertEqual(b"answer", await viewer.read_to_end())
        await self.expect_outcomes(viewer_closed=1)

    async def test_viewer_who_floods_before_he_is_joined_is_only_read_later(self):
        """His bytes wait in his own socket, and arrive in order."""
        gated = GatedEndpoint(TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.listeners["one"].port))
        await self.start(Backend("gated", gated))
        viewer = self.watch()
        data = os.urandom(4 << 20)
        sending = Deferred.fromCoroutine(viewer.send(data))
        await eventually(lambda: gated.dials)
        await deferLater(self.reactor, 0.05)
        self.assertEqual(0, self.factory.splicer.bytes_to_backends)
        gated.dials[0].callback(None)
        _header, backend = await self.serve("one")
        self.assertEqual(data, await backend.read(len(data)))
        await sending


class LeavingTests(BalancerTestCase):
    options = BalancingOptions(secret=SECRET, name="lb")

    async def test_connection_that_comes_when_the_viewer_has_just_left_is_closed(self):
        """He moves, resets, and in the same turn of the reactor another backend accepts."""
        slow = SlowEndpoint(TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.listeners["one"].port))
        two = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.listeners["two"].port)
        await self.start(Backend("one", slow), Backend("two", two))
        peer = self.watch()
        await peer.send(b"hello")
        header, backend = await self.serve("two")
        await backend.send(b"answer")
        await peer.read(6)
        checkpoint = [header.session_id.hex(), 2.0, "rtmp", "live/x", 1.0, 0.0]
        self.factory.session_said("two", "relayCheckpoint", checkpoint)
        (viewer,) = self.factory.viewers
        await eventually(lambda: viewer.pair.to_viewer == 6)
        await deferLater(self.reactor, 0.02)
        backend.reset()
        await eventually(lambda: self.clock.advance(0.01) or slow.connection)
        ended = viewer.splice_ended

        def end(pair, outcome):
            ended(pair, outcome)
            slow.said.callback(slow.connection)

        self.patch(viewer, "splice_ended", end)
        peer.reset()
        await self.expect_outcomes(viewer_reset=1)
        await eventually(lambda: not slow.connection.transport.connected)


class HoldingTests(BalancerTestCase):
    options = BalancingOptions(hold_seconds=10, held_viewers=2)

    async def start_down(self):
        await self.start()
        for name in ("one", "two"):
            self.pool.set_state(name, BackendState.DOWN, "not there yet")

    async def hold(self):
        held = len(self.factory.waiting)
        viewer = self.watch()
        await viewer.send(b"\x03")
        await eventually(lambda: len(self.factory.waiting) == held + 1)
        return viewer

    async def test_held_viewer_is_served_when_a_backend_comes_up(self):
        """Not a byte was sent to him before."""
        await self.start_down()
        viewer = await self.hold()
        self.clock.advance(9)
        self.pool.set_state("one", BackendState.UP)
        _header, backend = await self.serve("one")
        self.assertEqual(b"\x03", await backend.read(1))
        await backend.send(b"S")
        self.assertEqual(b"S", await viewer.read(1))

    async def test_held_viewer_is_served_by_a_degraded_backend(self):
        """Most streams are better than none."""
        await self.start_down()
        await self.hold()
        self.pool.set_state("two", BackendState.DEGRADED)
        await self.serve("two")

    async def test_hold_ends_when_its_time_is_over(self):
        """Then he may try elsewhere."""
        await self.start_down()
        viewer = await self.hold()
        self.clock.advance(10.1)
        await viewer.read_to_end()
        await self.expect_outcomes(no_backend=1)

    async def test_hold_is_counted_from_the_first_moment(self):
        """A backend that flaps does not make it longer."""
        await self.start_down()
        self.listeners["one"].close()
        viewer = await self.hold()
        for _ in range(3):
            self.clock.advance(3)
            self.pool.set_state("one", BackendState.UP)
            await eventually(lambda: self.pool.backends["one"].connect_failures and len(self.factory.waiting))
            self.pool.set_state("one", BackendState.DOWN)
        self.clock.advance(1.1)
        await viewer.read_to_end()
        await self.expect_outcomes(no_backend=1)

    async def test_no_more_are_held_than_there_are_places(self):
        """Memory and descriptors are bounded."""
        await self.start_down()
        await self.hold()
        await self.hold()
        third = self.watch()
        await third.read_to_end()
        await eventually(lambda: self.factory.outcomes)
        self.assertEqual({"no_backend": 1}, dict(self.factory.outcomes))
        self.assertEqual(2, len(self.factory.waiting))

    async def test_held_viewer_who_leaves_frees_his_place(self):
        """Though he had said something; nobody is dialed for him later."""
        await self.start_down()
        viewer = await self.hold()
        viewer.close()
        await self.expect_outcomes(viewer_closed=1)
        self.assertEqual(0, len(self.factory.waiting))
        self.pool.set_state("one", BackendState.UP)
        await deferLater(self.reactor, 0.02)
        self.assertIsNone(self.listeners["one"].try_accept())

    async def test_viewers_wait_for_a_backend_that_refuses_and_get_it_when_it_is_back(self):
        """No control connection says anything: one of them tries, then all follow."""
        await self.start(options=BalancingOptions(pin="one"))
        port = self.listeners["one"].port
        self.listeners["one"].close()
        viewers = [self.watch() for _ in range(5)]
        await eventually(lambda: len(self.factory.waiting) == 5)
        self.assertEqual(1, self.pool.backends["one"].connect_failures)
        self.clock.advance(0.11)
        await eventually(lambda: self.pool.backends["one"].connect_failures == 2)
        await eventually(lambda: len(self.factory.waiting) == 5)
        self.listeners["one"] = Listener(port)
        self.clock.advance(0.21)
        for _ in viewers:
            await self.serve("one")
        self.assertEqual((0, 0), (len(self.factory.waiting), self.pool.backends["one"].connect_failures))


class AdmissionTests(BalancerTestCase):
    limits = Limits(connections=3, connections_per_address=2)

    async def test_viewer_over_a_limit_is_closed_at_once_and_counted(self):
        """Those who are in are not touched; one log line tells of all."""
        events = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        await self.start()
        first = self.watch()
        self.watch()
        backends = [(await self.serve(name))[1] for name in ("two", "one")]
        for _ in range(3):
            await self.watch().read_to_end()
        self.assertEqual({"refused_address": 3}, dict(self.factory.outcomes))
        self.assertEqual(1, sum("refused" in event for event in events))
        await backends[0].send(b"x")
        self.assertEqual(b"x", await first.read(1))
        first.close()
        backends[0].close()
        await eventually(lambda: len(self.factory.viewers) == 1)
        self.watch()
        await self.serve("two")


class ReplayTests(BalancerTestCase):
    """The first backend dies before it has said what its bytes are: the second one is told the same, and is believed
    only as far as it says the same."""

    options = BalancingOptions(secret=SECRET, name="lb")
    limits = Limits(replay_bytes=64)
    can_splice = staticmethod(can_splice)

    async def start(self, *backends, **more):
        await super().start(*backends, **more)
        self.factory.splicer = Splicer(self.reactor, self.limits, clock=self.clock, can_splice=self.can_splice)
        self.viewer = self.watch()
        await self.viewer.send(b"C0C1")
        self.first_header, self.first = await self.serve("two")
        self.assertEqual(b"C0C1", await self.first.read(4))

    async def die(self, backend):
        """A move waits for its turn on the test's clock."""
        backend.reset()
        await eventually(lambda: len(self.factory.moves) or not self.factory.viewers)
        self.clock.advance(0.01)

    async def test_second_backend_is_told_the_same_and_goes_on(self):
        """With the seed that makes it answer alike; what the viewer has is not sent twice."""
        await self.start()
        await self.first.send(b"S0S1")
        self.assertEqual(b"S0S1", await self.viewer.read(4))
        await self.die(self.first)
        await self.viewer.send(b"C2")
        header, second = await self.serve("one")
        self.assertEqual(b"C0C1C2", await second.read(6))
        await second.send(b"S0")
        await second.send(b"S1S2")
        self.assertEqual(b"S2", await self.viewer.read(2))
        await self.viewer.send(b"connect")
        self.assertEqual(b"connect", await second.read(7))
        self.assertEqual(self.first_header.tlvs[TLV_SEED], header.tlvs[TLV_SEED])
        self.assertNotEqual(self.first_header.session_id, header.session_id)
        self.assertEqual((1, 0), (self.factory.sessions_moved, self.factory.sessions_cut))

    async def test_what_the_viewer_says_while_it_has_no_backend_is_kept(self):
        await self.start()
        self.first.reset()
        await eventually(lambda: len(self.factory.moves))
        await self.viewer.send(b"C2")
        await eventually(lambda: all(viewer._recording.from_viewer == b"C0C1C2" for viewer in self.factory.viewers))
        self.clock.advance(0.01)
        _, second = await self.serve("one")
        self.assertEqual(b"C0C1C2", await second.read(6))

    async def test_backend_that_says_something_else_ends_the_session(self):
        await self.start()
        await self.first.send(b"S0S1")
        self.assertEqual(b"S0S1", await self.viewer.read(4))
        await self.die(self.first)
        _, second = await self.serve("one")
        await second.send(b"S0XX")
        self.assertEqual((b"", "fin"), (await self.viewer.read_to_end(), self.viewer.end))
        self.viewer.close()
        await self.expect_outcomes(replay_diverged=1)
        self.assertEqual(1, self.factory.sessions_cut)

    async def test_position_that_is_told_before_the_comparison_is_over_is_not_believed(self):
        """The second backend dies as well, having said where its bytes come from, but not all that the viewer has."""
        await self.start()
        await self.first.send(b"S0S1")
        self.assertEqual(b"S0S1", await self.viewer.read(4))
        await self.die(self.first)
        header, second = await self.serve("one")
        self.factory.session_said("one", "relayCheckpoint", [header.session_id.hex(), 2.0, "rtmp", "live/x", 1.0, 0.0])
        await second.send(b"S0")
        second.close()
        self.assertEqual((b"", "fin"), (await self.viewer.read_to_end(), self.viewer.end))
        self.assertEqual((1, 1), (self.factory.sessions_moved, self.factory.sessions_cut))

    async def test_words_are_repeated_once(self):
        """Words that kill a backend are not to kill them all."""
        await self.start()
        await self.die(self.first)
        _, second = await self.serve("one")
        self.assertEqual(b"C0C1", await second.read(4))
        second.reset()
        self.assertEqual((b"", "fin"), (await self.viewer.read_to_end(), self.viewer.end))
        self.assertEqual((1, 1), (self.factory.sessions_moved, self.factory.sessions_cut))

    async def test_replay_bytes(self):
        """One who has said more is no longer kept."""
        await self.start()
        await self.viewer.send(bytes(61))
        await self.first.read(61)
        self.first.reset()
        self.assertEqual((b"", "fin"), (await self.viewer.read_to_end(), self.viewer.end))
        self.assertEqual(0, self.factory.sessions_moved)

    async def test_session_that_the_backend_ended_is_not_repeated(self):
        await self.start()
        self.factory.session_said("two", "relayOver", [self.first_header.session_id.hex()])
        self.first.close()
        self.assertEqual((b"", "fin"), (await self.viewer.read_to_end(), self.viewer.end))
        self.assertEqual((0, 0), (self.factory.sessions_moved, self.factory.sessions_cut))

    async def test_bytes_are_spliced_once_the_position_is_known(self):
        """And the session moves by its position from then on."""
        await self.start()
        told = [self.first_header.session_id.hex(), 4.0, "rtmp", "live/x", 1.0, 100.0]
        self.factory.session_said("two", "relayCheckpoint", told)
        await self.first.send(b"S0S1media")
        self.assertEqual(b"S0S1media", await self.viewer.read(9))
        await self.die(self.first)
        header, second = await self.serve("one")
        self.assertEqual(b"rtmp live/x 1 105", header.tlvs[TLV_RESUME])
        await second.send(bytes(1000))
        self.assertEqual(bytes(1000), await self.viewer.read(1000))


class CopiedReplayTests(ReplayTests):
    """The same where the kernel can't splice."""

    can_splice = staticmethod(lambda transport: False)


class TlsTests(BalancerTestCase):
    """A listener whose transports have no kernel socket of their own."""

    async def test_tls_viewer_is_joined_by_copying(self):
        """Both directions, in bulk, and both ends."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "balancer.pem")
            write_certificate(path)
            await self.start(listen=f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}")
        endpoint = wrapClientTLS(CertificateOptions(), TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.port))
        talker = await endpoint.connect(Factory.forProtocol(Talker))
        talker.transport.write(b"connect")
        header, backend = await self.serve("two")
        self.assertEqual(talker.transport.getHost().port, header.source.port)
        self.assertEqual(b"connect", await backend.read(7))
        data = os.urandom(8 << 20)
        await backend.send(data)
        await eventually(lambda: len(talker.heard) == len(data))
        self.assertEqual(data, talker.heard)
        backend.close()
        await eventually(lambda: talker.is_lost)
        await self.expect_outcomes(backend_closed=1)

    async def test_tls_viewer_who_leaves_ends_the_backend(self):
        """A close notify is a close."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "balancer.pem")
            write_certificate(path)
            await self.start(listen=f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}")
        endpoint = wrapClientTLS(CertificateOptions(), TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.port))
        talker = await endpoint.connect(Factory.forProtocol(Talker))
        talker.transport.write(b"x")
        _header, backend = await self.serve("two")
        await backend.read(1)
        talker.transport.loseConnection()
        self.assertEqual((b"", "fin"), (await backend.read_to_end(), backend.end))
        await eventually(lambda: talker.is_lost)
        await self.expect_outcomes(viewer_closed=1)


def write_certificate(path):
    """A key and a certificate of its own, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with open(path, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
