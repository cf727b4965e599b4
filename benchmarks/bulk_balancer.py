"""The balancer's data path in front of a server that is no aggregator: ``bulk_balancer.py PORT BACKEND_PORT``.

Run by ``splice.py``.  The classes and the system calls are the balancer's; there is no control connection, so its one
backend is always up.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

from relay.net.backends import Backend, BackendPool
from relay.net.balancing import BalancerFactory
from relay.net.dialing import dialing_endpoint
from relay.tiers.options import prepare_process


def main() -> None:
    """Serve until a signal comes."""
    port, backend = map(int, sys.argv[1:])
    prepare_process()
    endpoint = dialing_endpoint(reactor, f"tcp:127.0.0.1:{backend}")
    pool = BackendPool([Backend("only", endpoint)], reactor.seconds)
    serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1").listen(BalancerFactory(reactor, pool))
    reactor.run()


if __name__ == "__main__":
    main()
