"""AMF0: the values in commands and data messages.

Owns both directions of the encoding.  Does not know what a value means.  Used by the sessions and by ``media``.

Numbers are ``float``, objects ``dict``, strict arrays ``list``, strings ``str`` (bad UTF-8 becomes U+FFFD).  Null,
undefined, references and "unsupported" all decode to ``None``.  A typed object decodes to a plain ``dict``: nothing is
ever made from a class name of the peer (VU#307983).

Decoding keeps its own stack, so that nesting can't exhaust Python's, and takes no count on trust: an array of
0xFFFFFFFF declared items costs what its bytes cost.  A marker of unknown length (0x11, AMF3, among them) ends the
decoding with what was read so far, because encoders put such things at the end of connect's optional properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from struct import Struct
from typing import Any, Final

import attrs

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import Limits

NUMBER, BOOLEAN, STRING, OBJECT = 0, 1, 2, 3
NULL, UNDEFINED_MARKER, REFERENCE, ECMA_ARRAY, OBJECT_END, STRICT_ARRAY = 5, 6, 7, 8, 9, 10
DATE, LONG_STRING, UNSUPPORTED, XML, TYPED_OBJECT = 11, 12, 13, 15, 16

MAX_ENCODE_DEPTH = 32
"""Levels that we write; twice what we accept from a peer."""

_DOUBLE = Struct(">d")
_UINT32 = Struct(">I")
_UINT16 = Struct(">H")


class _Undefined(Enum):
    UNDEFINED = "undefined"


UNDEFINED: Final = _Undefined.UNDEFINED
"""Encodes as AMF0 undefined.  Only ever written: undefined decodes to None."""


class EcmaArray(dict[str, Any]):
    """A ``dict`` that encodes as an ECMA array, which is how onMetaData travels.  Decoding makes them too."""


@attrs.frozen
class Date:
    """Milliseconds since 1970, and the time zone field as it was (writers leave it 0)."""

    milliseconds: float
    time_zone: int = 0


def encode(*values: Any) -> bytes:
    """The values one after the other.

    Raises:
        LocalProtocolError: a value has no AMF0 form.
    """
    out = bytearray()
    for value in values:
        _encode_value(out, value, MAX_ENCODE_DEPTH)
    return bytes(out)


def _encode_value(out: bytearray, value: Any, depth: int) -> None:
    if depth == 0:
        raise LocalProtocolError(f"a value is nested deeper than {MAX_ENCODE_DEPTH} levels")
    if type(value) is str:  # the ordinary cases first
        _encode_string(out, value)
    elif type(value) is float:
        out.append(NUMBER)
        out += _DOUBLE.pack(value)
    elif value is None:
        out.append(NULL)
    elif value is UNDEFINED:
        out.append(UNDEFINED_MARKER)
    elif isinstance(value, bool):
        out += bytes((BOOLEAN, value))
    elif isinstance(value, int | float):
        out.append(NUMBER)
        out += _DOUBLE.pack(value)
    elif isinstance(value, str):
        _encode_string(out, value)
    elif isinstance(value, Date):
        out.append(DATE)
        out += _DOUBLE.pack(value.milliseconds) + value.time_zone.to_bytes(2, "big", signed=True)
    elif isinstance(value, Mapping):
        _encode_mapping(out, value, depth)
    elif isinstance(value, list | tuple):
        out.append(STRICT_ARRAY)
        out += _UINT32.pack(len(value))
        for item in value:
            _encode_value(out, item, depth - 1)
    else:
        raise LocalProtocolError(f"a {type(value).__name__} has no AMF0 form")


def _encode_string(out: bytearray, value: str) -> None:
    data = value.encode("utf-8", "replace")
    if len(data) <= 0xFFFF:
        out.append(STRING)
        out += _UINT16.pack(len(data))
    else:
        out.append(LONG_STRING)
        out += _UINT32.pack(len(data))
    out += data


def _encode_mapping(out: bytearray, value: Mapping[str, Any], depth: int) -> None:
    if isinstance(value, EcmaArray):
        out.append(ECMA_ARRAY)
        out += _UINT32.pack(len(value))
    else:
        out.append(OBJECT)
    for key, item in value.items():
        data = key.encode("utf-8", "replace")
        if not 0 < len(data) <= 0xFFFF:
            raise LocalProtocolError(f"an object key of {len(data)} bytes has no AMF0 form")
        out += _UINT16.pack(len(data)) + data
        _encode_value(out, item, depth - 1)
    out += b"\x00\x00\x09"


def first_string(payload: bytes, at: int = 0) -> tuple[str, int] | None:
    """The string that a message begins with and the offset behind it; None if it begins with anything else."""
    if len(payload) >= at + 3 and payload[at] == STRING:
        start = at + 3
        end = start + int.from_bytes(payload[at + 1 : start], "big")
    elif len(payload) >= at + 5 and payload[at] == LONG_STRING:
        start = at + 5
        end = start + int.from_bytes(payload[at + 1 : start], "big")
    else:
        return None
    if end > len(payload):
        return None
    return payload[start:end].decode("utf-8", "replace"), end


def decode_all(payload: bytes, limits: Limits) -> list[Any]:
    """All values of a message.

    Raises:
        RemoteProtocolError: a value is cut short.
        LimitExceeded: too deep, too many values, or a string too long.
    """
    return _Decoder(payload, limits).decode()


class _UnknownMarker(Exception):
    """The length of what follows can't be known."""


