"""The admin site of a whole cluster."""

from __future__ import annotations

import json

import attrs
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.cluster import PasteLine, Place, Report, cluster_health, make_cluster_site
from relay.admin.fetch import fetch
from relay.admin.node import make_site
from relay.admin.polling import NO_PAGE, NOT_ASKED, Answer, Member
from relay.admin.views import Health
from tests.admin.test_polling import ServerTestCase
from tests.admin.views import FixedView, ask, clock

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

    def places(self) -> list[Place]:
        return [Place(host="", port=1935), Place(host="192.0.2.1", port=443, is_tls=True)]


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
                "forwards": [],
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

    def test_pages_are_served(self) -> None:
        self.assertIn(b"api/v1/nodes", ask(self.site, "/").body)
        for path in ("/page.js", "/topology.js", "/watch.js", "/api/v1/openapi.json"):
            self.assertEqual(200, ask(self.site, path).status, path)

    def test_player_may_speak_to_the_balancers_and_to_nobody_else(self) -> None:
        policy = ask(self.site, "/watch").headers["content-security-policy"]
        self.assertIn("connect-src 'self' http://*:1935 https://192.0.2.1:443; media-src blob:", policy)
        self.assertNotIn("1935", ask(self.site, "/").headers["content-security-policy"])

    def test_each_stream_is_there_once(self) -> None:
        """With everybody who has it; who publishes it is what the origin says."""
        demo = {"name": "live/demo", "is_live": True, "bitrate_bps": 5.0, "viewers": 1, "epoch": 7, "end": 9}
        origin = Answer(state="normal", streams=[{**demo, "source": "rtmp://encoder", "is_live": False}])
        copy = Answer(state="normal", streams=[{**demo, "source": "o1", "bitrate_bps": 6.0}])
        self.cluster.nodes = [report("o1", "origin", origin), report("a1", "distributor", copy)]
        (stream,) = ask(self.site, "/api/v1/streams").json
        places = [{"node": name, "epoch": 7, "end": 9} for name in ("o1", "a1")]
        told = {"is_live": True, "bitrate_bps": 6.0, "viewers": 2, "source": "rtmp://encoder", "nodes": places}
        self.assertEqual({"name": "live/demo", **told}, stream)


class ClusterListTests(ServerTestCase):
    """Viewers and sessions, of all nodes together."""

    async def test_all_nodes_are_asked(self) -> None:
        """One that does not answer is named."""
        endpoints = {
            "agg1": self.serve(make_site(FixedView(), reactor)),
            "lb1": self.serve(make_site(FixedView(), reactor)),
            "a1": await self.closed_port(),
            "a2": self.canned(b"HTTP/1.0 200 OK\r\n\r\n[]"),
            "o1": None,
        }
        members = [
            Member(name=name, tier="origin", listen="", admin_url=None, endpoint=endpoint)
            for name, endpoint in endpoints.items()
        ]
        cluster = FixedCluster([Report(member=member, answer=NORMAL, restarts=0) for member in members])
        asked = self.serve(make_cluster_site(cluster, reactor))
        for query, nodes, silent in (("", ["agg1", "lb1"], ["a1", "a2"]), ("?node=lb1", ["lb1"], [])):
            content = json.loads(await fetch(reactor, asked, f"/api/v1/viewers{query}", 5))
            listed = [each["node"] for each in content["viewers"]]
            self.assertEqual((len(nodes), nodes, silent), (content["count"], listed, content["silent"]))
        content = json.loads(await fetch(reactor, asked, "/api/v1/sessions?limit=0", 5))
        self.assertEqual((2, []), (content["count"], content["sessions"]))
