"""AMF0 values: every marker, every cut, and what a peer would like us to choke on."""

from __future__ import annotations

import time
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.rtmp import amf0
from relay.rtmp.amf0 import UNDEFINED, Date, EcmaArray, decode_all, encode, first_string
from tests import strategies

BOTH_WAYS: dict[str, tuple[str, Any]] = {
    "number": ("00 3FF0000000000000", 1.0),
    "true": ("01 01", True),
    "string": ("02 0003 616263", "abc"),
    "empty string": ("02 0000", ""),
    "object": ("03 0001 61 05 000009", {"a": None}),
    "empty object": ("03 000009", {}),
    "null": ("05", None),
    "ECMA array": ("08 00000001 0001 61 01 00 000009", EcmaArray(a=False)),
    "strict array (E-RTMP's fourCcList)": ("0A 00000002 02 0004 61763031 02 0004 68766331", ["av01", "hvc1"]),
    "array in an object": ("03 0001 61 0A 00000001 03 000009 000009", {"a": [{}]}),
    "date": ("0B 3FF0000000000000 003C", Date(1.0, 60)),
    "long string": ("0C 00010000" + "61" * 65536, "a" * 65536),
}

READ_ONLY: dict[str, tuple[str, list[Any]]] = {
    "undefined": ("06", [None]),
    "reference": ("07 0001 01 01", [None, True]),
    "unsupported": ("0D 01 01", [None, True]),
    "XML": ("0F 00000003 3C612F", ["<a/"]),
    "typed object is a plain one": ("10 0004 45766974 0001 61 05 000009", [{"a": None}]),
    "ECMA count is a hint: too many": ("08 FFFFFFFF 0001 61 05 000009", [{"a": None}]),
    "ECMA count is a hint: too few": ("08 00000000 0001 61 05 000009", [{"a": None}]),
    "short string in a long one": ("0C 00000001 61", ["a"]),
    "bad UTF-8": ("02 0002 61FF", ["a�"]),
    "AMF3 ends it": ("02 0001 61 11 0A0B01", ["a"]),
    "unknown marker inside an object ends it": ("02 0001 61 03 0001 62 05 0001 63 12 FFFF", ["a", {"b": None}]),
    "end of object that nothing opened ends it": ("05 09 05", [None]),
    "empty key without the end marker": ("03 0000 05 0001 61 05 000009", [{"": None, "a": None}]),
}


class TableTests(SynchronousTestCase):
    def test_both_ways(self) -> None:
        for name, (text, value) in BOTH_WAYS.items():
            data = bytes.fromhex(text)
            self.assertEqual(data.hex(), encode(value).hex(), name)
            (seen,) = decode_all(data, DEFAULT_LIMITS)
            self.assertEqual(value, seen, name)
            self.assertIs(type(value), type(seen), name)

    def test_read_only(self) -> None:
        for name, (text, values) in READ_ONLY.items():
            self.assertEqual(values, decode_all(bytes.fromhex(text), DEFAULT_LIMITS), name)

    def test_every_row_cut_anywhere_is_the_peers_fault_or_shorter(self) -> None:
        """A cut value never gives a whole one, nor any other exception."""
        for name, (text, _) in BOTH_WAYS.items():
            data = bytes.fromhex(text)[:200]
            for end in range(1, len(data)):
                with self.assertRaises(RemoteProtocolError, msg=f"{name} cut at {end}"):
                    decode_all(data[:end], attrs.evolve(DEFAULT_LIMITS, amf_string_bytes=1 << 20))

    def test_undefined_is_written(self) -> None:
        self.assertEqual(b"\x06", encode(UNDEFINED))

    def test_unwritable_values_are_our_fault(self) -> None:
        deep: list[Any] = []
        for _ in range(40):
            deep = [deep]
        for value in (object(), {"": 1}, {"k" * 65536: 1}, {1, 2}, b"bytes", deep):
            with self.assertRaises(LocalProtocolError):
                encode(value)


class HostileTests(SynchronousTestCase):
    def refused(self, data: bytes, field: str) -> None:
        """Refused by that limit, within 50 ms of processor time."""
        before = time.process_time()
        with self.assertRaises(LimitExceeded) as caught:
            decode_all(data, DEFAULT_LIMITS)
        self.assertEqual(field, caught.exception.field)
        self.assertLess(time.process_time() - before, 0.05)

    def test_100_000_nested_objects_are_refused(self) -> None:
        self.refused(bytes.fromhex("03000161") * 100_000, "amf_depth")

    def test_100_000_nested_arrays_are_refused(self) -> None:
        self.refused(bytes.fromhex("0A00000001") * 100_000, "amf_depth")
        self.refused(bytes.fromhex("0A0000000103000161") * 100_000, "amf_depth")
        self.refused(bytes.fromhex("08000000010001 61") * 100_000, "amf_depth")

    def test_many_values_are_refused(self) -> None:
        self.refused(b"\x05" * 60_000, "amf_items")
        self.refused(bytes.fromhex("0A0000FFFF") + b"\x05" * 60_000, "amf_items")

    def test_declared_counts_cost_nothing(self) -> None:
        """An array of 4 billion and a string of 4 GB, neither of them there."""
        with self.assertRaises(RemoteProtocolError):
            decode_all(bytes.fromhex("0AFFFFFFFF05"), DEFAULT_LIMITS)
        self.refused(bytes.fromhex("0CFFFFFFFF61"), "amf_string_bytes")

    def test_ecma_array_without_an_end_is_refused(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            decode_all(bytes.fromhex("08FFFFFFFF00016105"), DEFAULT_LIMITS)

    def test_key_of_65535_bytes_that_is_not_there(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            decode_all(bytes.fromhex("03FFFF61"), DEFAULT_LIMITS)


class FirstStringTests(SynchronousTestCase):
    def test_first_string(self) -> None:
        for data, expected in (
            (encode("onMetaData", 1), ("onMetaData", 13)),
            (b"\x0c\x00\x00\x00\x01a", ("a", 6)),
            (b"\x02\x00\x05abc", None),
            (b"\x02\x00", None),
            (b"\x00", None),
            (b"", None),
        ):
            self.assertEqual(expected, first_string(data))


@given(st.lists(strategies.amf_values(), max_size=4))
def test_round_trip(values: list[Any]) -> None:
    assert values == decode_all(encode(*values), DEFAULT_LIMITS)


@given(st.binary(max_size=300))
def test_any_bytes_give_values_or_the_peers_fault(data: bytes) -> None:
    try:
        values = decode_all(data, DEFAULT_LIMITS)
    except RemoteProtocolError:
        return
    assert isinstance(values, list)


@given(st.data())
def test_mutated_values_give_values_or_the_peers_fault(data: st.DataObject) -> None:
    values = data.draw(st.lists(strategies.amf_values(), min_size=1, max_size=3))
    try:
        amf0.decode_all(data.draw(strategies.mutated(encode(*values))), DEFAULT_LIMITS)
    except RemoteProtocolError as error:
        assert str(error)
