"""``PATTERN=rtmp[s]://HOST[:PORT]/APP/{name}``: which streams are sent to which other server.

Owns the reading of such rules, from the command line and from a file.  The stream part of a URL is a secret key in most
cases: no message of an error repeats a URL, and no repr shows one.
"""

from __future__ import annotations

import re

import attrs

from relay.errors import ConfigError
from relay.names import StreamName
from relay.net.identity import read_private_file
from relay.net.urls import RtmpUrl, parse_rtmp_url

FORM = "PATTERN=rtmp[s]://HOST[:PORT]/APP/{name}"
_PLACE = re.compile(r"\{(app|name)\}")


@attrs.frozen
class ForwardRule:
    """Streams whose ``app/name`` matches ``pattern`` are sent to ``url``, in which ``{app}`` and ``{name}`` are the
    stream's.  The server is the same for all streams: nobody who publishes can choose it."""

    pattern: str
    url: RtmpUrl

    def matches(self, stream: StreamName) -> bool:
        """Is this stream one of them?"""
        return stream.matches((self.pattern,))

    def url_of(self, stream: StreamName) -> RtmpUrl:
        """Where this stream goes."""
        parts = {"app": stream.app, "name": stream.name}

        def fill(text: str) -> str:
            return _PLACE.sub(lambda place: parts[place[1]], text)

        return attrs.evolve(self.url, app=fill(self.url.app), stream=fill(self.url.stream))


def parse_rule(text: str) -> ForwardRule:
    """Parse one rule.

    Raises:
        ConfigError: it is none; the text names the pattern alone.
    """
    pattern, equals, url = (part.strip() for part in text.partition("="))
    if not equals or not pattern or "://" in pattern:
        raise ConfigError(f"a rule is {FORM}")
    if re.search(r"\s", pattern):
        raise ConfigError(f"{pattern}=…: there is no white space in a stream's name")
    try:
        parsed = parse_rtmp_url(url)
    except ConfigError:
        raise ConfigError(f"{pattern}=…: what follows is not rtmp[s]://HOST[:PORT]/APP/NAME") from None
    if re.search(r"[{}]", _PLACE.sub("", url)) or re.search(r"[{}]", parsed.host):
        raise ConfigError(f"{pattern}=…: {{app}} and {{name}} are replaced behind the host, and nothing else in braces")
    if "@" in url.split("/")[2]:
        raise ConfigError(f"{pattern}=…: USER:PASSWORD@ is not supported")
    return ForwardRule(pattern, parsed)


def read_rules_file(option: str, path: str) -> list[ForwardRule]:
    """Read a file of rules, one a line; empty lines and those that begin with ``#`` are passed over.

    Raises:
        ConfigError: it can't be read, others can read it, or a line is no rule.
    """
    data = read_private_file(option, path)
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {path}: not UTF-8") from None
    rules = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                rules.append(parse_rule(text))
            except ConfigError as error:
                raise ConfigError(f"{option} {path}: line {number}: {error}") from None
    return rules