class _Level:
    """One container under construction: a dict takes ``key`` first, a list counts ``left`` down."""

    __slots__ = ("items", "key", "left")

    def __init__(self, items: dict[str, Any] | list[Any], left: int = -1) -> None:
        self.items = items
        self.key = ""
        self.left = left


class _Decoder:
    def __init__(self, payload: bytes, limits: Limits) -> None:
        self._payload = payload
        self._at = 0
        self._limits = limits
        self._count = 0
        self._top: list[Any] = []
        self._stack: list[_Level] = []

    def decode(self) -> list[Any]:
        try:
            while self._stack or self._at < len(self._payload):
                self._step()
        except _UnknownMarker:
            pass
        return self._top

    def _step(self) -> None:
        """Read one value (or open one container), or close the innermost container."""
        level = self._stack[-1] if self._stack else None
        if level is not None and self._is_complete(level):
            self._stack.pop()
            return
        self._count += 1
        if self._count > self._limits.amf_items:
            raise LimitExceeded("amf_items", self._limits.amf_items)
        opened, value = self._read_value()
        if level is None:
            self._top.append(value)
        elif isinstance(level.items, dict):
            level.items[level.key] = value
        else:
            level.items.append(value)
            level.left -= 1
        if opened is not None:
            if len(self._stack) >= self._limits.amf_depth:
                raise LimitExceeded("amf_depth", self._limits.amf_depth, len(self._stack) + 1)
            self._stack.append(opened)

    def _is_complete(self, level: _Level) -> bool:
        """Is the container at its end?  For a dict, this reads the next key."""
        if isinstance(level.items, list):
            return level.left == 0
        level.key = self._text(self._uint(2))
        if not level.key and self._at < len(self._payload) and self._payload[self._at] == OBJECT_END:
            self._at += 1
            return True
        return False

    def _read_value(self) -> tuple[_Level | None, Any]:
        marker = self._uint(1)
        level: _Level | None = None
        value: Any = None
        if marker == NUMBER:
            value = _DOUBLE.unpack(self._take(8))[0]
        elif marker == BOOLEAN:
            value = self._uint(1) != 0
        elif marker == STRING:
            value = self._text(self._uint(2))
        elif marker in (LONG_STRING, XML):
            value = self._text(self._uint(4))
        elif marker == REFERENCE:
            self._take(2)
        elif marker == DATE:
            value = Date(_DOUBLE.unpack(self._take(8))[0], int.from_bytes(self._take(2), "big", signed=True))
        elif marker in (OBJECT, ECMA_ARRAY, TYPED_OBJECT, STRICT_ARRAY):
            level = self._open(marker)
            value = level.items
        elif marker not in (NULL, UNDEFINED_MARKER, UNSUPPORTED):
            raise _UnknownMarker
        return level, value

    def _open(self, marker: int) -> _Level:
        if marker == STRICT_ARRAY:
            return _Level([], self._uint(4))
        if marker == ECMA_ARRAY:
            self._uint(4)  # a hint that encoders get wrong: the end marker decides
            return _Level(EcmaArray())
        if marker == TYPED_OBJECT:
            self._text(self._uint(2))
        return _Level({})

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._payload):
            raise RemoteProtocolError(f"an AMF0 value is cut short at byte {len(self._payload)}")
        data = self._payload[self._at : end]
        self._at = end
        return data

    def _uint(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _text(self, length: int) -> str:
        if length > self._limits.amf_string_bytes:
            raise LimitExceeded("amf_string_bytes", self._limits.amf_string_bytes, length)
        return self._take(length).decode("utf-8", "replace")
