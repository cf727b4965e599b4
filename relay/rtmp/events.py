"""What a session tells its owner about the peer: events in the past tense, plain records.

Owns the vocabulary between ``relay.rtmp`` and ``relay.net``.  A stream key can be a secret, so it is never part of a
``repr`` (and so never of a log line).
"""

from __future__ import annotations

from typing import Any

import attrs

from relay.rtmp.messages import MediaMessage


@attrs.frozen
class HandshakeDone:
    """Both sides have the other's nonce; messages may follow."""


@attrs.frozen(kw_only=True)
class ConnectRequested:
    """Answer with ``accept_connect`` or ``reject_connect``.  ``properties`` is the whole command object."""

    transaction_id: float
    app: str
    tc_url: str = attrs.field(repr=False)
    flash_version: str
    properties: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class PublishRequested:
    """Answer with ``accept_publish`` or ``refuse_publish``.  The key is as sent, ``?query`` and all."""

    transaction_id: float
    message_stream_id: int
    stream_key: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class PlayRequested:
    """Answer with ``accept_play`` or ``refuse_play``, at once or later.  The name is as sent, ``?query`` and all."""

    transaction_id: float
    message_stream_id: int
    stream: str = attrs.field(repr=False)


@attrs.frozen
class MediaReceived:
    """One message of a stream that publishes (at a server) or plays (at a client), ready for the log."""

    message_stream_id: int
    message: MediaMessage


@attrs.frozen
class StreamClosed:
    """The peer ended a stream that published or played; the connection goes on."""

    message_stream_id: int


@attrs.frozen
class PingAnswered:
    """The peer is alive at RTMP level; ``timestamp`` is what our ping carried."""

    timestamp: int


@attrs.frozen(kw_only=True)
class CommandReceived:
    """A node-to-node command (its name starts with ``relay``).  Never answered by the session."""

    name: str
    transaction_id: float
    values: list[Any] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class CommandAnswered:
    """The peer's ``_result`` or ``_error`` to ``call``."""

    transaction_id: float
    is_error: bool
    values: list[Any] = attrs.field(repr=False)


@attrs.frozen
class Connected:
    """The server accepted our connect; ``properties`` are both objects of its answer in one."""

    properties: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class ConnectRejected:
    """The server refused our connect."""

    code: str
    description: str


@attrs.frozen
class StreamCreated:
    """createStream was answered: publish or play on this id."""

    message_stream_id: int


@attrs.frozen
class PlayStarted:
    """NetStream.Play.Start: media follows.  ``info`` is the status object, a node's position in it."""

    message_stream_id: int
    info: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class PublishStarted:
    """NetStream.Publish.Start: media may be sent."""

    message_stream_id: int


@attrs.frozen(kw_only=True)
class StatusReceived:
    """Any other onStatus, errors too."""

    message_stream_id: int
    level: str
    code: str
    description: str
    info: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class StreamEnded:
    """The server says that the broadcast is over.  Told once a stream."""

    message_stream_id: int


Event = (
    HandshakeDone
    | ConnectRequested
    | PublishRequested
    | PlayRequested
    | MediaReceived
    | StreamClosed
    | PingAnswered
    | CommandReceived
    | CommandAnswered
    | Connected
    | ConnectRejected
    | StreamCreated
    | PlayStarted
    | PublishStarted
    | StatusReceived
    | StreamEnded
)
