"""Every field of ``Limits`` is enforced: each names the test that crosses it.

A limit that nothing enforces is worse than none, because somebody counts on it.  Whoever adds a field, or the code that
enforces one, adds a line to ``TESTS``.
"""

from __future__ import annotations

import importlib

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.limits import DEFAULT_LIMITS, Limits

WIRE = "tests.rtmp.test_wire_limits.WireLimitTests"
RTMP = "tests.net.test_rtmp_server"
HTTP = "tests.net.test_http_flv.BadRequestTests"
ADMISSION = "tests.net.test_sniffing.AdmissionTests"
SLOW = "tests.net.test_viewer.SlowTests"

TESTS: dict[str, str] = {
    "message_bytes": f"{WIRE}.test_message_bytes",
    "command_bytes": f"{WIRE}.test_command_bytes",
    "metadata_bytes": f"{WIRE}.test_metadata_bytes",
    "partial_bytes": f"{WIRE}.test_partial_bytes",
    "chunk_streams": f"{WIRE}.test_chunk_streams",
    "chunk_size_min": f"{WIRE}.test_chunk_size_min",
    "message_streams": f"{WIRE}.test_message_streams",
    "control_messages_per_second": f"{WIRE}.test_control_messages_per_second",
    "url_bytes": f"{WIRE}.test_url_bytes",
    "amf_depth": f"{WIRE}.test_amf_depth",
    "amf_items": f"{WIRE}.test_amf_items",
    "amf_string_bytes": f"{WIRE}.test_amf_string_bytes",
    "handshake_seconds": f"{RTMP}.DeadlineTests.test_handshake_seconds",
    "first_command_seconds": f"{RTMP}.DeadlineTests.test_first_command_seconds",
    "publisher_idle_seconds": f"{RTMP}.DeadlineTests.test_publisher_idle_seconds",
    "stream_wait_seconds": f"{RTMP}.DeadlineTests.test_stream_wait_seconds",
    "close_seconds": f"{RTMP}.DeadlineTests.test_close_seconds",
    "http_head_seconds": f"{HTTP}.test_http_head_seconds",
    "http_head_bytes": f"{HTTP}.test_http_head_bytes",
    "proxy_header_seconds": "tests.net.test_sniffing.SniffingTests.test_proxy_header_seconds",
    "viewer_skip_seconds": f"{SLOW}.test_viewer_past_the_lag_limit_skips_to_headers_and_keyframe",
    "viewer_close_seconds": f"{SLOW}.test_viewer_that_takes_no_byte_is_closed",
    "connections": f"{ADMISSION}.test_connections",
    "connections_per_address": f"{ADMISSION}.test_connections_per_address",
    "peer_viewers": "tests.net.test_neighbours.PeerTests.test_peer_viewers",
    "kept_words": "tests.net.test_handover.WordTests.test_kept_words",
    "handshaking_connections": f"{ADMISSION}.test_handshaking_connections",
    "proxy_header_bytes": "tests.net.test_proxy.ReadingTests.test_header_over_the_limit_is_refused_by_its_length_alone",
    "splice_idle_seconds": "tests.net.test_splice.PairCases.test_silent_pair_is_closed_when_its_time_is_over",
    "replay_bytes": "tests.net.test_recording.RecordingTests.test_replay_bytes",
    "tracks": "tests.log.test_headers.UpdateTests.test_more_tracks_than_the_limit_are_not_kept",
    "header_bytes": "tests.log.test_headers.UpdateTests.test_header_that_is_too_large_is_not_kept",
    "admin_connections": "tests.admin.test_node.ConnectionTests.test_admin_connections",
    "forwards": "tests.net.test_forwarding.ForwarderTests.test_forwards",
    "hook_calls": "tests.net.test_hooks.AskTests.test_hook_calls",
    "hook_queue": "tests.net.test_hooks.AskTests.test_hook_queue",
    "streams": "tests.net.test_streams.HubTests.test_streams",
}
"""Field of ``Limits`` to the dotted name of a test: ``module.Class.test_method`` or ``module.test_function``."""


def exists(dotted: str) -> bool:
    """Is there such a test?"""
    parts = dotted.split(".")
    at = next(index for index, part in enumerate(parts) if part.startswith("test_")) + 1
    found: object = importlib.import_module(".".join(parts[:at]))
    for part in parts[at:]:
        found = getattr(found, part, None)
    return callable(found) and parts[-1].startswith("test_")


class LimitsTests(SynchronousTestCase):
    def test_every_field_names_a_test(self) -> None:
        fields = {field.name for field in attrs.fields(Limits)}
        self.assertEqual([], sorted(fields - set(TESTS)), "limits without a test")
        self.assertEqual([], sorted(set(TESTS) - fields), "tests of limits that are none")

    def test_every_named_test_exists(self) -> None:
        self.assertEqual([], [dotted for dotted in TESTS.values() if not exists(dotted)])

    def test_every_default_is_a_positive_number_with_unit_and_reason(self) -> None:
        for field in attrs.fields(Limits):
            self.assertGreater(getattr(DEFAULT_LIMITS, field.name), 0, field.name)
            self.assertTrue(field.metadata["unit"], field.name)
            self.assertTrue(field.metadata["reason"], field.name)
