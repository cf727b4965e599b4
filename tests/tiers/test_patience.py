"""The options that say how patient a node is: that they arrive where they count, and what is said of bad ones."""

from __future__ import annotations

from relay.net.timings import DEFAULT_TIMINGS, Timings
from relay.tiers.aggregator import make_aggregator
from relay.tiers.balancer import make_balancer
from relay.tiers.distributor import make_distributor
from tests.tiers.test_options import GOOD, TierTestCase

COPYING = ("distributor", "aggregator")
CHANGED = ["--dead-ms=400", "--behind-ms=900", "--return-seconds=20", "--connect-seconds=1", "--retry-seconds=2"]


class PatienceTests(TierTestCase):
    def test_defaults_are_those_of_the_timings(self) -> None:
        for tier in COPYING:
            self.assertEqual(DEFAULT_TIMINGS, self.parse(tier, GOOD[tier]).timings())

    def test_options_become_timings(self) -> None:
        expected = Timings(dead=0.4, behind=0.9, return_=20, connect=1, retry=2)
        for tier in COPYING:
            self.assertEqual(expected, self.parse(tier, [*GOOD[tier], *CHANGED]).timings())

    def test_links_of_every_tier_have_its_dead_time(self) -> None:
        aggregator = make_aggregator(self.parse("aggregator", [*GOOD["aggregator"], *CHANGED]), self.reactor)
        distributor = make_distributor(self.parse("distributor", [*GOOD["distributor"], *CHANGED]), self.reactor)
        balancer = make_balancer(self.parse("balancer", [*GOOD["balancer"], "--dead-ms=400"]), self.reactor)
        links = [*aggregator.gatherers[0].links, *distributor.gatherer.links, *balancer.links]
        self.assertEqual([0.4] * 4, [link.dead_seconds for link in links])

    def test_balancer_gives_up_a_dial_when_it_is_told_to(self) -> None:
        options = self.parse("balancer", [*GOOD["balancer"], "--connect-seconds=0.5"])
        self.assertEqual(0.5, make_balancer(options, self.reactor).factory.options.connect_seconds)

    def test_bad_values_are_refused(self) -> None:
        for tier in COPYING:
            self.assert_refused(tier, [*GOOD[tier], "--dead-ms=49"], "--dead-ms 49: must be 50 or more")
            self.assert_refused(tier, [*GOOD[tier], "--behind-ms=100"], "--behind-ms 100: must be 500 or more")
            self.assert_refused(tier, [*GOOD[tier], "--return-seconds=-1"], "--return-seconds -1: must be 0 or more")
            self.assert_refused(tier, [*GOOD[tier], "--connect-seconds=0"], "--connect-seconds 0: must be above 0")
            self.assert_refused(tier, [*GOOD[tier], "--retry-seconds=soon"], "--retry-seconds 'soon' is no number")
        self.assert_refused("balancer", [*GOOD["balancer"], "--dead-ms=inf"], "--dead-ms inf: must be 50 or more")
        self.assert_refused("balancer", [*GOOD["balancer"], "--connect-seconds=0"], "--connect-seconds 0")
