"""A crowd of viewers in one process that compares every byte it gets with the stream itself.

Owns non-blocking sockets, an epoll loop, and the judgement.  Called by the benchmarks that break things.

Theory.  All viewers of a stream are sent the same bytes, from some keyframe on: the log's over RTMP, the FLV
rendition's over HTTP.  A :class:`Reference` makes both from the messages of one viewer elsewhere (a node that is not
broken).  A viewer of the crowd looks for the first keyframe of the reference in what it gets; from there on its bytes
must be the reference's, which is one comparison a read.  A byte that is missing, repeated or out of order makes it
differ, for good.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import attrs
from viewers import Viewer, ViewerFailed

from relay.errors import RemoteProtocolError
from relay.flv.tags import tag
from relay.limits import DEFAULT_LIMITS
from relay.log.record import encode
from relay.rtmp import events
from relay.rtmp.client import ClientSession
from relay.rtmp.handshake import NONCE_BYTES
from relay.rtmp.media import describe

READ_BYTES = 256 << 10
PREFIX_BYTES = 64  # of a keyframe, looked for in a viewer's first bytes; its timestamp is among them
REFERENCE_SECONDS = 2.0  # until the reference has a keyframe
JOIN_SECONDS = 60.0  # for the whole crowd to be there and compared
SETTLE_SECONDS = 3.0
PREAMBLE_BYTES = 4 << 20  # a viewer that has had this much without a keyframe that the reference knows has failed


class Reference:
    """The stream's bytes as they must be, in both forms, read in a thread from a node that nobody breaks."""

    def __init__(self, url: str) -> None:
        self.forms = {"rtmp": bytearray(), "http": bytearray()}
        self.keyframes: deque[dict[str, int]] = deque(maxlen=64)  # offsets in both forms, the newest last
        self.failure: str | None = None
        self._url = url
        self._is_stopped = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._is_stopped = True
        self._thread.join(15)

    def check(self) -> None:
        """Raise :class:`ViewerFailed` if it has ended."""
        if self.failure is not None:
            raise ViewerFailed(f"the reference failed: {self.failure}")

    def _read(self) -> None:
        try:
            with Viewer(self._url) as viewer:
                for arrival in viewer.arrivals():
                    if self._is_stopped:
                        return
                    message = arrival.message
                    info = describe(message.message_type, message.payload)
                    if info.is_keyframe and not info.is_sequence_header:
                        self.keyframes.append({name: len(form) for name, form in self.forms.items()})
                    self.forms["rtmp"] += encode(message)
                    self.forms["http"] += tag(message)
            self.failure = "the stream ended"
        except (ViewerFailed, OSError) as error:
            self.failure = str(error)


def sort_failures(failures: Mapping[str, int]) -> tuple[int, int]:
    """How many were cut, and how many got wrong bytes."""
    cut = sum(count for why, count in failures.items() if why.startswith("cut"))
    return cut, sum(failures.values()) - cut


