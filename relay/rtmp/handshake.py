"""The handshake: one version byte and two 1536-byte messages each way, before any chunk.

Owns the bytes up to the first chunk.  The random part (``nonce``) is given by the caller, and the peer's is kept,
because nodes prove the cluster secret over both.  Used by the sessions only.

As server we answer the plain handshake: the version bytes of S1 are zero and S2 repeats C1.  Every encoder and player
accepts that, those that begin with a digest too: ffmpeg and librtmp look for a digest only behind a non-zero version.
As client we may offer the digest, which some servers want before they send H.264.  RTMPE (version 6, 8, 9) is refused.
"""

from __future__ import annotations

import hashlib
import hmac

from relay.errors import LocalProtocolError, RemoteProtocolError

VERSION = 3
HANDSHAKE_BYTES = 1536
NONCE_BYTES = HANDSHAKE_BYTES - 8


def nonce_from(seed: bytes) -> bytes:
    """A nonce that another node can make again.  It is as unpredictable as the seed."""
    return hashlib.shake_256(seed).digest(NONCE_BYTES)


_DIGEST_BYTES = 32
_PLAYER_KEY = b"Genuine Adobe Flash Player 001"
_SERVER_KEY = b"Genuine Adobe Flash Media Server 001"
_KEY_TAIL = bytes.fromhex("f0eec24a8068bee82e00d0d1029e7e576eec5d2d29806fab93b8e636cfeb31ae")
_DIGEST_VERSION = bytes((9, 0, 124, 2))
"""The Flash Player version that ffmpeg offers with its digest."""

_DIGEST_POINTERS = (8, 772)
"""Where the two digest schemes keep the 4 bytes that say where the digest is."""


def _digest_offset(block: bytes, pointer: int) -> int:
    return sum(block[pointer : pointer + 4]) % 728 + pointer + 4


def _digest(block: bytes, offset: int, key: bytes) -> bytes:
    """HMAC-SHA256 over the block without the digest's own place."""
    return hmac.digest(key, block[:offset] + block[offset + _DIGEST_BYTES :], "sha256")


def _find_digest(block: bytes, key: bytes) -> bytes | None:
    for pointer in _DIGEST_POINTERS:
        offset = _digest_offset(block, pointer)
        found = block[offset : offset + _DIGEST_BYTES]
        if hmac.compare_digest(found, _digest(block, offset, key)):
            return found
    return None


class _Handshake:
    """What both sides share: version byte, the peer's first block, the peer's second block."""

    def __init__(self, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise LocalProtocolError(f"a handshake nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self.our_nonce = nonce
        self.their_nonce = b""
        """The peer's 1528 bytes, once its first block is here."""
        self.is_complete = False
        self._buffer = bytearray()
        self._out = bytearray()

    def data_to_send(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return those behind the handshake (empty until it is complete).

        Raises:
            RemoteProtocolError: the first byte is not version 3.
        """
        if self.is_complete:
            return data
        self._buffer += data
        if self._buffer and self._buffer[0] != VERSION:
            raise RemoteProtocolError(f"the first byte is {self._buffer[0]:#04x}, not RTMP version 3")
        if not self.their_nonce and len(self._buffer) >= 1 + HANDSHAKE_BYTES:
            block = bytes(self._buffer[1 : 1 + HANDSHAKE_BYTES])
            self.their_nonce = block[8:]
            self._answer(block)
        end = 1 + 2 * HANDSHAKE_BYTES
        if len(self._buffer) < end:
            return b""
        self.is_complete = True
        rest = bytes(self._buffer[end:])
        self._buffer.clear()
        return rest

    def _answer(self, block: bytes) -> None:
        raise NotImplementedError


class ServerHandshake(_Handshake):
    """Reads C0, C1 and C2; writes S0, S1 and S2 in one piece when C1 is whole.

    C2 should repeat S1, but encoders send it before they can know S1 or fill it with anything: it is not compared.
    """

    def _answer(self, block: bytes) -> None:
        self._out += bytes((VERSION,)) + bytes(8) + self.our_nonce + block


class ClientHandshake(_Handshake):
    """Writes C0 and C1 at once, C2 when S1 is whole; done when S2 is whole.  S2 is not compared (OBS only warns).

    Args:
        digest: sign C1, and C2 if the server signed S1.
    """

    def __init__(self, nonce: bytes, digest: bool = False) -> None:
        super().__init__(nonce)
        self._offers_digest = digest
        block = bytes(8) + nonce
        if digest:
            block = bytes(4) + _DIGEST_VERSION + nonce
            offset = _digest_offset(block, _DIGEST_POINTERS[0])
            signed = _digest(block, offset, _PLAYER_KEY)
            block = block[:offset] + signed + block[offset + _DIGEST_BYTES :]
            self.our_nonce = block[8:]
        self._out += bytes((VERSION,)) + block

    def _answer(self, block: bytes) -> None:
        found = _find_digest(block, _SERVER_KEY) if self._offers_digest and any(block[4:8]) else None
        if found is None:
            self._out += block
            return
        body = (bytes(8) + self.our_nonce)[:-_DIGEST_BYTES]
        key = hmac.digest(_PLAYER_KEY + _KEY_TAIL, found, "sha256")
        self._out += body + hmac.digest(key, body, "sha256")
