"""A TOML table that is read key by key, each checked on the way, so that a wrong key is found as well as a wrong value.

Owns the words of every complaint about a cluster file.  Called by :mod:`relay.tiers.clusterfile`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from relay.errors import ConfigError, NameRefused


class Table:
    """A TOML table that is read key by key; what nobody took at the end is a wrong key."""

    def __init__(self, where: str, content: Mapping[str, Any]) -> None:
        self.where = where
        self._content = dict(content)
        self._known: list[str] = []

    def fault(self, key: str, value: object, reason: str) -> ConfigError:
        return ConfigError(f"{self.where}: {key} = {value!r}: {reason}")

    def take(self, key: str, kind: type, what: str, default: Any = None) -> Any:
        """Take a value of type ``kind`` out; ``default`` where there is none."""
        self._known.append(key)
        value = self._content.pop(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)):
            raise self.fault(key, value, f"must be {what}")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value: str | None = self.take(key, str, "a string", default)
        if value == "":
            raise self.fault(key, value, "must not be empty")
        return value

    def required(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise ConfigError(f"{self.where}: {key} is missing")
        return value

    def checked(self, key: str, check: Callable[[str], Any]) -> Any:
        """A string that ``check`` makes something of; None where there is none."""
        value = self.text(key)
        return None if value is None else self.check(key, value, check)

    def check(self, key: str, value: str, check: Callable[[str], Any]) -> Any:
        """What ``check`` makes of the value; its ValueError becomes a fault of ours."""
        try:
            return check(value)
        except (ValueError, NameRefused) as error:
            raise self.fault(key, value, str(error)) from None

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        value = self.text(key)
        if value is not None and value not in choices:
            raise self.fault(key, value, f"must be one of {', '.join(choices)}")
        return value

    def number(self, key: str) -> int | None:
        value: int | None = self.take(key, int, "a whole number", None)
        if isinstance(value, bool):
            raise self.fault(key, value, "must be a whole number")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, "a list of strings", [])
        if not all(isinstance(value, str) and value for value in values):
            raise self.fault(key, values, "must be a list of strings")
        return tuple(values)

    def text_map(self, key: str) -> dict[str, str]:
        value: dict[str, str] = self.take(key, dict, "a table of strings", {})
        if not all(isinstance(each, str) for each in value.values()):
            raise self.fault(key, value, "must be a table of strings")
        return value

    def tables(self, key: str, count: int | None = None) -> list[Table]:
        """An array of tables, ``[[key]]``: at least one, or exactly ``count``."""
        values = self.take(key, list, f"an array of tables, [[{key}]]", [])
        if not all(isinstance(value, dict) for value in values):
            raise self.fault(key, values, f"must be an array of tables, [[{key}]]")
        if not values or (count is not None and len(values) != count):
            wanted = "at least one" if count is None else f"exactly {count}"
            raise ConfigError(f"{self.where}: {wanted} [[{key}]] wanted, {len(values)} found")
        return [Table(f"{self.where}: {key} {_label(value, number)}", value) for number, value in enumerate(values, 1)]

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        for key, value in self._content.items():
            raise self.fault(key, value, f"no such key here; there are {', '.join(self._known)}")


def _label(table: Mapping[str, Any], number: int) -> str:
    name = table.get("name")
    return f'"{name}"' if isinstance(name, str) and name else f"number {number}"
