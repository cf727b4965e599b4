"""The headers in force at a place of a log: what a newcomer must be sent before the log's own bytes.

Owns how they change with each message and their form in node-to-node messages.  Which message is a sequence header is
:func:`relay.rtmp.media.describe`'s business.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Sequence

import attrs

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.rtmp.media import MediaInfo, normalize_data
from relay.rtmp.messages import MediaMessage, MessageType

Track = tuple[int, bytes]
"""A track's number and its sequence header."""

_KINDS = ("m", "v", "a")


@attrs.frozen
class HeadersInForce:
    """Last metadata and each track's last sequence header.  Tracks are in the order in which they first came."""

    metadata: bytes | None = None
    video: tuple[Track, ...] = ()
    audio: tuple[Track, ...] = ()

    def updated(self, message: MediaMessage, info: MediaInfo, limits: Limits = DEFAULT_LIMITS) -> HeadersInForce:
        """The headers after ``message``; ``self`` when it changes none.

        Metadata over ``limits.metadata_bytes``, a sequence header over ``limits.header_bytes``, or one of one track
        more than ``limits.tracks`` is not kept: each newcomer is sent them all.
        """
        if message.message_type == MessageType.DATA_AMF0:
            return self._with_data(message.payload, limits)
        if not info.is_sequence_header or len(message.payload) > limits.header_bytes:
            return self
        is_video = message.message_type == MessageType.VIDEO
        known = dict(self.video if is_video else self.audio)
        if known.get(info.track) == message.payload:
            return self
        if info.track not in known and len(self.video) + len(self.audio) >= limits.tracks:
            return self
        known[info.track] = message.payload
        tracks = tuple(known.items())
        return attrs.evolve(self, video=tracks) if is_video else attrs.evolve(self, audio=tracks)

    def _with_data(self, payload: bytes, limits: Limits) -> HeadersInForce:
        named = normalize_data(payload)
        if named is None:
            return self
        name, metadata = named
        if name == "@clearDataFrame":
            return attrs.evolve(self, metadata=None)
        if name != "onMetaData" or metadata == self.metadata or len(metadata) > limits.metadata_bytes:
            return self
        return attrs.evolve(self, metadata=metadata)

    def messages(self, timestamp: int) -> list[MediaMessage]:
        """The headers as messages stamped ``timestamp``: metadata, then video, then audio."""
        found = [] if self.metadata is None else [MediaMessage(MessageType.DATA_AMF0, timestamp, self.metadata)]
        found += [MediaMessage(MessageType.VIDEO, timestamp, payload) for _, payload in self.video]
        found += [MediaMessage(MessageType.AUDIO, timestamp, payload) for _, payload in self.audio]
        return found

    def to_wire(self) -> list[str]:
        """One string a header: kind and track, a colon, base64: ``["m0:Ag…", "v0:Fw…", "a0:rw…"]``."""
        found = [] if self.metadata is None else [("m", 0, self.metadata)]
        found += [("v", track, payload) for track, payload in self.video]
        found += [("a", track, payload) for track, payload in self.audio]
        return [f"{kind}{track}:{b64encode(payload).decode('ascii')}" for kind, track, payload in found]

    @classmethod
    def from_wire(cls, texts: Sequence[object], limits: Limits = DEFAULT_LIMITS) -> HeadersInForce:
        """What :meth:`to_wire` made.

        Raises:
            RemoteProtocolError: it is something else, or over the limits that :meth:`updated` holds.
        """
        if len(texts) > limits.tracks + 1:
            raise RemoteProtocolError(
                f"{len(texts)} headers in force are more than {limits.tracks} tracks' and metadata"
            )
        parts = [_parse(text, limits) for text in texts]
        metadata = [payload for kind, _, payload in parts if kind == "m"]
        return cls(
            metadata=metadata[-1] if metadata else None,
            video=tuple((track, payload) for kind, track, payload in parts if kind == "v"),
            audio=tuple((track, payload) for kind, track, payload in parts if kind == "a"),
        )


def _parse(text: object, limits: Limits) -> tuple[str, int, bytes]:
    if not isinstance(text, str):
        raise RemoteProtocolError("a header in force is not a string")
    head, colon, encoded = text.partition(":")
    kind, number = head[:1], head[1:]
    if not colon or kind not in _KINDS or not (number.isascii() and number.isdigit() and len(number) <= 3):
        raise RemoteProtocolError(f"a header in force starts {text[:8]!r}, not KIND TRACK and a colon")
    try:
        payload = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteProtocolError("a header in force is not base64") from error
    allowed = limits.metadata_bytes if kind == "m" else limits.header_bytes
    if len(payload) > allowed:
        raise RemoteProtocolError(f"a header in force of {len(payload)} bytes is over {allowed}")
    return kind, int(number), payload


NO_HEADERS = HeadersInForce()
