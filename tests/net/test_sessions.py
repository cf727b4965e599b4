"""What a balancer knows of a session: exact, or nothing.

The model test has no sockets: an aggregator that sends runs of a rendition and, between them, other bytes; a data
connection and a control connection that are as late as they like; crashes anywhere.  What the viewer gets must be what
one uninterrupted connection would have given.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import RemoteProtocolError
from relay.names import StreamName
from relay.net.sessions import MAX_RUNS, ResumePoint, SessionLedger, byte_count

POINT = ResumePoint("rtmp", StreamName("live", "show"), 7, 1_000)


def log_byte(offset: int) -> tuple[str, int]:
    """The rendition's byte at ``offset``."""
    return "log", offset


@attrs.define
class Model:
    """One session: what the present aggregator has sent and said, and what has arrived of both.

    ``words`` are what the viewer is meant to see: every byte that any aggregator decided on.
    """

    ledger: SessionLedger = attrs.field(factory=SessionLedger)
    sent: list[tuple[str, int]] = attrs.field(factory=list)  # by the present aggregator, since it was attached
    said: list[tuple[str, int, int]] = attrs.field(factory=list)  # not yet heard by the balancer
    accepted: int = 0  # F
    offset: int = 1_000  # of the aggregator's cursor
    is_suspended: bool = True
    others: int = 0
    viewer: list[tuple[str, int]] = attrs.field(factory=list)
    cuts: int = 0
    resumed_from: tuple[str, int] | None = None  # the byte before the present aggregator's first

    # the aggregator

    def speak(self, count: int) -> None:
        """Bytes that are not the rendition's; only after a suspend that was answered, and so heard."""
        if not self.is_suspended:
            self.said.append(("suspend", len(self.sent), 0))
            self.hear(len(self.said))
            self.is_suspended = True
        for _ in range(count):
            self.others += 1
            self.sent.append(("other", self.others))

    def jump(self, ahead: int) -> None:
        """To a later join point, with a preamble."""
        self.speak(3)
        self.offset += ahead

    def run(self, count: int) -> None:
        """Bytes of the rendition."""
        if self.is_suspended:
            self.said.append(("checkpoint", len(self.sent), self.offset))
            self.is_suspended = False
        self.sent += [log_byte(self.offset + i) for i in range(count)]
        self.offset += count

    # the balancer

    def hear(self, count: int) -> None:
        """The control connection brings some of what was said, in order."""
        for name, at, offset in self.said[:count]:
            if name == "suspend":
                self.ledger.suspend(at)
            else:
                self.ledger.checkpoint(at, attrs.evolve(POINT, offset=offset))
        del self.said[:count]

    def accept(self, count: int) -> None:
        """The viewer's socket takes some more."""
        more = self.sent[self.accepted : self.accepted + count]
        self.viewer += more
        self.accepted += len(more)

    def crash(self) -> bool:
        """The aggregator dies: what is on the way is lost.  Is the session resumed?"""
        point = self.ledger.resume_point(self.accepted)
        if point is None:
            self.cuts += 1
            return False
        assert log_byte(point.offset) in self._may_come_next(), "a session was resumed where it must not be"
        self.ledger = SessionLedger()
        self.ledger.attach(point)
        self.sent, self.said, self.accepted = [], [], 0
        self.resumed_from = log_byte(point.offset - 1)
        self.offset, self.is_suspended = point.offset, False
        return True

    def _may_come_next(self) -> list[tuple[str, int]]:
        """The byte that the viewer would get next: one on the way, or the rendition's next one.

        At the very end of a run also the run's next byte: of what was to come between, the viewer has seen nothing, and
        an aggregator that never decided on it would have gone on so.
        """
        following = []
        if self.accepted < len(self.sent):
            following.append(self.sent[self.accepted])
        elif not self.is_suspended:
            following.append(log_byte(self.offset))
        last = self.sent[self.accepted - 1] if self.accepted else self.resumed_from
        if last is not None and last[0] == "log":
            following.append(log_byte(last[1] + 1))
        return following


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("speak"), st.integers(1, 5)),
        st.tuples(st.just("jump"), st.integers(0, 50)),
        st.tuples(st.just("run"), st.integers(1, 20)),
        st.tuples(st.just("hear"), st.integers(1, 3)),
        st.tuples(st.just("accept"), st.integers(1, 30)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_resumed_session_goes_on_with_the_very_next_byte(steps: list[tuple[str, int]]) -> None:
    """Whatever is sent, said, late and lost: a viewer is given the next byte, or is cut, and never anything else."""
    model = Model()
    for name, amount in steps:
        if name == "crash":
            if not model.crash():
                break
        else:
            getattr(model, name)(amount)
    runs = [byte for byte in model.viewer if byte[0] == "log"]
    assert len(set(runs)) == len(runs)
    assert runs == sorted(runs)


@given(st.integers(1, 200), st.integers(0, 200))
def test_session_in_a_run_that_was_heard_of_is_always_resumed(length: int, accepted: int) -> None:
    """Not cutting is the point: a session whose last word has arrived goes on, again and again."""
    model = Model()
    model.speak(5)
    model.run(length)
    model.hear(1)
    model.accept(5 + accepted)
    for _ in range(3):
        assert model.crash()
        model.run(10)
        model.accept(4)
    assert model.cuts == 0


def test_session_that_has_not_come_to_its_first_run_is_not_resumed() -> None:
    """A viewer in the middle of its preamble can't be given the rest of it by anybody else."""
    ledger = SessionLedger()
    assert ledger.resume_point(0) is None
    ledger.checkpoint(100, POINT)
    assert ledger.resume_point(99) is None
    assert ledger.resume_point(100) == POINT
    assert ledger.resume_point(150) == POINT.after(50)


def test_session_behind_a_jump_goes_on_in_the_run_before_it() -> None:
    """The aggregator has jumped; the viewer has not yet seen the end of the run before: that end is what comes next."""
    ledger = SessionLedger()
    ledger.checkpoint(10, POINT)
    ledger.suspend(60)
    ledger.checkpoint(90, POINT.after(500))
    assert ledger.resume_point(40) == POINT.after(30)
    assert ledger.resume_point(60) == POINT.after(50)
    assert ledger.resume_point(75) is None
    assert ledger.resume_point(95) == POINT.after(505)


def test_ledger_is_bounded() -> None:
    """An aggregator that checkpoints for ever fills nothing."""
    ledger = SessionLedger()
    for at in range(0, 100_000, 10):
        ledger.checkpoint(at, POINT.after(at))
    assert ledger.resume_point(0) is None
    assert ledger.resume_point(99_990 - 10 * (MAX_RUNS - 1)) is not None


def test_resume_point_travels() -> None:
    """In the PROXY header and in a command."""
    assert ResumePoint.from_bytes(POINT.to_bytes()) == POINT
    assert ResumePoint.from_values(POINT.to_values()) == POINT


@pytest.mark.parametrize(
    "data",
    [b"", b"rtmp live/show 7", b"mp4 live/show 7 1", b"rtmp ../x 7 1", b"rtmp live/show 7 -1", b"rtmp live/show x 1"],
)
def test_what_is_no_resume_point_is_the_peers_fault(data: bytes) -> None:
    """It comes from the network."""
    with pytest.raises(RemoteProtocolError):
        ResumePoint.from_bytes(data)


@pytest.mark.parametrize("values", [[], ["1"], [-1.0], [1.5], [float("nan")], [float("inf")], [None]])
def test_what_is_no_byte_count_is_the_peers_fault(values: list[object]) -> None:
    """It comes from the network."""
    with pytest.raises(RemoteProtocolError):
        byte_count(values)
