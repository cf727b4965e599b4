"""The benchmarks' own programs in C: compiled when they are needed, and kept for the next time.

The load must never be what is measured, so it costs a small part of a core; Python's would cost as much as a server.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "native"


class NoCompiler(Exception):
    """There is none, or it can't; one line says so."""


def program(name: str) -> Path:
    """The path of ``native/NAME.c``'s program, of this very source.

    Raises:
        NoCompiler: it can't be made.
    """
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256((SOURCES / "common.h").read_bytes() + source.read_bytes()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"relay-benchmarks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise NoCompiler(f"{directory} is not ours: remove it, or set TMPDIR")
    made = directory / f"{name}-{digest}"
    if not made.exists():
        _compile(source, made)
    return made


def _compile(source: Path, made: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NoCompiler("no C compiler: on Debian, apt-get install gcc libc6-dev (or set CC)")
    being_made = made.with_name(f"{made.name}.{os.getpid()}")
    ended = subprocess.run(
        [compiler, "-O2", "-o", str(being_made), str(source)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise NoCompiler(f"{compiler} can't compile {source.name}: {ended.stderr.strip()}")
    being_made.rename(made)
