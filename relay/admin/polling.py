"""Asking every node of a cluster how it is, by its admin API.

Owns the questions' rhythm and the last answers.  Called by the cluster's parent process.

Each node is asked once a second at most, and never while an earlier question is open, so that a hung node costs one
connection.  No answer within a second is one too: the node is down.  So is the answer of another node: its port was
given to this one in the file, and it still runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from relay.admin.events import Event, EventLog
from relay.admin.fetch import fetch
from relay.errors import ProtocolError, RemoteProtocolError

POLL_SECONDS = 1.0
ANSWER_SECONDS = 1.0


@attrs.frozen(kw_only=True)
class Member:
    """A node to be asked.

    Args:
        listen: the endpoint that it serves on, for people.
        admin_url: where a browser finds its page, if one can.
        endpoint: of its admin site; one without (None) is never asked.
    """

    name: str
    tier: str
    listen: str
    admin_url: str | None
    endpoint: IStreamClientEndpoint | None


@attrs.frozen(kw_only=True)
class Answer:
    """What a node said of itself, or what is assumed of one that said nothing."""

    state: str
    why: Sequence[str] = ()
    viewers: int = 0
    streams: Sequence[Any] = ()
    links: Sequence[Any] = ()
    forwards: Sequence[Any] = ()
    events: Sequence[Any] = ()


NOT_ASKED = Answer(state="starting")
NO_PAGE = Answer(state="unknown", why=("it has no admin endpoint",))


class AnotherNode(RemoteProtocolError):
    """Somebody else answers at the address of the node that is asked."""


def read_answer(body: bytes, name: str) -> Answer:
    """What ``/api/v1/node`` says of the node that is called ``name``.

    Raises:
        AnotherNode: it is of another one.
        ValueError, KeyError, TypeError: it is something else.
    """
    content = json.loads(body)
    if content["name"] != name:
        raise AnotherNode(f"another node answers at its admin endpoint: {content['name']!r:.80}")
    told = {"events": (), "forwards": (), **content}  # a node of an older version tells none
    answer = Answer(**{field.name: told[field.name] for field in attrs.fields(Answer)})
    if not all(isinstance(entry, dict) for entry in (*answer.streams, *answer.links, *answer.events)):
        raise TypeError("streams, links and events are objects")
    return answer


class NodePoller(MultiService):
    """Asks while it runs.

    Args:
        reactor: keeps time.
        events: gets theirs.
    """

    log = Logger()

    def __init__(self, reactor: Any, events: EventLog | None = None) -> None:
        super().__init__()
        self.events = EventLog() if events is None else events
        self._seen: Counter[str] = Counter()  # the newest event of each
        self._reactor = reactor
        self._members: Sequence[Member] = ()
        self._asking: dict[str, Deferred[None]] = {}
        self._unforeseen: dict[str, str] = {}  # what was logged of each, until it answers
        self.answers: dict[str, Answer] = {}
        timer = TimerService(POLL_SECONDS, self.ask_all)
        timer.clock = reactor
        timer.setServiceParent(self)

    def stopService(self) -> Any:
        for asking in list(self._asking.values()):
            asking.cancel()
        return super().stopService()

    def ask_these(self, members: Sequence[Member]) -> None:
        """Ask these from now on, and no others; what is known of them is still known."""
        self._members = members
        known = {name: answer for name, answer in self.answers.items() if answer is not NO_PAGE}
        self.answers = {
            member.name: known.get(member.name, NOT_ASKED) if member.endpoint else NO_PAGE for member in members
        }

    def forget(self, name: str) -> None:
        """This one begins anew; what its former process still answers is not waited for."""
        if name in self._asking:
            self._asking[name].cancel()
        if name in self.answers and self.answers[name] is not NO_PAGE:
            self.answers[name] = NOT_ASKED

    def ask_all(self) -> None:
        """Ask each one that isn't being asked."""
        for member in self._members:
            if member.endpoint is not None and member.name not in self._asking:
                asking = Deferred.fromCoroutine(self._ask(member.name, member.endpoint))
                self._asking[member.name] = asking
                asking.addBoth(self._asked, member.name)

    def _asked(self, _: object, name: str) -> None:
        del self._asking[name]

    async def _ask(self, name: str, endpoint: IStreamClientEndpoint) -> None:
        path = f"/api/v1/node?after={self._seen[name]}"
        try:
            answer = read_answer(await fetch(self._reactor, endpoint, path, ANSWER_SECONDS), name)
            self._take_events(name, answer)
            self._answered(name, answer)
            self._unforeseen.pop(name, None)
        except CancelledError:
            return
        except TimeoutError:
            self._failed(name, f"no answer for {ANSWER_SECONDS:g} s")
        except ConnectError:
            self._failed(name, "nobody listens on its admin endpoint")
        except AnotherNode as error:
            self._answered(name, Answer(state="down", why=(str(error),)))
        except (ProtocolError, ValueError, KeyError, TypeError) as error:
            self._failed(name, f"no answer of a node: {type(error).__name__}: {error}")
        except OSError as error:
            self._failed(name, f"its admin endpoint can't be reached: {error}")
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            self._answered(name, Answer(state="down", why=(f"asking it failed: {words}",)))
            if self._unforeseen.get(name) != words:
                self._unforeseen[name] = words
                self.log.failure("asking {name} how it is", name=name)

    def _take_events(self, name: str, answer: Answer) -> None:
        for each in answer.events:
            self._seen[name] = max(self._seen[name], int(each["id"]))
            at = float(each["at"])
            told = {key: str(each[key]) for key in ("kind", "level", "text", "stream")}
            self.events.add(Event(id=self.events.next_id(at), at=at, node=name, **told))

    def _answered(self, name: str, answer: Answer) -> None:
        if name in self.answers:
            self.answers[name] = answer

    def _failed(self, name: str, why: str) -> None:
        """One that never answered is still starting, for all we know; the supervisor knows better."""
        if self.answers.get(name, NOT_ASKED) is not NOT_ASKED:
            self.answers[name] = Answer(state="down", why=(why,))
