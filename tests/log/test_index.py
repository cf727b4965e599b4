from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.log.headers import HeadersInForce
from relay.log.index import END, JOIN, START, Entry, decode_entries, decode_line, encode_entries, encode_line
from relay.log.points import JoinPoint, LogStart
from tests.log.test_headers import headers_in_force
from tests.strategies import mutated


@st.composite
def indexes(draw: st.DrawFn) -> list[Entry]:
    offset, flv_offset, time_ms = (
        draw(st.integers(0, 1 << 40)),
        draw(st.integers(0, 1 << 40)),
        draw(st.integers(0, 1 << 40)),
    )
    some = draw(st.lists(headers_in_force, min_size=1, max_size=2))
    entries = []
    kinds = [START, *draw(st.lists(st.just(JOIN), max_size=5)), *draw(st.sampled_from(([], [END])))]
    for kind in kinds:
        make = JoinPoint if kind == JOIN else LogStart
        point = make(offset, flv_offset, time_ms, draw(st.sampled_from(some)))
        entries.append(Entry(kind, point, draw(st.integers(0, 2**32 - 1))))
        offset, flv_offset, time_ms = offset + draw(st.integers(0, 999)), flv_offset + 5, time_ms + 40
    return entries


@given(indexes())
def test_index_comes_back(entries: list[Entry]) -> None:
    assert decode_entries(encode_entries(entries)) == entries


@given(indexes(), st.data())
def test_torn_index_is_a_prefix_of_it(entries: list[Entry], data: st.DataObject) -> None:
    encoded = encode_entries(entries)
    found = decode_entries(encoded[: data.draw(st.integers(0, len(encoded)))])
    assert found == entries[: len(found)]


@given(indexes().flatmap(lambda entries: st.tuples(st.just(entries), mutated(encode_entries(entries)))))
def test_damaged_index_tells_nothing_new(case: tuple[list[Entry], bytes]) -> None:
    """Each line vouches for itself; a line that is repeated or dropped is found by the CRCs of the log's bytes."""
    entries, data = case
    assert all(
        any(found.point == entry.point or found.crc == entry.crc for entry in entries) for found in decode_entries(data)
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_an_index_or_none(data: bytes) -> None:
    decode_entries(data)


class EntryTests(SynchronousTestCase):
    def test_headers_are_written_when_they_change(self) -> None:
        headers = HeadersInForce(video=((0, b"\x17\x00"),))
        entries = [
            Entry(START, LogStart()),
            Entry(JOIN, JoinPoint(5, 5, 5, headers)),
            Entry(JOIN, JoinPoint(9, 9, 9, headers)),
        ]
        lines = encode_entries(entries).splitlines()
        self.assertEqual([True, True, False], [b"headers" in line for line in lines])

    def test_example_of_a_line(self) -> None:
        line = encode_entries([Entry(START, LogStart(7, 8, 9), 3)])
        self.assertTrue(
            line.endswith(b' {"kind":"start","offset":7,"flv_offset":8,"time_ms":9,"crc":3,"headers":[]}\n'), line
        )

    def test_it_must_begin_with_a_start(self) -> None:
        lines = encode_entries([Entry(START, LogStart()), Entry(JOIN, JoinPoint(5, 5, 5))]).splitlines(keepends=True)
        self.assertEqual([], decode_entries(lines[1]))
        self.assertEqual(1, len(decode_entries(lines[0] + lines[0])))

    def test_it_never_goes_back(self) -> None:
        lines = [
            encode_entries([Entry(START, LogStart(10))]),
            encode_line({"kind": "join", "offset": 5, "flv_offset": 0, "time_ms": 0, "crc": 0}),
        ]
        self.assertEqual(1, len(decode_entries(b"".join(lines))))

    def test_line_that_lacks_something(self) -> None:
        self.assertEqual([], decode_entries(encode_line({"kind": "start"})))
        self.assertEqual([], decode_entries(encode_line({"kind": "start", "offset": None, "headers": []})))

    def test_line_with_another_crc(self) -> None:
        line = encode_line({"a": 1})
        self.assertEqual({"a": 1}, decode_line(line))
        self.assertIsNone(decode_line(line.replace(b"1}", b"2}")))
        self.assertIsNone(decode_line(b""))
