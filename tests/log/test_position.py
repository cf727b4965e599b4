from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import PositionUnavailable
from relay.log.position import MAX_EPOCH, Position

positions = st.builds(Position, st.integers(1, MAX_EPOCH), st.integers(0, 1 << 60))


@given(positions)
def test_text_comes_back_as_the_same_position(position: Position) -> None:
    assert Position.parse(str(position)) == position


@given(positions, positions)
def test_order_is_by_epoch_then_offset(one: Position, other: Position) -> None:
    assert (one < other) == (attrs.astuple(one) < attrs.astuple(other))


class PositionTests(SynchronousTestCase):
    """Operators and peers write positions as EPOCH:OFFSET."""

    def test_text_form(self) -> None:
        self.assertEqual("7:4096", str(Position(7, 4096)))

    def test_bad_text_is_refused(self) -> None:
        bad = (
            "",
            "7",
            "7:",
            ":7",
            "a:1",
            "1:-1",
            "1:1:1",
            " 1:1",
            "1:1\n",
            "0:1",
            f"{1 << 53}:0",
            "1:" + "9" * 40,
            "\u0661:1",
        )
        for text in bad:
            with self.assertRaises(PositionUnavailable, msg=repr(text)):
                Position.parse(text)

    def test_epoch_that_an_amf_number_can_not_hold_is_refused(self) -> None:
        self.assertEqual(MAX_EPOCH, Position(MAX_EPOCH, 0).epoch)
        for epoch in (0, -1, MAX_EPOCH + 1):
            with self.assertRaises(PositionUnavailable):
                Position(epoch, 0)

    def test_negative_offset_is_refused(self) -> None:
        with self.assertRaises(PositionUnavailable):
            Position(1, -1)
