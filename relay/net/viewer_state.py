"""What one process must know of a viewer that another has served so far: all of it, nothing recomputed.

Owns the record and its form on the wire.  Made and used by :mod:`relay.net.portable_viewer` and
:mod:`relay.net.portable_pair`.
"""

from __future__ import annotations

import base64
from typing import Any

import attrs

from relay.errors import RelayError
from relay.net.pipes import Pipe


@attrs.frozen
class Held:
    """Bytes on their way, in a pipe."""

    pipe: Pipe
    count: int


@attrs.frozen(kw_only=True)
class PairState:
    """A spliced pair that rests."""

    viewer: int
    """The viewer's descriptor."""
    backend: int | None
    """The backend's; None between two."""
    to_viewer: int
    to_backend: int
    attached_at: int
    has_viewer_ended: bool
    down: Held | None
    """What is on its way to the viewer."""
    up: Held | None

    def without_backend(self) -> PairState:
        """Bytes on their way are forgotten with it: the counts tell where to go on."""
        return attrs.evolve(self, backend=None, down=None, up=None)


@attrs.frozen
class RecordingState:
    """A viewer's first words (:class:`relay.net.recording.Recording`)."""

    is_whole: bool
    is_wanted: bool
    repeated: int | None
    from_viewer: bytes
    to_viewer: bytes

    def to_values(self) -> list[Any]:
        """For the wire."""
        words = [base64.b64encode(said).decode() for said in (self.from_viewer, self.to_viewer)]
        return [self.is_whole, self.is_wanted, self.repeated, *words]

    @classmethod
    def from_values(
        cls, is_whole: bool, is_wanted: bool, repeated: int | None, from_viewer: str, to_viewer: str
    ) -> RecordingState:
        """From the wire."""
        return cls(is_whole, is_wanted, repeated, base64.b64decode(from_viewer), base64.b64decode(to_viewer))


@attrs.frozen
class Search:
    """A backend is looked for: to go on at ``point`` (the values of a resume point), or from the first byte."""

    point: list[Any] | None
    lost: str | None


@attrs.frozen(kw_only=True)
class ViewerState:
    """One viewer.

    Invariant: it is with a backend, or ``search`` is set; without ``pair`` it has never been with one.
    """

    host: str
    session_id: bytes
    seed: bytes
    replays: int
    moves_in_vain: int
    is_session: bool
    is_over: bool
    runs: list[list[Any]]
    recording: RecordingState | None
    """None once it is over."""
    backend: str | None = None
    search: Search | None = None
    pair: PairState | None = None
    viewer: int
    """Its descriptor."""

    def to_wire(self) -> tuple[dict[str, Any], list[int]]:
        """Values of a frame, and its descriptors: viewer, backend, pipe down, pipe up, those that there are."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _AS_THEY_ARE}
        values["session_id"], values["seed"] = self.session_id.hex(), self.seed.hex()
        values["recording"] = None if self.recording is None else self.recording.to_values()
        values["search"] = None if self.search is None else [self.search.point, self.search.lost]
        descriptors = [self.viewer]
        pair = self.pair
        if pair is None:
            values["pair"] = None
            return values, descriptors
        counts = [0 if held is None else held.count for held in (pair.down, pair.up)]
        values["pair"] = [pair.backend is not None, *counts, *(getattr(pair, name) for name in _COUNTS)]
        descriptors += [] if pair.backend is None else [pair.backend]
        for held in (pair.down, pair.up):
            descriptors += [] if held is None else held.pipe
        return values, descriptors

    @classmethod
    def from_wire(cls, values: dict[str, Any], descriptors: list[int]) -> ViewerState:
        """Raises :class:`RelayError` if it is none; the descriptors are then still the caller's to close."""
        try:
            viewer, *rest = descriptors
            recording, search, pair = values["recording"], values["search"], values["pair"]
            state = cls(
                **{name: values[name] for name in _AS_THEY_ARE},
                session_id=bytes.fromhex(values["session_id"]),
                seed=bytes.fromhex(values["seed"]),
                recording=None if recording is None else RecordingState.from_values(*recording),
                search=None if search is None else Search(*search),
                pair=None if pair is None else _pair(viewer, rest, *pair),
                viewer=viewer,
            )
            if rest:
                raise ValueError("descriptors are left over")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise RelayError(f"not a viewer: {error!r}") from None
        return state


_AS_THEY_ARE = ("host", "replays", "moves_in_vain", "is_session", "is_over", "runs", "backend")
_COUNTS = ("to_viewer", "to_backend", "attached_at", "has_viewer_ended")


def _pair(viewer: int, rest: list[int], has_backend: bool, down: int, up: int, *counts: Any) -> PairState:
    backend = rest.pop(0) if has_backend else None
    held = [Held((rest.pop(0), rest.pop(0)), count) if count else None for count in (down, up)]
    fields = dict(zip(_COUNTS, counts, strict=True))
    return PairState(viewer=viewer, backend=backend, down=held[0], up=held[1], **fields)
