"""Positions on the wire: what was written is read, anything else is refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.log.headers import HeadersInForce
from relay.log.points import LogStart
from relay.net.positions import (
    END,
    EPOCH,
    FLV_OFFSET,
    HEADERS,
    MAX_EXACT,
    OFFSET,
    TIME,
    position_info,
    read_position,
    start_info,
)
from relay.rtmp import amf0
from tests.strategies import amf_values

numbers = st.integers(0, MAX_EXACT - 1)
headers = st.builds(HeadersInForce, st.none() | st.binary(max_size=20), st.just(((0, b"avc"),)), st.just(((3, b"a"),)))


def over_the_wire(info):
    (told,) = amf0.decode_all(amf0.encode(info), DEFAULT_LIMITS)
    return told


@given(numbers, numbers, numbers, numbers, headers, numbers)
def test_position_and_state_survive_the_wire(epoch, offset, flv_offset, time_ms, in_force, end) -> None:
    start = LogStart(offset, flv_offset, time_ms, in_force)
    told = read_position(over_the_wire(start_info(epoch, start, end)))
    assert told is not None
    assert (told.epoch, told.offset, told.start) == (epoch, offset, start)
    assert told.end == (end if end > offset else 0)


@given(st.dictionaries(st.sampled_from((EPOCH, OFFSET, FLV_OFFSET, TIME, HEADERS, END)), amf_values()))
def test_anything_else_is_refused_or_no_position(info) -> None:
    try:
        told = read_position(over_the_wire(info))
    except RemoteProtocolError:
        return
    assert told is None or (told.epoch >= 0 and told.offset >= 0)


class PositionTests(SynchronousTestCase):
    def test_exact_position_has_no_state(self) -> None:
        told = read_position(over_the_wire(position_info(7, 9)))
        self.assertEqual((7, 9, None), (told.epoch, told.offset, told.start))

    def test_status_of_a_plain_server_is_no_position(self) -> None:
        self.assertIsNone(read_position({"code": "NetStream.Play.Start", "level": "status"}))

    def test_numbers_that_are_no_positions_are_refused(self) -> None:
        for number in (-1.0, 0.5, float("nan"), float("inf"), float(MAX_EXACT), "5", None, True, [5.0]):
            for key in (EPOCH, OFFSET):
                self.assertRaises(RemoteProtocolError, read_position, {**position_info(1, 1), key: number})

    def test_headers_that_are_none_are_refused(self) -> None:
        good = start_info(1, LogStart())
        for bad in (5.0, None, [5.0], ["x0:AAAA"], ["v0:no base64"], ["m0:" + "A" * (1 << 20)], ["v0:AAAA"] * 99):
            self.assertRaises(RemoteProtocolError, read_position, {**good, HEADERS: bad})
