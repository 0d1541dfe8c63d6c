"""The one writer: whatever has arrived goes into one transaction, and waits as long as it takes."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg
import structlog

from services.persistence.rows import message_id
from services.persistence.store import Connection, Outcome, is_fault_of_row, store
from shared.messages import Transcript
from shared.telemetry import Counters

log = structlog.get_logger()

MAX_ROWS = 512
MAX_BYTES = 8 * 1024 * 1024
"""Of one transaction; a single message may be larger."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
WRITE_TIMEOUT_S = 60.0
"""For a server that neither answers nor breaks the connection."""
CONNECT_TIMEOUT_S = 3


class NotStored(Exception):
    """It was not written and this writer will not try again: give the item back."""


class Refused(Exception):
    """Postgres refuses this very message, though it takes others."""


@dataclass(slots=True)
class _Waiting:
    transcript: Transcript
    weight: int
    future: "asyncio.Future[Outcome]"


AfterCommit = Callable[[set[str]], Awaitable[None]]


class Writer:
    """Writes what is `put` into it, batch by batch, over one connection of its own.

    Bounded by its callers, who wait for what they put in. While Postgres is away or read-only it
    tries again, with pauses that grow to five seconds, and says so once.
    """

    def __init__(self, postgres_url: str, after_commit: AfterCommit, counters: Counters) -> None:
        self._url = postgres_url
        self._after_commit = after_commit
        self._counters = counters
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._hurry = asyncio.Event()
        self._connection: Connection | None = None
        self._up: bool | None = None

    @property
    def postgres_up(self) -> bool:
        """Whether the last try succeeded."""
        return bool(self._up)

    async def put(self, transcript: Transcript, weight: int) -> Outcome:
        """Return when it is committed and the sessions' caches are told.

        Raises Refused or NotStored. Cancelled, it may be written all the same.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(transcript, weight, future))
        self._filled.set()
        return await future

    def hurry(self) -> None:
        """From now on, give back what can't be written at the first try."""
        self._hurry.set()

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while self._queue:
                    await self._write_until_done(self._take())
        finally:
            await self._disconnect()

    def _take(self) -> list[_Waiting]:
        batch = [self._queue.popleft()]
        weight = batch[0].weight
        while self._queue and len(batch) < MAX_ROWS:
            weight += self._queue[0].weight
            if weight > MAX_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _write_until_done(self, batch: list[_Waiting]) -> None:
        pause_s = FIRST_PAUSE_S
        while batch := [entry for entry in batch if not entry.future.done()]:
            try:
                await self._write(batch)
                self._say_up()
                return
            except (psycopg.Error, OSError, TimeoutError) as error:
                await self._disconnect()
                self._say_down(error)
            if self._hurry.is_set():
                _fail(batch, NotStored())
                return
            self._counters["retries"] += 1
            try:
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
            except TimeoutError:
                pause_s = min(pause_s * 2, MAX_PAUSE_S)

    async def _write(self, batch: list[_Waiting]) -> None:
        """Raises psycopg.Error, OSError or TimeoutError when Postgres can't do it now."""
        try:
            await self._commit(batch)
        except psycopg.Error as error:
            if not is_fault_of_row(error):
                raise
            if len(batch) == 1:
                self._refuse(batch[0], error)
                return
            # One bad row must not hold up the others.
            for entry in batch:
                await self._write([entry])

    async def _commit(self, batch: list[_Waiting]) -> None:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            connection = await self._connect()
            outcomes = await store(connection, [entry.transcript for entry in batch])
        self._counters["batches"] += 1
        await self._after_commit({entry.transcript.session_id for entry in batch})
        for entry, outcome in zip(batch, outcomes, strict=True):
            self._counters[outcome.name.lower()] += 1
            if not entry.future.done():
                entry.future.set_result(outcome)

    def _refuse(self, entry: _Waiting, error: psycopg.Error) -> None:
        self._counters["refused"] += 1
        # Postgres quotes values in its messages: its code says enough and holds no content.
        log.error(
            "transcript.refused",
            message=message_id(entry.transcript)[:100],
            sqlstate=error.sqlstate,
            error=type(error).__name__,
        )
        _fail([entry], Refused())

    async def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                # A dead peer is noticed within ten seconds, where the system would take minutes.
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=10_000,
            )
        return self._connection

    async def _disconnect(self) -> None:
        """A connection whose command failed or was cancelled is never used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _say_up(self) -> None:
        if self._up is False:
            log.info("postgres.up")
        self._up = True

    def _say_down(self, error: Exception) -> None:
        if self._up is not False:
            log.warning(
                "postgres.down",
                error=type(error).__name__,
                sqlstate=getattr(error, "sqlstate", None),
            )
        self._up = False


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)
