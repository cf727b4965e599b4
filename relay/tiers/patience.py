"""The options that say how long a node waits for its upstreams before it does something about it.

Composition only; what they mean is :mod:`relay.net.timings`'s.
"""

from __future__ import annotations

from math import inf
from typing import Any

from relay.net.timings import DEFAULT_TIMINGS, Timings
from relay.tiers.coercion import not_negative, number, positive
from relay.tiers.options import NodeOptions

MIN_DEAD_MS = 50  # pings go at a third of it: a busy node answers within 15 ms
MIN_BEHIND_MS = 500  # members tell every 250 ms how far they are

DEAD_MS: list[Any] = [
    "dead-ms", None, 1000 * DEFAULT_TIMINGS.dead,
    "A neighbour that says nothing and leaves a ping unanswered for so long is dead, ms.",
    number("--dead-ms", lambda value: MIN_DEAD_MS <= value < inf, f"{MIN_DEAD_MS} or more"),
]  # fmt: skip
"""For every tier that has neighbours."""


class UpstreamOptions(NodeOptions):
    """For tiers that copy streams from others."""

    optParameters = [
        DEAD_MS,
        ["behind-ms", None, 1000 * DEFAULT_TIMINGS.behind,
         "An upstream that lives is left when another has had more for so long, ms. When none is ahead, none is left.",
         number("--behind-ms", lambda value: MIN_BEHIND_MS <= value < inf, f"{MIN_BEHIND_MS} or more")],
        ["return-seconds", None, DEFAULT_TIMINGS.return_, "The preferred upstream is read again when it has been well, "
         "and not behind, for so long. Doubled, up to 60, each time that a return fails within a minute.",
         not_negative("--return-seconds")],
        ["connect-seconds", None, DEFAULT_TIMINGS.connect, "How long an upstream may take to accept a connection; then "
         "the next is asked.", positive("--connect-seconds")],
        ["retry-seconds", None, DEFAULT_TIMINGS.retry, "When no upstream can be read, the longest wait until all are "
         "asked again.", positive("--retry-seconds")],
    ]  # fmt: skip

    def timings(self) -> Timings:
        """What the options say."""
        return Timings(
            dead=self["dead-ms"] / 1000,
            connect=self["connect-seconds"],
            return_=self["return-seconds"],
            behind=self["behind-ms"] / 1000,
            retry=self["retry-seconds"],
        )
