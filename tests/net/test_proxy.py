"""PROXY protocol headers: read in any pieces, refused when broken, written and proved."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import DEFAULT_LIMITS, Limits
from relay.net.proxy import (
    TLV_CRC32C,
    V2_SIGNATURE,
    Family,
    ProxyAddress,
    ProxyHeader,
    ProxyReader,
    crc32c,
    is_authentic,
    make_header,
)

SESSION_ID = bytes(range(16))
SECRET = b"0123456789abcdef"
VIEWER = ProxyAddress("192.0.2.7", 56324, Family.TCP4)
PORT = ProxyAddress("198.51.100.1", 1935, Family.TCP4)
V1_LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 1935\r\n"
TCP4_BLOCK = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 56324, 1935)


def v2(body, command=0x21, family=0x11):
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


def read(data, limits=DEFAULT_LIMITS):
    done = ProxyReader(limits).feed(data)
    assert done is not None
    return done


GOOD = {
    "v1 TCP4": V1_LINE,
    "v1 TCP6": b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n",
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v1 UNKNOWN and more": b"PROXY UNKNOWN ffff::1 anything at all\r\n",
    "v2 TCP4": v2(TCP4_BLOCK),
    "v2 TCP6": v2(bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("!HH", 1, 2), family=0x21),
    "v2 TLVs": v2(TCP4_BLOCK + tlv(0x02, b"relay.example") + tlv(0x04, b"")),
    "v2 LOCAL": v2(b"", command=0x20, family=0x00),
    "v2 LOCAL with anything": v2(b"anything", command=0x20, family=0xFF),
    "v2 UNSPEC": v2(b"", family=0x00),
    "v2 UNSPEC with anything": v2(b"\x01\xff\xff", family=0x00),
    "v2 UDP4": v2(TCP4_BLOCK, family=0x12),
    "v2 UNIX": v2(bytes(216) + tlv(0x04, b"x"), family=0x31),
    "ours": make_header(VIEWER, PORT, SESSION_ID, SECRET),
}

BAD = {
    "RTMP": b"\x03",
    "TLS": b"\x16\x03\x01",
    "HTTP": b"POST / HTTP/1.1\r\n",
    "v1 lower case": b"proxy ",
    "v1 without spaces": b"PROXYTCP4",
    "v1 family": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "v1 too few words": b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    "v1 too many words": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    "v1 no address": b"PROXY TCP4 relay.example 198.51.100.1 1 2\r\n",
    "v1 other family's address": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "v1 zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "v1 port too great": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    "v1 port with a zero before": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "v1 negative port": b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n",
    "v1 not ASCII": b"PROXY TCP4 \xd9\xa1.0.2.7 198.51.100.1 1 2\r\n",
    "v1 bare LF": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n" + bytes(80),
    "v1 108 bytes": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "v1 never ends": b"PROXY " + b"x" * 1000,
    "v2 signature's last byte": V2_SIGNATURE[:-1] + b"\r",
    "v2 version 1": v2(TCP4_BLOCK, command=0x11),
    "v2 command 2": v2(TCP4_BLOCK, command=0x22),
    "v2 unassigned family": v2(TCP4_BLOCK, family=0x41),
    "v2 unassigned protocol": v2(TCP4_BLOCK, family=0x13),
    "v2 length 0xFFFF": V2_SIGNATURE + b"\x21\x11\xff\xff",
    "v2 short addresses": v2(TCP4_BLOCK[:-1]),
    "v2 short IPv6 addresses": v2(TCP4_BLOCK, family=0x21),
    "v2 TLV head cut": v2(TCP4_BLOCK + b"\x04\x00"),
    "v2 TLV value cut": v2(TCP4_BLOCK + b"\x04\x00\x02x"),
    "v2 TLV twice": v2(TCP4_BLOCK + tlv(0xE0, SESSION_ID) + tlv(0xE0, bytes(16))),
    "v2 wrong checksum": v2(TCP4_BLOCK + tlv(TLV_CRC32C, b"\0\0\0\0")),
    "v2 checksum of two bytes": v2(TCP4_BLOCK + tlv(TLV_CRC32C, b"\0\0")),
}


class ReadingTests(SynchronousTestCase):
    def test_version_1_line_gives_both_addresses(self):
        """The example of the specification."""
        header, rest = read(V1_LINE + b"\x03")
        expected = (1, VIEWER, PORT, b"\x03")
        self.assertEqual(expected, (header.version, header.source, header.destination, rest))

    def test_version_2_block_gives_both_addresses(self):
        """The same connection in binary."""
        header, rest = read(v2(TCP4_BLOCK) + b"\x03")
        expected = (2, VIEWER, PORT, b"\x03")
        self.assertEqual(expected, (header.version, header.source, header.destination, rest))

    def test_ipv6_addresses_are_read_in_both_versions(self):
        """Hosts come out in the shortest form."""
        line, _ = read(GOOD["v1 TCP6"])
        block, _ = read(GOOD["v2 TCP6"])
        self.assertEqual(ProxyAddress("2001:db8::7", 1, Family.TCP6), line.source)
        self.assertEqual(ProxyAddress("::2", 2, Family.TCP6), block.destination)

    def test_header_without_addresses_is_accepted(self):
        """A health check, or a connection that has none."""
        for name in ("v1 UNKNOWN", "v2 LOCAL with anything", "v2 UNSPEC with anything", "v2 UDP4", "v2 UNIX"):
            header, rest = read(GOOD[name] + b"rest")
            self.assertEqual((None, None, b"rest"), (header.source, header.destination, rest), name)
            self.assertEqual("LOCAL" in name, header.is_local, name)

    def test_broken_header_is_refused(self):
        """Each as soon as it is in, whole or byte by byte."""
        for name, data in BAD.items():
            with self.assertRaises(RemoteProtocolError, msg=name):
                ProxyReader(DEFAULT_LIMITS).feed(data)
            reader = ProxyReader(DEFAULT_LIMITS)
            with self.assertRaises(RemoteProtocolError, msg=name):
                for at in range(len(data)):
                    self.assertIsNone(reader.feed(data[at : at + 1]), name)

    def test_header_over_the_limit_is_refused_by_its_length_alone(self):
        """Nothing is held for a declared length."""
        limits = Limits(proxy_header_bytes=64)
        fits = v2(TCP4_BLOCK + tlv(0x04, bytes(64 - 16 - 12 - 3)))
        self.assertEqual(64, len(read(fits, limits)[0].raw))
        with self.assertRaises(LimitExceeded) as caught:
            ProxyReader(limits).feed(v2(TCP4_BLOCK + tlv(0x04, bytes(34)))[:16])
        self.assertEqual("proxy_header_bytes", caught.exception.field)

    def test_version_1_line_of_107_bytes_is_the_longest(self):
        """The specification's own bound."""
        longest = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
        self.assertEqual(107, len(longest))
        self.assertEqual(b"", read(longest)[1])

    def test_right_checksum_is_accepted(self):
        """As HAProxy's ``send-proxy-v2 proxy-v2-options crc32c`` sends it."""
        blank = v2(TCP4_BLOCK + tlv(TLV_CRC32C, bytes(4)) + tlv(0x04, b"x"))
        at = blank.index(tlv(TLV_CRC32C, bytes(4))) + 3
        whole = blank[:at] + struct.pack("!I", crc32c(blank)) + blank[at + 4 :]
        self.assertEqual(b"x", read(whole)[0].tlvs[0x04])

    def test_crc32c_of_the_check_string(self):
        """The published check value of the polynomial."""
        self.assertEqual(0xE3069283, crc32c(b"123456789"))


