"""The loops in C and in Python do the same, and give back whatever is not ordinary."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import time
from array import array
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from relay import native
from tests.programs import is_ci

DATA = bytes(range(256)) * 40
SMALL = 4 << 10  # bytes of a socket's buffers


def full(sender: socket.socket) -> int:
    """Send until it takes no more; how much it took."""
    taken = 0
    while True:
        try:
            taken += sender.send(bytes(1 << 16))
        except BlockingIOError:
            return taken


class NativeTestCase(SynchronousTestCase):
    def pair(self, buffers: int = 0) -> tuple[socket.socket, socket.socket]:
        """Ours and theirs, over TCP."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.socket()
            self.addCleanup(theirs.close)
            if buffers:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            theirs.connect(listener.getsockname())
            ours, _ = listener.accept()
            self.addCleanup(ours.close)
        if buffers:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        ours.setblocking(False)
        theirs.settimeout(5)
        return ours, theirs

    def broken(self) -> socket.socket:
        """One whose peer has reset it, and that has been told so."""
        ours, theirs = self.pair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        theirs.close()
        self.assertRaises(ConnectionResetError, ours.recv, 1)
        return ours


class EachCases:
    """What holds for each of the four."""

    def each(self, members, data: bytes):
        raise NotImplementedError

    def test_all_get_all(self) -> None:
        pairs = [self.pair() for _ in range(5)]
        self.assertEqual([], self.each({ours.fileno(): None for ours, _ in pairs}, DATA))
        for _, theirs in pairs:
            self.assertEqual(DATA, theirs.recv(len(DATA) + 1, socket.MSG_WAITALL | socket.MSG_DONTWAIT))

    def test_nobody_is_there(self) -> None:
        self.assertEqual([], self.each({}, DATA))

    def test_those_that_don_t_take_all_are_told(self) -> None:
        """One is full, one takes a part, one is broken, one is closed; the others get all."""
        ours, _ = self.pair()
        stuffed, _ = self.pair(SMALL)
        full(stuffed)
        partial, partial_peer = self.pair(SMALL)
        broken = self.broken()
        number = fcntl.fcntl(ours, fcntl.F_DUPFD, 900)  # which nothing that is opened now will have
        os.close(number)
        big = DATA * 100
        members = dict.fromkeys([stuffed.fileno(), partial.fileno(), broken.fileno(), number, ours.fileno()])
        receiving = bytearray()
        behind = {fd: (sent, error) for fd, sent, error in self.each(members, big)}
        self.assertEqual((0, errno.EAGAIN), behind[stuffed.fileno()])
        self.assertEqual((0, errno.EPIPE), behind[broken.fileno()])
        self.assertEqual((0, errno.EBADF), behind[number])
        sent, error = behind[partial.fileno()]
        self.assertTrue(0 < sent < len(big) and not error)
        partial.close()
        while data := partial_peer.recv(1 << 16):
            receiving += data
        self.assertEqual(big[:sent], bytes(receiving))
        self.assertNotIn(ours.fileno(), {fd for fd, (_, error) in behind.items() if error})

    def test_what_is_no_descriptor_is_refused(self) -> None:
        ours, _ = self.pair()
        self.assertRaises(TypeError, self.each, {ours.fileno(): None, "no number": None}, DATA)


class SendEachCases(EachCases):
    def each(self, members, data: bytes):
        file = os.memfd_create("test")
        self.addCleanup(os.close, file)
        os.write(file, b"before" + data)
        return self.send_each(members, file, 6, len(data))

    def test_file_that_ends_too_soon(self) -> None:
        ours, _ = self.pair()
        file = os.memfd_create("test")
        self.addCleanup(os.close, file)
        self.assertEqual([(ours.fileno(), 0, 0)], self.send_each({ours.fileno(): None}, file, 0, 10))


class BuiltTestCase(NativeTestCase):
    def setUp(self) -> None:
        if native.pump_ready is None:
            if is_ci() and os.environ.get("RELAY_NATIVE") != "0":
                raise AssertionError("the loops are not built, and in CI they must be")
            raise SkipTest("the loops are not built, or not wanted")
        self.assertIsNot(native.send_each, native.send_each_in_python)


class BuiltSendTests(SendEachCases, BuiltTestCase):
    send_each = staticmethod(native.send_each)


class PythonSendTests(SendEachCases, NativeTestCase):
    send_each = staticmethod(native.send_each_in_python)


class BuiltWriteTests(EachCases, BuiltTestCase):
    each = staticmethod(native.write_each)


class PythonWriteTests(EachCases, NativeTestCase):
    each = staticmethod(native.write_each_in_python)


