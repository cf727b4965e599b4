"""The admin site of one node: what a load balancer's check, Prometheus, a script and a browser get."""

from __future__ import annotations

import base64
import re
from importlib.resources import files

import attrs
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from relay import __version__
from relay.admin import node
from relay.admin.events import EventLog
from relay.admin.guard import Guard
from relay.admin.node import make_site
from relay.admin.site import AdminRequest, BoundedFactory
from relay.admin.views import Health, Metric
from tests.admin.views import VIEWER, FixedView, Reply, ask, clock, parse, send

PAGES = (
    *("/", "/healthz", "/metrics", "/page.css", "/page.js", "/topology.js", "/api/v1/openapi.json"),
    *("/api/v1/node", "/api/v1/nodes", "/api/v1/streams", "/api/v1/links", "/api/v1/events"),
    *("/api/v1/viewers", "/api/v1/sessions", "/api/v1/publishers"),
)


def observed_request(kept: list[int]) -> type[AdminRequest]:
    """Requests that note how much of their body is there when it has been read."""

    class Observed(AdminRequest):
        def process(self) -> None:
            kept.append(len(self.content.getvalue()))
            super().process()

    return Observed


class SiteTestCase(SynchronousTestCase):
    """A site for :class:`FixedView`."""

    def setUp(self) -> None:
        self.view = FixedView()
        self.site = make_site(self.view, clock())

    def get(self, path: str, **how: str) -> Reply:
        return ask(self.site, path, **how)


class HealthTests(SiteTestCase):
    """``/healthz``, which keepalived and other checks ask."""

    def test_normal_is_200(self) -> None:
        reply = self.get("/healthz")
        self.assertEqual((200, {"state": "normal", "why": []}), (reply.status, reply.json))

    def test_degraded_and_down_are_503_with_reasons(self) -> None:
        """A check that reads only the status takes either for a reason to send nobody here."""
        for state in ("degraded", "down"):
            self.view.state = Health(state, ["pair a: a1 is down (silent)"])
            reply = self.get("/healthz")
            self.assertEqual(
                (503, {"state": state, "why": ["pair a: a1 is down (silent)"]}), (reply.status, reply.json)
            )


class ApiTests(SiteTestCase):
    """``/api/v1``."""

    def test_node_says_everything_at_once(self) -> None:
        """Whoever draws a cluster asks each node once."""
        node = self.get("/api/v1/node").json
        self.assertEqual(
            ("agg1", "aggregator", __version__, "normal", [], 3),
            tuple(node[key] for key in ("name", "tier", "version", "state", "why", "viewers")),
        )
        self.assertEqual(self.get("/api/v1/streams").json, node["streams"])
        self.assertEqual(self.get("/api/v1/links").json, node["links"])

    def test_streams_say_how_far_this_node_is(self) -> None:
        self.assertEqual(
            [
                {
                    "name": "live/demo",
                    "epoch": 7,
                    "start": 100,
                    "end": 1100,
                    "bitrate_bps": 250_000.0,
                    "viewers": 3,
                    "source": "rtmp://127.0.0.1:5000",
                    "is_live": True,
                }
            ],
            self.get("/api/v1/streams").json,
        )

    def test_links_keep_their_order(self) -> None:
        """The preferred neighbour is the first."""
        self.assertEqual(
            [
                ("a1", "tcp:127.0.0.1:1941", "up", "", "active", 2),
                ("a2", "tcp:127.0.0.1:1942", "down", "silent", "", 0),
            ],
            [
                (link["name"], link["endpoint"], link["state"], link["why"], link["role"], link["streams"])
                for link in self.get("/api/v1/links").json
            ],
        )

    def test_answers_are_read_afresh(self) -> None:
        """Nothing is cached between requests."""
        self.assertEqual(1, len(self.get("/api/v1/streams").json))
        self.view.all_streams = ()
        self.assertEqual([], self.get("/api/v1/streams").json)
        self.assertEqual("no-store", self.get("/api/v1/streams").headers["cache-control"])


