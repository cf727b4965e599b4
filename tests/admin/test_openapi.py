"""The description of the API: it is valid, it names every path, and the answers are as it says."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.cluster import make_cluster_site
from relay.admin.events import Event, EventLog
from relay.admin.node import make_site
from relay.admin.polling import Answer
from relay.admin.site import RoutedResource, static_file
from tests.admin.test_cluster import FixedCluster, report
from tests.admin.views import A1, DEMO, FixedView, ask, clock

DOCUMENT: dict[str, Any] = json.loads(static_file("openapi.json").read_text())
OTHER = re.compile(rb"/|/.*\.(js|css)|/watch|/api/v1/openapi.json")  # pages, and the document itself


class OpenApiTests(SynchronousTestCase):
    """Both sites against one document."""

    def setUp(self) -> None:
        events = EventLog()
        events.add(Event(id=5, at=1.0, kind="state", level="warn", text="a1 is down"))
        self.node = make_site(FixedView(), clock(), events=events)
        answer = Answer(state="normal", streams=[attrs.asdict(DEMO)], links=[attrs.asdict(A1)])
        nodes = [report("o1", "origin", answer), report("lb1", "balancer", answer)]
        self.cluster = make_cluster_site(FixedCluster(nodes), clock(), events)

    def test_document_is_openapi(self) -> None:
        validate(DOCUMENT)

    def test_every_path_is_described_and_no_other(self) -> None:
        described = {re.sub(r"\{.*", "", path) for path in DOCUMENT["paths"]}
        served: set[str] = set()
        for site in (self.node, self.cluster):
            resource = site.resource
            assert isinstance(resource, RoutedResource)
            served |= {path.decode() for path in resource.paths() if not OTHER.fullmatch(path)}
        self.assertEqual(described, served)

    def test_answers_are_as_described(self) -> None:
        for path, operations in DOCUMENT["paths"].items():
            for method, operation in operations.items():
                schema = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
                if schema is None:
                    continue
                validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
                example = path.format(id="7", app="live", name="demo")
                for site in (self.node, self.cluster):
                    reply = ask(site, example, method=method.upper()) if site is self.node or path in SHOWN else None
                    if reply is not None and reply.status != 404:
                        self.assertIn(str(reply.status), operation["responses"], example)
                        validator.validate(reply.json)


SHOWN = ("/healthz", "/api/v1/nodes", "/api/v1/streams", "/api/v1/events")  # by a cluster, without asking its nodes
