"""Endpoint strings, checked without a reactor: the same verdict as Twisted's own parser."""

from __future__ import annotations

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from relay.tiers.endpoints import parse_client_endpoint, parse_server_endpoint

SERVERS = ("tcp:1935", "tcp:port=1935", "tcp:1935:interface=127.0.0.1", r"tcp6:1935:interface=\:\:1", "unix:/run/relay")
CLIENTS = (
    "tcp:127.0.0.1:1935",
    "tcp:host=10.0.0.1:port=1935",
    r"tcp:fd00\:\:1:1935",
    "tls:relay.example:443",
    "unix:/x",
)
BAD_SERVERS = ("", "1935", "tcp", "tcp:", "tcp:x", "tcp:interface=127.0.0.1", "udp:1935", "unix:", "unix:mode=666")
BAD_CLIENTS = ("", "127.0.0.1:1935", "tcp:127.0.0.1", "tcp:127.0.0.1:x", "unix:", "systemd:domain=INET:index=0")


class EndpointTests(SynchronousTestCase):
    """What is one and what is none."""

    def test_good_strings_are_good_for_twisted_too(self) -> None:
        for text in SERVERS:
            serverFromString(MemoryReactorClock(), text)
            self.assertEqual(text, parse_server_endpoint(text).text)
        for text in CLIENTS:
            clientFromString(MemoryReactorClock(), text)
            self.assertEqual(text, parse_client_endpoint(text).text)

    def test_bad_strings_are_refused(self) -> None:
        for text in BAD_SERVERS:
            self.assertRaises(ValueError, parse_server_endpoint, text)
        for text in BAD_CLIENTS:
            self.assertRaises(ValueError, parse_client_endpoint, text)

    def test_certificates_need_not_be_here(self) -> None:
        """The file describes machines that this one is not."""
        self.assertEqual(443, parse_server_endpoint("ssl:443:privateKey=/nowhere.pem").port)

    def test_escaped_colons_belong_to_the_address(self) -> None:
        self.assertEqual("::1", parse_server_endpoint(r"tcp6:1935:interface=\:\:1").address)

    def test_two_collide_when_the_second_could_not_listen(self) -> None:
        for first, second, expected in (
            ("tcp:1", "tcp:1", True),
            ("tcp:1", "tcp:2", False),
            ("tcp:0", "tcp:0", False),
            ("tcp:1", "tcp:1:interface=127.0.0.1", True),
            ("tcp:1:interface=0.0.0.0", "tcp:1:interface=127.0.0.1", True),
            ("tcp:1:interface=127.0.0.2", "tcp:1:interface=127.0.0.1", False),
            ("unix:/a", "unix:/a", True),
            ("unix:/a", "unix:/b", False),
            ("unix:/a", "tcp:1", False),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=1", False),
        ):
            one, other = parse_server_endpoint(first), parse_server_endpoint(second)
            self.assertEqual(expected, one.collides_with(other), f"{first} {second}")
            self.assertEqual(expected, other.collides_with(one), f"{second} {first}")

    def test_moved_is_the_same_with_another_port(self) -> None:
        """However it is written; a number that looks like it is left alone."""
        for text, expected in (
            ("tcp:19:interface=127.0.0.19", "tcp:21:interface=127.0.0.19"),
            ("tcp:interface=127.0.0.1:port=19", "tcp:interface=127.0.0.1:port=21"),
            ("ssl:19:privateKey=19.pem", "ssl:21:privateKey=19.pem"),
        ):
            endpoint = parse_server_endpoint(text).moved(2)
            self.assertEqual((expected, 21), (endpoint.text, endpoint.port))
