"""Options that say which streams are pushed to which other servers.

Owns their parsing.  Called by the origin and the distributor, which have streams whether anybody watches or not.
"""

from __future__ import annotations

from typing import Any

from twisted.python import usage

from relay.errors import ConfigError
from relay.net.forward_rules import ForwardRule, parse_rule, read_rules_file


class ForwardOptions(usage.Options):
    """For nodes that forward."""

    optParameters: list[Any] = [
        ["forward-file", None, None, "File with such rules, one a line (mode 0600): their keys are then in no list of "
         "processes."],
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["forwards"] = []

    def opt_forward(self, rule: str) -> None:
        """PATTERN=rtmp[s]://HOST/APP/{name}: push streams that match (APP/NAME with * ? [...]) to another RTMP server.
        May be repeated."""
        try:
            self["forwards"].append(parse_rule(rule))
        except ConfigError as error:
            raise usage.UsageError(f"--forward: {error}") from None

    def forward_rules(self) -> list[ForwardRule]:
        """All of them.

        Raises:
            ConfigError: the file can't be used.
        """
        file = self["forward-file"]
        return [*self["forwards"], *(read_rules_file("--forward-file", file) if file else ())]
