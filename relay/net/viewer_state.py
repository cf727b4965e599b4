"""What one process must know of a viewer that another has served so far: all of it, nothing recomputed.

Owns the record and its form on the wire.  Made and used by :mod:`relay.net.portable`.
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
    recording: RecordingState
    backend: str | None = None
    search: Search | None = None
    pair: PairState | None = None
    viewer: int
    """Its descriptor."""

    def to_wire(self) -> tuple[dict[str, Any], list[int]]:
        """Values of a frame, and its descriptors: viewer, backend, pipe down, pipe up, those that there are."""
        values = attrs.asdict(self, filter=lambda field, _: field.name not in {"viewer", "pair", "recording"})
        values["session_id"], values["seed"] = self.session_id.hex(), self.seed.hex()
        recording = attrs.asdict(self.recording)
        for name in ("from_viewer", "to_viewer"):
            recording[name] = base64.b64encode(recording[name]).decode()
        values["recording"] = recording
        descriptors = [self.viewer]
        pair = self.pair
        if pair is not None:
            fields = attrs.asdict(pair, recurse=False)
            del fields["viewer"]
            fields["backend"] = pair.backend is not None
            fields["down"], fields["up"] = (0 if held is None else held.count for held in (pair.down, pair.up))
            values["pair"] = fields
            descriptors += [] if pair.backend is None else [pair.backend]
            for held in (pair.down, pair.up):
                descriptors += [] if held is None else held.pipe
        return values, descriptors

    @classmethod
    def from_wire(cls, values: dict[str, Any], descriptors: list[int]) -> ViewerState:
        """Raises :class:`RelayError` if it is none; the descriptors are then still the caller's to close."""
        try:
            fields = dict(values)
            rest = list(descriptors)
            viewer = rest.pop(0)
            pair = fields.pop("pair", None)
            made = None if pair is None else _pair(viewer, pair, rest)
            recording, search = dict(fields.pop("recording")), fields.pop("search")
            for name in ("from_viewer", "to_viewer"):
                recording[name] = base64.b64decode(recording[name])
            for name in ("session_id", "seed"):
                fields[name] = bytes.fromhex(fields[name])
            if rest:
                raise ValueError("descriptors are left over")
            return cls(
                **fields,
                recording=RecordingState(**recording),
                search=None if search is None else Search(**search),
                pair=made,
                viewer=viewer,
            )
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise RelayError(f"not a viewer: {error!r}") from None


def _pair(viewer: int, fields: dict[str, Any], rest: list[int]) -> PairState:
    fields = dict(fields)
    fields["backend"] = rest.pop(0) if fields["backend"] else None
    for name in ("down", "up"):
        count = fields[name]
        fields[name] = Held((rest.pop(0), rest.pop(0)), count) if count else None
    return PairState(viewer=viewer, **fields)
