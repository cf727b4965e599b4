"""Stream names: the only text of a peer that is ever used as a key.

A stream is ``app/name``.  Each part is whitelisted (``FAULTS.md`` row 9: paths, control characters and overlong names
have each broken some server), so that a name can stand in a log line, a URL and a metric label as it is.  Files on disk
still never bear it: see :mod:`relay.log.store`.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import parse_qsl

import attrs

from relay.errors import NameRefused

MAX_QUERY_KEYS = 32  # a viewer's token and a few of its player's own; parsing costs time for each

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\Z")


def check_part(part: str, what: str) -> str:
    """Return ``part`` if it may be an application or a stream name.

    Raises:
        NameRefused: it is empty, over 128 characters, starts with a dot or has a character outside ``[A-Za-z0-9_.-]``.
    """
    if not _PART.match(part):
        raise NameRefused(f"{what} {part[:64]!r} is not 1 to 128 of A-Z a-z 0-9 _ . - (not starting with a dot)")
    return part


@attrs.frozen(order=True)
class StreamName:
    """``app/name``, both parts checked."""

    app: str = attrs.field(validator=lambda _, __, value: check_part(value, "application") and None)
    name: str = attrs.field(validator=lambda _, __, value: check_part(value, "stream") and None)

    def __str__(self) -> str:
        return f"{self.app}/{self.name}"

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> StreamName:
        """``"live/demo"`` to a name.

        Raises:
            NameRefused: not two good parts with one slash between.
        """
        app, slash, name = text.partition("/")
        if not slash:
            raise NameRefused(f"{text[:64]!r} is not APP/NAME")
        return cls(app, name)

    def matches(self, patterns: tuple[str, ...]) -> bool:
        """Does any shell-like pattern (``live/*``, ``*/news``) name this stream?"""
        text = str(self)
        return any(fnmatchcase(text, pattern) for pattern in patterns)


def split_query(text: str) -> tuple[str, dict[str, str]]:
    """``"demo?epoch=7&offset=9"`` to ``("demo", {"epoch": "7", "offset": "9"})``; the last of equal keys wins.

    Raises:
        NameRefused: there are more than 32 keys.
    """
    name, _, query = text.partition("?")
    try:
        return name, dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_KEYS))
    except ValueError:
        raise NameRefused(f"a query of more than {MAX_QUERY_KEYS} keys") from None


def application(app: str) -> str:
    """The application without the instance and query that some encoders append (``live/``, ``live?key``).

    Raises:
        NameRefused: there are more than 32 keys.
    """
    return split_query(app)[0].strip("/")
