"""RTMP URLs as operators write them."""

from __future__ import annotations

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError
from relay.net.urls import parse_rtmp_url


class UrlTests(SynchronousTestCase):
    def test_parts(self) -> None:
        for text, expected in {
            "rtmp://host/live/demo": ("rtmp", "host", 1935, "live", "demo"),
            "rtmp://host:1936/live/room/demo?key=a/b": ("rtmp", "host", 1936, "live/room", "demo?key=a/b"),
            "rtmps://host/live/demo": ("rtmps", "host", 443, "live", "demo"),
            "rtmp://[2001:db8::1]:1935/live/demo": ("rtmp", "2001:db8::1", 1935, "live", "demo"),
        }.items():
            url = parse_rtmp_url(text)
            self.assertEqual(expected, (url.scheme, url.host, url.port, url.app, url.stream))

    def test_tc_url_is_what_clients_send(self) -> None:
        for text, expected in {
            "rtmp://host/live/demo": "rtmp://host/live",
            "rtmp://host:1936/live/demo": "rtmp://host:1936/live",
            "rtmps://host:443/live/demo": "rtmps://host/live",
            "rtmp://[::1]:1936/live/demo": "rtmp://[::1]:1936/live",
        }.items():
            self.assertEqual(expected, parse_rtmp_url(text).tc_url)

    def test_stream_may_be_a_secret(self) -> None:
        url = parse_rtmp_url("rtmp://host/live/s3cret?token=s3cret")
        self.assertNotIn("s3cret", repr(url) + url.server + url.tc_url)

    def test_what_is_no_such_url_is_refused_in_one_line(self) -> None:
        for text in ("", "host/live/demo", "http://host/live/demo", "rtmp:///live/demo", "rtmp://host/demo",
                     "rtmp://host/", "rtmp://host/live/", "rtmp://host:port/live/demo", "rtmp://host:99999/live/demo",
                     "rtmp://[::1/live/demo"):  # fmt: skip
            error = self.assertRaises(ConfigError, parse_rtmp_url, text)
            self.assertNotIn("\n", str(error))

    def test_endpoint_is_made_without_connecting(self) -> None:
        reactor = MemoryReactorClock()
        self.assertIsInstance(parse_rtmp_url("rtmp://host/live/demo").endpoint(reactor), HostnameEndpoint)
        self.assertIsNotNone(parse_rtmp_url("rtmps://host/live/demo").endpoint(reactor))
        self.assertEqual([], reactor.getDelayedCalls())
