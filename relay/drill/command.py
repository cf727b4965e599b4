"""The command line of the drill: ``relay-drill``, or ``python -m relay.drill``.

Owns the options, what is printed, and the exit status: 0 if the promise held, 1 if it was broken, 2 if the drill could
not be held.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

from relay import __version__
from relay.drill.against import Watch
from relay.drill.drill import Drill, plan
from relay.drill.faults import FAULTS, FaultFailed, enter_namespace, prepare_cuts, why_no_cut
from relay.drill.publisher import StampedPublisher
from relay.drill.report import Row, heading, line, total, verdict
from relay.drill.rig import Rig
from relay.errors import ConfigError, NameRefused, RelayError
from relay.names import StreamName
from relay.net.urls import parse_rtmp_url

BUSY_SECONDS = 0.1  # a drill that was itself late by so much says so
DESCRIPTION = """\
Starts a relay of real processes on this machine (an origin, two pairs of distributors, two aggregators, a balancer),
publishes a stream whose messages are numbered, lets viewers watch it over RTMP and HTTP-FLV, and breaks every node in
turn: kill -9, SIGSTOP for 5 s, SIGTERM, and, as root, a silent cut of its network for 2 s. A row a fault is printed:
what the viewers saw, their longest pause, and when all was normal again. It takes about 3 minutes.
"""
EPILOG = """\
What is promised: no viewer is cut or sees a message missing, twice or out of order when a distributor or an aggregator
dies. When the origin dies: nobody is cut, nothing comes twice (what the encoder could not deliver is missing, and
stands in brackets). When the balancer dies: who comes again is served. Exit status: 0 if that held, 1 if not, 2 if the
drill could not be held.
"""


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(prog="relay-drill", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"relay-drill {__version__}")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NODE",
        help="break this node, or all of this tier; may be repeated",
    )
    parser.add_argument(
        "--faults", default=",".join(FAULTS), metavar="LIST", help=f"which, of {','.join(FAULTS)} (default: all)"
    )
    parser.add_argument("--viewers", type=int, default=6, metavar="N", help="of each protocol and stream (default: 6)")
    parser.add_argument(
        "--read", default="active-standby", choices=["active-standby", "merge"], help="how aggregators read a pair"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the rows there, too; - for standard output, in their place"
    )
    parser.add_argument("--log", metavar="FILE", help="write what the nodes log there")
    against = parser.add_argument_group("a cluster that runs already, which you break yourself")
    against.add_argument("--against", metavar="HOST:PORT", help="watch there instead, until Ctrl-C")
    against.add_argument(
        "--stream", default="live/demo", metavar="APP/NAME", help="what is watched (default: live/demo)"
    )
    against.add_argument(
        "--publish",
        metavar="URL",
        help="publish the numbered stream there first (rtmp://ORIGIN/APP/NAME, the same stream); "
        "without it only timestamps can be judged",
    )
    against.add_argument("--seconds", type=float, metavar="S", help="end after so long")
    return parser


def main() -> None:
    """Parse, enter a namespace if nodes are to be cut off, and hand over to Twisted."""
    parser = make_parser()
    options = parser.parse_args()
    try:
        faults = check(options)
    except ConfigError as error:
        parser.error(str(error))
    out = sys.stderr if options.json == "-" else sys.stdout
    if options.against is None and "cut" in faults:
        faults = with_cuts(faults, out)
        if not faults:
            raise SystemExit(2)
    log = open(options.log, "w", encoding="utf-8") if options.log else None  # noqa: SIM115 (until the process ends)
    observers = [] if log is None else [textFileLogObserver(log)]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False, discardBuffer=True)
    react(lambda reactor: Deferred.fromCoroutine(hold(reactor, options, faults, out)))


def check(options: argparse.Namespace) -> list[str]:
    """The faults that are meant.

    Raises:
        ConfigError: an option can't be used.
    """
    faults = [fault for fault in options.faults.split(",") if fault]
    for fault in faults:
        if fault not in FAULTS:
            raise ConfigError(f"--faults {fault!r} is none of {', '.join(FAULTS)}")
    if not faults:
        raise ConfigError("--faults: none is given")
    if options.viewers < 1:
        raise ConfigError(f"--viewers {options.viewers}: must be 1 or more")
    try:
        options.stream = StreamName.parse(options.stream)
        options.publish = options.publish and parse_rtmp_url(options.publish)
    except (NameRefused, ConfigError) as error:
        raise ConfigError(f"--stream or --publish: {error}") from None
    if options.against is not None:
        host, _, port = options.against.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"--against {options.against!r} is not HOST:PORT")
        options.against = host.strip("[]"), int(port)
    return faults


def with_cuts(faults: list[str], out: IO[str]) -> list[str]:
    """The same faults, after entering a namespace; or those that can be had without one."""
    why = why_no_cut()
    if why is None:
        try:
            enter_namespace()
        except FaultFailed as error:
            why = str(error)
    if why is None:
        return faults
    out.write(f"no node is cut off the network: {why}\n")
    return [fault for fault in faults if fault != "cut"]


async def hold(reactor: Any, options: argparse.Namespace, faults: Sequence[str], out: IO[str]) -> None:
    """Hold the drill; ends the process with its status."""
    reactor.seconds = time.monotonic
    try:
        if options.against is not None:
            rows = [await watch(reactor, options, out)]
        else:
            rows = await drill(reactor, options, faults, out)
    except (RelayError, OSError) as error:
        sys.stderr.write(f"relay-drill: {error}\n")
        raise SystemExit(2) from None
    is_kept, sentence = verdict(rows)
    out.write(f"{sentence}\n")
    if options.json:
        text = json.dumps({"kept": is_kept, "rows": [row.to_json() for row in rows]}, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text, encoding="utf-8")
    raise SystemExit(0 if is_kept else 1)


async def drill(reactor: Any, options: argparse.Namespace, faults: Sequence[str], out: IO[str]) -> list[Row]:
    """A cluster of our own.

    Raises:
        RelayError: it does not run.
    """
    is_tty = out.isatty()

    def begin(what: str) -> None:
        if is_tty:
            out.write(f"\r\x1b[K{what} ...")
            out.flush()

    def show(row: Row) -> None:
        out.write(f"\r\x1b[K{line(row, is_tty)}\n" if is_tty else f"{line(row)}\n")
        out.flush()

    with tempfile.TemporaryDirectory(prefix="relay-drill-") as directory:
        rig = Rig(reactor, Path(directory), options.read)
        steps = list(plan(rig, faults, options.only))
        if options.only and not steps:
            raise ConfigError(f"--only {', '.join(options.only)}: there are {', '.join(rig.nodes)}")
        if "cut" in faults:
            await prepare_cuts()
        out.write(f"{heading()}\n")
        held = Drill(reactor, rig, options.viewers, begin, show)
        reactor.callWhenRunning(on_signals, lambda: reactor.callFromThread(held.interrupt))
        await held.run(steps)
    out.write(f"{line(total(held.rows))}\n")
    if held.longest_lag > BUSY_SECONDS:
        out.write(f"this machine was busy: the drill itself was late by up to {held.longest_lag * 1000:.0f} ms\n")
    return held.rows


def on_signals(do: Callable[[], None]) -> None:
    """Do this, in place of what the reactor does, when somebody wants the drill to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: do())


async def watch(reactor: Any, options: argparse.Namespace, out: IO[str]) -> Row:
    """A cluster that runs already.

    Raises:
        NobodyServed: nobody is served there.
    """
    publisher = None
    if options.publish:
        url = options.publish
        publisher = StampedPublisher(reactor, url.host, url.endpoint(reactor), StreamName(url.app, url.stream))

    def say(text: str) -> None:
        out.write(f"{text}\n")
        out.flush()

    host, port = options.against
    watched = Watch(reactor, host, port, options.stream, options.viewers, publisher, say)
    signal.signal(signal.SIGINT, lambda *_: reactor.callFromThread(watched.stop))
    row = await watched.run(options.seconds)
    out.write(f"{heading()}\n{line(row)}\n")
    return row
