"""An aggregator dies, hangs or is stopped: its viewers stay connected, and miss and repeat nothing."""

from __future__ import annotations

import signal

import pytest

from tests.clients import looped, publish
from tests.integration.audience import STREAM, AudienceTestCase

pytestmark = pytest.mark.net


class SessionTests(AudienceTestCase):
    """One cluster; viewers at the balancer."""

    async def test_aggregator_is_killed(self) -> None:
        """kill -9, first the one, then, when that is back, the other: sessions that were resumed are resumed again."""
        viewers = await self._viewers()
        for victim in (self.agg1, self.agg2):
            await victim.kill()
            await self._go_on(viewers)
            await victim.restart()
            await victim.stream(STREAM)
            await self._balancer_is_normal()
        await self._check(viewers)

    async def test_aggregator_hangs(self) -> None:
        """SIGSTOP: the sockets are open, and nothing comes; found by the unanswered ping."""
        viewers = await self._viewers()
        self.agg1.signal(signal.SIGSTOP)
        await self._go_on(viewers)
        self.agg1.signal(signal.SIGCONT)
        await self._balancer_is_normal()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_aggregator_is_stopped(self) -> None:
        """SIGTERM, as for an upgrade."""
        viewers = await self._viewers()
        self.agg2.signal(signal.SIGTERM)
        await self.agg2.ended()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_distributor_and_aggregator_die_at_the_same_time(self) -> None:
        """Whom the one reads from, and who reads from the other."""
        viewers = await self._viewers()
        await self.a1.kill()
        await self.agg1.kill()
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_publisher_comes_back_while_sessions_move(self) -> None:
        """Its aggregator is gone when the stream goes on: the viewer sees it on another."""
        viewers = await self._viewers()
        await self.agg1.kill()
        await publish(self, self.origin, f"{STREAM}2", looped(self.clip))
        await self._go_on(viewers)
        await self._check(viewers)

    async def test_aggregator_is_killed_while_viewers_are_in_their_handshake(self) -> None:
        """They have spoken, and wait for a stream that is not there yet: they are repeated at the other one."""
        name = f"{STREAM}2"
        viewers = await self._early_viewers(name)
        await self.agg1.kill()
        await self._has_waiting(self.agg2, len(viewers))
        await publish(self, self.origin, name, looped(self.clip))
        await self._go_on(viewers)
        await self._check(viewers)