class PumpReadyTestCase(BuiltTestCase):
    came = 0  # bytes the last time, of each flow: which says whether they are copied

    def setUp(self) -> None:
        super().setUp()
        self.epoll = select.epoll()
        self.addCleanup(self.epoll.close)
        self.pipe_out, self.pipe_in = os.pipe2(os.O_NONBLOCK)
        self.addCleanup(os.close, self.pipe_out)
        self.addCleanup(os.close, self.pipe_in)
        self.routes, self.moved, self.recent = array("i"), array("Q"), array("i")

    def route(self, source: socket.socket, sink: socket.socket | None) -> int:
        fd = source.fileno()
        missing = fd + 1 - len(self.routes)
        self.routes.extend([-1] * missing)
        self.moved.extend([0] * missing)
        self.recent.extend([self.came] * missing)
        self.routes[fd] = -1 if sink is None else sink.fileno()
        self.epoll.register(fd, select.EPOLLIN)
        return fd

    def pump(self, most: int = 10, size: int = 1 << 16):
        assert native.pump_ready is not None
        epoll = self.epoll.fileno()
        arrays = self.routes, self.moved, self.recent
        return native.pump_ready(epoll, most, *arrays, self.pipe_out, self.pipe_in, size)

    def flow(self, buffers: int = 0):
        """The peer that speaks, the descriptor of the source, the sink, and the peer that hears."""
        source, speaker = self.pair()
        sink, hearer = self.pair(buffers)
        return speaker, self.route(source, sink), sink, hearer


class PumpReadyCases:
    """What holds for bytes that are spliced, and for those that are copied."""

    def test_what_has_come_is_passed_on_and_counted(self) -> None:
        flows = [self.flow() for _ in range(3)]
        for number, (speaker, *_) in enumerate(flows):
            speaker.sendall(DATA[: number + 1])
        self.assertEqual(([], None), self.pump())
        for number, (_, fd, _, hearer) in enumerate(flows):
            self.assertEqual(DATA[: number + 1], hearer.recv(100))
            self.assertEqual(number + 1, self.moved[fd])
        self.assertEqual(([], None), self.pump())

    def test_no_more_are_served_than_may_be(self) -> None:
        flows = [self.flow() for _ in range(5)]
        for speaker, *_ in flows:
            speaker.sendall(b"x")
        self.pump(most=2)
        self.assertEqual(2, sum(self.moved))
        self.pump(most=100)
        self.assertEqual(5, sum(self.moved))

    def test_who_has_no_route_is_told(self) -> None:
        """Nothing of it is read; nor of one whose number is beyond what is known."""
        (first, speaker), (second, other) = self.pair(), self.pair()
        fd, beyond = self.route(first, None), self.route(second, None)
        del self.routes[max(fd, beyond) :], self.moved[max(fd, beyond) :]
        for peer in (speaker, other):
            peer.sendall(b"x")
        self.assertEqual(([(fd, select.EPOLLIN), (beyond, select.EPOLLIN)], None), self.pump())
        self.assertEqual((b"x", b"x"), (first.recv(9), second.recv(9)))

    def test_end_and_error_of_a_source_are_told(self) -> None:
        """The last words are passed on before."""
        speaker, fd, _, hearer = self.flow()
        broken, other = self.pair()
        sink, _ = self.pair()
        speaker.sendall(b"last words")
        speaker.close()
        self.pump()
        self.assertEqual(b"last words", hearer.recv(100))
        self.assertEqual([fd], [told for told, _ in self.pump()[0]])
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        number = self.route(broken, sink)
        other.close()
        ((told, event),) = [entry for entry in self.pump()[0] if entry[0] != fd]
        self.assertEqual((number, select.EPOLLERR), (told, event & select.EPOLLERR))

    def test_source_that_gives_all_that_may_be_taken_is_told(self) -> None:
        speaker, fd, _, hearer = self.flow()
        speaker.sendall(DATA)
        self.assertEqual(([(fd, select.EPOLLIN)], None), self.pump(size=1000))
        self.assertEqual((DATA[:1000], 1000), (hearer.recv(2000), self.moved[fd]))

    def test_sink_that_takes_a_part_leaves_the_rest_in_the_pipe(self) -> None:
        """Those that come after it are told again when there is a pipe."""
        speaker, fd, _, hearer = self.flow(SMALL)
        flood = DATA * 20
        speaker.sendall(flood)
        ready, stuck = self.pump(size=len(flood))
        assert stuck is not None
        self.assertEqual(([], fd, 0), (ready, stuck[0], stuck[2]))
        self.assertGreater(stuck[1], 0)
        left = os.read(self.pipe_out, stuck[1] + 1)
        self.assertEqual(stuck[1], len(left))
        passed = hearer.recv(self.moved[fd], socket.MSG_WAITALL)
        self.assertEqual(flood[: len(passed) + len(left)], passed + left)

    def test_full_sink_takes_nothing(self) -> None:
        speaker, fd, sink, _ = self.flow(SMALL)
        full(sink)
        speaker.sendall(b"more")
        self.assertEqual(([], (fd, 4, 0)), self.pump())
        self.assertEqual((b"more", 0), (os.read(self.pipe_out, 9), self.moved[fd]))

    def test_broken_sink_is_told_with_its_error(self) -> None:
        source, speaker = self.pair()
        fd = self.route(source, self.broken())
        speaker.sendall(b"lost")
        self.assertEqual(([], (fd, 4, errno.EPIPE)), self.pump())

    def test_signals_break_nothing(self) -> None:
        """A call that one interrupts before it has moved anything is made again."""
        flows = [self.flow() for _ in range(20)]
        former = signal.signal(signal.SIGALRM, lambda *_: None)
        self.addCleanup(signal.signal, signal.SIGALRM, former)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            for speaker, *_ in flows:
                speaker.sendall(DATA)
            self.recent = array("i", [self.came] * len(self.recent))
            for _ in range(3):
                self.assertEqual(([], None), self.pump(most=100))
            for *_, hearer in flows:
                self.assertEqual(len(DATA), len(hearer.recv(len(DATA), socket.MSG_WAITALL)))

    def test_closed_epoll_is_an_error(self) -> None:
        number = os.dup(self.epoll.fileno())
        os.close(number)
        assert native.pump_ready is not None
        with self.assertRaises(OSError) as caught:
            native.pump_ready(number, 10, self.routes, self.moved, self.recent, self.pipe_out, self.pipe_in, 1000)
        self.assertEqual(errno.EBADF, caught.exception.errno)