class DrainTests(SiteTestCase):
    """``POST /api/v1/drain`` and ``/api/v1/undrain``."""

    def post(self, path: str, host: str = "127.0.0.1:8086", *headers: str) -> Reply:
        return ask(self.site, path, method="POST", host=host, headers=headers)

    def test_node_says_whether_it_drains_and_who_is_left(self) -> None:
        self.assertIsNone(self.get("/api/v1/node").json["draining"])
        self.assertEqual(200, self.post("/api/v1/drain").status)
        report = {"why": "a test wants it", "sessions": 2, "copies": 0, "publishers": 0, "others": 1}
        self.assertEqual(report, self.get("/api/v1/node").json["draining"])
        self.assertEqual({"draining": None}, self.post("/api/v1/undrain").json)
        self.assertIsNone(self.get("/api/v1/node").json["draining"])

    def test_nothing_is_changed_by_a_get(self) -> None:
        """A link is followed by a great many things."""
        for method in ("GET", "HEAD", "PUT", "OPTIONS"):
            reply = self.get("/api/v1/drain", method=method)
            self.assertEqual((405, "POST"), (reply.status, reply.headers["allow"]), method)
        self.assertFalse(self.view.drain.is_on)

    def test_page_of_another_site_changes_nothing(self) -> None:
        """Whatever it sends: the browser says where the page came from."""
        for header in (
            "Origin: http://evil.example",
            "Origin: null",
            "Origin: http://127.0.0.1",  # another port is another site
            "Origin: ftp://127.0.0.1:8086",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
        ):
            self.assertEqual(403, self.post("/api/v1/drain", "127.0.0.1:8086", header).status, header)
        self.assertFalse(self.view.drain.is_on)

    def test_own_page_may(self) -> None:
        headers = ("Origin: http://127.0.0.1:8086", "Sec-Fetch-Site: same-origin")
        self.assertEqual(200, self.post("/api/v1/drain", "127.0.0.1:8086", *headers).status)
        self.assertTrue(self.view.drain.is_on)

    def test_name_that_is_not_ours_is_refused(self) -> None:
        """A page whose name was made to point here (DNS rebinding) is of the same origin, for the browser."""
        self.assertEqual(403, self.post("/api/v1/drain", "evil.example", "Origin: http://evil.example").status)
        self.assertFalse(self.view.drain.is_on)

    def test_node_that_is_being_stopped_can_t_be_called_back(self) -> None:
        self.view.drain.is_on, self.view.drain.can_end = True, False
        self.assertEqual(409, self.post("/api/v1/undrain").status)

    def test_balancer_says_why_it_can_t_be_drained(self) -> None:
        self.view.drain, self.view.tier = None, "balancer"
        reply = self.post("/api/v1/drain")
        self.assertEqual(409, reply.status)
        self.assertIn(b"--take-over-from", reply.body)
        self.assertEqual({"draining": None}, self.post("/api/v1/undrain").json)


