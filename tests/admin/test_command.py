"""``relay-admin``: what it prints, and the status that it ends with.  Real nodes are in ``tests/integration``."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from relay.admin.command import BAD_COMMAND, DONE, NO_ANSWER, NOT_SO, Remote, main, progress
from relay.errors import ConfigError

NODE = {"name": "agg1", "tier": "aggregator", "state": "normal", "why": [], "viewers": 1, "links": [], "draining": None}
EMPTY = {"why": "asked for", "sessions": 0, "copies": 0, "publishers": 0, "others": 0}


class FakeSite:
    """An admin site that gives the answers it was told to, the last one for ever; ``asked`` is what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(f"{self.command} {self.path}")
                site.tokens.append(self.headers["Authorization"])
                status, body = site.answers.pop(0) if len(site.answers) > 1 else site.answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def say(self, *contents: object, status: int = 200) -> None:
        """These answers, as JSON (text as it is)."""
        bodies = [
            content.encode() if isinstance(content, str) else json.dumps(content).encode() for content in contents
        ]
        self.answers += [(status, body) for body in bodies]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as error:  # argparse
            status = error.code if isinstance(error.code, int) else 0
    return status, out.getvalue(), err.getvalue()


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.site = FakeSite()
        self.addCleanup(self.site.close)

    def test_status_of_a_normal_node_is_a_line_and_success(self) -> None:
        self.site.say(NODE)
        self.assertEqual((DONE, "agg1 (aggregator) is normal, 1 viewer\n", ""), run("status", self.site.url))
        self.assertEqual(["GET /api/v1/node"], self.site.asked)

    def test_status_of_another_says_why(self) -> None:
        links = [
            {"name": "a1", "state": "down", "why": "dead"},
            {"name": "a2", "state": "up", "why": "", "role": "active"},
        ]
        self.site.say({**NODE, "state": "degraded", "why": ["pair a: a1 is down (dead)"], "viewers": 2, "links": links})
        status, out, _ = run("status", self.site.url)
        self.assertEqual(NOT_SO, status)
        self.assertEqual(
            ["agg1 (aggregator) is degraded, 2 viewers", "  pair a: a1 is down (dead)", "  a1 is down: dead",
             "  a2 is up, active"],
            out.splitlines(),
        )  # fmt: skip

    def test_status_as_json_is_everything(self) -> None:
        self.site.say(NODE)
        self.assertEqual(NODE, json.loads(run("status", "--json", self.site.url)[1]))

    def test_drain_waits_until_the_node_is_empty(self) -> None:
        """Progress is said when there is some."""
        left = [{**EMPTY, "sessions": 2, "others": 1}, {**EMPTY, "sessions": 2, "others": 1}, {**EMPTY, "others": 1}]
        self.site.say(NODE, {"draining": left[0]}, *({**NODE, "draining": report} for report in left[1:]))
        status, out, err = run("drain", self.site.url)
        self.assertEqual((DONE, ""), (status, err))
        cut = "; 1 reader can't be moved and will be cut off when it stops"
        self.assertEqual(
            [f"agg1 drains: 2 sessions left{cut}", f"agg1 drains: it is empty{cut}", "agg1 can be stopped"],
            out.splitlines(),
        )
        self.assertEqual("POST /api/v1/drain", self.site.asked[1])

    def test_drain_need_not_wait(self) -> None:
        self.site.say(NODE, {"draining": {**EMPTY, "copies": 1}})
        self.assertEqual((DONE, "agg1 drains: 1 copy left\n", ""), run("drain", "--no-wait", self.site.url))

    def test_drain_that_comes_to_no_end_is_a_failure(self) -> None:
        report = {**EMPTY, "copies": 2}
        self.site.say(NODE, {"draining": report}, {**NODE, "draining": report})
        status, _, err = run("drain", "--seconds", "0.3", self.site.url)
        self.assertEqual((NOT_SO, "relay-admin: agg1 is not empty after 0.3 s; it drains on\n"), (status, err))

    def test_drain_that_is_called_off_is_a_failure(self) -> None:
        self.site.say(NODE, {"draining": {**EMPTY, "sessions": 1}}, NODE)
        status, _, err = run("drain", self.site.url)
        self.assertEqual(NOT_SO, status)
        self.assertIn("somebody has undrained it", err)

    def test_degraded_node_serves_and_one_that_is_down_does_not(self) -> None:
        for state, status in (("normal", DONE), ("degraded", DONE), ("down", NOT_SO)):
            self.site.answers.clear()
            self.site.say({**NODE, "state": state, "why": ["a reason"]})
            self.assertEqual((status, f"agg1 is {state}\n  a reason\n", ""), run("serves", self.site.url))

    def test_undrain_says_so(self) -> None:
        self.site.say({"draining": None}, NODE)
        self.assertEqual((DONE, "agg1 does not drain\n", ""), run("undrain", self.site.url))
        self.assertEqual("POST /api/v1/undrain", self.site.asked[0])

    def test_viewer_is_kicked_and_publisher_dismissed(self) -> None:
        """With the token, if the node wants one."""
        path = Path(self.mktemp())
        path.write_text("a token of this test\n")
        self.site.say({"kicked": "7"})
        self.assertEqual((DONE, "viewer 7 is closed\n", ""), run("kick", self.site.url, "7"))
        dismissed = run("dismiss", "--token-file", str(path), self.site.url, "live/show")
        self.assertEqual((DONE, "the publisher of live/show is sent away\n", ""), dismissed)
        self.assertEqual(["DELETE /api/v1/viewers/7", "DELETE /api/v1/publishers/live/show"], self.site.asked)
        self.assertEqual([None, "Bearer a token of this test"], self.site.tokens)

    def test_refusals_say_why(self) -> None:
        """No such viewer, no token, a file that is not there."""
        self.site.say("agg1 has no viewer '7'.\n", status=404)
        self.assertEqual((NOT_SO, "", "relay-admin: agg1 has no viewer '7'.\n"), run("kick", self.site.url, "7"))
        self.site.answers.clear()
        self.site.say("This is not the token.\n", status=401)
        self.assertEqual((NOT_SO, "", "relay-admin: This is not the token.\n"), run("undrain", self.site.url))
        words = "relay-admin: --token-file /nowhere: No such file or directory\n"
        self.assertEqual((BAD_COMMAND, "", words), run("undrain", "--token-file", "/nowhere", self.site.url))

    def test_refusal_of_the_node_is_passed_on(self) -> None:
        """A balancer's, above all."""
        self.site.say(NODE)
        self.site.say("lb1 is a balancer: no.\n", status=409)
        self.assertEqual((NOT_SO, "", "relay-admin: lb1 is a balancer: no.\n"), run("drain", self.site.url))

    def test_what_is_no_node_is_no_answer(self) -> None:
        self.site.say("There is no such page here.\n", status=404)
        _, _, err = run("kick", self.site.url, "7")
        self.assertIn("is not the admin site of a node (a cluster's page", err)
        for content, status in (("<html>", 200), ({"hello": 1}, 200), ("gone", 404), ([1], 200)):
            self.site.answers.clear()
            self.site.say(content, status=status)
            exit_status, out, err = run("status", self.site.url)
            self.assertEqual((NO_ANSWER, ""), (exit_status, out), content)
            self.assertEqual(1, len(err.splitlines()))
            self.assertIn("is not the admin site of a node", err)

    def test_nobody_there_is_no_answer(self) -> None:
        self.site.close()
        status, _, err = run("status", self.site.url)
        self.assertEqual(NO_ANSWER, status)
        self.assertRegex(err, r"^relay-admin: no answer from 127\.0\.0\.1:\d+: .*refused\n$")
        self.site = FakeSite()
        self.addCleanup(self.site.close)

    def test_bad_command_lines_are_refused(self) -> None:
        for arguments in (
            (),
            ("status",),
            ("reboot", "http://x"),
            ("drain", "ftp://x"),
            ("drain", "http://x/y"),
            ("drain", "http://x:99999"),
            ("drain", "http://"),
            ("drain", "--seconds", "x", "http://x"),
        ):
            status, out, err = run(*arguments)
            self.assertEqual((BAD_COMMAND, ""), (status, out), arguments)
            self.assertTrue(err)


class WordTests(SynchronousTestCase):
    def test_url_may_come_without_its_scheme(self) -> None:
        self.assertEqual(("127.0.0.1", 8086), (Remote.parse("127.0.0.1:8086").url.hostname, 8086))
        self.assertEqual("::1", Remote.parse("http://[::1]:8086/").url.hostname)
        self.assertRaises(ConfigError, Remote.parse, "http://[::1")

    def test_progress_names_who_is_left(self) -> None:
        self.assertEqual("it is empty", progress(EMPTY))
        report = {**EMPTY, "sessions": 1, "copies": 2, "publishers": 1}
        self.assertEqual("1 session, 2 copies, 1 publisher left", progress(report))
