"""Held viewers: let go in order, a few at a time, one alone while it is a risk, and nobody is forgotten."""

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relay.net.backends import Backend, BackendPool, BackendState
from relay.net.holding import RELEASE_SECONDS, RELEASED_AT_ONCE, WaitingRoom


class WaitingRoomTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.pool = BackendPool([Backend("one", None, BackendState.DOWN)], self.clock.seconds)
        self.room = WaitingRoom(self.clock, self.pool, places=1000)
        self.called = []

    def tearDown(self):
        self.room.close()
        self.assertEqual([], self.clock.getDelayedCalls())

    def wait(self, count=1, until=60.0):
        waiting = []
        for _ in range(count):
            waiting.append(self.room.wait(until))
            waiting[-1].addCallback(self.called.append)
        return waiting

    def test_all_are_let_go_when_a_backend_comes_up(self):
        """250 of them in three lots."""
        self.wait(250)
        self.pool.set_state("one", BackendState.UP)
        counts = [len(self.called)]
        for _ in range(2):
            self.clock.advance(RELEASE_SECONDS)
            counts.append(len(self.called))
        self.assertEqual([RELEASED_AT_ONCE, 2 * RELEASED_AT_ONCE, 250], counts)
        self.assertEqual({True}, set(self.called))

    def test_those_who_came_first_go_first(self):
        """As in any queue."""
        order = []
        for number in range(RELEASED_AT_ONCE + 1):
            self.room.wait(60.0).addCallback(lambda _, number=number: order.append(number))
        self.pool.set_state("one", BackendState.UP)
        self.assertEqual(list(range(RELEASED_AT_ONCE)), order)
        self.clock.advance(RELEASE_SECONDS)
        self.assertEqual(RELEASED_AT_ONCE, order[-1])

    def test_letting_go_stops_when_the_backend_is_down_again(self):
        """The rest go on waiting, with nothing to wake for but their own time."""
        self.wait(250)
        self.pool.set_state("one", BackendState.UP)
        self.pool.set_state("one", BackendState.DOWN)
        self.clock.advance(1)
        self.assertEqual((RELEASED_AT_ONCE, 150), (len(self.called), len(self.room)))
        self.clock.advance(60)
        self.assertEqual(150, self.called.count(False))

    def test_one_alone_goes_while_the_backend_is_suspect(self):
        """When its time of suspicion is over; the others when he has been lucky."""
        self.pool.set_state("one", BackendState.UP)
        one = self.pool.backends["one"]
        self.pool.note_failure(one, self.clock.seconds())
        self.wait(5)
        self.clock.advance(0.09)
        self.assertEqual(0, len(self.called))
        self.clock.advance(0.02)
        self.assertEqual(1, len(self.called))
        self.pool.pick("192.0.2.7")
        self.clock.advance(1)
        self.assertEqual(1, len(self.called))
        self.pool.note_success(one)
        self.assertEqual(5, len(self.called))

    def test_time_that_is_over_and_a_full_room_are_told_at_once(self):
        """Without a timer."""
        room = WaitingRoom(self.clock, self.pool, places=1)
        room.wait(1.0).addCallback(self.called.append)
        room.wait(1.0).addCallback(self.called.append)
        self.assertEqual([False], self.called)
        self.clock.advance(1)
        self.assertEqual([False, False], self.called)
        room.wait(1.0).addCallback(self.called.append)
        self.assertEqual([False] * 3, self.called)
        room.close()

    def test_viewer_who_leaves_is_forgotten(self):
        """His place and his timer too."""
        waiting = self.wait(2)
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.assertEqual(1, len(self.room))
        self.pool.set_state("one", BackendState.UP)
        self.assertEqual([True], self.called)

    def test_viewer_who_is_let_go_may_make_another_leave(self):
        """He is skipped, not called twice."""
        first, second = self.room.wait(60.0), self.room.wait(60.0)
        second.addErrback(lambda failure: failure.trap(CancelledError))
        first.addCallback(lambda _: second.cancel())
        self.pool.set_state("one", BackendState.UP)
        self.assertEqual(0, len(self.room))

    def test_closed_room_takes_nobody(self):
        """And closing it again does nothing."""
        self.room.close()
        self.room.close()
        self.assertIs(False, self.successResultOf(self.room.wait(60.0)))
