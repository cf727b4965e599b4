"""The options of balancers that share a virtual IP, and what is built from them."""

from __future__ import annotations

import shlex
from pathlib import Path

from relay.tiers.balancer import Balancer, Options, make_balancer
from relay.tiers.views import BalancerView, peer_metrics
from tests.tiers import test_options
from tests.tiers.test_options import GOOD

EXAMPLES = Path(__file__).parents[2] / "examples"
PEERS = ["--peer-listen", "tcp:1937:interface=192.0.2.11", "--peer", "lb2=tcp:192.0.2.12:1937"]


class PeerOptionTests(test_options.TierTestCase):
    """What an operator types."""

    def balancer(self, *words: str) -> Balancer:
        options = Options()
        options.parseOptions([*GOOD["balancer"], *words])
        return make_balancer(options, self.reactor)

    def test_balancer_that_is_alone_has_no_neighbourhood(self) -> None:
        balancer = self.balancer()
        self.assertIsNone(balancer.neighbourhood)
        names = [metric.name for metric in BalancerView(balancer.factory, "lb1").metrics()]
        self.assertEqual([], [name for name in names if "peer" in name or "gives_way" in name])

    def test_peers_are_told_of_viewers(self) -> None:
        balancer = self.balancer(*PEERS, "--peer", "lb3=tcp:192.0.2.13:1937")
        neighbourhood = balancer.neighbourhood
        assert neighbourhood is not None
        self.assertEqual(["lb2", "lb3"], [link.name for link in neighbourhood.links])
        self.assertIn(neighbourhood, balancer.factory.observers)
        self.assertIs(balancer, neighbourhood.parent)

    def test_metrics_of_a_pair(self) -> None:
        neighbourhood = self.balancer(*PEERS).neighbourhood
        assert neighbourhood is not None
        values = {metric.name: metric.values for metric in peer_metrics(neighbourhood)}
        self.assertEqual({"lb2": False}, values["peer_up"])
        self.assertEqual({"lb2": 0}, values["peer_viewers"])
        self.assertEqual({"": True}, values["gives_way"])  # it can serve nobody yet, and has heard of nobody
        self.assertEqual([{"": 0}, {"": 0}], [values["viewers_reset"], values["viewers_not_reset"]])

    def test_unit_that_we_ship_parses(self) -> None:
        """``ExecStart`` of the example, continued lines joined."""
        unit = (EXAMPLES / "keepalived" / "relay-balancer.service").read_text().replace("\\\n", " ")
        (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
        words = shlex.split(start)
        options = Options()
        options.parseOptions(words[words.index("relay-balancer") + 1 :])
        self.assertEqual(["lb2"], [name for name, _ in options["peers"]])

    def test_bad_peers_are_refused_in_one_line(self) -> None:
        for words, why in (
            (["--peer", "lb2"], "NAME=ENDPOINT"),
            (["--peer", "lb1=tcp:192.0.2.12:1937"], "this balancer itself"),
            (["--peer", "lb2=tcp:a:1", "--peer", "lb2=tcp:b:1"], "given twice"),
        ):
            self.assert_refused("balancer", [*GOOD["balancer"], *words], why)
