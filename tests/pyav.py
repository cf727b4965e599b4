"""PyAV in a process of its own: a foreign player and publisher that comes with the test extra.

    python tests/pyav.py play PACKETS URL...       all at once, to PACKETS packets or the end; one JSON object on stdout
    python tests/pyav.py publish FILE URL          in its own rhythm, once

Run by the tests, never imported by them: libav has no business in the reactor's process.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import av


def play(url: str, wanted: int) -> list[tuple[str, int, int, int]]:
    """(kind, dts, size, Adler-32 that begins with 0, as ffmpeg's framecrc has it) of each packet."""
    seen = []
    with av.open(url, timeout=60, options={"analyzeduration": "500000"}) as container:
        for packet in container.demux():
            if packet.size:
                seen.append((packet.stream.type, packet.dts, packet.size, zlib.adler32(bytes(packet), 0)))
            if len(seen) >= wanted:
                break
    return seen


def publish(path: str, url: str) -> None:
    """Copy the file's packets when they are due."""
    with av.open(path) as source, av.open(url, "w", format="flv") as target:
        outputs = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        began = time.monotonic()
        for packet in source.demux():
            if packet.size:
                due = float(packet.dts * packet.time_base)
                time.sleep(max(0.0, due - (time.monotonic() - began)))
                packet.stream = outputs[packet.stream.index]
                target.mux(packet)


def main(command: str, *arguments: str) -> None:
    """Do what the command line says."""
    if command == "publish":
        publish(*arguments)
        return
    wanted, urls = int(arguments[0]), arguments[1:]
    with ThreadPoolExecutor(len(urls)) as pool:
        seen = pool.map(lambda url: play(url, wanted), urls)
        json.dump(dict(zip(urls, seen, strict=True)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
