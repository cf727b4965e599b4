"""Both sides of the handshake, alone and with each other."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LocalProtocolError, RemoteProtocolError
from relay.rtmp import handshake
from relay.rtmp.handshake import ClientHandshake, ServerHandshake
from tests import strategies, wire

C1 = bytes(8) + wire.NONCE
OTHER = wire.NONCE[::-1]


def signed_block(key: bytes, pointer: int) -> bytes:
    """A first message with a digest, made here from the published scheme."""
    block = bytearray(bytes(4) + b"\x03\x05\x01\x01" + wire.NONCE)
    at = sum(block[pointer : pointer + 4]) % 728 + pointer + 4
    block[at : at + 32] = hmac.digest(key, bytes(block[:at] + block[at + 32 :]), "sha256")
    return bytes(block)


class ServerTests(SynchronousTestCase):
    def test_answer_is_version_3_plain_and_an_echo(self) -> None:
        """S1's version bytes are zero, so that nobody looks for a digest; S2 repeats C1."""
        server = ServerHandshake(OTHER)
        self.assertEqual(b"", server.feed(b"\x03" + C1))
        self.assertEqual(b"\x03" + bytes(8) + OTHER + C1, server.data_to_send())
        self.assertFalse(server.is_complete)
        self.assertEqual(b"rest", server.feed(bytes(1536) + b"rest"))
        self.assertTrue(server.is_complete)
        self.assertEqual(wire.NONCE, server.their_nonce)

    def test_digest_c1_gets_the_same_answer(self) -> None:
        """ffmpeg and Flash begin with one."""
        block = signed_block(b"Genuine Adobe Flash Player 001", 8)
        server = ServerHandshake(OTHER)
        server.feed(b"\x03" + block)
        self.assertEqual(b"\x03" + bytes(8) + OTHER + block, server.data_to_send())

    def test_nothing_is_said_before_c1_is_whole(self) -> None:
        server = ServerHandshake(OTHER)
        server.feed(b"\x03" + C1[:-1])
        self.assertEqual(b"", server.data_to_send())

    def test_commands_right_behind_c2_are_returned(self) -> None:
        """Some encoders send C2 and connect in one piece, before they have S1."""
        server = ServerHandshake(OTHER)
        self.assertEqual(wire.connect_ffmpeg(), server.feed(wire.handshake() + wire.connect_ffmpeg()))

    def test_other_first_bytes_are_refused_at_once(self) -> None:
        """HTTP, TLS, RTMPE, PROXY, and versions that nobody speaks."""
        for first in b"G\x16\x06\x08\x09P\x00\x02\x04\x20\xff":
            with self.assertRaises(RemoteProtocolError):
                ServerHandshake(OTHER).feed(bytes((first,)))

    def test_nonce_of_the_wrong_length_is_our_fault(self) -> None:
        with self.assertRaises(LocalProtocolError):
            ServerHandshake(b"short")


class ClientTests(SynchronousTestCase):
    def test_plain(self) -> None:
        client = ClientHandshake(wire.NONCE)
        self.assertEqual(b"\x03" + C1, client.data_to_send())
        block = bytes(8) + OTHER
        self.assertEqual(b"", client.feed(b"\x03" + block))
        self.assertEqual(block, client.data_to_send(), "C2 repeats S1")
        self.assertEqual(b"rest", client.feed(bytes(1536) + b"rest"))
        self.assertEqual(OTHER, client.their_nonce)

    def test_digest_is_where_the_scheme_says(self) -> None:
        client = ClientHandshake(wire.NONCE, digest=True)
        block = client.data_to_send()[1:]
        at = sum(block[8:12]) % 728 + 12
        expected = hmac.digest(b"Genuine Adobe Flash Player 001", block[:at] + block[at + 32 :], "sha256")
        self.assertEqual(expected, block[at : at + 32])
        self.assertEqual(block[8:], client.our_nonce, "what was sent is what a secret is proved over")

    def test_signed_server_gets_a_signed_c2(self) -> None:
        """In both schemes."""
        for pointer in (8, 772):
            client = ClientHandshake(wire.NONCE, digest=True)
            client.data_to_send()
            block = signed_block(b"Genuine Adobe Flash Media Server 001", pointer)
            client.feed(b"\x03" + block)
            answer = client.data_to_send()
            at = sum(block[pointer : pointer + 4]) % 728 + pointer + 4
            full_key = b"Genuine Adobe Flash Player 001" + handshake._KEY_TAIL
            key = hmac.digest(full_key, block[at : at + 32], "sha256")
            self.assertEqual(1536, len(answer))
            self.assertEqual(hmac.digest(key, answer[:-32], "sha256"), answer[-32:])

    def test_unsigned_server_gets_an_echo(self) -> None:
        """Version bytes without a digest, as from old nginx-rtmp, fall back to the plain handshake."""
        for version in (b"\0\0\0\0", b"\x03\x05\x01\x01"):
            client = ClientHandshake(wire.NONCE, digest=True)
            client.data_to_send()
            block = bytes(4) + version + OTHER
            client.feed(b"\x03" + block)
            self.assertEqual(block, client.data_to_send())

    def test_other_versions_are_refused(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            ClientHandshake(wire.NONCE).feed(b"\x06")


@pytest.mark.parametrize("digest", [False, True])
@given(st.data())
def test_pair_agrees_however_the_bytes_are_cut(digest: bool, data: st.DataObject) -> None:
    client, server = ClientHandshake(wire.NONCE, digest), ServerHandshake(OTHER)
    for piece in data.draw(strategies.cuts(client.data_to_send())):
        server.feed(piece)
    for piece in data.draw(strategies.cuts(server.data_to_send())):
        client.feed(piece)
    assert client.is_complete
    assert server.feed(client.data_to_send() + b"next") == b"next"
    assert (client.our_nonce, server.our_nonce) == (server.their_nonce, client.their_nonce)