class WritingTests(SynchronousTestCase):
    def test_header_has_the_documented_bytes(self):
        """The offsets of the module's own table."""
        header = make_header(VIEWER, PORT, SESSION_ID, SECRET)
        self.assertEqual(V2_SIGNATURE + b"\x21\x11\x00\x42" + TCP4_BLOCK + b"\xe0\x00\x10" + SESSION_ID, header[:47])
        self.assertEqual((82, b"\xe1\x00\x20"), (len(header), header[47:50]))

    def test_two_families_are_our_own_mistake(self):
        """There is no way to write that."""
        with self.assertRaises(LocalProtocolError):
            make_header(VIEWER, ProxyAddress("::1", 1, Family.TCP6), SESSION_ID)

    def test_session_id_of_another_length_is_our_own_mistake(self):
        """The reader would not take it for one."""
        with self.assertRaises(LocalProtocolError):
            make_header(VIEWER, PORT, b"short")

    def test_zone_of_a_link_local_address_is_left_out(self):
        """It means nothing on another machine."""
        self.assertEqual(ProxyAddress("fe80::1", 5, Family.TCP6), ProxyAddress.make("fe80::1%eth0", 5))


class ProofTests(SynchronousTestCase):
    def setUp(self):
        self.raw = make_header(VIEWER, PORT, SESSION_ID, SECRET)

    def test_header_of_one_who_knows_the_secret_is_authentic(self):
        """And of nobody else."""
        header, _ = read(self.raw)
        self.assertTrue(is_authentic(header, SECRET))
        self.assertFalse(is_authentic(header, b"another secret.."))

    def test_no_secret_proves_nothing(self):
        """An empty key would be known to all."""
        header, _ = read(make_header(VIEWER, PORT, SESSION_ID))
        self.assertFalse(is_authentic(header, SECRET))
        self.assertFalse(is_authentic(header, b""))
        self.assertFalse(is_authentic(read(self.raw)[0], b""))

    def test_any_changed_byte_breaks_the_proof(self):
        """The header is refused, or not authentic."""
        for at in range(len(self.raw)):
            changed = self.raw[:at] + bytes([self.raw[at] ^ 1]) + self.raw[at + 1 :]
            try:
                done = ProxyReader(DEFAULT_LIMITS).feed(changed)
            except RemoteProtocolError:
                continue
            self.assertFalse(done is not None and is_authentic(done[0], SECRET), f"byte {at}")

    def test_tlv_after_the_proof_breaks_it(self):
        """Nothing may be added to a proved header."""
        more = self.raw[16:] + tlv(0x04, b"")
        header, _ = read(v2(more))
        self.assertFalse(is_authentic(header, SECRET))

    def test_repr_does_not_show_the_proof_twice(self):
        """``raw`` stays out of log lines."""
        self.assertNotIn("raw=", repr(read(self.raw)[0]))


