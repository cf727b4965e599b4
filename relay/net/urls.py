"""``rtmp://HOST[:PORT]/APP/NAME[?QUERY]`` as an operator writes it.

Owns the parsing and the making of an endpoint from it.  Called for ``--pull`` values.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS

from relay.errors import ConfigError

DEFAULT_PORTS = {"rtmp": 1935, "rtmps": 443}


@attrs.frozen(kw_only=True)
class RtmpUrl:
    """The parts of an RTMP URL.  The stream may be a secret key, so no repr shows it."""

    scheme: str
    host: str
    port: int
    app: str
    stream: str = attrs.field(repr=False)

    @property
    def tc_url(self) -> str:
        """What the connect command carries."""
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{port}/{self.app}"

    @property
    def server(self) -> str:
        """The server alone: what may be logged."""
        return f"{self.scheme}://{self.host}:{self.port}"

    def endpoint(self, reactor: IReactorTime) -> IStreamClientEndpoint:
        """Where to connect to."""
        endpoint = HostnameEndpoint(reactor, self.host, self.port)
        if self.scheme == "rtmps":
            return wrapClientTLS(optionsForClientTLS(self.host), endpoint)
        return endpoint


def parse_rtmp_url(text: str) -> RtmpUrl:
    """Parse a URL.  The last path part and the query are the stream, what is before it the app (``live``,
    ``live/room``).

    Raises:
        ConfigError: it is no such URL.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None
    app, _, stream = parts.path.strip("/").rpartition("/")
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or not app or not stream:
        raise ConfigError(f"{text!r} is not rtmp://HOST[:PORT]/APP/NAME")
    query = f"?{parts.query}" if parts.query else ""
    return RtmpUrl(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or DEFAULT_PORTS[parts.scheme],
        app=app,
        stream=stream + query,
    )
