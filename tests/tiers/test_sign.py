"""``relay-sign`` and the options that go with it, from a shell."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from twisted.trial.unittest import SynchronousTestCase

from relay.names import StreamName
from relay.net.access import PLAY, PUBLISH
from relay.net.signing import read_signing_keys
from relay.tiers.aggregator import Options as AggregatorOptions
from relay.tiers.origin import Options as OriginOptions
from relay.tiers.sign import main

NOW = 1_800_000_000
SHOW = StreamName("live", "show")


class SignTestCase(SynchronousTestCase):
    """A file of keys."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp()).absolute()
        self.file.touch(0o600)
        self.file.write_text("a key of this test alone\n")

    def run_sign(self, *words: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["--key-file", str(self.file), *words], now=lambda: NOW + 0.7)
        return status, out.getvalue().strip(), err.getvalue()


class SignTests(SignTestCase):
    """URLs, and what is none."""

    def test_url_is_signed_for_a_time(self) -> None:
        for words, expires in (
            (("--for", "2h"), NOW + 7200),
            (("--for", "90"), NOW + 90),
            (("--for", "7d"), NOW + 604_800),
            (("--until", "2027-01-16T00:00:00Z"), 1_800_057_600),
            (("--until", "1900000000"), 1_900_000_000),
        ):
            status, url, _ = self.run_sign(*words, "rtmp://host/live/show")
            grant = read_signing_keys("", str(self.file)).verify(PLAY, SHOW, dict(parse_qsl(urlsplit(url).query)))
            self.assertEqual((0, expires), (status, grant and grant.expires), words)

    def test_to_publish_and_from_one_network(self) -> None:
        _, url, _ = self.run_sign("--publish", "--for", "1h", "--address", "192.0.2.0/24", "rtmp://host/live/show")
        grant = read_signing_keys("", str(self.file)).verify(PUBLISH, SHOW, dict(parse_qsl(urlsplit(url).query)))
        self.assertEqual("192.0.2.0/24", grant and grant.ip)

    def test_what_is_wrong_is_one_line(self) -> None:
        good = "rtmp://host/live/show"
        for words, said in (
            (("--for", "2 weeks", good), "--for '2 weeks' is no time"),
            (("--for", "0", good), "--for '0' is no time"),
            (("--for", "99999999d", good), "--for 99999999d: "),
            (("--until", "tomorrow", good), "--until 'tomorrow' is no date"),
            (("--for", "1h", "--address", "host", good), "--address 'host'"),
            (("--for", "1h", "http://host/live/show"), "does not end with .flv"),
            (("--for", "1h", "rtmp://host/../show"), "application"),
        ):
            status, out, err = self.run_sign(*words)
            self.assertEqual((2, "", 1), (status, out, err.count("\n")), words)
            self.assertIn(said, err)


class OptionTests(SignTestCase):
    """Of nodes: what goes together, and what is wrong, in one line."""

    def refusal(self, kind: type, *words: str) -> str:
        err = io.StringIO()
        self.patch(__import__("sys"), "__stderr__", err)
        options = kind()
        self.assertRaises(SystemExit, options.parseOptions, ["--name", "x", *words])
        return err.getvalue()

    def test_good_ones(self) -> None:
        options = AggregatorOptions()
        words = [
            "--sign-play",
            "--sign-key-file",
            str(self.file),
            "--allow-play",
            "192.0.2.0/24",
            "--on-play",
            "http://b/x",
        ]
        options.parseOptions(["--name", "agg1", "--pair", "a=tcp:h:1", *words])
        settings = options.settings()
        self.assertEqual((frozenset({PLAY}), {"on_play": "http://b/x"}), (settings.access.signed, settings.hooks.urls))
        self.assertFalse(settings.access.are_none)

    def test_bad_ones(self) -> None:
        for words, said in (
            (("--sign-publish",), "--sign-publish wants --sign-key-file"),
            (("--hook-failure", "maybe"), "--hook-failure 'maybe' is none of deny, allow"),
            (("--hook-seconds", "60"), "--hook-seconds 60: must be above 0, up to 15"),
            (("--on-publish", "ftp://secret/"), "--on-publish: must be http://HOST/PATH"),
            (("--allow-publish", "nonsense"), "--allow-publish: "),
        ):
            line = self.refusal(OriginOptions, *words)
            self.assertIn(said, line)
            self.assertEqual(1, line.count("\n"))
        self.assertNotIn("secret", self.refusal(OriginOptions, "--on-publish", "ftp://secret/"))
