"""The balancer's options about the process before it and the one after, and how its own process ends.

Composition only; what runs is :mod:`relay.net.succession`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ReactorNotRunning

from relay.net.succession import SuccessionOptions
from relay.tiers.coercion import not_negative
from relay.tiers.options import NodeOptions, end_with

EXIT_NOT_TAKEN_OVER = 1  # a supervisor may try again


class HandoverOptions(NodeOptions):
    """``--take-over-from``, ``--handover`` and ``--linger-seconds``."""

    optParameters = [
        ["take-over-from", None, None, "Take all viewers and listening sockets over from the balancer of the same name "
         "that runs with --handover PATH; it then ends. If nobody answers at PATH, start afresh."],
        ["handover", None, None, "PATH of a UNIX socket where this balancer waits for its successor. Both options with "
         "the same PATH make one command line for the first start and for every upgrade."],
        ["linger-seconds", None, 300.0, "After a hand-over, how long viewers who can't be handed over (TLS) stay with "
         "this process, s.", not_negative("--linger-seconds")],
    ]  # fmt: skip

    def succession(self) -> SuccessionOptions:
        """What the options say."""
        return SuccessionOptions(
            take_over_from=self["take-over-from"],
            handover=self["handover"],
            linger_seconds=self["linger-seconds"],
        )


def end_process(reactor: Any, why: str | None) -> None:
    """Stop, with exit status 0 when all is done, 1 when a take-over has failed (``why``)."""
    if why is not None:
        end_with(EXIT_NOT_TAKEN_OVER)
    try:
        reactor.stop()
    except ReactorNotRunning:
        pass  # it stops already
