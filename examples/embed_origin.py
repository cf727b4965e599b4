"""Run an origin inside an application of your own: here, beside a page that lists what is live.

    python examples/embed_origin.py tcp:1935 tcp:8080

Publish to rtmp://127.0.0.1:1935/live/anything, look at http://127.0.0.1:8080/.  Both live in one process and one
reactor, so the page reads the origin's streams as they are, without an API between.
"""

from __future__ import annotations

import sys
from html import escape
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from relay.log.options import LogOptions
from relay.net.identity import NodeIdentity
from relay.net.node import NodeSettings
from relay.net.storing import StoreSettings
from relay.tiers.origin import Origin


class LivePage(Resource):
    """What is live, how fast, and how many watch."""

    isLeaf = True

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self._origin = origin

    def render_GET(self, request: Request) -> bytes:
        rows = [
            f"<li>{escape(str(stream.name))}: {stream.bits_per_second / 1000:.0f} kbit/s, {len(stream.viewers)} watch"
            for stream in self._origin.hub
            if stream.is_live
        ]
        return f"<!doctype html><title>Live</title><ul>{''.join(rows) or '<li>nothing'}</ul>\n".encode()


async def serve(reactor: Any, rtmp: str, http: str) -> None:
    """Serve both until the process is told to stop."""
    settings = NodeSettings(identity=NodeIdentity(name="embedded", tier="origin"))
    origin = Origin(settings, reactor, StoreSettings(keep=LogOptions()))  # in memory; directory="..." keeps it on disk
    origin.listen(serverFromString(reactor, rtmp))
    origin.startService()  # or origin.setServiceParent(application), where there is one
    reactor.addSystemEventTrigger("before", "shutdown", origin.stopService)
    media = (await origin.when_listening()).getHost()
    page = (await serverFromString(reactor, http).listen(Site(LivePage(origin)))).getHost()
    print(f"publish to rtmp://127.0.0.1:{media.port}/live/anything")
    print(f"look at http://127.0.0.1:{page.port}/", flush=True)
    await Deferred()  # for ever: react() ends us at SIGINT or SIGTERM


if __name__ == "__main__":
    react(serve, sys.argv[1:] if len(sys.argv) == 3 else ("tcp:1935", "tcp:8080"))
