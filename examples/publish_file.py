"""Publish an FLV file, each frame in its time, as an encoder does.

    python examples/publish_file.py clip.flv rtmp://127.0.0.1:1935/live/demo
    python examples/publish_file.py --loop clip.flv rtmp://127.0.0.1:1935/live/demo

Once, or in a loop with timestamps that go on over the seam.  If the connection is lost, or the name is taken, it says
so and tries again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

from relay.limits import DEFAULT_LIMITS
from relay.names import StreamName
from relay.net.publisher import PublisherService
from relay.net.rtmp_client import ClientSettings
from relay.net.urls import parse_rtmp_url


async def publish(reactor: Any, options: argparse.Namespace) -> None:
    """Publish until the file ends (or for ever)."""
    url = parse_rtmp_url(options.url)
    publisher = PublisherService(
        [(f"{url.host}:{url.port}", url.endpoint(reactor))],
        StreamName(url.app, url.stream),
        options.file.read_bytes(),
        ClientSettings(limits=DEFAULT_LIMITS, clock=reactor),
        turns=None if options.loop else 1,
    )
    publisher.startService()
    await publisher.when_finished()


def main() -> None:
    """Read the command line, then hand over to Twisted."""
    parser = argparse.ArgumentParser(description="Publish an FLV file to an RTMP server.")
    parser.add_argument("--loop", action="store_true", help="begin again at the end, for ever")
    parser.add_argument("file", type=Path, help="an FLV file (ffmpeg -i FILE -c copy clip.flv makes one)")
    parser.add_argument("url", help="rtmp://HOST[:PORT]/APP/NAME")
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    react(lambda reactor: publish(reactor, parser.parse_args()))


if __name__ == "__main__":
    main()
