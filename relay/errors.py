"""The one error tree.  An error's class says whose fault it is: ours (Local), the peer's (Remote), the operator's.

Owns every exception type that crosses a module boundary; raises nothing itself.
"""

from __future__ import annotations


class RelayError(Exception):
    """Base of everything this package raises on purpose."""


class ProtocolError(RelayError):
    """The RTMP, HTTP or PROXY conversation broke a rule."""


class LocalProtocolError(ProtocolError):
    """We were asked to send something illegal in this state: a bug on our side, never the peer's doing."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal.  The connection is closed; nobody else is affected."""


class LimitExceeded(RemoteProtocolError):
    """The peer went past one field of :class:`relay.limits.Limits`.

    Args:
        field: name of the field of ``Limits``.
        allowed: its value, in the field's own unit.
        seen: what the peer asked for, where one number says it.
    """

    def __init__(self, field: str, allowed: float, seen: float | None = None) -> None:
        self.field = field
        self.allowed = allowed
        self.seen = seen
        is_minimum = field.endswith("_min")
        if seen is None:
            words = f"{'less' if is_minimum else 'more'} than the allowed {allowed:g}"
        else:
            words = f"{seen:g} is {'under' if is_minimum else 'over'} {allowed:g}"
        super().__init__(f"{field}: {words}")


class NameRefused(RemoteProtocolError):
    """An application or stream name is outside the whitelist (see :mod:`relay.names`)."""


class ConfigError(RelayError):
    """An option or a key of the cluster file can't be used.  The text names the option, the value and the reason."""


class LogError(RelayError):
    """A live log was asked for something it can't do."""


class PositionUnavailable(LogError):
    """The position is in another epoch, past the end, before the first retained byte or inside a gap."""


class LogDiverged(LogError):
    """Bytes that should equal the log's differ (I1 broken upstream): the two are never mixed."""


class StoreDamaged(LogError):
    """A stored segment or index can't be read as one; what can be recovered was."""