class ListTests(SiteTestCase):
    """Who is connected, and how one of them is made to go."""

    def delete(self, path: str, *headers: str, peer: str = "127.0.0.1") -> Reply:
        return ask(self.site, path, method="DELETE", headers=headers, peer=peer)

    def test_viewers_sessions_and_publishers_are_listed(self) -> None:
        viewers = self.get("/api/v1/viewers").json
        self.assertEqual((1, "192.0.2.1:5001"), (viewers["count"], viewers["viewers"][0]["address"]))
        self.assertEqual("moving", self.get("/api/v1/sessions").json["sessions"][0]["state"])
        self.assertEqual("live/demo", self.get("/api/v1/publishers").json["publishers"][0]["name"])

    def test_list_is_cut_but_the_count_is_not(self) -> None:
        """A node has thousands."""
        self.view.connections.all_viewers = [attrs.evolve(VIEWER, id=str(number)) for number in range(1500)]
        for query, count in (("", 1000), ("?limit=2", 2), ("?limit=9999999999", 1500), ("?limit=x", 1000)):
            viewers = self.get(f"/api/v1/viewers{query}").json
            self.assertEqual((1500, count), (viewers["count"], len(viewers["viewers"])), query)

    def test_viewers_of_one_stream(self) -> None:
        for stream, count in (("live/demo", 1), ("live/other", 0)):
            self.assertEqual(count, self.get(f"/api/v1/viewers?stream={stream}").json["count"])

    def test_viewer_is_kicked(self) -> None:
        self.assertEqual({"kicked": "7"}, self.delete("/api/v1/viewers/7").json)
        self.assertEqual(["7"], self.view.connections.kicked)
        for other in ("8", "", "7/8", "%00"):
            self.assertEqual(404, self.delete(f"/api/v1/viewers/{other}").status, other)

    def test_publisher_is_sent_away(self) -> None:
        self.assertEqual({"dismissed": "live/demo"}, self.delete("/api/v1/publishers/live/demo").json)
        self.assertEqual(["live/demo"], self.view.connections.dismissed)
        self.assertEqual(404, self.delete("/api/v1/publishers/live/other").status)

    def test_only_who_is_on_this_machine_may(self) -> None:
        """As long as there is no token."""
        for peer in ("192.0.2.9", "10.0.0.1"):
            self.assertEqual(403, self.delete("/api/v1/viewers/7", peer=peer).status)
        self.assertEqual([], self.view.connections.kicked)

    def test_whoever_knows_the_token_may(self) -> None:
        """From wherever, and nobody else, also on this machine."""
        self.site = make_site(self.view, clock(), Guard.make(token=b"0123456789abcdef"))
        basic = base64.b64encode(b"ops:0123456789abcdef").decode()
        for wrong in (
            (),
            ("Authorization: Bearer 0123456789abcdee",),
            ("Authorization: Basic ???",),
            ("Authorization: x",),
        ):
            reply = self.delete("/api/v1/viewers/7", *wrong)
            self.assertEqual(401, reply.status, wrong)
            self.assertIn("www-authenticate", reply.headers)
        self.assertEqual([], self.view.connections.kicked)
        for right in ("Bearer 0123456789abcdef", f"Basic {basic}", f"basic {basic}"):
            reply = self.delete("/api/v1/viewers/7", f"Authorization: {right}", peer="192.0.2.9")
            self.assertEqual(200, reply.status, right)
        self.assertEqual(200, self.get("/api/v1/viewers").status)

    def test_what_is_done_is_an_event(self) -> None:
        """Somebody will ask who did it."""
        publisher = LogPublisher()
        events = EventLog(publisher)
        events.startService()
        self.patch(node, "log", Logger(observer=publisher))
        self.site = make_site(self.view, clock(), events=events)
        self.delete("/api/v1/publishers/live/demo")
        (event,) = self.get("/api/v1/events").json["events"]
        self.assertEqual(("kick", "live/demo"), (event["kind"], event["stream"]))
        self.assertEqual([], self.get(f"/api/v1/events?after={event['id']}").json["events"])


class ConnectionTests(SiteTestCase):
    """How many may ask at once."""

    def test_admin_connections(self) -> None:
        """More than the limit are closed as they come; one that goes makes room."""
        factory = BoundedFactory(self.site, 2)
        address = IPv4Address("TCP", "127.0.0.1", 1)
        first, second = (factory.buildProtocol(address) for _ in range(2))
        for protocol in (first, second):
            protocol.makeConnection(StringTransport())
        self.assertIsNone(factory.buildProtocol(address))
        first.connectionLost(Failure(ConnectionDone()))
        again = factory.buildProtocol(address)
        transport = StringTransport()
        again.makeConnection(transport)
        again.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(200, parse(transport.value()).status)


