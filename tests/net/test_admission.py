"""The limits on connections, and one log line for a flood of refusals."""

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import Limits
from relay.net.admission import LOG_SECONDS, RESERVED_DESCRIPTORS, Admission


class AdmissionTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.descriptors = 0
        self.admission = Admission(
            Limits(connections=4, connections_per_address=2),
            self.clock,
            lambda: self.descriptors,
            file_limit=lambda: RESERVED_DESCRIPTORS + 100,
        )

    def test_connections_over_the_limit_are_refused_until_one_leaves(self):
        """``connections``."""
        admitted = [self.admission.admit(host) for host in ("a", "b", "c", "d", "e")]
        self.assertEqual([None] * 4 + ["refused_limit"], admitted)
        self.admission.leave("a")
        self.assertEqual([None, "refused_limit"], [self.admission.admit("e") for _ in range(2)])

    def test_one_address_has_a_limit_of_its_own(self):
        """``connections_per_address``; others are not touched."""
        self.assertEqual([None, None, "refused_address"], [self.admission.admit("a") for _ in range(3)])
        self.assertIsNone(self.admission.admit("b"))
        self.admission.leave("a")
        self.assertIsNone(self.admission.admit("a"))

    def test_unix_sockets_have_no_address_to_count(self):
        """They are all this machine's."""
        self.assertEqual([None] * 4 + ["refused_limit"], [self.admission.admit("") for _ in range(5)])

    def test_nobody_is_admitted_into_the_last_descriptors(self):
        """They are for listeners and the links between nodes."""
        self.descriptors = 100
        self.assertIsNone(self.admission.admit("a"))
        self.descriptors = 101
        self.assertEqual("refused_descriptors", self.admission.admit("b"))

    def test_flood_of_refusals_is_one_line_in_ten_seconds(self):
        """With counts, so that nothing is lost."""
        events = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.descriptors = 101
        for _ in range(1000):
            self.admission.admit("a")
        self.clock.advance(LOG_SECONDS)
        self.admission.admit("a")
        refused = [event["refused"] for event in events if "refused" in event]
        self.assertEqual([{"refused_descriptors": 1}, {"refused_descriptors": 1000}], refused)
