"""A log as messages: the same that were written, however it is cut into segments and pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import PositionUnavailable
from relay.log.cursor import CursorState
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.log.reader import PIECE, MessageReader
from relay.rtmp.messages import MediaMessage
from tests.log.model import fill, gops, video
from tests.log.test_cursor import make_log


def read_all(reader: MessageReader) -> list[MediaMessage]:
    """Until there is nothing more."""
    found: list[MediaMessage] = []
    while messages := reader.read():
        found += messages
    return found


@given(st.integers(100, 2000), st.integers(1, 4))
def test_messages_are_those_that_were_written(segment_bytes: int, count: int) -> None:
    """And the reader stands at a message's beginning after each read."""
    sent = gops(count)
    log = fill(make_log(LogOptions(segment_bytes=segment_bytes)), sent)
    reader = MessageReader(log, LogStart())
    assert read_all(reader) == sent
    assert (reader.state, reader.offset) == (CursorState.AT_END, log.end)
    fill(log, [video(99_000, True)])
    assert [message.timestamp for message in reader.read()] == [99_000]
    reader.close()
    log.close()


class ReaderTests(SynchronousTestCase):
    """Large messages, moves, ends."""

    def setUp(self) -> None:
        self.log = make_log(LogOptions(segment_bytes=1 << 20))
        self.addCleanup(self.log.close)

    def test_message_of_many_pieces(self) -> None:
        """It is held until it is whole, and nothing of the next with it but a piece."""
        large = [MediaMessage(9, time, b"\x17\x01" + bytes(5 * PIECE)) for time in (0, 40)]
        fill(self.log, large)
        reader = MessageReader(self.log, LogStart())
        self.assertEqual(large, read_all(reader))
        reader.close()

    def test_moves_to_a_join_point(self) -> None:
        fill(self.log, gops(3))
        join = self.log.newest_join_point()
        reader = MessageReader(self.log, LogStart())
        reader.read()
        reader.move_to(self.log, join)
        self.assertEqual(join.offset, reader.offset)
        self.assertEqual(join.timestamp, reader.read()[0].timestamp)
        self.assertRaises(PositionUnavailable, reader.move_to, self.log, LogStart(offset=self.log.end + 1))
        reader.close()

    def test_end_is_told(self) -> None:
        fill(self.log, gops(1))
        self.log.finish(None)
        reader = MessageReader(self.log, LogStart())
        read_all(reader)
        self.assertIs(CursorState.ENDED, reader.state)
        reader.close()
        reader.close()
