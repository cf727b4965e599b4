"""One port speaks everything: the first bytes decide.

    03              RTMP
    GET, HEAD, …    HTTP (a media request)
    0D 0A 0D 0A 00  PROXY protocol v2, "PROXY " v1: only from addresses that the node trusts; what follows is one of
    the above

Owns admission (how many connections, from whom), the PROXY header and the choice; then passes bytes on.  Called by
the port.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolNegotiationFactory,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relay.errors import RemoteProtocolError
from relay.hosts import is_in
from relay.limits import Limits
from relay.net.admission import Admission
from relay.net.complaints import Complaints
from relay.net.proxy import V1_PREFIX, ProxyHeader, ProxyReader

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
RTMP_VERSION = 0x03


@implementer(IProtocolNegotiationFactory)
class PortFactory(Factory):
    """Admits connections and makes what speaks on them.

    Args:
        make_rtmp, make_http: called with the peer's address "host:port" and, if there was one, the PROXY header.
        trusted: who may send PROXY headers.
        make_resumed: a protocol for a header that says where a session goes on; None if it does not.
        disown: told that nobody will; the connection is closed when what it gives has fired.
        is_authentic: does this header prove the cluster secret?  Then it is believed from anywhere.
        complaints: about bad peers.
    """

    noisy = False

    def __init__(
        self,
        *,
        make_rtmp: Callable[[str, ProxyHeader | None], Protocol],
        make_http: Callable[[str, ProxyHeader | None], Protocol],
        limits: Limits,
        clock: IReactorTime,
        outcomes: Counter[str],
        trusted: Sequence[Network] = LOOPBACK,
        is_authentic: Callable[[ProxyHeader], bool] = lambda header: False,
        make_resumed: Callable[[str, ProxyHeader], Protocol | None] = lambda peer, header: None,
        disown: Callable[[ProxyHeader], Deferred[None] | None] = lambda header: None,
        complaints: Complaints | None = None,
    ) -> None:
        self.make_rtmp = make_rtmp
        self.make_http = make_http
        self.limits = limits
        self.clock = clock
        self.outcomes = outcomes
        self.complaints = complaints or Complaints(clock)
        self.is_authentic = is_authentic
        self.make_resumed = make_resumed
        self.disown = disown
        self.connections: dict[int, SniffingProtocol] = {}
        """By number: the first connection of this process is 1."""
        self._last_number = 0
        self.undecided = 0
        self._when_empty: list[Deferred[None]] = []
        self._trusted = trusted
        self.trusts = lru_cache(maxsize=1024)(self._is_trusted)
        """May this address send a PROXY header?"""
        self.admission = Admission(limits, clock, lambda: len(self.connections))

    def acceptableProtocols(self) -> list[bytes]:
        """For TLS: a client whose ALPN offer names none of these is refused by Twisted; all HTTP clients offer one."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        host = getattr(addr, "host", "") or ""
        is_crowded = self.undecided >= self.limits.handshaking_connections
        refusal = "refused_handshaking" if is_crowded else self.admission.admit(host)
        if refusal is not None:
            self.outcomes[refusal] += 1
            return None
        self._last_number += 1
        protocol = SniffingProtocol(self, host, self._last_number)
        self.connections[protocol.number] = protocol
        self.undecided += 1
        return protocol

    def _is_trusted(self, host: str) -> bool:
        if not host:
            return True  # a UNIX socket: its permissions decide
        return is_in(host, self._trusted)

    def gone(self, protocol: SniffingProtocol, host: str) -> None:
        """A connection is over."""
        del self.connections[protocol.number]
        self.admission.leave(host)
        if not self.connections:
            waiting, self._when_empty = self._when_empty, []
            for deferred in waiting:
                deferred.callback(None)

    def close(self) -> Deferred[None]:
        """The node stops: let go of everybody, by force after ``close_seconds``.  Fires when nobody is left."""
        if not self.connections:
            return succeed(None)
        for protocol in list(self.connections.values()):
            protocol.lose()
        force = self.clock.callLater(self.limits.close_seconds, self._abort_all)
        empty: Deferred[None] = Deferred()
        self._when_empty.append(empty)
        return empty.addCallback(lambda _: force.cancel() if force.active() else None)

    def _abort_all(self) -> None:
        for protocol in list(self.connections.values()):
            protocol.transport.abortConnection()


