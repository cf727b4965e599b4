"""Asking nodes over real sockets: good answers, bad ones, none."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, TimeoutError, fail
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from relay.admin.events import Event, EventLog
from relay.admin.fetch import fetch
from relay.admin.node import make_site
from relay.admin.polling import (
    ANSWER_SECONDS,
    NO_PAGE,
    NOT_ASKED,
    POLL_SECONDS,
    AnotherNode,
    Answer,
    Member,
    NodePoller,
    read_answer,
)
from relay.admin.views import Health
from relay.errors import LimitExceeded, RemoteProtocolError
from tests.admin.views import FixedView
from tests.net.peers import eventually

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Canned(Protocol):
    """Answers any request with the same bytes, and closes; with nothing, it stays silent."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def dataReceived(self, data: bytes) -> None:
        if self._answer:
            self.transport.write(self._answer)
            self.transport.loseConnection()


class ServerTestCase(TestCase):
    """Servers on ports of their own."""

    def serve(self, factory: Factory) -> IStreamClientEndpoint:
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)

    def canned(self, answer: bytes) -> IStreamClientEndpoint:
        return self.serve(Factory.forProtocol(lambda: Canned(answer)))

    async def closed_port(self) -> IStreamClientEndpoint:
        """Where nobody listens."""
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        return TCP4ClientEndpoint(reactor, "127.0.0.1", number)


class FetchTests(ServerTestCase):
    """One GET."""

    async def test_body_of_a_good_answer_is_given(self) -> None:
        self.assertEqual(b"{}", await fetch(reactor, self.canned(OK), "/", 5))

    async def test_body_that_ends_with_the_connection_is_given(self) -> None:
        """HTTP/1.0 servers say no length."""
        self.assertEqual(b"{}", await fetch(reactor, self.canned(b"HTTP/1.0 200 OK\r\n\r\n{}"), "/", 5))

    async def test_bad_answers_are_the_remote_side_fault(self) -> None:
        for answer in (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Le",
        ):
            with self.assertRaises(RemoteProtocolError):
                await fetch(reactor, self.canned(answer), "/", 5)

    async def test_body_without_end_is_bounded(self) -> None:
        with self.assertRaises(LimitExceeded):
            await fetch(reactor, self.canned(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(11)), "/", 5, limit=10)

    async def test_silent_server_is_given_up(self) -> None:
        """It accepts and reads, as a process stopped by SIGSTOP does."""
        with self.assertRaises(TimeoutError):
            await fetch(reactor, self.canned(b""), "/", 0.1)


class ReadAnswerTests(SynchronousTestCase):
    """What counts as a node's answer."""

    def test_other_json_is_refused(self) -> None:
        odd_links = b'{"name": "a1", "state": "normal", "why": [], "viewers": 0, "streams": [], "links": ["a1"]}'
        another = b'{"name": "a2", "state": "normal"}'
        bodies = (
            (b"[]", TypeError),
            (b"{}", KeyError),
            (b"nonsense", ValueError),
            (odd_links, TypeError),
            (another, AnotherNode),
        )
        for body, error in bodies:
            self.assertRaises(error, read_answer, body, "a1")


class NodePollerTests(ServerTestCase):
    """The last answers."""

    def poll(self, **endpoints: IStreamClientEndpoint | None) -> NodePoller:
        members = [
            Member(name=name, tier="origin", listen="", admin_url=None, endpoint=endpoint)
            for name, endpoint in endpoints.items()
        ]
        poller = NodePoller(reactor)
        poller.ask_these(members)
        poller.startService()
        self.addCleanup(poller.stopService)
        return poller

    async def state_becomes(self, poller: NodePoller, wanted: Callable[[Answer], bool], name: str = "a1") -> None:
        await eventually(lambda: wanted(poller.answers[name]))

    async def test_node_is_shown_as_it_describes_itself(self) -> None:
        """And again a second later, as it is then."""
        view = FixedView(name="a1", state=Health("degraded", ["a2 is down"]))
        poller = self.poll(a1=self.serve(make_site(view, reactor)))
        self.assertIs(NOT_ASKED, poller.answers["a1"])
        await self.state_becomes(poller, lambda answer: answer.state == "degraded")
        self.assertEqual((["a2 is down"], 3), (poller.answers["a1"].why, poller.answers["a1"].viewers))
        self.assertEqual("live/demo", poller.answers["a1"].streams[0]["name"])
        view.state = Health()
        await self.state_becomes(poller, lambda answer: answer.state == "normal")

    async def test_events_of_nodes_are_taken_once(self) -> None:
        """With the node's name; each answer brings those after the last."""
        theirs = EventLog()
        endpoint = self.serve(make_site(FixedView(name="a1"), reactor, events=theirs))
        poller = self.poll(a1=endpoint)
        for text in ("one", "two"):
            theirs.add(Event(id=theirs.next_id(5.0), at=5.0, kind="state", level="warn", text=text))
            await eventually(lambda text=text: text in [event["text"] for event in poller.events.after()])
        taken = [(event["node"], event["at"], event["text"]) for event in poller.events.after()]
        self.assertEqual([("a1", 5.0, "one"), ("a1", 5.0, "two")], taken)

    async def test_node_that_never_answered_is_starting(self) -> None:
        """A cluster that has just begun is not shown as broken."""
        poller = self.poll(a1=await self.closed_port(), o1=self.serve(make_site(FixedView(name="o1"), reactor)))
        await self.state_becomes(poller, lambda answer: answer.state == "normal", "o1")
        self.assertEqual("starting", poller.answers["a1"].state)

    async def test_node_that_answers_no_more_is_down(self) -> None:
        port = reactor.listenTCP(0, make_site(FixedView(name="a1"), reactor), interface="127.0.0.1")
        poller = self.poll(a1=TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port))
        await self.state_becomes(poller, lambda answer: answer.state == "normal")
        await port.stopListening()
        await self.state_becomes(poller, lambda answer: answer.state == "down")
        self.assertEqual(("nobody listens on its admin endpoint",), poller.answers["a1"].why)

    async def test_hung_node_does_not_hold_up_the_others_and_ends_with_the_poller(self) -> None:
        """trial finds the connection if it stays."""
        poller = self.poll(a1=self.canned(b""), o1=self.serve(make_site(FixedView(name="o1"), reactor)))
        await self.state_becomes(poller, lambda answer: answer.state == "normal", "o1")
        self.assertEqual("starting", poller.answers["a1"].state)

    async def test_node_without_admin_endpoint_is_never_asked(self) -> None:
        self.assertIs(NO_PAGE, self.poll(a1=None).answers["a1"])

    async def test_answer_of_another_node_is_none(self) -> None:
        """Its port was given to a new node in the file, and the old one still has it."""
        poller = self.poll(a3=self.serve(make_site(FixedView(name="a2"), reactor)))
        await self.state_becomes(poller, lambda answer: answer.state == "down", "a3")
        self.assertEqual(("another node answers at its admin endpoint: 'a2'",), poller.answers["a3"].why)
        self.assertEqual([], poller.events.after())


