"""Reading profiles and histories from Postgres, within a budget, without leaving a trace behind."""

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import TupleRow

from services.context.history import HistoryRow
from shared.batched import Batched, Unanswered
from shared.breaker import Breaker

QUERY_BUDGET_S = 0.3
CONNECT_TIMEOUT_S = 2
CLOSE_TIMEOUT_S = 1.0
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

Connection = psycopg.AsyncConnection[TupleRow]
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
        self._profile_lane = _Lane(postgres_url, self.breaker)
        self._history_lane = _Lane(postgres_url, self.breaker)
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


class _Lane:
    """One connection, one query at a time.

    A query past its budget is abandoned with its connection: psycopg tries for up to ten seconds
    to end it decently, which nobody waits for.
    """

    def __init__(self, url: str, breaker: Breaker) -> None:
        self._url = url
        self._breaker = breaker
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[list[TupleRow]]] = set()

    async def query(self, statement: LiteralString, params: Sequence[Any]) -> list[TupleRow]:
        """Raises psycopg.Error, OSError or TimeoutError."""
        task = asyncio.create_task(self._run(statement, params), name="database.query")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(QUERY_BUDGET_S):
                rows = await asyncio.shield(task)
        except (psycopg.Error, OSError, TimeoutError) as error:
            task.cancel()
            self._breaker.failed(error)
            raise
        self._breaker.succeeded()
        return rows

    async def warm_up(self) -> None:
        try:
            await self.query("SELECT 1", [])
        except (psycopg.Error, OSError, TimeoutError):
            return  # the breaker has said so

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
        if self._connection is not None:
            await self._connection.close()

    async def _run(self, statement: LiteralString, params: Sequence[Any]) -> list[TupleRow]:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                return await self._ask(connection, statement, params)
            except psycopg.OperationalError:
                pass  # the server may have closed it long ago: once more, with a new one
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        return await self._ask(connection, statement, params)

    async def _ask(
        self, connection: Connection, statement: LiteralString, params: Sequence[Any]
    ) -> list[TupleRow]:
        """Keeps the connection for the next query, unless this one fails or is abandoned."""
        try:
            cursor = await connection.execute(statement, params)
            rows = await cursor.fetchall()
        except BaseException:
            await connection.close()
            raise
        if self._connection is None:
            self._connection = connection
        else:
            await connection.close()
        return rows

    def _ended(self, task: "asyncio.Task[list[TupleRow]]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # an abandoned query's error is nobody's
