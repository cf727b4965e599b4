"""Signed URLs: what was minted is let in, and whatever is changed in it is not."""

from __future__ import annotations

import hmac
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import ConfigError
from relay.names import StreamName
from relay.net.signing import Grant, SigningKeys, read_signing_keys, stream_of_url

SHOW = StreamName("live", "show")
KEY, OTHER = b"a key of sixteen bytes", b"another one of as many"
KEYS = SigningKeys((KEY,))
GRANT = Grant(action="play", name=SHOW, expires=1_800_000_000)


class SigningTests(SynchronousTestCase):
    """Keys and URLs."""

    def test_signature_is_what_the_docs_say(self) -> None:
        """So that others can mint, in a line of their own."""
        signed = b"relay-url-1\nplay\nlive/show\n1800000000\n"
        self.assertEqual(
            {"expires": "1800000000", "sig": hmac.new(KEY, signed, "sha256").hexdigest()}, KEYS.sign(GRANT)
        )

    def test_url_keeps_its_other_keys(self) -> None:
        url = KEYS.mint("rtmp://relay.example/live/show?vhost=a&expires=1&sig=old", GRANT)
        query = dict(parse_qsl(urlsplit(url).query))
        self.assertEqual({"vhost", "expires", "sig"}, set(query))
        self.assertEqual(GRANT, KEYS.verify("play", SHOW, query))

    def test_every_key_verifies_and_the_first_signs(self) -> None:
        """A new one is put first, the old one removed when its URLs have expired."""
        both = SigningKeys((OTHER, KEY))
        self.assertIsNotNone(both.verify("play", SHOW, KEYS.sign(GRANT)))
        self.assertIsNone(KEYS.verify("play", SHOW, both.sign(GRANT)))

    def test_keys_are_never_shown(self) -> None:
        self.assertNotIn("sixteen", repr(KEYS))

    def test_streams_of_urls(self) -> None:
        for url in ("rtmp://host/live/show", "rtmps://host:443/live/show?a=b", "http://host/live/show.flv"):
            self.assertEqual(SHOW, stream_of_url(url))
        for url in (
            "host/live/show",
            "ftp://host/live/show",
            "http://host/live/show",
            "rtmp://host/show",
            "rtmp://[/a/b",
        ):
            self.assertRaises(ConfigError, stream_of_url, url)

    def test_key_file(self) -> None:
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_bytes(b"# the new one\n" + OTHER + b"\n\n" + KEY + b"\n")
        self.assertIsNotNone(read_signing_keys("--sign-key-file", str(path)).verify("play", SHOW, KEYS.sign(GRANT)))
        for bad in (b"", b"# nothing\n", b"short\n"):
            path.write_bytes(bad)
            self.assertRaises(ConfigError, read_signing_keys, "--sign-key-file", str(path))


texts = st.text(max_size=20)
queries = st.dictionaries(st.sampled_from(["expires", "ip", "sig", "x"]), texts)


@given(queries)
def test_what_was_not_minted_is_not_let_in(query: dict[str, str]) -> None:
    """Nor does it raise anything."""
    assert KEYS.verify("play", SHOW, query) is None


@given(
    st.sampled_from(["publish", "play"]),
    st.sampled_from([SHOW, StreamName("live", "other"), StreamName("lives", "how")]),
    st.integers(0, 10**12 - 1),
    st.sampled_from([None, ip_network("192.0.2.7"), ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]),
    queries,
)
def test_whatever_is_changed_is_refused(
    action: str, name: StreamName, expires: int, network: object, changed: dict
) -> None:
    """Name, action, time, address: a signature is for the very ones."""
    grant = Grant(action=action, name=name, expires=expires, network=network)  # type: ignore[arg-type]
    query = KEYS.sign(grant)
    assert KEYS.verify(action, name, query) == grant
    tampered = {**query, **{key: value for key, value in changed.items() if key != "x"}}
    if tampered != query:
        assert KEYS.verify(action, name, tampered) is None
    for other in {"publish", "play"} - {action}:
        assert KEYS.verify(other, name, query) is None
    for other_name in {SHOW, StreamName("live", "other")} - {name}:
        assert KEYS.verify(action, other_name, query) is None
