"""The admin site of a whole cluster."""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.cluster import PasteLine, Report, cluster_health, make_cluster_site
from relay.admin.polling import NO_PAGE, NOT_ASKED, Answer, Member
from relay.admin.views import Health
from tests.admin.views import ask, clock

NORMAL = Answer(state="normal", viewers=2, streams=[{"name": "live/demo"}], links=[{"name": "o1"}])


def report(name: str, tier: str, answer: Answer = NORMAL, restarts: int = 0) -> Report:
    member = Member(name=name, tier=tier, listen="tcp:1941", admin_url=f"http://127.0.0.1/{name}/", endpoint=None)
    return Report(member=member, answer=answer, restarts=restarts)


@attrs.define
class FixedCluster:
    """A ClusterView whose answers are what a test says."""

    nodes: list[Report]

    def reports(self) -> list[Report]:
        return self.nodes

    def paste_lines(self) -> list[PasteLine]:
        return [PasteLine("RTMP", "rtmp://127.0.0.1/live/demo")]


class ClusterHealthTests(SynchronousTestCase):
    """One word for many nodes."""

    def test_normal_when_all_are(self) -> None:
        self.assertEqual(Health(), cluster_health([report("o1", "origin"), report("lb1", "balancer")]))

    def test_degraded_when_one_is_not(self) -> None:
        """It still serves; the reason names the node."""
        down = Answer(state="down", why=("no answer for 1 s", "and more"))
        self.assertEqual(
            Health("degraded", ["o1 is down: no answer for 1 s"]),
            cluster_health([report("o1", "origin", down), report("lb1", "balancer")]),
        )

    def test_down_when_no_balancer_serves(self) -> None:
        """Viewers have nowhere to go."""
        self.assertEqual(
            Health("down", ["lb1 is starting"]),
            cluster_health([report("o1", "origin"), report("lb1", "balancer", NOT_ASKED)]),
        )

    def test_balancer_that_can_not_be_asked_is_believed_to_serve(self) -> None:
        self.assertEqual("degraded", cluster_health([report("lb1", "balancer", NO_PAGE)]).state)


class ClusterSiteTests(SynchronousTestCase):
    """What it shows."""

    def setUp(self) -> None:
        self.cluster = FixedCluster([report("o1", "origin", restarts=2), report("lb1", "balancer", NO_PAGE)])
        self.site = make_cluster_site(self.cluster, clock())

    def test_nodes_are_listed_in_order_with_what_they_said(self) -> None:
        content = ask(self.site, "/api/v1/nodes").json
        self.assertEqual(
            {
                "name": "o1",
                "tier": "origin",
                "listen": "tcp:1941",
                "admin": "http://127.0.0.1/o1/",
                "state": "normal",
                "why": [],
                "viewers": 2,
                "streams": [{"name": "live/demo"}],
                "links": [{"name": "o1"}],
                "restarts": 2,
            },
            content["nodes"][0],
        )
        self.assertEqual(["o1", "lb1"], [node["name"] for node in content["nodes"]])
        self.assertEqual([{"what": "RTMP", "text": "rtmp://127.0.0.1/live/demo"}], content["paste"])

    def test_health_has_the_status_that_checks_read(self) -> None:
        self.assertEqual(503, ask(self.site, "/healthz").status)
        self.cluster.nodes = [report("lb1", "balancer")]
        self.assertEqual(200, ask(self.site, "/healthz").status)

    def test_metrics_name_each_node(self) -> None:
        text = ask(self.site, "/metrics").body.decode()
        self.assertIn('relay_cluster_node_state{node="o1",state="normal",tier="origin"} 1.0', text)
        self.assertIn('relay_cluster_node_state{node="lb1",state="unknown",tier="balancer"} 1.0', text)
        self.assertIn('relay_cluster_node_restarts_total{node="o1"} 2.0', text)

    def test_page_is_served(self) -> None:
        self.assertIn(b"api/v1/nodes", ask(self.site, "/").body)
        self.assertEqual(200, ask(self.site, "/page.js").status)
