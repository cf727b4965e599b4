"""Who may change a node by its admin site."""

from __future__ import annotations

import socket

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.admin.guard import Guard


class GuardTests(SynchronousTestCase):
    """By Host, Origin and Sec-Fetch-Site."""

    guard = Guard(frozenset({"agg1", "agg1.example"}))

    def is_refused(self, host: str | None, origin: str | None = None, fetch_site: str | None = None) -> bool:
        return self.guard.objection(host, origin, fetch_site) is not None

    def test_addresses_localhost_and_own_names_are_ours(self) -> None:
        """However an operator writes them."""
        for host in (
            "127.0.0.1", "192.0.2.7:8081", "[::1]", "[2001:db8::1]:8081", "localhost", "LOCALHOST:80",
            "agg1.localhost:8081", "agg1", "AGG1.example:8081", "agg1.example.",
        ):  # fmt: skip
            self.assertFalse(self.is_refused(host), host)

    def test_all_other_names_are_not(self) -> None:
        """Nor what is no name at all."""
        for host in (
            None, "", ":80", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "agg1.evil.example",
            "evil-localhost", "127.0.0.1@evil.example", "[::1].evil.example", "[::1", "agg1:80:80", "a b", "1",
        ):  # fmt: skip
            self.assertTrue(self.is_refused(host), host)

    def test_origin_must_be_the_site_itself(self) -> None:
        for host, origin in (
            ("127.0.0.1:8081", "http://127.0.0.1:8081"),
            ("agg1.example", "https://agg1.example"),
            ("agg1.example:443", "https://AGG1.example"),
            ("agg1", "http://agg1:80"),
        ):
            self.assertFalse(self.is_refused(host, origin), origin)
        for host, origin in (
            ("127.0.0.1:8081", "http://127.0.0.1:8082"),
            ("127.0.0.1:8081", "null"),
            ("127.0.0.1:8081", ""),
            ("127.0.0.1:8081", "127.0.0.1:8081"),
            ("agg1", "chrome-extension://agg1"),
            ("agg1", "http://agg1.evil.example"),
        ):
            self.assertTrue(self.is_refused(host, origin), origin)

    def test_browser_that_says_that_a_request_comes_from_elsewhere_is_believed(self) -> None:
        self.assertEqual(
            [False, False, True, True, True],
            [
                self.is_refused("agg1", None, site)
                for site in ("same-origin", "none", "same-site", "cross-site", "anything")
            ],
        )

    def test_machine_s_own_name_and_those_of_the_operator_are_taken(self) -> None:
        guard = Guard.make(["Ops.Example."])
        for name in (socket.gethostname(), "ops.example"):
            self.assertIsNone(guard.objection(name, None, None), name)
        self.assertIsNotNone(guard.objection("ops.example.evil.example", None, None))


@given(host=st.text(max_size=40), origin=st.none() | st.text(max_size=40))
@settings(deadline=None)
def test_nothing_that_is_sent_raises(host, origin):
    """The answer is a refusal, never an error."""
    Guard(frozenset()).objection(host, origin, None)


@given(
    label=st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), ours=st.sampled_from(["127.0.0.1", "localhost", "agg1"])
)
@settings(deadline=None)
def test_no_name_below_another_domain_is_ours(label, ours):
    """Whatever an attacker can register."""
    guard = Guard(frozenset({"agg1"}))
    for host in (f"{ours}.{label}.example", f"{label}.example"):
        assert guard.objection(host, None, None) is not None
