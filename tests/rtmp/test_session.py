"""Any bytes, cut anywhere, to a whole server session: the same events, or the peer's fault."""

from __future__ import annotations

import functools
import tracemalloc
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.client import ClientSession
from relay.rtmp.events import ConnectRequested, MediaReceived, PlayRequested, PublishRequested
from relay.rtmp.media import describe
from tests import strategies, wire
from tests.rtmp.driving import YesServer, run_pieces, steps

SAMPLES = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "samples").glob("*.bin"))}
TALKS = {**SAMPLES, **wire.CONVERSATIONS}
AFTER_HANDSHAKE = 1 + 2 * 1536


@functools.cache
def steps_of(name: str) -> list[bytes]:
    return steps(TALKS[name])


def test_samples_are_there() -> None:
    assert {"publish_ffmpeg5", "play_ffmpeg5", "play_rtmpdump24", "play_gstreamer122", "publish_gstreamer122"} <= set(
        SAMPLES
    )


@pytest.mark.parametrize("name", TALKS)
def test_legal_conversations_are_understood(name: str) -> None:
    """Nothing that a real client says is unknown to us; publishers end up with keyframes in the log."""
    server = run_pieces(steps_of(name))
    assert server.error is None
    assert server.session.unknown_commands == 0
    kinds = [type(event) for event in server.events]
    assert ConnectRequested in kinds
    if "plays" in name or "play_" in name:
        assert PlayRequested in kinds
        return
    assert PublishRequested in kinds
    media = [event.message for event in server.events if isinstance(event, MediaReceived)]
    infos = [describe(message.message_type, message.payload) for message in media]
    assert any(info.is_keyframe for info in infos)
    assert any(info.is_sequence_header for info in infos)


@pytest.mark.parametrize("name", TALKS)
def test_byte_by_byte_is_the_same(name: str) -> None:
    whole = run_pieces(steps_of(name))
    data = TALKS[name]
    single = run_pieces(data[at : at + 1] for at in range(len(data)))
    assert whole.outcome() == single.outcome()
    assert whole.sent == single.sent


@given(st.sampled_from(sorted(TALKS)), st.data())
def test_any_pieces_are_the_same(name: str, data: st.DataObject) -> None:
    pieces = [piece for step in steps_of(name) for piece in data.draw(strategies.cuts(step))]
    assert run_pieces(steps_of(name)).outcome() == run_pieces(pieces).outcome()


@given(st.sampled_from(sorted(TALKS)), st.data())
def test_mutated_conversations_give_events_or_the_peers_fault(name: str, data: st.DataObject) -> None:
    """And the same ones for any pieces.  YesServer lets every other exception through."""
    changed = data.draw(strategies.mutated(TALKS[name][: 1 << 13], start=AFTER_HANDSHAKE))
    parts = steps(changed)
    pieces = [piece for part in parts for piece in data.draw(strategies.cuts(part))]
    assert run_pieces(parts).outcome() == run_pieces(pieces).outcome()


@given(st.binary(max_size=3000))
def test_any_bytes_after_the_handshake_give_events_or_the_peers_fault(junk: bytes) -> None:
    run_pieces([wire.handshake(), junk])
    run_pieces([wire.handshake(), wire.connect_ffmpeg() + wire.publish_preamble(), junk])


@given(st.binary(max_size=3000))
def test_any_bytes_from_a_server_give_events_or_its_fault(junk: bytes) -> None:
    session = ClientSession(DEFAULT_LIMITS, wire.NONCE)
    session.receive_data(b"\x03" + bytes(2 * 1536), 0.0)
    session.connect("live", "rtmp://h/live")
    try:
        session.receive_data(junk, 0.0)
    except RemoteProtocolError as error:
        assert str(error)


COMMANDS = ("connect", "createStream", "deleteStream", "closeStream", "publish", "play", "pause", "releaseStream",
            "FCPublish", "FCUnpublish", "FCSubscribe", "getStreamLength", "_checkbw", "_result", "_error", "onStatus",
            "relayX", "seek", "")  # fmt: skip


