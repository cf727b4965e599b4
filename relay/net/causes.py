"""Why an upstream is left, in one word for counters and in one sentence for people.

Owns the translation of outcomes (what ends a connection) to both, and the telling of it when reading goes on.  Called
by :mod:`relay.net.replication`.
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from relay.net.failover import RETURN

CAUSES = {
    "lost": "connection_lost upstream_ended peer_closed",
    "dead": "dead",
    "refused": "refused handshake_timeout",
    "starved": "starved",
    "behind": "behind",
    "drained": "draining",
    "return": RETURN,
}
"""The outcomes of each cause.  A status code of an upstream is a refusal; all the rest is "wrong"."""

_CAUSE_OF = {outcome: cause for cause, outcomes in CAUSES.items() for outcome in outcomes.split()}

_SENTENCES = {
    "lost": "the connection to {name} is lost",
    "dead": "{name} is dead ({detail})",
    "refused": "{name} refuses ({outcome})",
    "starved": "{name} has lost its own upstreams",
    "behind": "{name} is behind ({detail})",
    "drained": "{name} drains",
    "return": "{detail}",
    "wrong": "{name} can't be read ({outcome})",
}


def cause_of(outcome: str) -> str:
    """One of a few words, for counting."""
    return _CAUSE_OF.get(outcome) or ("refused" if outcome.startswith("Net") else "wrong")


def sentence_of(name: str, outcome: str, detail: str) -> str:
    """What happened to ``name``."""
    return _SENTENCES[cause_of(outcome)].format(name=name, outcome=outcome[:64], detail=detail or outcome)


class Interruption:
    """Of one copy's reading: why it is interrupted, until it goes on; then it is said and counted, once.

    Args:
        stream: for people.
        counts: by cause.
        clock: tells how long it takes.
        dead_seconds: that a neighbour may be silent.

    ``detail``: why we leave a member ourselves; to be set before that.
    """

    log = Logger()

    def __init__(self, stream: str, counts: Counter[str], clock: IReactorTime, dead_seconds: float) -> None:
        self.detail = ""
        self._clock = clock
        self._since = 0.0
        self._stream = stream
        self._counts = counts
        self._dead_seconds = dead_seconds
        self._silence = f"silent for {1000 * dead_seconds:.0f} ms"
        self._outcome = ""
        self._name = ""
        self._why = ""
        self._is_said = False

    def began(self, name: str, outcome: str) -> None:
        """``name`` was read, and is no longer."""
        self._outcome, self._name, self._is_said = outcome, name, False
        self._since = self._clock.seconds() - (self._dead_seconds if outcome == "dead" else 0.0)
        self._why = sentence_of(name, outcome, self._silence if outcome == "dead" else self.detail)

    def found_nobody(self) -> None:
        """Nobody can be read from now; said once."""
        if self._outcome and not self._is_said:
            self._is_said = True
            self.log.warn(
                "{stream}: nobody to read from: {why}", event="upstream_lost", stream=self._stream, why=self._why
            )

    def ended(self, name: str) -> float:
        """``name`` is read; how many seconds nobody was."""
        if not self._outcome:
            return 0.0
        self._counts[cause_of(self._outcome)] += 1
        words = "{stream}: reading from {name} now: {why}"
        if self._outcome == RETURN:
            words = "{stream}: back to {name}, {why}"
        elif name == self._name:
            words = "{stream}: reading from {name} again; before: {why}"
        self.log.info(words, event="failover", stream=self._stream, name=name, why=self._why)
        self._outcome = ""
        return self._clock.seconds() - self._since
