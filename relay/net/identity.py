"""Who a node is, and how it proves to another that both belong to one cluster.

Owns the node's name, the cluster secret, the proof made from it and the connect properties that carry both.  Called
by the RTMP client and server protocols.

The secret never crosses the wire.  RTMP's handshake already carries 1528 random bytes each way (in C1 and S1), so
they serve as the two challenges: each side sends HMAC-SHA256 over both, its role and its name.  S1 is fresh for each
connection, so a recorded proof is worthless on another.

A node without a secret takes its own host for its cluster: it believes peers on loopback addresses, and no other.
"""

from __future__ import annotations

import hmac
import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

from relay.errors import ConfigError
from relay.hosts import is_loopback

MIN_SECRET_BYTES = 16  # bytes; below 128 bits a recorded proof could be guessed offline
MAX_FILE_BYTES = 1 << 20  # of secrets: ten thousand publish keys
NODE, TIER, PROOF = "relayNode", "relayTier", "relayProof"  # the connect properties


@attrs.frozen(repr=False)
class ClusterSecret:
    """The shared key.  Its repr says nothing, so that no log line can show it."""

    key: bytes

    def __repr__(self) -> str:
        return "ClusterSecret(...)"

    def prove(self, role: str, name: str, their_nonce: bytes, our_nonce: bytes) -> str:
        """The proof that the ``role`` ("client" or "server") called ``name`` sends, in hexadecimal."""
        mac = hmac.new(self.key, digestmod=sha256)
        for part in (b"relay-node-1", role.encode(), name.encode(), their_nonce, our_nonce):
            mac.update(len(part).to_bytes(4, "big") + part)
        return mac.hexdigest()

    def verify(self, proof: object, role: str, name: str, their_nonce: bytes, our_nonce: bytes) -> bool:
        """Did the *peer*, in ``role`` and under ``name``, make this proof?  The nonces are named from our side."""
        expected = self.prove(role, name, our_nonce, their_nonce)
        return isinstance(proof, str) and hmac.compare_digest(proof.encode(), expected.encode())


def read_private_file(option: str, path: str) -> bytes:
    """What is in a file that nobody but its owner may read.

    Raises:
        ConfigError: it can't be read, others can read it, or it is larger than any file of keys is.
    """
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}") from None
    if stat.S_IMODE(status.st_mode) & _others(status.st_uid):
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"{option} {path}: others can read it (mode {mode:04o}); chmod 600 it")
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{option} {path}: larger than {MAX_FILE_BYTES} bytes")
    return content


def _others(owner: int) -> int:
    """The permissions that nobody may have: of group and world; but the group may read a file of root's.

    (PostgreSQL's rule for keys; how Kubernetes gives a secret to who is not root.)
    """
    is_given = owner == 0 and os.geteuid() != 0
    return stat.S_IRWXO | (stat.S_IWGRP | stat.S_IXGRP if is_given else stat.S_IRWXG)


def read_secret_file(path: str, option: str = "--secret-file") -> ClusterSecret:
    """Read ``--secret-file``: the file's bytes without surrounding white space.

    Raises:
        ConfigError: it can't be read, is shorter than 16 bytes, or others than its owner can read it.
    """
    key = read_private_file(option, path).strip()
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigError(f"{option} {path}: {len(key)} bytes are too few; at least {MIN_SECRET_BYTES} are needed")
    return ClusterSecret(key)


@attrs.frozen
class PeerNode:
    """A neighbour that proved itself."""

    name: str
    tier: str


@attrs.frozen(kw_only=True)
class NodeIdentity:
    """This node, as it shows itself to its neighbours."""

    name: str
    tier: str
    secret: ClusterSecret | None = None

    def properties(self, role: str, their_nonce: bytes, our_nonce: bytes) -> dict[str, Any]:
        """The connect properties (client) or answer properties (server) that say and prove who we are."""
        said: dict[str, Any] = {NODE: self.name, TIER: self.tier}
        if self.secret is not None:
            said[PROOF] = self.secret.prove(role, self.name, their_nonce, our_nonce)
        return said

    def recognize(
        self, properties: dict[str, Any], role: str, their_nonce: bytes, our_nonce: bytes, address: str
    ) -> PeerNode | None:
        """The peer, if it is a node of our cluster; ``address`` is its host (empty for a UNIX socket)."""
        name, tier = properties.get(NODE), properties.get(TIER)
        if not isinstance(name, str) or not isinstance(tier, str):
            return None
        if self.secret is None:
            return PeerNode(name[:128], tier[:32]) if is_local(address) else None
        if not self.secret.verify(properties.get(PROOF), role, name, their_nonce, our_nonce):
            return None
        return PeerNode(name[:128], tier[:32])


def is_local(address: str) -> bool:
    """Is this host the one we run on (loopback, or a UNIX socket)?"""
    return not address or is_loopback(address)