def inputs() -> st.SearchStrategy[bytes]:
    """One message of any kind, legal on the wire."""
    arguments = st.lists(st.none() | st.booleans() | st.floats() | st.sampled_from(("demo", "", "x?y")), max_size=4)
    command = st.builds(
        lambda name, transaction_id, rest, msid: wire.command(name, transaction_id, *rest, message_stream_id=msid),
        st.sampled_from(COMMANDS), st.floats() | st.integers(0, 9), arguments, st.integers(0, 3),
    )  # fmt: skip
    media = st.builds(
        lambda message, msid: wire.media([message], message_stream_id=msid),
        strategies.media_messages(0), st.integers(0, 3),
    )  # fmt: skip
    control = st.builds(wire.control, st.sampled_from((1, 2, 3, 5)), st.binary(min_size=4, max_size=4))
    user_control = st.builds(wire.user_control, st.integers(0, 33), st.binary(max_size=10))
    return command | media | control | user_control


PREFIXES = {
    "awaiting connect": b"",
    "connected": wire.connect_ffmpeg(),
    "publishing": wire.connect_ffmpeg() + wire.publish_preamble(),
    "playing": wire.connect_ffmpeg() + wire.play_preamble(),
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES.keys())
@given(st.lists(inputs(), min_size=1, max_size=6))
def test_any_input_in_any_state_is_legal_or_closes(prefix: bytes, messages: list[bytes]) -> None:
    """Events or RemoteProtocolError; and after an error nothing more happens."""
    server = run_pieces([wire.handshake(), prefix, *messages])
    if server.error is not None:
        count = len(server.events)
        server.feed(wire.connect_ffmpeg())
        assert count == len(server.events)


@pytest.mark.parametrize("answers", [True, False])
@given(st.lists(inputs(), min_size=1, max_size=6))
def test_any_input_to_a_client_is_legal_or_closes(answers: bool, messages: list[bytes]) -> None:
    session = ClientSession(DEFAULT_LIMITS, wire.NONCE)
    session.receive_data(b"\x03" + bytes(2 * 1536), 0.0)
    session.connect("live", "rtmp://h/live")
    data = b""
    if answers:
        session.receive_data(wire.command("_result", 1, {}, {"code": "NetConnection.Connect.Success"}), 0.0)
        session.create_stream()
        session.receive_data(wire.command("_result", 2, None, 1.0), 0.0)
        session.play(1, "demo")
    try:
        for data in messages:
            session.receive_data(data, 0.0)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            session.receive_data(data, 0.0)


def hostile_streams() -> dict[str, bytes]:
    """Much declared or much repeated; each of some 64 KiB, what one read brings."""
    head = bytes.fromhex("06 000000 000001 09 01000000 61")
    return {
        "messages of one byte": head + bytes.fromhex("C6 61") * 32_000,
        "messages of no bytes": bytes.fromhex("06 000000 000000 09 01000000") * 5_000,
        "largest messages begun": b"".join(
            bytes((csid,)) + bytes.fromhex("000000 7FFFFF 09 01000000") + bytes(128) for csid in range(2, 60)
        ),
        "chunk streams": b"".join(
            b"\x01" + csid.to_bytes(2, "little") + bytes.fromhex("000000 7FFFFF 09 01000000") + bytes(128)
            for csid in range(450)
        ),
        "aborts": bytes.fromhex("02 000000 000004 02 00000000 00000006") * 4_000,
        "chunk sizes": bytes.fromhex("02 000000 000004 01 00000000 00001000") * 4_000,
    }


@pytest.mark.parametrize("name", hostile_streams())
def test_one_read_costs_a_bounded_amount_of_memory(name: str) -> None:
    """At most 400 bytes of ours for a byte of theirs while it is handled, and next to nothing after."""
    data = hostile_streams()[name]
    server = YesServer()
    server.feed(wire.handshake())
    server.feed(wire.connect_ffmpeg() + wire.publish_preamble())
    tracemalloc.start()
    try:
        server.feed(data)
        peak = tracemalloc.get_traced_memory()[1]
        server.events.clear()
        server.session.undelivered = []
        server.session._reader.undelivered = []
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert peak < 400 * len(data)
    assert left < 2 * len(data) + 50_000


def test_smaller_limits_hold_for_partial_messages_of_a_connection() -> None:
    """However many chunk streams they are spread over."""
    limits = attrs.evolve(DEFAULT_LIMITS, partial_bytes=2000)
    server = YesServer(limits)
    server.feed(wire.handshake() + wire.connect_ffmpeg())
    server.feed(hostile_streams()["largest messages begun"])
    assert "partial_bytes" in str(server.error)
    held: Any = server.session._reader
    assert sum(len(stream.partial or b"") for stream in held._streams.values()) <= 2000
