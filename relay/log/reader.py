"""Reading a live log as messages, for who has to say them in another way than the log does.

Owns one cursor and the bytes of a message that is not all read.  Viewers need none of this: they are sent the log's own
bytes.  Called by :mod:`relay.net.forward_connection`.
"""

from __future__ import annotations

from relay.errors import StoreDamaged
from relay.log.cursor import CursorState
from relay.log.log import StreamLog
from relay.log.points import LogStart
from relay.log.record import NotARecord, parse, parse_header
from relay.rtmp.messages import MediaMessage

PIECE = 64 << 10
"""Bytes read at once, where no message is larger: what Twisted takes before it asks a producer to pause."""


class MessageReader:
    """Whole messages of a log, in order.  It holds one ``PIECE`` at most, or one message.

    Args:
        log: what to read.
        start: a place of it where a message begins.

    Raises:
        PositionUnavailable: the place is not there (any more).
    """

    def __init__(self, log: StreamLog, start: LogStart) -> None:
        self.log = log
        self.state = CursorState.READY
        """Why the last :meth:`read` gave nothing."""
        self._cursor = log.rtmp.cursor(start.offset)
        self._rest = b""
        self._missing = 0  # bytes of the message that begins in the rest

    @property
    def offset(self) -> int:
        """Of the next message."""
        return self._cursor.offset - len(self._rest)

    def read(self) -> list[MediaMessage]:
        """The next messages; none when the cursor has to wait or be moved, as ``state`` says.

        Raises:
            StoreDamaged: there is something else than a message.
            OSError: the segment can't be read.
        """
        while True:
            data = self._cursor.read(max(PIECE, self._missing))
            if not data:
                self.state = self._cursor.advance()
                if self.state is not CursorState.READY:
                    return []
                continue
            messages = self._split(self._rest + data)
            if messages:
                return messages

    def _split(self, data: bytes) -> list[MediaMessage]:
        messages = []
        at = 0
        try:
            while (found := parse(data, at)) is not None:
                message, at = found
                messages.append(message)
            self._rest = data[at:]
            header = parse_header(self._rest)
        except NotARecord as error:
            raise StoreDamaged(f"offset {self.offset}: {error}") from error
        self._missing = 0 if header is None else header[2] + header[3] - len(self._rest)
        return messages

    def move_to(self, log: StreamLog, start: LogStart) -> None:
        """Go on at another place, of another epoch perhaps.

        Raises:
            PositionUnavailable: it is not there; the reader stays where it was.
        """
        self._cursor.move_to(start.offset, log.rtmp)
        self.log = log
        self._rest = b""
        self._missing = 0

    def close(self) -> None:
        """Let go of the segment.  May be called again."""
        self._cursor.close()
