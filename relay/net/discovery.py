"""Who serves, by DNS: the members of a service (SRV, RFC 2782), looked up again and again.

Owns the questions, their rhythm and what is known.  Does not own what is done with a member: a balancer makes it a
backend, a distributor an upstream.  Called by the tiers for ``srv:_relay._tcp.example.org``.

Theory.  A name server tells who is there; it is not asked whether they are well, and it may be down itself, which must
not take anybody down with it.  So only an answer with members in it counts.  An error, a timeout, an empty answer and a
name that is gone leave everything as it is; they are counted, said once, and asked again, less often each time.

A member is a (host, port, address): if its address changes it is another one, and the former leaves.  The answer is
asked for again when the shortest of its times to live is over, within bounds.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.names import dns
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
        changed: called with those that have come and those that have gone.

    ``members`` is what is known, ``failures`` how many answers did not count.
    """

    log = Logger()

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        clock: IReactorTime,
        changed: Callable[[Sequence[Found], Sequence[Found]], None],
    ) -> None:
        self.service = service
        self.members: list[Found] = []
        self.failures = 0
        self._resolver = resolver
        self._clock = clock
        self._changed = changed
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
            host = str(payload.target).rstrip(".")
            for address in known.get(host.lower()) or await self._addresses_of(host):
                found.append(Found(payload.priority, 65535 - payload.weight, host, payload.port, address))
        if not found:
            raise LookupError("the answer has no member with an address")
        self._take(sorted(set(found)), min(record.ttl for record in records))

    async def _addresses_of(self, host: str) -> list[str]:
        """Of one target that came without; IPv6 if it has no other."""
        for look in (self._resolver.lookupAddress, self._resolver.lookupIPV6Address):
            try:
                answers, _, _ = await look(host)
            except CancelledError:
                raise
            except Exception as error:  # a member without an address is none; the others are
                self.log.debug("{host}: {error!r}", host=host, error=error)
                continue
            found = [address for addresses in _addresses(answers).values() for address in addresses]
            if found:
                return found
        return []

    def _take(self, found: list[Found], ttl: int) -> None:
        if self._failed_in_a_row:
            self._failed_in_a_row = 0
            self.log.info("{service}: the name server answers again", service=self.service)
        before, after = set(self.members), set(found)
        self.members = found
        self._ask_again(min(MAX_SECONDS, max(MIN_SECONDS, ttl)))
        added, removed = sorted(after - before), sorted(before - after)
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
            self._changed(added, removed)

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
        if self.running:
            self._again = self._clock.callLater(seconds, self._ask)


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