class MetricsTests(SiteTestCase):
    """``/metrics``."""

    def samples(self) -> dict[str, float]:
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            self.assertTrue(family.documentation, f"{family.name} has no help")
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    def test_node_and_streams_are_measured(self) -> None:
        samples = self.samples()
        expected = {
            f"relay_node_info{{node=agg1,tier=aggregator,version={__version__}}}": 1,
            "relay_node_state{state=normal}": 1,
            "relay_node_state{state=down}": 0,
            "relay_viewers{}": 3,
            "relay_stream_live{stream=live/demo}": 1,
            "relay_stream_start_bytes{epoch=7,stream=live/demo}": 100,
            "relay_stream_end_bytes{epoch=7,stream=live/demo}": 1100,
            "relay_stream_bytes_per_second{stream=live/demo}": 31_250,
            "relay_stream_viewers{stream=live/demo}": 3,
            "relay_link_up{endpoint=tcp:127.0.0.1:1941,link=a1}": 1,
            "relay_link_up{endpoint=tcp:127.0.0.1:1942,link=a2}": 0,
        }
        self.assertEqual(expected, {name: samples.get(name) for name in expected})

    def test_what_only_a_tier_counts_is_there_too(self) -> None:
        """Counters end in ``_total``; gauges do not."""
        self.view.all_metrics = (
            Metric(name="missing_bytes", help="Bytes nobody had.", values={"": 12}),
            Metric(name="connections_closed", help="By how.", values={"closed": 4, "evicted": 1}, label="outcome"),
            Metric(name="held_viewers", help="Waiting.", values={"": 2}, is_counter=False),
        )
        samples = self.samples()
        expected = {
            "relay_missing_bytes_total{}": 12,
            "relay_connections_closed_total{outcome=closed}": 4,
            "relay_connections_closed_total{outcome=evicted}": 1,
            "relay_held_viewers{}": 2,
        }
        self.assertEqual(expected, {name: samples.get(name) for name in expected})

    def test_memory_of_the_process_is_there(self) -> None:
        self.assertGreater(self.samples()["process_resident_memory_bytes{}"], 1 << 20)

    def test_two_nodes_of_one_process_do_not_mix(self) -> None:
        """Nothing is registered globally."""
        other = make_site(FixedView(name="agg2", all_streams=()), clock())
        self.assertNotIn(b"live/demo", ask(other, "/metrics").body)
        self.assertIn(b'node="agg1"', self.get("/metrics").body)

    def test_openmetrics_is_spoken_to_those_who_ask(self) -> None:
        reply = ask(self.site, "/metrics", headers=["Accept: application/openmetrics-text; version=1.0.0"])
        self.assertTrue(reply.headers["content-type"].startswith("application/openmetrics-text"))
        self.assertTrue(reply.body.endswith(b"# EOF\n"))


