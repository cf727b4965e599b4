"""What usage.Options makes of the text of an option: numbers, and names that stand for something.

Owns the words of the complaints, which name the option and the value.  Called by the tiers' options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from twisted.python import usage

from relay.log.options import LogOptions


def number(option: str, is_good: Callable[[float], bool], words: str) -> Callable[[str], float]:
    """A coercion for usage.Options, whose message names the option and the value."""

    def coerce(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise usage.UsageError(f"{option} {text!r} is no number") from None
        if not is_good(value):
            raise usage.UsageError(f"{option} {text}: must be {words}")
        return value

    return coerce


def positive(option: str) -> Callable[[str], float]:
    """A finite number above zero."""
    return number(option, lambda value: 0 < value < inf, "above 0")


def not_negative(option: str) -> Callable[[str], float]:
    """A finite number, zero or above."""
    return number(option, lambda value: 0 <= value < inf, "0 or more")


def named(option: str, text: str, form: str, taken: Sequence[tuple[str, Any]]) -> tuple[str, str]:
    """``NAME=SOMETHING``: a name that is not taken, and what it stands for.

    Raises:
        usage.UsageError: it is not of this form, or the name is taken.
    """
    name, _, rest = text.partition("=")
    if not name or not rest:
        raise usage.UsageError(f"{option} {text!r} is not {form}")
    if any(name == other for other, _ in taken):
        raise usage.UsageError(f"{option} {name} is given twice")
    return name, rest


def keep_options(seconds: float, megabytes: float) -> LogOptions:
    """``--keep-seconds`` and ``--keep-mbytes``."""
    return LogOptions(keep_ms=max(1, int(seconds * 1000)), keep_bytes=max(1, int(megabytes * (1 << 20))))
