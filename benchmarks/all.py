"""All benchmarks that compare, one after another.

    python benchmarks/all.py DIRECTORY                   an hour and three quarters
    python benchmarks/all.py --rounds 1 DIRECTORY        a third of that

For each, DIRECTORY gets a table (.txt), all figures (.json) and a picture (.svg).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS: dict[str, list[str]] = {
    "fanout": ["fanout.py"],
    "fanout-100": ["fanout.py", "--viewers", "100", "--interval", "100"],
    "fanout-3000": ["fanout.py", "--viewers", "2000", "--viewers", "3000", "--interval", "100", "--interval", "350"],
    "fanout-3mbit": ["fanout.py", "--viewers", "500", "--kbits", "3000", "--interval", "100"],
    "splice": ["splice.py"],
    "splice-beside": ["splice.py", "--beside"],
    "splice-bulk": ["splice.py", "--bulk"],
    "join": ["join.py"],
    "memory": ["memory.py"],
    "chain": ["chain.py"],
    "ingest": ["ingest.py"],
    "scale": ["scale.py"],
}


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description="All benchmarks that compare.")
    parser.add_argument("directory", type=Path, help="for what they find")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="of each (default: 3)")
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS), help="may be repeated (default: all)")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.only or BENCHMARKS:
        program, *words = BENCHMARKS[name]
        place = options.directory / name
        print(f"== {name}", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / program), *words, "--rounds", str(options.rounds)]
        command += ["--json", f"{place}.json", "--plot", f"{place}.svg"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        place.with_suffix(".txt").write_text(ended.stdout)
        print(ended.stdout, flush=True)
        if ended.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
