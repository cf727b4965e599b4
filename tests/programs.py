"""Foreign programs (ffmpeg, nginx, ...) that tests drive: where they are, and what it means when one is missing."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

_ELSEWHERE = "/usr/local/sbin:/usr/sbin:/sbin"
"""Debian keeps nginx and keepalived here, and an ordinary user's PATH does not."""


def is_ci() -> bool:
    """``RELAY_CI=1`` (or ``CI=true``, which CI systems set): nothing may be skipped."""
    return any(os.environ.get(name, "") not in ("", "0", "false") for name in ("RELAY_CI", "CI"))


def require_program(name: str) -> str:
    """The path of program ``name``.

    Raises:
        SkipTest: it is not installed here.
        AssertionError: it is not installed in CI, where ``.ci/run`` installs everything.
    """
    places = (os.environ.get("PATH", os.defpath), _ELSEWHERE, str(Path(sys.executable).parent))
    path = shutil.which(name, path=os.pathsep.join(places))
    if path is not None:
        return path
    if is_ci():
        raise AssertionError(f"{name} is missing, and in CI every program must be there")
    raise SkipTest(f"{name} is not installed")


def require_module(name: str) -> None:
    """As :func:`require_program`, for a Python module that an extra brings."""
    if find_spec(name) is None:
        if is_ci():
            raise AssertionError(f"{name} is missing, and in CI every module must be there")
        raise SkipTest(f"{name} is not installed")


def require_file(file: Traversable) -> None:
    """As :func:`require_program`, for a file that building the package brings."""
    if not file.is_file():
        if is_ci():
            raise AssertionError(f"{file} is missing, and in CI the package is built with it")
        raise SkipTest(f"{file} is not there: the package was built without it")


def processes_that_name(text: str) -> list[str]:
    """Command lines of running processes with this text in them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in command:
            found.append(command)
    return found
