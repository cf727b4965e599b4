"""What two processes say to each other when one takes over: any order of arrivals, any end, any nonsense."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.threads import deferToThread

from relay.errors import ConfigError
from relay.limits import DEFAULT_LIMITS
from relay.net.backends import Backend, BackendPool
from relay.net.balancing import BalancerFactory, BalancingOptions
from relay.net.door import Door
from relay.net.giving import VIEWERS_AT_ONCE, Giver
from relay.net.handover import VERSION, Frame, FrameReader, Greeting, greet
from relay.net.ports import Ports
from relay.net.taking import Taker
from tests.net.peers import eventually
from tests.net.test_balancing import SECRET, BalancerTestCase

NAME = "lb1"
RUN = ["rtmp", "live/a", 7.0, 1000.0]


@attrs.define
class Link:
    """What both sides ask of a control link; what an aggregator says, the test says."""

    name: str
    state: str = "up"
    since: float = 1.0
    is_heard: bool = True
    barrier: Deferred[None] | None = None

    @property
    def shown(self) -> str:
        return self.name

    def when_heard_all(self) -> Deferred[None]:
        return self.barrier or succeed(None)


class Side:
    """One process's half."""

    def __init__(self, case: Any, limits: Any = DEFAULT_LIMITS) -> None:
        endpoints = {
            name: TCP4ClientEndpoint(case.reactor, "127.0.0.1", peer.port) for name, peer in case.listeners.items()
        }
        self.pool = BackendPool([Backend(*pair) for pair in endpoints.items()], case.clock.seconds)
        options = BalancingOptions(secret=SECRET, name=NAME)
        self.factory = BalancerFactory(case.reactor, self.pool, limits=limits, options=options, clock=case.clock)
        self.links = [Link(name) for name in endpoints]
        self.ports = Ports(case.reactor)