class SniffingProtocol(Protocol):
    """Reads until it knows what the peer speaks, then passes everything on."""

    log = Logger()
    transport: ITCPTransport

    def __init__(self, factory: PortFactory, host: str, number: int) -> None:
        self.ports = factory
        self.number = number
        self.connected_at = factory.clock.seconds()
        self._host = host
        self._peer = ""
        self._inner: Protocol | None = None
        self._proxy: ProxyReader | None = None
        self._header: ProxyHeader | None = None
        self._unread = b""
        self._is_refused = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        port = getattr(self.transport.getPeer(), "port", 0)
        self._peer = f"{self._host or 'unix'}:{port}"
        limits = self.ports.limits
        self._deadline = self.ports.clock.callLater(limits.handshake_seconds, self._refuse, "silent")

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
        elif self._is_refused:
            return
        elif self._proxy is not None:
            self._read_proxy(data)
        else:
            self._sniff(data)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (Twisted's signature)
        self._decided()
        if self._inner is not None:
            self._inner.connectionLost(reason)
        self.ports.gone(self, self._host)  # last: a node that stops takes it that nothing more happens

    @property
    def speaker(self) -> Protocol | None:
        """What speaks here, once it is known."""
        return self._inner

    def lose(self) -> None:
        """Let go of the peer when it has what was written."""
        self.transport.loseConnection()

    def _sniff(self, data: bytes) -> None:
        is_more = bool(self._unread)
        data, self._unread = self._unread + data, b""
        first = data[0]
        if first == RTMP_VERSION:
            self._speak(self.ports.make_rtmp(self._peer, self._header), data)
        elif self._header is None and first in b"\r\nP" and self._may_be_proxy(data):
            if V1_PREFIX.startswith(data) and data != V1_PREFIX:
                self._unread = data  # POST begins like that, too
            else:
                self._proxy = ProxyReader(self.ports.limits)
                self._read_proxy(data)
            if not is_more and (self._unread or self._proxy is not None):  # most headers come in one piece
                self._restart_deadline(self.ports.limits.proxy_header_seconds)
        elif 0x41 <= first <= 0x5A:  # a method letter
            self._speak(self.ports.make_http(self._peer, self._header), data)
        else:
            self._refuse("bad_first_byte")

    def _may_be_proxy(self, data: bytes) -> bool:
        """Is this a PROXY header, from somebody who may send one?  ("P" may also begin POST or PUT.)"""
        if data[:1] == b"P" and V1_PREFIX[: len(data)] != data[: len(V1_PREFIX)]:
            return False
        return self.ports.trusts(self._host) or data[:1] == b"\r"

    def _read_proxy(self, data: bytes) -> None:
        assert self._proxy is not None
        try:
            done = self._proxy.feed(data)
        except RemoteProtocolError as error:
            self._complain("bad PROXY header", "{peer}: {error}", error=str(error))
            self._refuse("bad_proxy_header")
            return
        if done is None:
            return
        header, rest = done
        if not (self.ports.trusts(self._host) or self.ports.is_authentic(header)):
            self._complain("untrusted", "{peer} sent a PROXY header but is not trusted (see --trust-proxy)")
            self._refuse("untrusted_proxy_header")
            return
        self._proxy = None
        self._header = header
        if header.source is not None:
            self._peer = f"{header.source.host}:{header.source.port}"
            if not self._is_admitted_as(header.source.host):
                return
        try:
            resumed = self.ports.make_resumed(self._peer, header)
        except RemoteProtocolError as error:
            self._complain("bad PROXY header", "{peer}: {error}", error=str(error))
            self._refuse("bad_proxy_header")
            return
        if resumed is not None:
            self._speak(resumed, rest)
        elif rest:
            self._sniff(rest)

    def _is_admitted_as(self, host: str) -> bool:
        """Count the connection by the viewer's address, not by the balancer's from here on."""
        self.ports.admission.leave(self._host)
        refusal = self.ports.admission.admit(host)
        if refusal is not None:
            self.ports.admission.recount(self._host)
            self._refuse(refusal)
            return False
        self._host = host
        return True

    def _speak(self, inner: Protocol, data: bytes) -> None:
        self._decided()
        self._inner = inner
        inner.makeConnection(self.transport)
        if data:
            inner.dataReceived(data)

    def _complain(self, kind: str, words: str, **fields: str) -> None:
        self.ports.complaints.say(self.log, kind, words, peer=self._peer, **fields)

    def _refuse(self, outcome: str) -> None:
        self.ports.outcomes[outcome] += 1
        self._decided()
        self._is_refused = True
        told = None if self._header is None else self.ports.disown(self._header)
        if told is None:
            self.transport.abortConnection()
        else:
            told.addBoth(lambda _: self.transport.abortConnection())

    def _restart_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.reset(seconds)

    def _decided(self) -> None:
        if self._deadline is not None:
            if self._deadline.active():
                self._deadline.cancel()
            self._deadline = None
            self.ports.undecided -= 1


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """``--trust-proxy`` values to networks.  Raises ``ValueError`` with the text of the bad one."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
