"""Packaging.  ``pip install .`` brings the ``twistd`` plugins along; ``pip install '.[test]'`` what the tests need."""

from setuptools import find_packages, setup

setup(
    name="relay-live",
    version="0.1.0",
    description="An RTMP live relay that keeps serving when servers die",
    python_requires=">=3.11",
    package_dir={"": "."},  # so that an editable install puts this directory on the path, plugins included
    packages=[*find_packages(include=["relay", "relay.*"]), "twisted.plugins"],
    package_data={"relay": ["py.typed", "demo/*", "admin/static/*"], "twisted.plugins": ["relay_plugins.py"]},
    entry_points={
        "console_scripts": ["relay-admin = relay.admin.command:main", "relay-drill = relay.drill.command:main"]
    },
    install_requires=[
        "attrs>=23.2",
        "h11>=0.14",
        "prometheus-client>=0.20",
        "Twisted[tls]>=24.11",
        "zope.interface>=6",
    ],
    extras_require={
        "test": ["av>=12", "hypothesis>=6.100", "imageio-ffmpeg>=0.5", "pytest>=8", "pytest-twisted>=1.14"],
        "bench": ["matplotlib>=3.7"],
        "dev": ["mypy>=1.10", "mypy-zope>=1.0.5", "ruff>=0.6"],
    },
)
