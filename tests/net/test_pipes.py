"""Pipes are lent empty, taken back, and closed when they are dirty."""

import os

from twisted.trial.unittest import SynchronousTestCase

from relay.net.pipes import PipePool
from tests.net.peers import NoMoreDescriptors, open_descriptors


class PipePoolTests(SynchronousTestCase):
    def setUp(self):
        self.descriptors = open_descriptors()
        self.pool = PipePool(kept=2)

    def tearDown(self):
        self.pool.close()
        self.assertEqual(self.descriptors, open_descriptors())

    def test_pipe_that_comes_back_is_lent_again(self):
        """The last one first."""
        first, second = self.pool.take(), self.pool.take()
        self.pool.give(first)
        self.pool.give(second)
        self.assertEqual(second, self.pool.take())
        self.pool.give(second)
        self.assertEqual((0, 2), (self.pool.lent, self.pool.open_pipes))

    def test_no_more_idle_pipes_are_kept_than_told(self):
        """A burst of stuck viewers passes."""
        pipes = [self.pool.take() for _ in range(5)]
        self.assertEqual((5, 5), (self.pool.lent, self.pool.open_pipes))
        for pipe in pipes:
            self.pool.give(pipe)
        self.assertEqual((0, 2), (self.pool.lent, self.pool.open_pipes))

    def test_dirty_pipe_is_never_lent_again(self):
        """Its bytes are another viewer's."""
        pipe = self.pool.take()
        os.write(pipe[1], b"somebody's")
        self.pool.drop(pipe)
        self.assertEqual((0, 0), (self.pool.lent, self.pool.open_pipes))

    def test_pipe_that_comes_back_after_closing_is_closed(self):
        """The pool may be closed before the last pair."""
        pipe = self.pool.take()
        self.pool.close()
        self.pool.give(pipe)
        self.assertEqual(0, self.pool.open_pipes)

    def test_pipe_that_cannot_be_had_is_not_counted(self):
        """The error is the caller's; an idle one can still be lent."""
        self.pool.give(self.pool.take())
        with NoMoreDescriptors():
            pipe = self.pool.take()
            with self.assertRaises(OSError):
                self.pool.take()
        self.assertEqual(1, self.pool.lent)
        self.pool.give(pipe)
