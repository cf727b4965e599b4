"""The clip that the built-in cluster publishes in a loop as ``live/demo``.

Owns the file and what a publisher has to know of it; ``make_clip.sh`` beside it says how it was made.  Publishing is
:mod:`relay.net.publisher`'s business.
"""

from __future__ import annotations

from importlib.resources import files

CLIP_DURATION_MS = 8_000
"""What a turn adds to every timestamp: 200 video frames of 40 ms are 375 AAC frames of 1024 samples at 48 kHz."""


def read_clip() -> bytes:
    """The whole FLV file, header included: H.264 + AAC, 640x360, 25 frames/s, a keyframe each second."""
    return files(__name__).joinpath("demo.flv").read_bytes()