hosts = st.ip_addresses().map(str)
ports = st.integers(0, 65535)


@st.composite
def address_pairs(draw):
    version = draw(st.sampled_from([4, 6]))
    ends = [ProxyAddress.make(str(draw(st.ip_addresses(v=version))), draw(ports)) for _ in range(2)]
    return tuple(ends)


@given(pair=st.one_of(st.just((None, None)), address_pairs()), session_id=st.binary(min_size=16, max_size=16))
@settings(deadline=None)
def test_what_is_written_is_read(pair, session_id):
    """Round trip, with the proof."""
    header, rest = read(make_header(*pair, session_id, SECRET) + b"rest")
    assert (pair, session_id, b"rest") == ((header.source, header.destination), header.session_id, rest)
    assert is_authentic(header, SECRET)
    assert not header.is_local


@given(data=st.data(), name=st.sampled_from(sorted(GOOD)))
@settings(deadline=None)
def test_any_fragmentation_gives_the_same_header(data, name):
    """Cut anywhere, with bytes behind it."""
    whole = GOOD[name] + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=len(whole))))
    reader = ProxyReader(DEFAULT_LIMITS)
    done = None
    fed = 0
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        done = reader.feed(whole[begin:end])
        fed = end
        if done is not None:
            break
    assert done is not None
    header, rest = done
    assert read(whole) == (header, rest + whole[fed:])


@pytest.mark.parametrize("name", sorted(GOOD))
def test_header_cut_anywhere_is_waited_for(name):
    """Never an error, never a guess."""
    for end in range(len(GOOD[name])):
        assert ProxyReader(DEFAULT_LIMITS).feed(GOOD[name][:end]) is None


@given(start=st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21"]), data=st.binary())
@settings(deadline=None)
def test_any_bytes_give_a_header_or_a_protocol_error(start, data):
    """Nothing else, and nothing past the limit is held."""
    try:
        done = ProxyReader(DEFAULT_LIMITS).feed(start + data)
    except RemoteProtocolError:
        return
    if done is None:
        assert len(start + data) < DEFAULT_LIMITS.proxy_header_bytes
    else:
        assert isinstance(done[0], ProxyHeader)
