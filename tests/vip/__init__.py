"""Needs the network of ``benchmarks/vip_network.py``; benchmarks are scripts, which import each other by file name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