class HandoverTestCase(BalancerTestCase):
    """A giver with its door, and a taker in the same process."""

    options = BalancingOptions(secret=SECRET, name=NAME)

    async def setUp(self) -> None:
        await super().setUp()
        self.directory = Path(tempfile.mkdtemp(prefix="relay-handover-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = str(self.directory / "door")
        self.given: list[int] = []
        self.taken: list[int] = []
        self.failed: list[str] = []
        self.is_allowed = True
        self.sides: list[Side] = []
        self.takers: list[Taker] = []
        self.before = self.side()
        self.factory, self.pool = self.before.factory, self.before.pool
        self.giver = Giver(
            self.reactor,
            NAME,
            self.factory,
            self.before.links,  # type: ignore[arg-type]
            self.before.ports,
            self.given.append,
            lambda uid: self.is_allowed,
        )
        self.door = Door(self.reactor, self.path, self.giver.make_protocol)
        self.door.prepare()
        self.door.open()
        port = await serverFromString(self.before.ports, "tcp:0:interface=127.0.0.1").listen(self.factory)
        self.port = port.getHost().port

    async def tearDown(self) -> None:
        self.door.close()
        self.giver.stop()
        for taker in self.takers:
            taker.stop()
            if taker.transport is not None and taker.transport.connected:
                taker.transport.abortConnection()
        for side in self.sides:
            side.ports.forsake()
            await side.factory.close()
        await super().tearDown()

    def side(self, **options: Any) -> Side:
        made = Side(self, **options)
        self.sides.append(made)
        return made

    async def greeting(self) -> Greeting:
        greeting = await deferToThread(greet, self.path, NAME, ["one", "two"])
        assert greeting is not None
        return greeting

    async def taker(self, side: Side | None = None) -> Taker:
        """One that has been greeted; it goes on by itself."""
        self.after = side or self.side()
        greeting = await self.greeting()
        self.after.ports.inherit(greeting.frame.values["ports"], greeting.frame.descriptors)
        await serverFromString(self.after.ports, "tcp:0:interface=127.0.0.1").listen(self.after.factory)
        return self.start(greeting)

    def start(self, greeting: Greeting) -> Taker:
        taker = Taker(
            self.reactor,
            greeting,
            self.after.factory,
            self.after.links,  # type: ignore[arg-type]
            self.after.ports,
            self.taken.append,
            self.failed.append,
        )
        self.after.factory.elsewhere = taker.pass_on
        self.takers.append(taker)
        taker.start()
        return taker

    async def take_over(self, side: Side | None = None) -> Taker:
        taker = await self.taker(side)
        await eventually(lambda: self.taken and self.given)
        self.assertEqual((self.taken, []), (self.given, self.failed))
        self.factory, self.pool = self.after.factory, self.after.pool
        return taker

    async def joined(self, name: str = "two", **options: Any) -> tuple[Any, Any]:
        """A viewer with its backend."""
        viewer = self.watch()
        _, backend = await self.serve(name)
        await eventually(lambda: all(one.pair is not None for one in self.factory.viewers))
        return viewer, backend

    async def talk(self, viewer: Any, backend: Any) -> None:
        """Both hear each other."""
        await backend.send(b"to the viewer")
        self.assertEqual(b"to the viewer", await viewer.read(13))
        await viewer.send(b"to the backend")
        self.assertEqual(b"to the backend", await backend.read(14))


class TakingTests(HandoverTestCase):
    """What is handed over."""

    async def test_viewer_and_backend_notice_nothing(self) -> None:
        """Bytes of before, of between, and of after."""
        viewer, backend = await self.joined()
        await self.talk(viewer, backend)
        await self.take_over()
        await self.talk(viewer, backend)
        (one,) = self.factory.viewers
        self.assertEqual((26, 28), (one.pair.to_viewer, one.pair.to_backend))
        self.assertEqual(1, self.pool.backends["two"].viewers)
        viewer.close()
        self.assertEqual(b"", await backend.read_to_end())
        backend.close()
        await self.expect_outcomes(viewer_closed=1)

    async def test_more_viewers_than_are_told_of_at_once(self) -> None:
        pairs = [await self.joined(("two", "one")[number % 2]) for number in range(3 * VIEWERS_AT_ONCE)]
        await self.take_over()
        self.assertEqual([3 * VIEWERS_AT_ONCE], self.taken)
        for viewer, backend in pairs:
            await self.talk(viewer, backend)

    async def test_bytes_on_their_way_are_neither_lost_nor_repeated(self) -> None:
        """A viewer that does not read, so that a pipe is full."""
        viewer, backend = await self.joined()
        data = bytes(range(256)) * 40_000
        sending = Deferred.fromCoroutine(backend.send(data))
        await eventually(lambda: any(one.pair.held for one in self.factory.viewers))
        await self.take_over()
        await self.take_over_again()
        self.assertEqual(data, await viewer.read(len(data)))
        await sending

    async def take_over_again(self) -> None:
        """The taker gives."""
        self.taken.clear()
        self.given.clear()
        self.giver = Giver(
            self.reactor,
            NAME,
            self.after.factory,
            self.after.links,  # type: ignore[arg-type]
            self.after.ports,
            self.given.append,
        )
        self.door.close()
        self.door = Door(self.reactor, self.path, self.giver.make_protocol)
        self.door.prepare()
        self.door.open()
        await self.take_over()

    async def test_viewer_that_has_ended_its_side_hears_the_rest(self) -> None:
        viewer, backend = await self.joined()
        await viewer.send(b"GET")
        viewer.send_fin()
        self.assertEqual(b"GET", await backend.read_to_end())
        await self.take_over()
        await backend.send(b"the answer")
        backend.close()
        self.assertEqual(b"the answer", await viewer.read_to_end())

    async def test_viewer_without_a_backend_is_given_one(self) -> None:
        """It comes at both listeners: the first dial is left alone, the next process dials anew."""
        viewer = self.watch()
        await viewer.send(b"hello")
        await eventually(lambda: self.factory.viewers)
        await self.take_over()
        heard = b""
        while not heard:
            for name in self.listeners:
                accepted = self.listeners[name].try_accept()
                if accepted is not None:
                    accepted.settimeout(1)
                    with contextlib.suppress(OSError):
                        heard = accepted.recv(1 << 16)
                    self.addCleanup(accepted.close)
            heard = heard if heard.endswith(b"hello") else b""
            await eventually(lambda: True)

    async def test_new_viewers_come_to_the_new_process(self) -> None:
        await self.take_over()
        viewer, backend = await self.joined("two")
        await self.talk(viewer, backend)

    async def test_ledger_goes_along(self) -> None:
        """The aggregator dies afterwards: the session goes on exactly where the viewer stands."""
        viewer, backend = await self.joined("two")
        (one,) = self.factory.viewers
        await backend.send(b"preamble")
        await viewer.read(8)
        self.factory.session_said("two", "relayCheckpoint", [one.session_id.hex(), 8.0, *RUN])
        await self.take_over()
        await backend.send(b"12345")
        await viewer.read(5)
        backend.close()
        await eventually(lambda: len(self.factory.moves))
        self.clock.advance(1)
        header, backend = await self.serve("one")
        self.assertIn(b"rtmp live/a 7 1005", header.tlvs.values())
        await self.talk(viewer, backend)

    async def test_counts_go_along(self) -> None:
        viewer, backend = await self.joined()
        viewer.close()
        backend.close()
        await self.expect_outcomes(viewer_closed=1)
        self.factory.sessions_moved = 3
        await self.take_over()
        self.assertEqual(({"viewer_closed": 1}, 3), (dict(self.factory.outcomes), self.factory.sessions_moved))


class WordTests(HandoverTestCase):
    """What aggregators say meanwhile reaches the process that has the session, in order, and is answered then (I3)."""

    async def setUp(self) -> None:
        await super().setUp()
        self.answers: list[str] = []

    def say(self, taker: Taker, name: str, at: float) -> None:
        (one,) = self.before.factory.viewers or self.after.factory.viewers
        said = taker.said("two", name, [one.session_id.hex(), at, *RUN])
        if said is None:
            self.answers.append(name)
        else:
            said.addCallback(lambda _: self.answers.append(name))

    async def test_words_wait_for_the_barrier(self) -> None:
        """What the taker hears is later than what is still on its way to the giver."""
        await self.joined()
        (one,) = self.factory.viewers
        self.before.links[0].barrier = Deferred()
        taker = await self.taker()
        self.say(taker, "relaySuspend", 20.0)
        await eventually(lambda: self.giver.current is not None)
        self.assertEqual([], self.answers)
        self.giver.said("two", "relayCheckpoint", [one.session_id.hex(), 10.0, *RUN])
        self.before.links[0].barrier.callback(None)
        await eventually(lambda: self.taken)
        self.assertEqual(["relaySuspend"], self.answers)
        (one,) = self.after.factory.viewers
        self.assertEqual([[10, 20, *RUN]], one._ledger.to_values())

    async def test_words_after_take_are_heard_by_the_new_process(self) -> None:
        await self.joined()
        taker = await self.taker()
        await eventually(lambda: taker.stage.name == "TAKING" or self.taken)
        self.say(taker, "relayCheckpoint", 10.0)
        self.say(taker, "relaySuspend", 20.0)
        await eventually(lambda: self.taken)
        self.assertEqual(["relayCheckpoint", "relaySuspend"], self.answers)
        (one,) = self.after.factory.viewers
        self.assertEqual([[10, 20, *RUN]], one._ledger.to_values())

    async def test_kept_words(self) -> None:
        """More than the limit, and the giver goes on."""
        await self.joined()
        self.before.links[0].barrier = Deferred()
        taker = await self.taker(self.side(limits=attrs.evolve(DEFAULT_LIMITS, kept_words=3)))
        for number in range(4):
            self.assertEqual([], self.failed)
            self.say(taker, "relayCheckpoint", float(number))
        self.assertIn("more than 3", self.failed[0])
        await eventually(lambda: self.giver.current is None)
        self.assertEqual([], self.answers)

    async def test_link_that_is_lost_in_the_middle_calls_it_off(self) -> None:
        """Words may then come by the other way, and overtake."""
        await self.joined()
        self.before.links[0].barrier = Deferred()
        taker = await self.taker()
        self.after.links[1].since = 2.0
        taker.links_changed()
        self.assertIn("lost in the middle", self.failed[0])

    async def test_link_of_the_giver_that_comes_back_in_the_middle_calls_it_off(self) -> None:
        await self.joined()
        self.before.links[0].barrier = Deferred()
        await self.taker()
        self.before.links[1].since = 2.0
        self.before.links[0].barrier.callback(None)
        await eventually(lambda: self.failed)
        self.assertIn("two has come back", self.failed[0])
        self.assertEqual([], self.given)

    async def test_words_of_those_who_stay_are_passed_on(self) -> None:
        """And answered when they are noted; when their process is gone, at once."""
        viewer, _ = await self.joined()
        (one,) = self.before.factory.viewers
        one.halt = lambda known: None  # as of one over TLS
        taker = await self.take_over()
        self.assertEqual(([0], {one}), (self.given, self.before.factory.viewers))
        self.say(taker, "relayCheckpoint", 10.0)
        self.say(taker, "relaySuspend", 20.0)
        self.assertEqual([], self.answers)
        await eventually(lambda: len(self.answers) == 2)
        self.assertEqual([[10, 20, *RUN]], one._ledger.to_values())
        taker.transport.abortConnection()
        await eventually(lambda: taker.stage.name == "OVER")
        self.say(taker, "relayCheckpoint", 30.0)
        self.assertEqual(3, len(self.answers))
        await eventually(lambda: one._is_over)  # nobody tells us any more what its bytes are (I4)
        viewer.close()


class Hand:
    """The taker's end, or the giver's, by hand."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._reader = FrameReader()

    def say(self, word: str, descriptors: tuple[int, ...] = (), **values: Any) -> None:
        data = Frame(word, values, list(descriptors)).encode()
        if descriptors:
            socket.send_fds(self.socket, [data], descriptors)
        else:
            self.socket.send(data)

    async def hear(self, word: str) -> Frame:
        frame = await eventually(self._next)
        assert frame.word == word, frame
        frame.close()
        return frame

    def _next(self) -> Frame | None:
        frame = self._reader.next()
        if frame is None:
            with contextlib.suppress(BlockingIOError):
                data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 64)
                for descriptor in descriptors:
                    self._reader.descriptor(descriptor)
                self._reader.feed(data)
                frame = self._reader.next()
        return frame


class BadTakerTests(HandoverTestCase):
    """Whatever comes in at the door, the giver goes on with its viewers, or somebody has them."""

    async def hand(self) -> Hand:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        self.addCleanup(connection.close)
        return Hand(connection)

    async def halted(self) -> Hand:
        """All is here but the commit."""
        hand = await self.hand()
        hand.say("hello", version=VERSION, name=NAME, aggregators=["one", "two"])
        await hand.hear("hello")
        hand.say("linked")
        await hand.hear("barred")
        hand.say("take")
        await hand.hear("viewer")
        await hand.hear("all")
        return hand

    async def goes_on(self, viewer: Any, backend: Any) -> None:
        await eventually(lambda: self.giver.current is None)
        await self.talk(viewer, backend)
        viewer, backend = await self.joined("one")
        await self.talk(viewer, backend)
        self.assertEqual([], self.given)

    async def test_taker_that_goes_at_any_step(self) -> None:
        """It has died, say."""
        viewer, backend = await self.joined()
        steps: list[tuple[str, dict[str, Any]]] = [
            ("hello", {"version": VERSION, "name": NAME, "aggregators": ["one", "two"]}),
            ("linked", {}),
            ("take", {}),
        ]
        answers = ["hello", "barred", "viewer"]
        for count in range(len(steps) + 1):
            hand = await self.hand()
            for (word, values), answer in zip(steps[:count], answers, strict=False):
                hand.say(word, **values)
                await hand.hear(answer)
            hand.socket.close()
            await eventually(lambda: self.giver.current is None)
            await self.talk(viewer, backend)
        await self.goes_on(viewer, backend)

    async def test_nothing_moves_between_halt_and_commit(self) -> None:
        """Bytes wait in their sockets."""
        viewer, backend = await self.joined()
        hand = await self.halted()
        await backend.send(b"later")
        await viewer.send(b"later, too")
        for _ in range(20):
            await eventually(lambda: True)
        (one,) = self.factory.viewers
        self.assertEqual((0, 0), (one.pair.to_viewer, one.pair.to_backend))
        hand.socket.close()
        self.assertEqual((b"later", b"later, too"), (await viewer.read(5), await backend.read(10)))

    async def test_taker_that_is_silent_after_the_halt(self) -> None:
        """The giver goes on, and the commit that comes later fails in the taker's hands."""
        viewer, backend = await self.joined()
        hand = await self.halted()
        assert self.giver.current is not None
        self.giver.current.call_off("time is over")
        self.assertRaises(BrokenPipeError, hand.say, "commit")
        await self.goes_on(viewer, backend)

    async def test_commit_that_came_just_before_the_time_was_over(self) -> None:
        """It is in the queue: the viewers are the taker's."""
        await self.joined()
        hand = await self.halted()
        hand.say("commit")
        assert self.giver.current is not None
        self.giver.current.call_off("time is over")
        self.assertEqual(([1], set()), (self.given, self.factory.viewers))

    async def test_commit_of_one_that_dies_at_once(self) -> None:
        """It may have touched them: they are not ours."""
        await self.joined()
        hand = await self.halted()
        hand.say("commit")
        hand.socket.close()
        await eventually(lambda: self.given)
        self.assertEqual(set(), self.factory.viewers)

    async def test_aggregator_that_is_lost_while_all_rests(self) -> None:
        """The viewers move when they may."""
        viewer, backend = await self.joined()
        await backend.send(b"x")
        await viewer.read(1)
        (one,) = self.factory.viewers
        self.factory.session_said("two", "relayCheckpoint", [one.session_id.hex(), 1.0, *RUN])
        hand = await self.halted()
        self.factory.aggregator_lost("two")
        hand.socket.close()
        await eventually(lambda: len(self.factory.moves))
        self.clock.advance(1)
        header, backend = await self.serve("one")
        self.assertIn(b"rtmp live/a 7 1000", header.tlvs.values())
        await self.talk(viewer, backend)

    async def test_nonsense(self) -> None:
        """At each stage."""
        viewer, backend = await self.joined()
        for nonsense in (
            b"GET / HTTP/1.0\r\n\r\n",
            struct.pack("!IB", 1 << 30, 0),
            struct.pack("!IB", 2, 200),
            struct.pack("!IB", 2, 0) + b"[]",
            struct.pack("!IB", 3, 0) + b"\xff\xfe{",
            Frame("commit", {}).encode(),
            Frame("hello", {}).encode(),
            Frame("hello", {"version": VERSION, "name": NAME, "aggregators": 5}).encode(),
            struct.pack("!IB", 9, 1) + b'["x", {}]',
        ):
            hand = await self.hand()
            hand.socket.send(nonsense)
            await eventually(lambda peer=hand: _is_ended(peer.socket))
        hand = await self.halted()
        hand.socket.send(b"\0" * 64)
        await eventually(lambda: _is_ended(hand.socket))
        await self.goes_on(viewer, backend)

    async def test_other_version(self) -> None:
        hand = await self.hand()
        hand.say("hello", version=VERSION + 1, name=NAME, aggregators=[])
        self.assertIn("version", (await hand.hear("refused")).values["why"])

    async def test_other_user(self) -> None:
        """Only ourselves and root."""
        self.is_allowed = False
        await self.refused("user")

    async def test_second_taker(self) -> None:
        hand = await self.hand()
        hand.say("hello", version=VERSION, name=NAME, aggregators=[])
        await hand.hear("hello")
        await self.refused("already")

    async def test_door_is_for_ourselves_only(self) -> None:
        self.assertEqual(0o600, os.stat(self.path).st_mode & 0o777)

    async def test_nobody_is_there(self) -> None:
        """No file, or one that a dead process has left."""
        self.assertIsNone(greet(str(self.directory / "none"), NAME, []))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.directory / "dead"))
        self.assertIsNone(greet(str(self.directory / "dead"), NAME, []))

    async def refused(self, why: str) -> None:
        try:
            await self.greeting()
        except ConfigError as error:
            self.assertIn(why, str(error))
        else:
            self.fail("it was not refused")


