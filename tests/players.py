"""Foreign players and publishers that come with the test extra, and the comparison of what they saw with the source.

Owns: command lines of imageio-ffmpeg's ffmpeg and of PyAV, and *runs*: what a player saw must be a contiguous run of
the source's packets, kind by kind, byte for byte.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterable
from itertools import takewhile
from operator import eq
from pathlib import Path

import attrs
from imageio_ffmpeg import get_ffmpeg_exe

from relay.rtmp.messages import MediaMessage, MessageType
from tests.clients import CLIPS, elapsed_ms, frames

PYAV = Path(__file__).parent / "pyav.py"
KINDS = {MessageType.AUDIO: "audio", MessageType.VIDEO: "video"}


@attrs.frozen
class Packet:
    """What is compared of a packet.  ``checksum`` is the Adler-32 of ffmpeg's framecrc."""

    kind: str
    time_ms: int
    size: int
    checksum: int


def packet_of(message: MediaMessage) -> Packet:
    """What a demuxer must make of an audio or video message: the payload without its FLV or enhanced RTMP head."""
    head = message.payload[0]
    if message.message_type == MessageType.AUDIO:
        skip = 5 if head >> 4 == 9 else 2  # enhanced: FOURCC
    elif head & 0x80:
        has_composition_time = head & 0x0F == 1 and message.payload[1:5] in (b"hvc1", b"avc1")
        skip = 8 if has_composition_time else 5
    else:
        skip = 5
    data = message.payload[skip:]
    return Packet(KINDS[MessageType(message.message_type)], message.timestamp, len(data), zlib.adler32(data, 0))


def packets_of(messages: Iterable[MediaMessage]) -> list[Packet]:
    """All packets of these messages; headers, and what is said about colours, channels and ends, are none."""
    return [packet_of(message) for message in frames(messages) if _is_coded(message)]


def _is_coded(message: MediaMessage) -> bool:
    head = message.payload[0]
    if message.message_type == MessageType.AUDIO:
        return head >> 4 != 9 or head & 0x0F == 1
    if head & 0x80:
        return head & 0x0F in (1, 3)
    return head & 0x0F != 7 or message.payload[1] == 1  # H.264 has an end of sequence, too


def ffmpeg_play(url: str, wanted: int) -> list[str]:
    """imageio-ffmpeg's ffmpeg plays ``wanted`` packets of any kind and prints them."""
    quick = ["-analyzeduration", "500000", "-rw_timeout", "60000000"]
    if url.startswith("rtmps:"):
        quick += ["-tls_verify", "0"]
    per_stream = ["-frames:v", str(wanted), "-frames:a", str(wanted)]
    return [
        get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-copyts", *quick, "-i", url,
        "-map", "0", "-c", "copy", *per_stream, "-flush_packets", "1", "-f", "framecrc", "-",
    ]  # fmt: skip


def ffmpeg_publish(
    clip: str, url: str, *, offset_s: float = 0, loop: bool = True, is_live: bool = True, options: Iterable[str] = ()
) -> list[str]:
    """ffmpeg's own RTMP code publishes a clip, in its rhythm (``is_live``) or at once."""
    rhythm = ["-re"] if is_live else []
    turns = ["-stream_loop", "-1"] if loop else []
    return [
        get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *rhythm, *turns, "-i", str(CLIPS / clip),
        "-map", "0", "-c", "copy", "-output_ts_offset", str(offset_s), "-flvflags", "no_sequence_end", *options,
        "-f", "flv", url,
    ]  # fmt: skip


def pyav_play(urls: Iterable[str], wanted: int) -> list[str | Path]:
    """PyAV plays all of these."""
    return [sys.executable, PYAV, "play", str(wanted), *urls]


def pyav_publish(clip: str, url: str) -> list[str | Path]:
    """PyAV publishes a clip once."""
    return [sys.executable, PYAV, "publish", CLIPS / clip, url]


def read_pyav(out: bytes) -> dict[str, list[Packet]]:
    """What PyAV saw, by URL."""
    return {url: [Packet(*packet) for packet in packets] for url, packets in json.loads(out).items()}


def read_framecrc(out: bytes) -> list[Packet]:
    """What ffmpeg saw."""
    kinds: dict[str, str] = {}
    packets = []
    for line in out.decode().splitlines():
        if line.startswith("#media_type"):
            index, kind = line.removeprefix("#media_type ").split(": ")
            kinds[index] = kind
        elif line and not line.startswith("#"):
            index, dts, _, _, size, checksum = (field.strip() for field in line.split(",")[:6])
            packets.append(Packet(kinds[index], int(dts), int(size), int(checksum, 16)))
    return packets


def check_run(seen: list[Packet], source: list[Packet], at_least: int, *, has_rhythm: bool = True) -> None:
    """Is ``seen``, kind by kind, a contiguous run of ``source``, bit for bit and (``has_rhythm``) in its rhythm?

    Raises:
        AssertionError: it is not, or it is shorter than ``at_least``.
    """
    compared = 0
    for kind in {packet.kind for packet in source}:
        run, whole = ([packet for packet in packets if packet.kind == kind] for packets in (seen, source))
        start = _find(run, whole)
        if not has_rhythm:
            start = len(whole)  # compare no times
        for first, second, mine, theirs in zip(run, run[1:], whole[start:], whole[start + 1 :], strict=False):
            step, wanted = elapsed_ms(first.time_ms, second.time_ms), elapsed_ms(mine.time_ms, theirs.time_ms)
            assert step == wanted, f"{kind}: {second} comes {step} ms after {first}, not {wanted}"
        compared += len(run)
    assert compared >= at_least, f"only {compared} packets were seen, not {at_least}"


def _find(run: list[Packet], whole: list[Packet]) -> int:
    """Where the run begins.  Its first packet may stand in several places: a tone repeats itself."""
    bytes_seen = [(packet.size, packet.checksum) for packet in run]
    bytes_sent = [(packet.size, packet.checksum) for packet in whole]
    for start in range(len(bytes_sent) - len(bytes_seen) + 1):
        if bytes_sent[start : start + len(bytes_seen)] == bytes_seen:
            return start
    agree = [
        sum(1 for _ in takewhile(bool, map(eq, bytes_seen, bytes_sent[start:]))) for start in range(len(bytes_sent))
    ]
    most = max(agree, default=0)
    raise AssertionError(
        f"no run of the source: of {len(run)} packets the first {most} are one, then come {run[most : most + 3]} "
        f"(after {run[max(0, most - 2) : most]}), in place of {whole[agree.index(most) + most :][:3]}"
    )
