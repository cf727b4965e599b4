"""Which streams go where; and that no complaint repeats a key."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError
from relay.names import StreamName
from relay.net.forward_rules import parse_rule, read_rules_file
from relay.net.target_clock import TargetClock

SHOW = StreamName("live", "show")


class RuleTests(SynchronousTestCase):
    """``PATTERN=URL``."""

    def test_names_are_put_into_the_url(self) -> None:
        rule = parse_rule("live/*=rtmps://platform.example/{app}/x-{name}?key=s3cret")
        self.assertTrue(rule.matches(SHOW))
        self.assertFalse(rule.matches(StreamName("other", "show")))
        url = rule.url_of(SHOW)
        self.assertEqual(
            ("rtmps://platform.example:443", "live", "x-show?key=s3cret"), (url.server, url.app, url.stream)
        )

    def test_what_is_no_rule_is_refused_without_its_key(self) -> None:
        for text in (
            "rtmp://host/live/s3cret",
            "live/*=http://host/live/s3cret",
            "live/*=rtmp://host/s3cret",
            "live/*=rtmp://{name}.example/live/s3cret",
            "live/*=rtmp://host/live/{key}s3cret",
            "live/*=rtmp://user:s3cret@host/live/x",
            "live/*=",
            "live/a b=rtmp://host/live/s3cret",
        ):
            error = self.assertRaises(ConfigError, parse_rule, text)
            self.assertNotIn("s3cret", str(error))

    def test_rule_shows_no_key(self) -> None:
        self.assertNotIn("s3cret", repr(parse_rule("live/*=rtmp://host/live/s3cret")))

    def test_file(self) -> None:
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_text("# where to\n\nlive/*   = rtmp://host/live/{name}\nnews/*=rtmp://other/live/x\n")
        rules = read_rules_file("--forward-file", str(path))
        self.assertEqual(["live/*", "news/*"], [rule.pattern for rule in rules])
        self.assertEqual("rtmp://host:1935", rules[0].url_of(SHOW).server)
        path.write_text("live/*=nonsense s3cret\n")
        error = self.assertRaises(ConfigError, read_rules_file, "--forward-file", str(path))
        self.assertIn("line 1", str(error))
        self.assertNotIn("s3cret", str(error))
        path.chmod(0o644)
        self.assertRaises(ConfigError, read_rules_file, "--forward-file", str(path))


class ClockTests(SynchronousTestCase):
    """Times from 0 on."""

    def test_distances_stay_and_what_was_before_is_left_out(self) -> None:
        clock = TargetClock(5000)
        self.assertEqual([0, None, 23, 40], [clock.of_frame(time) for time in (5000, 4990, 5023, 5040)])

    def test_over_32_bits(self) -> None:
        """For a connection that lasts."""
        start = (1 << 32) - 20
        clock = TargetClock(start)
        self.assertEqual([0, 20, 40], [clock.of_frame(time & 0xFFFFFFFF) for time in (start, start + 20, start + 40)])

    def test_headers_have_the_time_of_the_frames(self) -> None:
        """But for metadata, whose time is 0 in the log."""
        clock = TargetClock(60_000)
        self.assertEqual((0, 0), (clock.of_other(60_000), clock.of_other(0)))
        clock.of_frame(61_000)
        self.assertEqual((1000, 1020), (clock.of_other(0), clock.of_other(61_020)))

    def test_epoch_whose_time_goes_back_does_not_take_ours_back(self) -> None:
        clock = TargetClock(60_000)
        clock.of_frame(60_500)
        clock.cross()
        self.assertEqual([501, 541], [clock.of_frame(time) for time in (0, 40)])
