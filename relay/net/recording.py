"""What was said on a viewer's connection before its session has a position, so that it can be said again.

Owns the bytes of both directions, in order, up to a bound.  A balancer keeps one for each viewer from its first byte to
the first checkpoint (:mod:`relay.net.sessions`); pairs let their bytes pass through it.

Theory.  An aggregator that dies while a viewer is still in its handshake leaves no position to go on from.  But what
aggregators answer up to there is a function of what the viewer says and of a seed that the balancer gives with each
connection.  So another one is given the same seed and the viewer's words, and says the same again.  That is not taken
on trust: what the viewer has already had is compared, byte by byte, and not sent again.  The first byte that differs
ends the session (:class:`ReplayDiverged`).

    viewer    C0 C1 C2 connect createStream            play
    first                        S0 S1 S2 _result  X
    second                      (S0 S1 S2 _result)     Play.Start ...
                                  compared             sent
"""

from __future__ import annotations

from relay.errors import RelayError
from relay.net.viewer_state import RecordingState


class ReplayDiverged(RelayError):
    """The second aggregator says something else than the first."""


class Recording:
    """The first bytes of one viewer's connection.

    Args:
        limit: bytes kept of each direction; one who says more can't be replayed.

    Invariant: while ``is_whole``, ``from_viewer`` is all that the viewer has said, and ``to_viewer`` all that backends
    have said to it.
    """

    def __init__(self, limit: int) -> None:
        self.is_whole = True
        self.from_viewer = bytearray()
        self.to_viewer = bytearray()
        self._limit = limit
        self._is_wanted = True
        self._repeated: int | None = None  # how much of to_viewer the present backend has said again

    @classmethod
    def restore(cls, limit: int, state: RecordingState) -> Recording:
        """As it was in another process."""
        recording = cls(limit)
        recording.is_whole, recording._is_wanted, recording._repeated = state.is_whole, state.is_wanted, state.repeated
        recording.from_viewer += state.from_viewer
        recording.to_viewer += state.to_viewer
        return recording

    def state(self) -> RecordingState:
        """For another process."""
        words = bytes(self.from_viewer), bytes(self.to_viewer)
        return RecordingState(self.is_whole, self._is_wanted, self._repeated, *words)

    @property
    def is_repeating(self) -> bool:
        """Has the present backend yet to say again what the viewer has had?"""
        return self._repeated is not None

    @property
    def is_over(self) -> bool:
        """Need no byte pass through any more?"""
        return not self.is_repeating and not (self._is_wanted and self.is_whole)

    def end(self) -> None:
        """It is no longer wanted: the session has a position."""
        self._is_wanted = False
        if not self.is_repeating:
            self._forget()

    def repeat(self, received: int) -> None:
        """The next backend speaks from the beginning, to a viewer that has ``received`` bytes."""
        del self.to_viewer[received:]
        self._repeated = 0 if received else None

    def heard(self, data: bytes) -> bytes:
        """From the viewer: it all goes on to the backend."""
        self._keep(self.from_viewer, data)
        return data

    def said(self, data: bytes) -> bytes:
        """From the backend: what of it goes on to the viewer.

        Raises:
            ReplayDiverged: it isn't what was said before.
        """
        if self._repeated is not None:
            data = self._compare(data, self._repeated)
        self._keep(self.to_viewer, data)
        return data

    def _compare(self, data: bytes, at: int) -> bytes:
        expected = self.to_viewer[at : at + len(data)]
        if not data.startswith(expected):
            raise ReplayDiverged(f"other bytes than before, of which the viewer has {len(self.to_viewer)}")
        self._repeated = at + len(expected)
        if self._repeated == len(self.to_viewer):
            self._repeated = None
            if not self._is_wanted:
                self._forget()
        return data[len(expected) :]

    def _keep(self, kept: bytearray, data: bytes) -> None:
        if self._is_wanted and self.is_whole:
            if len(kept) + len(data) > self._limit:
                self._forget()
            else:
                kept += data

    def _forget(self) -> None:
        self.is_whole = False
        if not self.is_repeating:
            self.from_viewer.clear()
            self.to_viewer.clear()
