"""A crowd of viewers in one process, which compares every byte it gets with the stream itself.

Owns that process, ``native/crowd.c``, where it is said how it judges.  Called by the benchmarks that have many viewers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import attrs
from native import program
from viewers import ViewerFailed

JOINS_PER_SECOND = 500.0
REFERENCE_SECONDS = 2.0  # until the references have had a keyframe
SETTLE_SECONDS = 3.0  # after the last has joined: what newcomers are sent at once is no rhythm


@attrs.frozen
class Spread:
    """Milliseconds, nearest ranks."""

    count: int
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@attrs.frozen(kw_only=True)
class Joined:
    """How a crowd came."""

    joined: int
    without_picture: int
    unplaced: int
    cut: int
    wrong: int
    seconds: float
    first_frame_ms: Spread


@attrs.frozen(kw_only=True)
class Window:
    """What happened since the last one.  ``cut`` and ``wrong`` count from the beginning."""

    seconds: float
    cpu_seconds: float
    alive: int
    cut: int
    wrong: int
    bytes: int
    frames: int
    pause_ms: Spread
    """The longest time without a byte, of each viewer."""
    lag_ms: Spread
    """Of each video frame."""


class Crowd:
    """Viewers that never reconnect.

    Args:
        references: URLs of a node that nobody breaks, one of each kind at most: what the crowd's bytes are compared
            with.  Without one, they are only measured.
        core: the processor core to stay on.
        is_judge: if not, the references only tell how soon a picture can be there.

    Raises:
        NoCompiler: it can't be made.
        ViewerFailed: a reference is not to be had.
    """

    def __init__(self, references: Sequence[str] = (), core: int | None = None, *, is_judge: bool = True) -> None:
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        self._process = subprocess.Popen(
            [*pinned, str(program("crowd"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for url in references:
            self._ask(f"{'ref' if is_judge else 'clock'} {url}")
        if references:
            self.run(REFERENCE_SECONDS)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def join(self, urls: Sequence[str], count: int, rate: float = JOINS_PER_SECOND) -> Joined:
        """So many come, ``rate`` a second, two in turn to each URL; returns when all have had a picture, or have not
        within a minute."""
        answer = self._ask(f"join {count} {rate} {' '.join(urls)}")
        return Joined(first_frame_ms=Spread(**answer.pop("first_frame_ms")), **answer)

    def fill(
        self, urls: Sequence[str], count: int, rate: float = JOINS_PER_SECOND, settle: float = SETTLE_SECONDS
    ) -> Joined:
        """As :meth:`join`, and ``settle`` seconds more; then a new window begins.

        Raises:
            ViewerFailed: not all do.
        """
        came = self.join(urls, count, rate)
        if came.without_picture or came.unplaced or came.cut or came.wrong:
            raise ViewerFailed(f"not all viewers have joined: {came}")
        self.run(settle)
        return came

    def run(self, seconds: float) -> Window:
        """Watch for so long; what happened since the end of the last window."""
        answer = self._ask(f"run {seconds}")
        return Window(pause_ms=Spread(**answer.pop("pause_ms")), lag_ms=Spread(**answer.pop("lag_ms")), **answer)

    def behind(self, seconds: float = 5.0) -> int:
        """How many don't reach, within that time, what the references have now."""
        return int(self._ask(f"behind {seconds}")["behind"])

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            _, words = self._process.communicate()
            raise ViewerFailed(
                words.decode(errors="replace").strip() or f"crowd: exit status {self._process.returncode}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer
