"""Who may publish and play: the rules, in their order, and what a connection is told."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError
from relay.names import StreamName
from relay.net.access import (
    PLAY,
    PUBLISH,
    Access,
    AccessRefused,
    AccessRequest,
    AccessRules,
    BackEnd,
    PublishKeys,
    Visits,
    read_publish_keys,
)
from relay.net.signing import Grant, SigningKeys

SHOW = StreamName("live", "show")
KEYS = SigningKeys((b"a key of sixteen bytes",))
NOW = 1_800_000_000.0


def request(action: str = PLAY, peer: str = "192.0.2.7:5000", **query: str) -> AccessRequest:
    return AccessRequest(action=action, name=SHOW, peer=peer, query=query)


def signed(action: str = PLAY, seconds: int = 60, network: Any = None) -> dict[str, str]:
    return KEYS.sign(Grant(action=action, name=SHOW, expires=int(NOW) + seconds, network=network))


class RuleTests(SynchronousTestCase):
    """What is checked at the node."""

    def refused(self, rules: AccessRules, asked: AccessRequest) -> str:
        return self.assertRaises(AccessRefused, rules.check, asked, NOW).reason

    def test_without_rules_everybody_may(self) -> None:
        AccessRules().check(request(PUBLISH), NOW)
        self.assertTrue(AccessRules().are_none)

    def test_denied_networks_are_refused_and_then_only_allowed_ones_let_in(self) -> None:
        """Also of IPv4 addresses that come as IPv6; for each action by itself."""
        allowed = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]
        rules = AccessRules(allow={PLAY: allowed}, deny={PLAY: [ip_network("192.0.2.9")]})
        for peer in ("192.0.2.7:1", "::ffff:192.0.2.7:1", "2001:db8::1:1", "unix:0"):
            rules.check(request(peer=peer), NOW)
        for peer in ("192.0.2.9:1", "198.51.100.1:1", "::ffff:192.0.2.9:1"):
            self.assertEqual("address", self.refused(rules, request(peer=peer)))
        rules.check(request(PUBLISH, peer="198.51.100.1:1"), NOW)

    def test_publish_key_is_of_the_pattern(self) -> None:
        rules = AccessRules(publish_keys=PublishKeys([("live/*", b"for all of live"), ("other/*", b"for the other")]))
        rules.check(request(PUBLISH, key="for all of live"), NOW)
        for query in ({}, {"key": ""}, {"key": "for the other"}, {"key": "for all of liv\udcff"}):
            self.assertEqual("key", self.refused(rules, request(PUBLISH, **query)))
        rules.check(request(PLAY), NOW)

    def test_signed_url_until_it_expires_from_its_address(self) -> None:
        rules = AccessRules(signing=KEYS, signed=frozenset({PLAY}))
        rules.check(request(**signed()), NOW)
        rules.check(request(**signed(network=ip_network("192.0.2.0/28"))), NOW)
        rules.check(request(PUBLISH), NOW)
        for_one = signed(network=ip_network("192.0.2.7"))
        rules.check(request(peer="::ffff:192.0.2.7:5000", **for_one), NOW)
        self.assertEqual("signature", self.refused(rules, request(peer="::ffff:192.0.2.8:5000", **for_one)))
        self.assertEqual("expired", self.refused(rules, request(**signed(seconds=0))))
        self.assertEqual("signature", self.refused(rules, request(**signed(network=ip_network("192.0.2.8")))))
        self.assertEqual("signature", self.refused(rules, request(**signed(PUBLISH))))
        self.assertEqual("signature", self.refused(rules, request()))

    def test_of_key_and_signature_one_will_do(self) -> None:
        """For encoders that can't be given a new URL each day."""
        keys = PublishKeys([("*", b"the old way")])
        rules = AccessRules(publish_keys=keys, signing=KEYS, signed=frozenset({PUBLISH}))
        rules.check(request(PUBLISH, key="the old way"), NOW)
        rules.check(request(PUBLISH, **signed(PUBLISH)), NOW)
        self.assertEqual("signature", self.refused(rules, request(PUBLISH, key="another")))

    def test_nothing_of_a_secret_is_told_or_shown(self) -> None:
        rules = AccessRules(publish_keys=PublishKeys([("*", b"the right one")]))
        asked = request(PUBLISH, key="the wrong one")
        refusal = self.assertRaises(AccessRefused, rules.check, asked, NOW)
        for text in (str(refusal), repr(asked), repr(rules)):
            self.assertNotIn("the right one", text)
            self.assertNotIn("the wrong one", text)

    def test_key_file(self) -> None:
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_text("# who may\nlive/*  the-key-of-live\n\nnews/tonight another-key\n")
        keys = read_publish_keys("--publish-key-file", str(path))
        self.assertTrue(keys.allow(SHOW, "the-key-of-live"))
        self.assertFalse(keys.allow(SHOW, "another-key"))
        for bad in ("", "live/*\n", "live/* short\n", "live/* a-good-key more\n"):
            path.write_text(bad)
            self.assertRaises(ConfigError, read_publish_keys, "--publish-key-file", str(path))
        path.chmod(0o644)
        self.assertRaises(ConfigError, read_publish_keys, "--publish-key-file", str(path))


