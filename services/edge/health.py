"""Whether the mesh can take work: one of every service must answer."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from services.edge.answers import ReadyState
from shared.bus import BusError, Instance

NEEDED: Final = ("edge", "context", "worker", "merger", "persistence")
CACHE_S: Final = 1.0


class Readiness:
    """Asks the mesh at most once a second, however often it is asked."""

    def __init__(
        self,
        prefix: str,
        is_connected: Callable[[], bool],
        discover: Callable[[], Awaitable[list[Instance]]],
    ) -> None:
        self._prefix = f"{prefix}-"
        self._is_connected = is_connected
        self._discover = discover
        self._asking = asyncio.Lock()
        self._known: ReadyState | None = None
        self._known_until = 0.0
        self.draining = False

    async def state(self) -> ReadyState:
        if self.draining:
            return ReadyState(status="draining", missing=[], services={})
        if not self._is_connected():
            return ReadyState(status="not_ready", missing=["nats"], services={})
        async with self._asking:
            loop = asyncio.get_running_loop()
            if self._known is None or loop.time() >= self._known_until:
                self._known = await self._ask()
                self._known_until = loop.time() + CACHE_S
            return self._known

    async def _ask(self) -> ReadyState:
        try:
            instances = await self._discover()
        except BusError:
            return ReadyState(status="not_ready", missing=["nats"], services={})
        found = Counter(instance.name.removeprefix(self._prefix) for instance in instances)
        missing = [name for name in NEEDED if name not in found]
        return ReadyState(
            status="not_ready" if missing else "ready", missing=missing, services=dict(found)
        )
