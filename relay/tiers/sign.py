"""``relay-sign``: make a URL that may be published to, or played, until a time.

    relay-sign --key-file keys --for 2h rtmp://relay.example.org/live/show
    relay-sign --key-file keys --for 7d --publish rtmp://relay.example.org/live/show
    relay-sign --key-file keys --until 2027-01-01T00:00:00Z --address 192.0.2.7 http://relay.example.org/live/show.flv

Owns the command line; what is signed is :mod:`relay.net.signing`'s.  Exit status: 0, or 2 with one line of what is
wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network

from relay import __version__
from relay.errors import ConfigError
from relay.net.access import PLAY, PUBLISH
from relay.net.signing import Grant, read_signing_keys, stream_of_url

LATEST = 10**12 - 1  # seconds since 1970: what nodes read has 12 digits
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> int:
    """ "90", "90s", "15m", "2h", "7d".

    Raises:
        ConfigError: it is no time.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--for {text!r} is no time such as 90s, 15m, 2h or 7d")
    return int(match[1]) * UNITS[match[2] or "s"]


def moment_of(text: str) -> int:
    """Seconds since 1970, or a date with a time zone.

    Raises:
        ConfigError: it is none.
    """
    if re.fullmatch(r"[0-9]{1,12}", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--until {text!r} is no date such as 2027-01-01T00:00:00Z") from None
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="relay-sign",
        description="Sign a URL, so that nodes that are told --sign-play or --sign-publish let in who has it. It is "
        "checked when somebody comes; who is there may stay when it expires.",
    )
    parser.add_argument("url", metavar="URL", help="rtmp[s]://HOST/APP/NAME or http[s]://HOST/APP/NAME.flv")
    parser.add_argument(
        "--key-file", required=True, metavar="FILE", help="as the nodes' --sign-key-file; the first signs"
    )
    parser.add_argument("--publish", action="store_true", help="to publish; without it to play")
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--for", dest="seconds", metavar="TIME", help="from now on: 90s, 15m, 2h, 7d")
    when.add_argument("--until", metavar="DATE", help="2027-01-01T00:00:00Z, or seconds since 1970")
    parser.add_argument("--address", metavar="ADDRESS", help="the one address or network (CIDR) that may use it")
    parser.add_argument("--version", action="version", version=f"relay-sign {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None, now: Callable[[], float] = time.time) -> int:
    """Run the command; its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        keys = read_signing_keys("--key-file", options.key_file)
        try:
            network = None if options.address is None else ip_network(options.address)
        except ValueError as error:
            raise ConfigError(f"--address {error}") from None
        expires = moment_of(options.until) if options.until else int(now()) + seconds_of(options.seconds)
        if expires > LATEST:
            raise ConfigError(f"--for {options.seconds}: that is longer than {LATEST} seconds since 1970")
        action = PUBLISH if options.publish else PLAY
        name = stream_of_url(options.url)
        print(keys.mint(options.url, Grant(action=action, name=name, expires=expires, network=network)))
    except ConfigError as error:
        sys.stderr.write(f"relay-sign: {error}\n")
        return 2
    return 0