@attrs.define
class FixedBackEnd(BackEnd):
    """Answers what a test says; ``asked`` and ``told`` are what it heard."""

    answer: Deferred[Any] = attrs.field(factory=lambda: succeed(None))
    asked: list[tuple[str, Mapping[str, Any]]] = attrs.field(factory=list)
    told: list[tuple[str, Mapping[str, Any]]] = attrs.field(factory=list)

    def wants(self, action: str) -> bool:
        return True

    def ask(self, action: str, fields: Mapping[str, Any]) -> Deferred[None]:
        self.asked.append((action, fields))
        return succeed(None).addCallback(lambda _: self.answer)  # has fired, and waits for another: as Hooks' do

    def tell(self, action: str, fields: Mapping[str, Any]) -> None:
        self.told.append((action, fields))


class VisitTests(SynchronousTestCase):
    """One connection, a back-end, and what happens meanwhile."""

    def setUp(self) -> None:
        self.back_end = FixedBackEnd()
        self.access = Access(AccessRules(deny={PLAY: [ip_network("192.0.2.9")]}), self.back_end, lambda: NOW, "agg1")
        self.visits = Visits(self.access)
        self.said: list[str] = []

    def ask(self, asked: AccessRequest | None, key: int = 1) -> None:
        say = self.said.append
        self.visits.ask(key, asked, lambda: say("in"), lambda refusal: say(refusal.reason), lambda: say("fault"))

    def test_back_end_is_asked_in_srs_words(self) -> None:
        self.ask(request(token="a b&c"))
        self.assertEqual(["in"], self.said)
        ((action, fields),) = self.back_end.asked
        self.assertEqual("on_play", action)
        told = ("192.0.2.7", "live", "show", "?token=a+b%26c", "agg1", "agg1-1")
        self.assertEqual(told, tuple(fields[key] for key in ("ip", "app", "stream", "param", "server_id", "client_id")))

    def test_who_is_refused_by_a_rule_is_not_asked_about(self) -> None:
        self.ask(request(peer="192.0.2.9:1"))
        self.assertEqual((["address"], [], {"address": 1}), (self.said, self.back_end.asked, dict(self.access.refused)))

    def test_answer_is_waited_for(self) -> None:
        self.back_end.answer = Deferred()
        self.ask(request())
        self.assertEqual(([], True), (self.said, self.visits.is_asking))
        self.back_end.answer.callback(None)
        self.assertEqual((["in"], False), (self.said, self.visits.is_asking))

    def test_no_is_counted(self) -> None:
        self.back_end.answer = fail(AccessRefused("back_end", "no"))
        self.ask(request())
        self.assertEqual((["back_end"], {"back_end": 1}), (self.said, dict(self.access.refused)))

    def test_peer_that_goes_meanwhile_is_not_waited_for(self) -> None:
        cancelled: list[object] = []
        self.back_end.answer = Deferred(cancelled.append)
        self.ask(request())
        self.visits.leave_all()
        self.assertEqual(([], 1, [], False), (self.said, len(cancelled), self.back_end.told, self.visits.is_asking))

    def test_end_of_a_visit_is_told_once(self) -> None:
        self.ask(request(PUBLISH), key=3)
        self.visits.leave(3)
        self.visits.leave_all()
        self.assertEqual(["on_publish_done"], [action for action, _ in self.back_end.told])

    def test_resumed_session_is_told_of_and_not_judged(self) -> None:
        """It was admitted at the aggregator before."""
        self.ask(attrs.evolve(request(peer="192.0.2.9:1"), is_resumed=True))
        self.assertEqual((["in"], []), (self.said, self.back_end.asked))
        self.assertEqual([("on_play", True)], [(action, fields["resumed"]) for action, fields in self.back_end.told])

    def test_nodes_of_the_cluster_are_not_asked_about(self) -> None:
        self.ask(None)
        self.visits.leave_all()
        self.assertEqual((["in"], [], []), (self.said, self.back_end.asked, self.back_end.told))

    def test_fault_costs_this_connection_alone(self) -> None:
        self.back_end.answer = fail(ZeroDivisionError())
        self.ask(request())
        self.assertEqual(["fault"], self.said)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
