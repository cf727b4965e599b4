"""A node proves that it belongs to the cluster, and the secret stays at home.  (FAULTS rows 19 and 23.)"""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase, TestCase

from relay.errors import ConfigError
from relay.net.identity import ClusterSecret, NodeIdentity, PeerNode, is_local, read_secret_file

KEY = b"0123456789abcdef"
OURS, THEIRS = b"our nonce", b"their nonce"


class ProofTests(SynchronousTestCase):
    """A client and a server, each with its own view of the two nonces."""

    def setUp(self) -> None:
        self.client = NodeIdentity(name="a1", tier="distributor", secret=ClusterSecret(KEY))
        self.server = NodeIdentity(name="o1", tier="origin", secret=ClusterSecret(KEY))
        self.said = self.client.properties("client", b"server nonce", b"client nonce")

    def recognize(self, said, role="client", theirs=b"client nonce", ours=b"server nonce", address="192.0.2.1"):
        return self.server.recognize(said, role, theirs, ours, address)

    def test_same_secret_is_recognized_from_anywhere(self) -> None:
        self.assertEqual(PeerNode("a1", "distributor"), self.recognize(self.said))

    def test_recorded_proof_is_worthless_on_another_connection(self) -> None:
        self.assertIsNone(self.recognize(self.said, ours=b"another nonce"))
        self.assertIsNone(self.recognize(self.said, theirs=b"another nonce"))

    def test_server_s_proof_can_t_be_sent_back_as_a_client_s(self) -> None:
        """Reflection: who only knows how to repeat what we say proves nothing."""
        reflected = self.server.properties("server", b"client nonce", b"server nonce")
        self.assertIsNone(self.recognize(reflected))
        self.assertIsNone(self.recognize(reflected, theirs=b"server nonce", ours=b"client nonce"))

    def test_proof_is_of_a_name(self) -> None:
        self.assertIsNone(self.recognize({**self.said, "relayNode": "a2"}))

    def test_wrong_secret_is_not_recognized(self) -> None:
        other = NodeIdentity(name="a1", tier="distributor", secret=ClusterSecret(KEY + b"x"))
        self.assertIsNone(self.recognize(other.properties("client", b"server nonce", b"client nonce")))

    def test_missing_or_strange_proofs_are_none(self) -> None:
        for proof in (None, 0.0, True, [], {}, "", "ü" * 64, "00" * 32):
            self.assertIsNone(self.recognize({**self.said, "relayProof": proof}), proof)
        for key in self.said:
            self.assertIsNone(self.recognize({name: value for name, value in self.said.items() if name != key}), key)

    def test_secret_is_in_no_repr_and_not_on_the_wire(self) -> None:
        text = repr(self.server) + repr(self.said) + str(ClusterSecret(KEY))
        self.assertNotIn("0123456789abcdef", text)
        self.assertNotIn(KEY.hex(), text)

    def test_node_without_a_secret_believes_its_own_host_alone(self) -> None:
        lonely = NodeIdentity(name="o1", tier="origin")
        said = NodeIdentity(name="a1", tier="distributor").properties("client", b"", b"")
        for address, is_believed in (("127.0.0.1", True), ("::1", True), ("", True), ("192.0.2.1", False)):
            self.assertEqual(is_believed, lonely.recognize(said, "client", b"", b"", address) is not None, address)

    def test_long_names_are_cut(self) -> None:
        lonely = NodeIdentity(name="o1", tier="origin")
        peer = lonely.recognize({"relayNode": "x" * 5000, "relayTier": "y" * 5000}, "client", b"", b"", "127.0.0.1")
        self.assertEqual((128, 32), (len(peer.name), len(peer.tier)))

    def test_local_is_loopback_or_unix(self) -> None:
        self.assertEqual(
            [True, True, True, True, False, False, False],
            [is_local(address) for address in ("", "127.1.2.3", "::1", "::1%lo", "10.0.0.1", "fe80::1%eth0", "host")],
        )
        self.assertEqual(
            [True, False], [is_local(address) for address in ("::ffff:127.0.0.1", "::ffff:192.0.2.1")], "on ::"
        )


class SecretFileTests(TestCase):
    def write(self, content: bytes, mode: int = 0o600) -> str:
        path = Path(self.mktemp())
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    def test_white_space_around_is_not_part_of_the_secret(self) -> None:
        self.assertEqual(ClusterSecret(KEY), read_secret_file(self.write(b"  " + KEY + b"\n")))

    def test_file_that_others_can_read_is_refused(self) -> None:
        for mode in (0o644, 0o640, 0o604, 0o660):
            error = self.assertRaises(ConfigError, read_secret_file, self.write(KEY, mode))
            self.assertIn("chmod 600", str(error))
            self.assertNotIn(KEY.decode(), str(error))

    def test_file_of_root_that_the_group_may_read_is_good_for_others(self) -> None:
        """How Kubernetes gives it to a node that is not root."""
        path = self.write(KEY, 0o640)
        self.patch(os, "geteuid", lambda: 10001)
        self.patch(os, "fstat", lambda _: os.stat_result((0o100640, 0, 0, 1, 0, 10001, len(KEY), 0, 0, 0)))
        self.assertEqual(ClusterSecret(KEY), read_secret_file(path))
        self.patch(os, "fstat", lambda _: os.stat_result((0o100644, 0, 0, 1, 0, 10001, len(KEY), 0, 0, 0)))
        self.assertRaises(ConfigError, read_secret_file, path)

    def test_short_secret_is_refused(self) -> None:
        error = self.assertRaises(ConfigError, read_secret_file, self.write(KEY[:-1] + b"\n"))
        self.assertIn("15 bytes", str(error))

    def test_missing_file_and_directory_are_one_line(self) -> None:
        for path in ("/nonexistent/secret", os.getcwd()):
            error = self.assertRaises(ConfigError, read_secret_file, path)
            self.assertIn(path, str(error))
            self.assertNotIn("\n", str(error))
