"""An IPv4 peer of a listener on ``::`` is the IPv4 peer that it is."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from relay.hosts import address_of, is_in, is_loopback


class HostTests(SynchronousTestCase):
    def test_address(self) -> None:
        for host, address in (
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:c000:207", "192.0.2.7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("fe80::1%eth0", "fe80::1"),
        ):
            self.assertEqual(address, str(address_of(host)), host)
        for host in ("", "unix", "localhost", "192.0.2.256"):
            self.assertIsNone(address_of(host), host)

    def test_networks_may_be_written_either_way(self) -> None:
        for network in ("192.0.2.0/24", "::ffff:192.0.2.0/120"):
            for host in ("192.0.2.7", "::ffff:192.0.2.7"):
                self.assertTrue(is_in(host, [ip_network("2001:db8::/32"), ip_network(network)]), (host, network))
            for host in ("192.0.3.7", "::ffff:192.0.3.7", "::192.0.2.7", "2001:db8::7", ""):
                self.assertFalse(is_in(host, [ip_network(network)]), (host, network))

    def test_all_of_ipv6_is_not_all_of_ipv4(self) -> None:
        self.assertTrue(is_in("2001:db8::7", [ip_network("::/0")]))
        self.assertFalse(is_in("::ffff:192.0.2.7", [ip_network("::/0")]))

    def test_loopback(self) -> None:
        for host in ("127.1.2.3", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(is_loopback(host), host)
        for host in ("", "::ffff:192.0.2.7", "fe80::1%lo", "host"):
            self.assertFalse(is_loopback(host), host)