class HttpTests(SiteTestCase):
    """Methods, paths and headers."""

    def test_every_page_is_there(self) -> None:
        self.assertEqual([200] * len(PAGES), [self.get(path).status for path in PAGES])

    def test_every_answer_has_the_headers_that_protect_a_browser(self) -> None:
        """Errors too: they are shown on the same origin."""
        for reply in (*map(self.get, PAGES), self.get("/nowhere"), self.get("/", method="DELETE")):
            self.assertIn("default-src 'none'", reply.headers["content-security-policy"])
            self.assertEqual("nosniff", reply.headers["x-content-type-options"])
            self.assertEqual("DENY", reply.headers["x-frame-options"])
            self.assertEqual("relay", reply.headers["server"])
            self.assertNotIn("access-control-allow-origin", reply.headers)

    def test_unknown_paths_are_404(self) -> None:
        for path in ("/nowhere", "/api/v1", "/healthz/", "//healthz", "/static/page.css", "/..%2fetc/passwd"):
            self.assertEqual(404, self.get(path).status, path)

    def test_query_does_not_change_the_page(self) -> None:
        self.assertEqual(200, self.get("/healthz?verbose=1").status)

    def test_other_methods_are_405_and_change_nothing(self) -> None:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            reply = self.get("/healthz", method=method)
            self.assertEqual((405, "GET, HEAD"), (reply.status, reply.headers["allow"]), method)

    def test_head_is_get_without_the_body(self) -> None:
        head, get = self.get("/api/v1/node", method="HEAD"), self.get("/api/v1/node")
        self.assertEqual((200, b""), (head.status, head.body))
        self.assertEqual(str(len(get.body)), head.headers["content-length"])

    def test_host_header_decides_nothing_of_what_is_shown(self) -> None:
        """Checks and scrapers come by any name."""
        for host in ("relay.example", "127.0.0.1:8081", "[::1]", "evil.example"):
            self.assertEqual(self.get("/healthz").body, self.get("/healthz", host=host).body)

    def test_head_that_is_too_long_is_cut_off(self) -> None:
        """twisted.web's own bound holds here."""
        transport = send(self.site, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000)
        self.assertEqual((b"", True), (transport.value(), transport.disconnecting))

    def test_headers_and_numbers_may_be_anything(self) -> None:
        """What is not UTF-8, and a number of more digits than Python reads: an answer, and no fault of ours."""
        strange = b"Host: \xff\r\nAccept: \xff\r\nAuthorization: Basic \xff\r\nConnection: close\r\n\r\n"
        self.site = make_site(self.view, clock(), Guard.make(token=b"0123456789abcdef"))
        for request, status in (
            (b"GET /metrics HTTP/1.1\r\n", 200),
            (b"DELETE /api/v1/viewers/7 HTTP/1.1\r\n", 403),
            (b"DELETE /api/v1/viewers/7 HTTP/1.1\r\nHost: localhost\r\n", 401),
        ):
            head = request + (strange.partition(b"\r\n")[2] if b"Host" in request else strange)
            reply = parse(send(self.site, head).value(), request.split()[0].decode())
            self.assertEqual(status, reply.status, request)
        self.assertEqual(200, self.get(f"/api/v1/viewers?limit={'9' * 5_000}").status)
        self.assertEqual([], self.get(f"/api/v1/events?after={'9' * 5_000}").json["events"])
        self.assertEqual([], self.view.connections.kicked)

    def test_body_of_a_request_is_kept_nowhere(self) -> None:
        """twisted.web would put it into a temporary file, however long it is."""
        body = b"x" * 200_000
        head = f"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        kept: list[int] = []
        self.site.requestFactory = observed_request(kept)
        self.assertEqual(405, parse(send(self.site, head.encode() + body).value(), "POST").status)
        self.assertEqual([0], kept)


class PageTests(SynchronousTestCase):
    """The static files."""

    def setUp(self) -> None:
        folder = files("relay.admin").joinpath("static")
        self.texts = {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}

    def test_nothing_comes_from_elsewhere(self) -> None:
        """The page works on a machine without a way out, and tells nobody that it was looked at."""
        pages, scripts = {"cluster.html", "node.html", "watch.html"}, {"page.js", "topology.js", "watch.js"}
        self.assertEqual({"page.css", "openapi.json", *pages, *scripts}, set(self.texts))
        for name, text in self.texts.items():
            others = re.sub("http://www.w3.org/2000/svg", "", text)  # a name, which nobody asks for
            self.assertEqual([], re.findall(r"(?:https?:)?//[a-z0-9]+\.", others), name)

    def test_names_are_never_taken_for_markup(self) -> None:
        """A stream called <script> is a name."""
        for name in ("page.js", "topology.js", "watch.js"):
            for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
                self.assertNotIn(forbidden, self.texts[name])

    def test_pages_work_under_the_policy(self) -> None:
        """No inline script, style or handler: the policy would stop them."""
        for name in ("cluster.html", "node.html", "watch.html"):
            self.assertEqual([], re.findall(r"<style|style=|\son[a-z]+=|<script(?! src=)", self.texts[name]), name)
