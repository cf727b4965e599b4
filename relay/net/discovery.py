"""Who serves, by DNS: the members of a service (SRV, RFC 2782), looked up again and again.

Owns the questions, their rhythm and what is known.  Does not own what is done with a member: a balancer makes it a
backend, a distributor an upstream.  Called by the tiers for ``srv:_relay._tcp.example.org``.

Theory.  A name server tells who is there; it is not asked whether they are well, and it may be down itself, which must
not take anybody down with it.  So only an answer with members in it counts.  An error, a timeout, an empty answer and a
name that is gone leave everything as it is; they are counted, said once, and asked again, less often each time.

The same goes for the address of one member: where that can't be looked up, what is known of it stays.

A member is a (host, port, address): if its address changes it is another one, and the former leaves; if its priority or
weight changes it is the same one, in another place of the order.  What could not be done with a member is tried again
at the next answer, and holds nobody else up.  The answer is asked for again when the shortest of its times to live is
over, within bounds.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import attrs
from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.python.failure import Failure

MIN_SECONDS = 1.0  # a time to live of 0 is no wish for a question a millisecond
MAX_SECONDS = 60.0  # one that was added is wanted within a minute, whatever the zone says
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 30.0
MAX_MEMBERS = 256  # of one service; more is a mistake, and each is a connection

Records = tuple[Sequence[Any], Sequence[Any], Sequence[Any]]


@attrs.frozen(order=True)
class Found:
    """One member, in the order of preference: the lower ``priority`` first, of equals the greater weight."""

    priority: int
    counterweight: int  # 65535 - weight
    host: str
    port: int
    address: str

    @property
    def name(self) -> str:
        """What it is called, by its place alone: two of one host are two."""
        return f"{self.host}:{self.port}/{self.address}"

    @property
    def endpoint(self) -> str:
        """Where it is, as a client endpoint string."""
        address = self.address.replace(":", "\\:")
        return f"tcp:host={address}:port={self.port}"


class Resolver(Protocol):
    """What is asked; :class:`twisted.names.client.Resolver` is one."""

    def lookupService(self, name: str) -> Deferred[Records]:
        """SRV."""

    def lookupAddress(self, name: str) -> Deferred[Records]:
        """A."""

    def lookupIPV6Address(self, name: str) -> Deferred[Records]:
        """AAAA."""


class ServiceWatcher(Service):
    """Watches one service while it runs.

    Args:
        service: the name, ``_relay._tcp.example.org``.
        resolver: whom to ask.
        clock: the reactor.
        joined: called with a member that has come.
        left: called with one that has gone.
        arranged: called with all that there are now, in the order of preference, when that is another one.

    Each of the three is called again at the next answer if it raises.

    ``members`` is what is known, ``failures`` how many answers did not count.
    """

    log = Logger()

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        clock: IReactorTime,
        joined: Callable[[Found], None],
        left: Callable[[Found], None],
        arranged: Callable[[Sequence[Found]], None] = lambda members: None,
    ) -> None:
        self.service = service
        self.members: list[Found] = []
        self.failures = 0
        self._resolver = resolver
        self._clock = clock
        self._joined = joined
        self._left = left
        self._arranged = arranged
        self._order: list[str] = []  # that was told
        self._asking: Deferred[None] | None = None
        self._again: IDelayedCall | None = None
        self._failed_in_a_row = 0

    def startService(self) -> None:
        super().startService()
        self._ask()

    def stopService(self) -> None:
        super().stopService()
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self) -> None:
        self._asking = Deferred.fromCoroutine(self._look())
        self._asking.addErrback(self._failed)

    async def _look(self) -> None:
        answers, _, additional = await self._resolver.lookupService(self.service)
        records = [answer for answer in answers if answer.type == dns.SRV][:MAX_MEMBERS]
        known = _addresses(additional)
        found: list[Found] = []
        for record in records:
            payload = record.payload
            host = str(payload.target).rstrip(".").lower()
            for address in known.get(host) or await self._addresses_of(host, payload.port):
                found.append(Found(payload.priority, 65535 - payload.weight, host, payload.port, address))
        if not found:
            raise LookupError("the answer has no member with an address")
        self._take(sorted(found), min(record.ttl for record in records))

    async def _addresses_of(self, host: str, port: int) -> list[str]:
        """Of one target that came without; IPv6 if it has no other.  Of a kind that can't be had, those that are known.

        A name that does not exist is an answer: there is no address.
        """
        known = [member.address for member in self.members if (member.host, member.port) == (host, port)]
        for look, is_kind in (
            (self._resolver.lookupAddress, isIPAddress),
            (self._resolver.lookupIPV6Address, isIPv6Address),
        ):
            try:
                answers, _, _ = await look(host)
            except CancelledError:
                raise
            except DNSNameError:
                continue
            except Exception as error:
                self.failures += 1
                self.log.debug("{host}: {error!r}", host=host, error=error)
                found = [address for address in known if is_kind(address)]
            else:
                found = [address for addresses in _addresses(answers).values() for address in addresses]
            if found:
                return found
        return []

    def _take(self, found: Sequence[Found], ttl: int) -> None:
        if self._failed_in_a_row:
            self._failed_in_a_row = 0
            self.log.info("{service}: the name server answers again", service=self.service)
        known, wanted = _by_name(self.members), _by_name(found)
        added = [each for name, each in wanted.items() if name not in known and self._is_done(self._joined, each)]
        removed = [each for name, each in known.items() if name not in wanted and self._is_done(self._left, each)]
        stay = [wanted.get(name, each) for name, each in known.items() if each not in removed]
        self.members = sorted([*stay, *added])
        order = [each.name for each in self.members]
        if order != self._order and self._is_done(self._arranged, self.members):
            self._order = order
        self._say(added, removed)
        self._ask_again(min(MAX_SECONDS, max(MIN_SECONDS, ttl)))

    def _is_done(self, tell: Callable[[Any], None], what: Any) -> bool:
        try:
            tell(what)
        except Exception:
            self.log.failure("{service}: a change is not made, and tried again", service=self.service)
            return False
        return True

    def _say(self, added: Sequence[Found], removed: Sequence[Found]) -> None:
        if added or removed:
            self.log.info(
                "{service}: {changes}",
                event="discovery",
                service=self.service,
                changes="; ".join(
                    f"{word}: {', '.join(each.name for each in members)}"
                    for word, members in (("added", added), ("removed", removed))
                    if members
                ),
            )

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None and not self.running:
            return
        self.failures += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row == 1:
            self.log.warn(
                "{service}: no members to be had ({error}); {kept}",
                event="discovery",
                service=self.service,
                error=f"{type(failure.value).__name__}: {failure.getErrorMessage()}"[:200],
                kept=f"those that are known stay: {len(self.members)}" if self.members else "it is asked for again",
            )
        self._ask_again(min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self._failed_in_a_row - 1, 10)))

    def _ask_again(self, seconds: float) -> None:
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self.running:
            self._again = self._clock.callLater(seconds, self._ask)


def _by_name(members: Sequence[Found]) -> dict[str, Found]:
    """Of sorted members, in their order; of one that is there more than once, the preferred."""
    found: dict[str, Found] = {}
    for member in members:
        found.setdefault(member.name, member)
    return found


def _addresses(records: Iterable[Any]) -> dict[str, list[str]]:
    """By lower-case host; of one that has both kinds, IPv4."""
    by_kind: dict[int, dict[str, list[str]]] = {dns.AAAA: {}, dns.A: {}}
    for record in records:
        if record.type == dns.A:
            address = record.payload.dottedQuad()
        elif record.type == dns.AAAA:
            address = socket.inet_ntop(socket.AF_INET6, record.payload.address)
        else:
            continue
        by_kind[record.type].setdefault(str(record.name).rstrip(".").lower(), []).append(address)
    return {**by_kind[dns.AAAA], **by_kind[dns.A]}