class BadGiverTests(HandoverTestCase):
    """The other process fails us."""

    async def by_hand(self, pidfd: int = -1) -> tuple[Hand, Taker]:
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.after = self.side()
        hello = Frame("hello", {"version": VERSION, "ports": [], "links": ["one"]})
        ours.setblocking(False)
        hand = Hand(theirs)
        taker = self.start(Greeting(ours, hello, pidfd))
        await hand.hear("linked")
        hand.say("barred")
        await hand.hear("take")
        return hand, taker

    async def viewers(self, count: int) -> list[tuple[Any, Any]]:
        """Of the process before, with the sockets that it sends."""
        pairs = [await self.joined(name) for name in ("two", "one")[:count]]
        self.states = self.factory.halt({"one", "two"})
        return pairs

    async def test_giver_that_dies_leaves_us_what_has_come(self) -> None:
        """It had told of one of two."""
        pairs = await self.viewers(2)
        child = subprocess.Popen([sys.executable, "-c", ""])
        pidfd = os.pidfd_open(child.pid)
        hand, _ = await self.by_hand(pidfd)
        values, descriptors = self.states[0].to_wire()
        hand.say("viewer", tuple(descriptors), **values)
        hand.socket.close()
        await eventually(lambda: self.taken)
        child.wait()
        self.assertEqual(([1], []), (self.taken, self.failed))
        self.factory.forsake()
        self.assertEqual(["lost", "served"], sorted([await self.outcome(*pair) for pair in pairs]))

    async def outcome(self, viewer: Any, backend: Any) -> str:
        with contextlib.suppress(OSError):
            backend.try_send(b"x")
        await eventually(lambda: viewer._poll() and (viewer.end or viewer._unread))
        return "lost" if viewer.end else "served"

    async def test_giver_that_lives_has_changed_its_mind(self) -> None:
        """Its end of the socket is closed, its process is there: hands off."""
        ((viewer, backend),) = await self.viewers(1)
        hand, _ = await self.by_hand(os.pidfd_open(os.getpid()))
        values, descriptors = self.states[0].to_wire()
        hand.say("viewer", tuple(descriptors), **values)
        hand.socket.close()
        await eventually(lambda: self.failed)
        self.assertEqual(([], set()), (self.taken, self.after.factory.viewers))
        self.factory.go_on()
        await self.talk(viewer, backend)

    async def test_nonsense(self) -> None:
        for say in (
            lambda hand: hand.socket.send(b"\xff" * 64),
            lambda hand: hand.say("viewer", host="h"),
            lambda hand: hand.say("what?"),
            lambda hand: hand.say("noted", number=7),
            lambda hand: hand.say("all"),
        ):
            await self.fails(say)

    async def fails(self, say: Callable[[Hand], object]) -> None:
        self.failed.clear()
        hand, _ = await self.by_hand()
        say(hand)
        await eventually(lambda: self.failed)
        self.assertEqual([], self.taken)


def _is_ended(connection: socket.socket) -> bool:
    """Has the other end closed it?  What it says before does not count."""
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