def allow_descriptors() -> None:
    """As many as this process may have: each viewer is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@attrs.define(eq=False)
class Member:
    """One viewer of the crowd."""

    socket: socket.socket
    form: str
    session: ClientSession | None
    app: str
    stream: str
    unread: bytearray = attrs.field(factory=bytearray)  # until its place is known; then what the reference has not yet
    offset: int = -1  # in the reference; all before it was compared
    arrived_at: float = 0.0
    longest: float = 0.0  # seconds between two arrivals, since the last call of ``rest``


class Crowd:
    """Viewers that are dealt to some URLs, and never reconnect."""

    def __init__(self, urls: Sequence[str], reference: Reference) -> None:
        self.members: dict[int, Member] = {}
        self.failures: Counter[str] = Counter()
        self._urls = urls
        self._reference = reference
        self._epoll = select.epoll()

    def join(self, number: int) -> None:
        """One more."""
        parts = urlsplit(self._urls[number % len(self._urls)])
        app, _, stream = parts.path.strip("/").rpartition("/")
        connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)
        connection.setblocking(False)
        member = Member(connection, parts.scheme, None, app, stream)
        if parts.scheme == "rtmp":
            member.session = ClientSession(DEFAULT_LIMITS, os.urandom(NONCE_BYTES))
            connection.sendall(member.session.data_to_send())
        else:
            connection.sendall(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        self.members[connection.fileno()] = member
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def fill(self, count: int, say: Callable[[str], None]) -> None:
        """So many join, two in turn to each aggregator, so that both have viewers of both kinds; until all watch.

        Raises:
            ViewerFailed: not all do.
        """
        self.run(REFERENCE_SECONDS)
        for number in range(count):
            self.join(number // 2 + number % 2)
            self.run(0.001)
            if number % 500 == 499:
                say(f"{number + 1} viewers are there")
        if not self.run(JOIN_SECONDS, lambda: all(member.offset >= 0 for member in self.members.values())):
            raise ViewerFailed("not all viewers have joined")
        self.run(SETTLE_SECONDS)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Read for so long, or until something is so; whether it became so."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._reference.check()
            if until():
                return True
            for fileno, _ in self._epoll.poll(min(left, 0.1)):
                self._read(self.members[fileno])
        return until()

    def rest(self) -> list[float]:
        """The longest pause of each since the last call, in seconds; the one that goes on now included."""
        now = time.monotonic()
        pauses = []
        for member in self.members.values():
            pauses.append(max(member.longest, now - member.arrived_at))
            member.longest = 0.0
        return pauses

    def behind(self, seconds: float = 5.0) -> int:
        """How many don't reach, within that time, what the reference has now."""
        ends = {name: len(form) for name, form in self._reference.forms.items()}

        def have_arrived() -> bool:
            return all(member.offset >= ends[member.form] for member in self.members.values())

        self.run(seconds, have_arrived)
        return sum(member.offset < ends[member.form] for member in self.members.values())

    def leave(self) -> None:
        """All go."""
        for member in self.members.values():
            member.socket.close()
        self.members.clear()
        self._epoll.close()

    def _read(self, member: Member) -> None:
        try:
            data = member.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(member, f"cut: {error.strerror}")
            return
        if not data:
            self._fail(member, "cut: closed by the server")
            return
        now = time.monotonic()
        if member.arrived_at:
            member.longest = max(member.longest, now - member.arrived_at)
        member.arrived_at = now
        if member.session is not None:
            self._converse(member, data)
        member.unread += data
        if member.offset < 0:
            self._find(member)
        if member.offset >= 0:
            self._compare(member)

    def _converse(self, member: Member, data: bytes) -> None:
        """Up to ``play``; what comes after it is only compared."""
        session = member.session
        assert session is not None
        try:
            happened = session.receive_data(data, 0)
        except RemoteProtocolError as error:
            self._fail(member, str(error))
            return
        for event in happened:
            match event:
                case events.HandshakeDone():
                    session.connect(member.app, f"rtmp://{member.socket.getpeername()[0]}/{member.app}")
                case events.Connected():
                    session.create_stream()
                case events.StreamCreated(message_stream_id):
                    session.play(message_stream_id, member.stream)
                    member.session = None
        member.socket.sendall(session.data_to_send())

    def _find(self, member: Member) -> None:
        form = self._reference.forms[member.form]
        for places in list(self._reference.keyframes):
            start = places[member.form]
            prefix = bytes(form[start : start + PREFIX_BYTES])
            at = member.unread.find(prefix)
            if len(prefix) == PREFIX_BYTES and at >= 0:
                member.offset = start
                del member.unread[:at]
                return
        if len(member.unread) > PREAMBLE_BYTES:
            self._fail(member, "no keyframe of the stream was found")

    def _compare(self, member: Member) -> None:
        form = self._reference.forms[member.form]
        count = min(len(member.unread), len(form) - member.offset)
        if member.unread[:count] != form[member.offset : member.offset + count]:
            self._fail(member, "other bytes than the stream's")
            return
        member.offset += count
        del member.unread[:count]

    def _fail(self, member: Member, why: str) -> None:
        self.failures[why] += 1
        if self.members.pop(member.socket.fileno(), None) is not None:
            self._epoll.unregister(member.socket.fileno())
            member.socket.close()
