"""Every bound on what a peer may make us hold, do or wait for.

Each field has a unit, a default and a reason (a precedent where there is one).  A field that nothing enforces is a bug:
``tests/test_limits.py`` goes through ``attrs.fields(Limits)`` and wants a test for each.
"""

from __future__ import annotations

from typing import Any

import attrs


def _bound(default: float, unit: str, reason: str) -> Any:
    return attrs.field(default=default, metadata={"unit": unit, "reason": reason})


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds for one node.  All are positive numbers; the unit is in the field's metadata."""

    # time
    handshake_seconds: float = _bound(10, "s", "first byte to end of handshake, in all (SRS: 30 s a read)")
    first_command_seconds: float = _bound(20, "s", "handshake to publish or play (SRS: 20 s)")
    publisher_idle_seconds: float = _bound(30, "s", "a publisher that sends nothing and leaves pings unanswered")
    http_head_seconds: float = _bound(10, "s", "first byte to end of an HTTP request head")
    proxy_header_seconds: float = _bound(5, "s", "a PROXY header comes at once from a real balancer (HAProxy: 3-5 s)")
    close_seconds: float = _bound(5, "s", "to take our last bytes before the connection is aborted (h2: 15 s)")
    stream_wait_seconds: float = _bound(30, "s", "a viewer waits for a stream that is not there yet")
    viewer_skip_seconds: float = _bound(10, "s of media", "a viewer this far behind skips to the newest join point")
    viewer_close_seconds: float = _bound(30, "s", "a viewer that takes no byte for this long is closed")
    replay_bytes: int = _bound(64 << 10, "bytes", "kept of each direction of a viewer's first words, to repeat them")
    splice_idle_seconds: float = _bound(120, "s", "a spliced pair with no byte either way (HAProxy timeout tunnel)")
    # the wire
    message_bytes: int = _bound(8 << 20, "bytes", "one audio or video message (MediaMTX 10 MiB)")
    command_bytes: int = _bound(64 << 10, "bytes", "one command message")
    metadata_bytes: int = _bound(256 << 10, "bytes", "one data message")
    header_bytes: int = _bound(64 << 10, "bytes", "one sequence header kept for newcomers (HEVC's have a few KiB)")
    partial_bytes: int = _bound(16 << 20, "bytes", "all unfinished messages of a connection together")
    chunk_streams: int = _bound(64, "ids", "distinct chunk stream ids a connection (nginx-rtmp: 32)")
    chunk_size_min: int = _bound(128, "bytes", "smaller only multiplies our work (SRS floor: 128)")
    message_streams: int = _bound(8, "ids", "createStream calls a connection (OBS multitrack uses a few)")
    control_messages_per_second: int = _bound(500, "1/s", "commands, pings, acks, unknown and empty messages")
    url_bytes: int = _bound(1024, "bytes", "tcUrl and other URLs (ffmpeg: 512)")
    amf_depth: int = _bound(16, "levels", "nested objects and arrays")
    amf_items: int = _bound(4096, "values", "values in one message, keys included once")
    amf_string_bytes: int = _bound(64 << 10, "bytes", "one string")
    http_head_bytes: int = _bound(16 << 10, "bytes", "an HTTP request head (nginx: 8-32 KiB)")
    proxy_header_bytes: int = _bound(552, "bytes", "a PROXY header with its TLVs (specification: 536 + 16)")
    # the node
    connections: int = _bound(16_000, "connections", "admitted at once; also kept 512 below the file limit")
    connections_per_address: int = _bound(8_192, "connections", "admitted at once from one address")
    peer_viewers: int = _bound(32_000, "viewers", "of one other balancer, kept to reset them (10 MB)")
    kept_words: int = _bound(100_000, "commands", "of aggregators, kept while one balancer takes over from another")
    handshaking_connections: int = _bound(4_096, "connections", "that have not asked for anything yet")
    admin_connections: int = _bound(128, "connections", "of browsers (6 each), checks and scrapers at the admin site")
    forwards: int = _bound(64, "connections", "to servers that streams are forwarded to; each encodes its stream anew")
    hook_calls: int = _bound(
        64, "calls", "of HTTP callbacks that ask, at once; a quarter as many besides that only tell"
    )
    hook_queue: int = _bound(10_000, "calls", "that wait; one more question is a failure, news are dropped")
    streams: int = _bound(1_000, "streams", "live at once on one node")
    tracks: int = _bound(32, "tracks", "sequence headers kept for one stream")


DEFAULT_LIMITS = Limits()
