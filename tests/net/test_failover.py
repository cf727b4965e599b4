"""Which upstream is asked, and when it is asked again."""

from __future__ import annotations

import itertools

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from relay.limits import DEFAULT_LIMITS
from relay.net.failover import Backoff, FailoverFactory, Upstream
from relay.net.rtmp_client import ClientSettings, RtmpClientProtocol
from relay.testing import MemoryNetwork
from tests.net.driving import Recorder

JITTER = 0.5  # a wait is at least this part of what it was meant to be


class Client(RtmpClientProtocol):
    """Says only that its connection is over."""

    def __init__(self, settings, upstream) -> None:
        super().__init__(settings, "live", "rtmp://test/live")
        self.upstream = upstream.name
        self.factory: FailoverFactory | None = None

    def over(self, outcome: str) -> None:
        self.factory.lost(outcome)


class FailoverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.clock = self.network.reactor
        self.servers: list[Recorder] = []
        self.endpoints = [self.network.endpoint(Factory.forProtocol(Recorder)) for _ in range(3)]
        self.members = [
            Upstream(name=name, endpoint=endpoint) for name, endpoint in zip("abc", self.endpoints, strict=True)
        ]
        self.a, self.b, self.c = self.members
        self.clients: list[Client] = []
        self.factory = self.make(self.members)

    def make(self, members) -> FailoverFactory:
        # handshakes are not the subject here: their deadline must not end a connection
        limits = DEFAULT_LIMITS.__class__(handshake_seconds=1e6)
        settings = ClientSettings(limits=limits, clock=self.clock)

        def build(upstream):
            client = Client(settings, upstream)
            client.factory = factory
            self.clients.append(client)
            return client

        factory = FailoverFactory(members, build, self.clock)
        return factory

    @property
    def asked(self) -> str:
        """Which member each connection so far went to."""
        return "".join(client.upstream for client in self.clients)

    def start(self) -> None:
        self.factory.start()
        self.network.carry()

    def kill(self, index: int) -> None:
        """The server of the member's open connection dies; others can't connect to it until ``mend``."""
        self.endpoints[index].is_listening = False
        for link in self.endpoints[index].open_links:
            link.kill_server()
        self.network.carry()

    def mend(self, index: int) -> None:
        self.endpoints[index].is_listening = True

    def attempts(self) -> list[int]:
        return [endpoint.attempts for endpoint in self.endpoints]

    def test_preferred_member_is_asked_first(self) -> None:
        self.start()
        self.assertEqual("a", self.asked)
        self.assertIs(self.a, self.factory.current)

    def test_member_that_is_not_usable_is_passed_over(self) -> None:
        self.a.is_usable = False
        self.start()
        self.assertEqual("b", self.asked)

    def test_refused_connect_goes_on_at_the_next_member_without_a_wait(self) -> None:
        self.endpoints[0].is_listening = self.endpoints[1].is_listening = False
        self.start()
        self.assertEqual((0, "c"), (self.clock.seconds(), self.asked))

    def test_death_goes_on_at_the_next_member_without_a_wait(self) -> None:
        self.start()
        self.factory.media_arrived()
        self.kill(0)
        self.assertEqual((0, "ab"), (self.clock.seconds(), self.asked))
        self.assertEqual(1, self.factory.failovers)

    def test_next_member_after_media_is_the_preferred_of_a_new_round(self) -> None:
        """a dies, b serves, a is mended, b dies: a is asked, not c."""
        self.start()
        self.factory.media_arrived()
        self.kill(0)
        self.factory.media_arrived()
        self.mend(0)
        self.kill(1)
        self.assertEqual("aba", self.asked)

    def test_round_without_media_is_followed_by_a_wait(self) -> None:
        """Everybody was asked once, in order; then nobody until the wait is over."""
        for endpoint in self.endpoints:
            endpoint.is_listening = False
        self.start()
        self.assertEqual([1, 1, 1], self.attempts())
        self.network.advance(0.1 * JITTER - 0.01, step=0.005)
        self.assertEqual([1, 1, 1], self.attempts())
        self.network.advance(0.1, step=0.005)
        self.assertEqual([2, 2, 2], self.attempts())

    def waits(self, rounds: int, event) -> list[float]:
        """Let ``rounds`` rounds of member a fail; seconds between the attempts.  ``event`` happens once connected."""
        self.factory = self.make(self.members[:1])
        self.start()
        times = [self.clock.seconds()]
        while len(times) <= rounds:
            before = self.endpoints[0].attempts
            event()
            while self.endpoints[0].attempts == before:
                self.network.advance(0.01, step=0.01)
            times.append(self.clock.seconds())
        return [b - a for a, b in itertools.pairwise(times)]

    def assert_grows(self, waits: list[float]) -> None:
        for index, wait in enumerate(waits):
            meant = min(5.0, 0.1 * 2**index)
            self.assertLessEqual(meant * JITTER - 0.02, wait)
            self.assertLessEqual(wait, meant + 0.02)

    def test_wait_doubles_up_to_its_maximum(self) -> None:
        self.endpoints[0].is_listening = False
        self.assert_grows(self.waits(8, lambda: None))

    def test_upstream_that_accepts_and_drops_never_resets_the_wait(self) -> None:
        """A TCP connect is no success: a server that crashes on each of us is not asked ten times a second."""

        def drop():
            for link in self.endpoints[0].open_links:
                link.kill_server()
            self.network.carry()

        self.assert_grows(self.waits(8, drop))

    def test_upstream_that_flaps_every_second_is_waited_for_longer_and_longer(self) -> None:
        def drop_after_a_second():
            self.network.advance(1.0)
            for link in self.endpoints[0].open_links:
                link.kill_server()
            self.network.carry()

        waits = self.waits(6, drop_after_a_second)
        self.assert_grows([wait - 1.0 for wait in waits])

    def test_media_resets_the_wait(self) -> None:
        self.endpoints[0].is_listening = False
        waits = self.waits(5, lambda: None)
        self.assertGreater(waits[-1], 0.7)
        self.mend(0)
        self.network.advance(6)
        self.assertIs(self.a, self.factory.current)
        self.factory.media_arrived()
        self.kill(0)
        before = self.endpoints[0].attempts
        self.network.advance(0.3, step=0.01)
        self.assertGreater(self.endpoints[0].attempts, before + 1)

    def test_first_failure_after_media_is_followed_by_the_shortest_wait(self) -> None:
        waits = self.waits(1, lambda: (self.factory.media_arrived(), self.kill(0)))
        self.assert_grows(waits)

    def test_wake_ends_a_wait(self) -> None:
        for endpoint in self.endpoints:
            endpoint.is_listening = False
        self.start()
        self.network.advance(20)
        self.mend(1)
        self.factory.wake()
        self.network.carry()
        self.assertEqual("b", self.asked)

    def test_wake_disturbs_nobody_who_reads(self) -> None:
        self.start()
        self.factory.wake()
        self.network.carry()
        self.assertEqual([1, 0, 0], self.attempts())

    def test_nobody_usable_is_tried_all_the_same_in_the_end(self) -> None:
        """The watch may be wrong, or not yet have spoken: the preferred member is tried."""
        for member in self.members:
            member.is_usable = False
        self.start()
        self.assertEqual([0, 0, 0], self.attempts())
        self.network.advance(0.2)
        self.assertEqual("a", self.asked)

    def test_leave_goes_on_at_the_next_member(self) -> None:
        """The control link has found that the present member hangs; its connection has said nothing."""
        self.start()
        self.factory.media_arrived()
        self.endpoints[0].links[0].is_cut = True
        self.factory.leave("dead")
        self.network.carry()
        self.assertEqual("ab", self.asked)

    def test_leave_while_connecting_goes_on_at_the_next_member(self) -> None:
        self.endpoints[0].is_silent = True
        self.start()
        self.assertEqual([1, 0, 0], self.attempts())
        self.factory.leave("dead")
        self.network.carry()
        self.assertEqual("b", self.asked)

    def test_leave_while_waiting_changes_nothing(self) -> None:
        for endpoint in self.endpoints:
            endpoint.is_listening = False
        self.start()
        self.factory.leave("dead")
        self.network.carry()
        self.assertEqual([1, 1, 1], self.attempts())

    def test_turn_to_goes_to_that_member_and_counts_no_failover(self) -> None:
        self.a.is_usable = False
        self.start()
        self.factory.media_arrived()
        self.a.is_usable = True
        self.factory.turn_to(self.a)
        self.network.carry()
        self.assertEqual(("ba", 0), (self.asked, self.factory.failovers))
        self.assertEqual(1, sum(len(endpoint.open_links) for endpoint in self.endpoints))

    def test_turn_to_the_present_member_does_nothing(self) -> None:
        self.start()
        self.factory.turn_to(self.a)
        self.network.carry()
        self.assertEqual("a", self.asked)

    def test_turn_to_a_member_that_refuses_goes_back_to_the_other(self) -> None:
        self.a.is_usable = False
        self.start()
        self.factory.media_arrived()
        self.endpoints[0].is_listening = False
        self.factory.turn_to(self.a)
        self.network.carry()
        self.assertEqual("bb", self.asked)

    def test_turn_to_while_waiting_or_connecting_does_nothing(self) -> None:
        self.endpoints[0].is_silent = True
        self.start()
        self.factory.turn_to(self.b)
        self.network.carry()
        self.assertEqual([1, 0, 0], self.attempts())

    def assert_stopped(self) -> None:
        self.network.carry()
        self.successResultOf(self.stopping)
        before = self.attempts()
        self.network.advance(30, step=0.5)
        self.assertEqual(before, self.attempts())
        self.assertEqual([], [link for endpoint in self.endpoints for link in endpoint.open_links])
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop_before_the_start(self) -> None:
        self.stopping = self.factory.stop()
        self.assert_stopped()

    def test_stop_while_connecting(self) -> None:
        self.endpoints[0].is_silent = True
        self.start()
        self.stopping = self.factory.stop()
        self.assert_stopped()

    def test_stop_while_connected_fires_when_the_connection_is_gone(self) -> None:
        self.start()
        self.stopping = self.factory.stop()
        self.assertNoResult(self.stopping)
        self.assert_stopped()

    def test_stop_while_waiting(self) -> None:
        for endpoint in self.endpoints:
            endpoint.is_listening = False
        self.start()
        self.stopping = self.factory.stop()
        self.assert_stopped()

    def test_stop_twice_fires_both(self) -> None:
        self.start()
        first, self.stopping = self.factory.stop(), self.factory.stop()
        self.assert_stopped()
        self.successResultOf(first)

    def test_stop_between_the_connect_and_its_callback(self) -> None:
        """The protocol exists, the factory has not been told of it yet."""
        late = Late()
        self.factory = self.make([Upstream(name="late", endpoint=late)])
        self.factory.start()
        self.stopping = self.factory.stop()
        self.assertTrue(late.is_cancelled)
        self.assert_stopped()

    def test_start_after_stop_begins_again(self) -> None:
        self.start()
        self.factory.stop()
        self.network.carry()
        self.start()
        self.assertEqual("aa", self.asked)

    def test_finish_lets_the_connection_end_by_itself(self) -> None:
        self.start()
        self.stopping = self.factory.finish()
        self.network.advance(10)
        self.assertNoResult(self.stopping)
        self.clients[0].transport.loseConnection()
        self.assert_stopped()

    def test_connect_that_succeeds_at_once(self) -> None:
        """An endpoint may answer before connect returns: nothing is then left that looks like connecting."""
        immediate = Immediate(self.network)
        self.factory = self.make([Upstream(name="now", endpoint=immediate), self.b])
        self.start()
        self.assertEqual("now", self.asked[:3])
        self.factory.leave("dead")
        self.network.carry()
        self.assertEqual("nowb", self.asked)

    def test_connect_errors_that_come_at_once_end_in_a_wait(self) -> None:
        """Each member is asked once a round, however quickly it refuses."""
        members = [Upstream(name=str(index), endpoint=Refusing()) for index in range(20)]
        self.factory = self.make(members)
        self.start()
        self.assertEqual({1}, {member.endpoint.attempts for member in members})
        self.network.advance(0.12, step=0.01)
        self.assertEqual({2}, {member.endpoint.attempts for member in members})
        self.stopping = self.factory.stop()
        self.assert_stopped()


class BackoffTests(SynchronousTestCase):
    def test_waits_are_jittered_so_that_not_everybody_comes_at_once(self) -> None:
        waits = {Backoff(initial=1.0)() for _ in range(50)}
        self.assertGreater(len(waits), 10)
        self.assertTrue(all(JITTER <= wait <= 1.0 for wait in waits))


@implementer(IStreamClientEndpoint)
class Late:
    """Never answers."""

    is_cancelled = False

    def connect(self, factory):
        def cancelled(_):
            self.is_cancelled = True

        return Deferred(cancelled)


@implementer(IStreamClientEndpoint)
class Refusing:
    attempts = 0

    def connect(self, factory):
        self.attempts += 1
        return fail(ConnectionRefusedError())


@implementer(IStreamClientEndpoint)
class Immediate:
    """Connects before it returns, as an endpoint in memory may."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    def connect(self, factory):
        client = factory.buildProtocol(None)
        self._network.join(client, Recorder())
        return succeed(client)
