"""Inputs that once broke a server, ours or another's, are replayed: events or the peer's fault, and cheap."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.errors import RemoteProtocolError
from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from relay.rtmp.client import ClientSession
from tests import wire
from tests.rtmp.driving import YesServer

CRASHERS = sorted((Path(__file__).parent.parent / "crashers").glob("*.bin"))

Feed = Callable[[bytes], object]


def server() -> Feed:
    return YesServer().feed


def session() -> Feed:
    fed = YesServer()
    fed.feed(wire.handshake())
    return fed.feed


def publisher() -> Feed:
    fed = YesServer()
    fed.feed(wire.handshake() + wire.connect_ffmpeg())
    fed.feed(wire.publish_preamble())
    return fed.feed


def client() -> Feed:
    fed = ClientSession(DEFAULT_LIMITS, wire.NONCE)
    fed.receive_data(b"\x03" + bytes(2 * 1536), 0.0)
    fed.connect("live", "rtmp://h/live")
    return lambda data: fed.receive_data(data, 0.0)


def flv() -> Feed:
    return TagReader(DEFAULT_LIMITS).feed


FED: dict[str, Callable[[], Feed]] = {
    "server": server,
    "session": session,
    "publisher": publisher,
    "client": client,
    "flv": flv,
}


def test_corpus_is_there() -> None:
    """Every file says who is fed, and each of those has one."""
    assert {path.name.split("-")[0] for path in CRASHERS} == set(FED)


@pytest.mark.parametrize("path", CRASHERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [1, 1 << 20], ids=["byte by byte", "whole"])
def test_crasher_does_no_harm(path: Path, size: int) -> None:
    data = path.read_bytes()
    feed = FED[path.name.split("-")[0]]()
    before = time.process_time()
    try:
        for at in range(0, len(data), size):
            feed(data[at : at + size])
    except RemoteProtocolError as error:
        assert str(error)
    assert time.process_time() - before < 0.5
