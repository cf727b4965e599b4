"""``relay-admin``: look at a node, drain it, undrain it, make somebody go, from a shell.

Owns the command line, what it prints and its exit status.  It speaks to the node's admin site and to nothing else, with
the standard library alone: it blocks, and there is nothing else to do meanwhile.

    relay-admin status  http://127.0.0.1:8086
    relay-admin serves  http://127.0.0.1:8086     for checks: 0 also when it is degraded
    relay-admin drain   http://127.0.0.1:8086     and come back when the node can be stopped
    relay-admin undrain http://127.0.0.1:8086
    relay-admin kick    http://127.0.0.1:8086 17            a viewer, by the id that /api/v1/viewers gives
    relay-admin dismiss http://127.0.0.1:8081 live/show     the publisher of a stream

Exit status: 0 it is so; 1 it is not (not normal; refused; not empty in time); 2 a bad command line; 3 no answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import attrs

from relay import __version__
from relay.errors import ConfigError, RelayError

DONE, NOT_SO, BAD_COMMAND, NO_ANSWER = range(4)
INTERRUPTED = 130  # as shells say it of a command that Ctrl-C has ended

NO_PAGE = "There is no such page here."  # as relay.admin.site
ANSWER_SECONDS = 5.0  # a node answers in milliseconds; one that hangs doesn't
LOOK_SECONDS = 0.2  # between two looks at a node that drains
ANSWER_BYTES = 4 << 20  # as relay.admin.fetch


class NoAnswer(RelayError):
    """Nobody is there, or it is no node."""


class Refused(RelayError):
    """The node says no, and why."""


@attrs.frozen
class Remote:
    """A node's admin site."""

    url: SplitResult
    token: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, token_file: str | None = None) -> Remote:
        """Raises :class:`ConfigError` if it is no URL of an admin site, or the file can't be read."""
        refusal = ConfigError(f"{text!r} is not the URL of an admin site, http://HOST:PORT")
        try:
            url = urlsplit(text if "://" in text else f"http://{text}")
            is_place = bool(url.hostname) and url.port != 0
        except ValueError:
            raise refusal from None
        if not is_place or url.scheme not in ("http", "https") or url.path not in ("", "/") or url.query:
            raise refusal
        return cls(url, None if token_file is None else read_token(token_file))

    def ask(self, method: str, path: str) -> Any:
        """One request; the JSON of its answer."""
        connect = HTTPSConnection if self.url.scheme == "https" else HTTPConnection
        connection = connect(self.url.hostname or "", self.url.port, timeout=ANSWER_SECONDS)
        try:
            headers = {"Accept": "application/json"}
            if self.token is not None:
                headers["Authorization"] = f"Bearer {self.token}"
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read(ANSWER_BYTES)
        except (OSError, HTTPException) as error:
            raise NoAnswer(f"no answer from {self.url.netloc}: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()
        words = body.decode("utf-8", "backslashreplace").strip()
        if answer.status == 404 and words == NO_PAGE:
            raise NoAnswer(f"{self.url.netloc} is not the admin site of a node (a cluster's page is not, either)")
        if answer.status in (401, 403, 409) or (answer.status == 404 and method == "DELETE"):
            raise Refused(words)
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if answer.status != 200 or not isinstance(content, dict):
            raise NoAnswer(f"{self.url.netloc} is not the admin site of a node (status {answer.status})")
        return content

    def node(self) -> dict[str, Any]:
        """What the node says of itself."""
        told: dict[str, Any] = self.ask("GET", "/api/v1/node")
        if not {"name", "tier", "state", "why", "viewers", "links"} <= told.keys():
            raise NoAnswer(f"{self.url.netloc} is not the admin site of a node")
        return told


def status(remote: Remote, options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Print how the node is."""
    told = remote.node()
    if options.json:
        say(json.dumps(told, indent=2))
    else:
        say(f"{told['name']} ({told['tier']}) is {told['state']}, {count(told['viewers'], 'viewer')}")
        for why in told["why"]:
            say(f"  {why}")
        for link in told["links"]:
            role = f", {link['role']}" if link.get("role") else ""
            say(f"  {link['name']} is {link['state']}{role}" + (f": {link['why']}" if link["why"] else ""))
        if told.get("draining"):
            say(f"  {progress(told['draining'])}")
    return DONE if told["state"] == "normal" else NOT_SO


def serves(remote: Remote, _: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Is it to be sent anybody?  For checks that must not take a degraded node, which serves, for a lost one."""
    told = remote.node()
    say(f"{told['name']} is {told['state']}" + "".join(f"\n  {why}" for why in told["why"]))
    return NOT_SO if told["state"] == "down" else DONE


def undrain(remote: Remote, _: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Let the node take readers again."""
    remote.ask("POST", "/api/v1/undrain")
    say(f"{remote.node()['name']} does not drain")
    return DONE


def kick(remote: Remote, options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Close a viewer's connection."""
    remote.ask("DELETE", f"/api/v1/viewers/{quote(options.viewer, safe='')}")
    say(f"viewer {options.viewer} is closed")
    return DONE


def dismiss(remote: Remote, options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Send a publisher away."""
    remote.ask("DELETE", f"/api/v1/publishers/{quote(options.stream)}")
    say(f"the publisher of {options.stream} is sent away")
    return DONE


def drain(remote: Remote, options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Ask those who read from the node to go elsewhere, and wait until they have."""
    told = {"name": remote.node()["name"], **remote.ask("POST", "/api/v1/drain")}
    until = time.monotonic() + options.seconds
    said = ""
    while (report := told["draining"]) is not None:
        line = f"{told['name']} drains: {progress(report)}"
        if line != said:
            said = line
            say(line)
        if options.no_wait:
            return DONE
        if is_empty(report):
            say(f"{told['name']} can be stopped")
            return DONE
        if time.monotonic() >= until:
            raise Refused(f"{told['name']} is not empty after {options.seconds:g} s; it drains on")
        time.sleep(LOOK_SECONDS)
        told = remote.node()
    raise Refused(f"{told['name']} does not drain any more: somebody has undrained it")


def read_token(path: str) -> str:
    """What ``--admin-token-file`` of the node holds.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {getattr(error, 'strerror', error)}") from None


def is_empty(report: dict[str, int]) -> bool:
    """Is nobody left who can move or will end?"""
    return not (report["sessions"] or report["copies"] or report["publishers"])


def progress(report: dict[str, int]) -> str:
    """Who is left."""
    kinds = (("sessions", "session"), ("copies", "copy"), ("publishers", "publisher"))
    left = [count(report[key], word) for key, word in kinds if report[key]]
    words = f"{', '.join(left)} left" if left else "it is empty"
    if report["others"]:
        words += f"; {count(report['others'], 'reader')} can't be moved and will be cut off when it stops"
    return words


def count(number: int, word: str) -> str:
    """ "1 viewer", "2 viewers", "2 copies"."""
    if number == 1:
        return f"1 {word}"
    return f"{number} {word.removesuffix('y')}ies" if word.endswith("y") else f"{number} {word}s"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="relay-admin",
        description="Look at a node, drain it before it is stopped (its viewers and copies go elsewhere and miss "
        "nothing), or make a viewer or a publisher go. URL is the node's --admin address: http://127.0.0.1:8086",
    )
    parser.add_argument("--version", action="version", version=f"relay-admin {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, words in (
        ("status", status, "How is it? Exit status 0 if it is normal, 1 if not."),
        ("serves", serves, "Does it serve? Exit status 0 if it is normal or degraded, 1 if it is down or drains."),
        ("drain", drain, "Send its readers elsewhere, and wait until they have gone."),
        ("undrain", undrain, "Let it take readers again."),
        ("kick", kick, "Close the connection of a viewer."),
        ("dismiss", dismiss, "Send the publisher of a stream away."),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("url", metavar="URL")
        command.set_defaults(run=run)
        command.add_argument(
            "--token-file", metavar="FILE", help="with the token of the node's --admin-token-file, if it has one"
        )
        if name == "kick":
            command.add_argument("viewer", metavar="ID", help="as /api/v1/viewers gives it")
        if name == "dismiss":
            command.add_argument("stream", metavar="APP/NAME")
        if name == "status":
            command.add_argument("--json", action="store_true", help="everything that it says, as JSON")
        if name == "drain":
            command.add_argument("--no-wait", action="store_true", help="don't wait until it is empty")
            command.add_argument(
                "--seconds", type=float, default=60.0, help="how long to wait at most, s (default: %(default)g)"
            )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = make_parser().parse_args(arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        run: Callable[..., int] = options.run
        return run(Remote.parse(options.url, options.token_file), options, say)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RelayError as error:
        sys.stderr.write(f"relay-admin: {error}\n")
        kinds: dict[type[RelayError], int] = {ConfigError: BAD_COMMAND, NoAnswer: NO_ANSWER}
        return kinds.get(type(error), NOT_SO)
