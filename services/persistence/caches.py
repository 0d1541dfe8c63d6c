"""Telling the history cache what was stored, also when Redis hears of it later."""

import asyncio
from collections.abc import Callable

from shared.cache import HISTORY_TTL_S, Cache, CacheDown, CacheKeys

RETRY_EVERY_S = 1.0
MAX_OWED = 10_000
"""Sessions whose invalidation Redis missed; beyond it, entries grow stale until they expire."""


class HistoryInvalidator:
    """Invalidates sessions' cached history; what Redis missed is owed until it would expire."""

    def __init__(self, cache: Cache, keys: CacheKeys) -> None:
        self._cache = cache
        self._keys = keys
        self._owed: dict[str, float] = {}
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self._new = asyncio.Event()

    @property
    def owed(self) -> int:
        return len(self._owed)

    async def invalidate(self, session_ids: set[str]) -> None:
        """Within Redis's budget, or later. Never raises."""
        try:
            await self._tell(session_ids)
        except CacheDown:
            until = self._clock() + HISTORY_TTL_S
            room = MAX_OWED - len(self._owed)
            self._owed.update(dict.fromkeys(list(session_ids)[: max(0, room)], until))
            self._new.set()

    async def run(self) -> None:
        """Pay what is owed, until cancelled."""
        while True:
            await self._new.wait()
            await asyncio.sleep(RETRY_EVERY_S)
            now = self._clock()
            self._owed = {session: until for session, until in self._owed.items() if until > now}
            owed = dict(self._owed)
            try:
                await self._tell(set(owed))
            except CacheDown:
                continue
            self._owed = {s: until for s, until in self._owed.items() if owed.get(s) != until}
            if not self._owed:
                self._new.clear()

    async def _tell(self, session_ids: set[str]) -> None:
        await self._cache.invalidate(
            [self._keys.history(session) for session in session_ids], ttl_s=HISTORY_TTL_S
        )
