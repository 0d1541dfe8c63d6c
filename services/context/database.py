"""Reading profiles and histories from Postgres, within a budget, without leaving a trace behind."""

import asyncio
from collections.abc import Hashable
from typing import Any, TypeVar

from services.context.history import HistoryRow
from shared.batched import Batched, Unanswered
from shared.breaker import Breaker
from shared.lane import Lane

QUERY_BUDGET_S = 0.3
HISTORY_ROWS = 64
"""Rows of a session that are read: enough for the last ten messages of turns with many branches."""

PROFILES = "SELECT user_id, data FROM profiles WHERE user_id = ANY(%s)"
# The session's owner is part of the query: nobody reads another user's history.
HISTORIES = """
SELECT wanted.session_id, wanted.user_id, last.sid, last.position, last.section, last.content
FROM unnest(%s::text[], %s::text[]) AS wanted (session_id, user_id)
JOIN sessions ON sessions.id = wanted.session_id AND sessions.user_id = wanted.user_id
CROSS JOIN LATERAL (
    SELECT turn_at, sid, position, section, content FROM messages
    WHERE messages.session_id = sessions.id
    ORDER BY turn_at DESC, sid DESC, position DESC LIMIT %s
) AS last
ORDER BY last.turn_at, last.sid, last.position
"""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
SessionOf = tuple[str, str]
"""Session id and user id."""


class DatabaseDown(Exception):
    """Postgres did not answer in time, or hasn't lately: go on without it."""


class Database:
    """Lookups for one event loop; connects when first used."""

    def __init__(self, postgres_url: str) -> None:
        self.breaker = Breaker("postgres")
        self._profile_lane = Lane(postgres_url, self.breaker, budget_s=QUERY_BUDGET_S)
        self._history_lane = Lane(postgres_url, self.breaker, budget_s=QUERY_BUDGET_S)
        self._profiles = Batched(self._read_profiles)
        self._histories = Batched(self._read_histories)

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        """Raises DatabaseDown."""
        return await self._get(self._profiles, user_id)

    async def history(self, session_id: str, user_id: str) -> list[HistoryRow]:
        """The newest rows, oldest first; none of a session that is not this user's.

        Raises DatabaseDown.
        """
        return await self._get(self._histories, (session_id, user_id))

    async def warm_up(self) -> None:
        """Connect, if that is possible now. Never raises."""
        await asyncio.gather(self._profile_lane.warm_up(), self._history_lane.warm_up())

    async def close(self) -> None:
        await self._profiles.close()
        await self._histories.close()
        await self._profile_lane.close()
        await self._history_lane.close()

    async def _get(self, lookups: Batched[K, V], key: K) -> V:
        if not self.breaker.allows():
            raise DatabaseDown
        try:
            return await lookups.get(key)
        except Unanswered as error:
            raise DatabaseDown from error

    async def _read_profiles(self, user_ids: list[str]) -> dict[str, dict[str, Any] | None]:
        rows = await self._profile_lane.query(PROFILES, [user_ids])
        return dict.fromkeys(user_ids) | dict(rows)

    async def _read_histories(self, wanted: list[SessionOf]) -> dict[SessionOf, list[HistoryRow]]:
        sessions, users = [list(ids) for ids in zip(*wanted, strict=True)]
        rows = await self._history_lane.query(HISTORIES, [sessions, users, HISTORY_ROWS])
        found: dict[SessionOf, list[HistoryRow]] = {key: [] for key in wanted}
        for session_id, user_id, *row in rows:
            found[session_id, user_id].append(HistoryRow(*row))
        return found