class SplicingTests(PumpReadyCases, PumpReadyTestCase):
    came = 1 << 16

    def test_bulk_is_left_for_the_next_turn(self) -> None:
        """There is more of it then, so it costs fewer calls."""
        fcntl.fcntl(self.pipe_in, fcntl.F_SETPIPE_SZ, 1 << 18)
        speaker, fd, _, _ = self.flow()
        flood = bytes(1 << 19)
        speaker.sendall(flood)
        self.assertEqual(([], None), self.pump(size=1 << 18))
        first = self.moved[fd]
        self.assertTrue(32 << 10 <= first < len(flood), first)
        self.pump(size=1 << 18)
        self.assertLess(first, self.moved[fd])


class CopyingTests(PumpReadyCases, PumpReadyTestCase):
    def test_little_is_passed_on_until_nothing_is_left(self) -> None:
        """Here a pipe that holds little makes it several pieces."""
        fcntl.fcntl(self.pipe_in, fcntl.F_SETPIPE_SZ, 4096)
        speaker, fd, _, hearer = self.flow()
        speaker.sendall(DATA)
        self.assertEqual(([], None), self.pump())
        self.assertEqual(DATA, hearer.recv(len(DATA) + 1, socket.MSG_WAITALL | socket.MSG_DONTWAIT))
        self.assertEqual((len(DATA), len(DATA) % 4096), (self.moved[fd], self.recent[fd]))

    def test_more_than_little_is_spliced_the_next_time(self) -> None:
        speaker, fd, _, hearer = self.flow()
        speaker.sendall(DATA * 4)
        self.pump(most=1)
        self.assertEqual((16 << 10, 16 << 10), (self.moved[fd], self.recent[fd]))
        self.pump(most=1)
        self.assertEqual(DATA * 4, hearer.recv(len(DATA) * 5, socket.MSG_WAITALL | socket.MSG_DONTWAIT))
        self.assertEqual(len(DATA) * 4 - (16 << 10), self.recent[fd])

    def test_pipe_that_holds_little(self) -> None:
        """Of a user with very many.  No more is read than it holds."""
        fcntl.fcntl(self.pipe_in, fcntl.F_SETPIPE_SZ, 4096)
        speaker, fd, sink, _ = self.flow(SMALL)
        full(sink)
        speaker.sendall(DATA)
        self.assertEqual(([], (fd, 4096, 0)), self.pump())
        self.assertEqual(DATA[:4096], os.read(self.pipe_out, 5000))

    def test_pipe_that_is_not_empty_is_an_error(self) -> None:
        """There is no room for what the sink did not take: the flow is told to be broken."""
        os.write(self.pipe_in, bytes(fcntl.fcntl(self.pipe_in, fcntl.F_GETPIPE_SZ)))
        speaker, fd, sink, _ = self.flow(SMALL)
        full(sink)
        speaker.sendall(b"lost")
        self.assertEqual(([], (fd, 4, errno.EIO)), self.pump())
