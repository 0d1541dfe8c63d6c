"""One connection to Postgres for reads that nobody waits long for."""

import asyncio
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

from shared.breaker import Breaker

CONNECT_TIMEOUT_S = 2
CLOSE_TIMEOUT_S = 1.0

Connection = psycopg.AsyncConnection[TupleRow]


class Lane:
    """One connection, one query at a time.

    A query past its budget is abandoned with its connection: psycopg tries for up to ten seconds
    to end it decently, which nobody waits for.
    """

    def __init__(self, url: str, breaker: Breaker, *, budget_s: float) -> None:
        self._url = url
        self._breaker = breaker
        self._budget_s = budget_s
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[list[TupleRow]]] = set()

    async def query(self, statement: LiteralString, params: Sequence[Any]) -> list[TupleRow]:
        """Raises psycopg.Error, OSError or TimeoutError."""
        task = asyncio.create_task(self._run(statement, params), name="database.query")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._budget_s):
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