@implementer(IStreamClientEndpoint)
class FixedEndpoint:
    """Fails as a test says, or never connects."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.given_up = 0

    def connect(self, protocolFactory: object) -> Deferred[IProtocol]:
        return Deferred(self._give_up) if self.error is None else fail(self.error)

    def _give_up(self, _: object) -> None:
        self.given_up += 1


class FailedQuestionTests(SynchronousTestCase):
    """Whatever goes wrong while a node is asked, its last answer is not believed any longer."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = FixedEndpoint()
        self.poller = NodePoller(self.clock)
        self.ask(self.endpoint)
        self.poller.answers["a1"] = Answer(state="normal")
        self.poller.startService()
        self.addCleanup(self.poller.stopService)

    def ask(self, endpoint: IStreamClientEndpoint | None) -> None:
        self.poller.ask_these([Member(name="a1", tier="origin", listen="", admin_url=None, endpoint=endpoint)])

    def fail_with(self, error: Exception) -> Answer:
        """What is known when the next question has failed so."""
        self.endpoint.error = error
        self.clock.pump([POLL_SECONDS] * 2)
        return self.poller.answers["a1"]

    def test_address_that_can_not_be_found_is_a_failure(self) -> None:
        answer = self.fail_with(DNSLookupError("no results"))
        self.assertEqual("down", answer.state)
        self.assertIn("its admin endpoint can't be reached: DNS lookup failed: no results", answer.why[0])

    def test_address_that_drops_everything_is_a_failure(self) -> None:
        """A machine that is off answers no connect, and refuses none."""
        self.ask(HostnameEndpoint(MemoryReactorClock(), "192.0.2.1", 8081))
        self.poller.forget("a1")  # the question to the other endpoint
        self.poller.answers["a1"] = Answer(state="normal")
        self.clock.pump([POLL_SECONDS, ANSWER_SECONDS])
        self.assertEqual(Answer(state="down", why=("no answer for 1 s",)), self.poller.answers["a1"])

    def test_question_that_is_given_up_while_it_connects_is_no_failure(self) -> None:
        """As at each stop."""
        self.ask(HostnameEndpoint(MemoryReactorClock(), "192.0.2.1", 8081))
        self.poller.forget("a1")
        self.clock.advance(POLL_SECONDS)
        self.poller.forget("a1")
        self.assertIs(NOT_ASKED, self.poller.answers["a1"])

    def test_unforeseen_error_is_a_failure_and_is_logged_once(self) -> None:
        """And once more when it is another one, or was over for a while."""
        for error in (OverflowError("too large"), OverflowError("too large"), RecursionError("too deep")):
            answer = self.fail_with(error)
            self.assertEqual(
                ("down", (f"asking it failed: {type(error).__name__}: {error}",)), attrs.astuple(answer)[:2]
            )
        self.assertEqual([1, 1], [len(self.flushLoggedErrors(kind)) for kind in (OverflowError, RecursionError)])

    def test_node_that_never_answered_is_not_starting_after_an_unforeseen_error(self) -> None:
        self.poller.forget("a1")
        self.assertEqual("down", self.fail_with(OverflowError("too large")).state)
        self.flushLoggedErrors(OverflowError)

    def test_question_to_the_former_process_is_given_up(self) -> None:
        """Its answer would be taken for one of the process that was just started."""
        self.poller.forget("a1")
        self.assertEqual((1, NOT_ASKED), (self.endpoint.given_up, self.poller.answers["a1"]))

    def test_admin_endpoint_comes_and_goes(self) -> None:
        """What was known of a node that can't be asked any more is not believed, nor the other way round."""
        self.ask(None)
        self.assertIs(NO_PAGE, self.poller.answers["a1"])
        self.ask(self.endpoint)
        self.assertIs(NOT_ASKED, self.poller.answers["a1"])
