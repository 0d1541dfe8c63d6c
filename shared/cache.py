"""Redis as a cache in front of Postgres: quick or absent, and never older than what it stands for.

Every call has one budget. Reads that come together go as one MGET, writes as one pipeline, each on
a task of its own: a caller that is cancelled leaves no unread reply behind for the next one.

A value read from Postgres may be outdated by the time it is written here. So `invalidate` leaves a
mark with a random token instead of deleting, and `fill` writes only over exactly what the reader
saw before it asked Postgres.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.batched import Batched, Unanswered
from shared.breaker import Breaker

BUDGET_S = 0.05
PROFILE_TTL_S = 300.0
HISTORY_TTL_S = 60.0
MAX_WAITING_FILLS = 1024
"""Beyond this, values are not cached: the next reader asks Postgres again."""
BATCH = 128
MAX_CONNECTIONS = 4
"""One read, one fill and one invalidation are on their way at a time; a broken one is replaced."""

_VALUE, _MARK = b"=", b"!"
_FILL = """
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""


class CacheDown(Exception):
    """Redis did not answer within the budget, or hasn't lately: go on without it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cache had for a key: a value, or None; `stamp` is for `fill`."""

    key: str
    value: bytes | None
    stamp: bytes


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """The keys of one mesh; meshes with different prefixes share a Redis."""

    prefix: str

    def profile(self, user_id: str) -> str:
        return f"{self.prefix}:profile:{user_id}"

    def history(self, session_id: str) -> str:
        return f"{self.prefix}:history:{session_id}"


class Cache:
    """A client of one Redis, for use in one event loop. Connects when first used."""

    def __init__(self, url: str, *, budget_s: float = BUDGET_S) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            # With RESP3's maintenance notices redis-py no longer looks for left-over replies.
            protocol=2,
            max_connections=MAX_CONNECTIONS,
            retry=Retry(NoBackoff(), 0),
        )
        self._budget_s = budget_s
        self.breaker = Breaker("redis")
        self._lookups = Batched(self._lookup)
        self._fills: list[tuple[Seen, bytes, float]] = []
        self._filling: asyncio.Task[None] | None = None

    async def warm_up(self) -> None:
        """Connect, if that is possible now. Never raises."""
        with suppress(CacheDown):
            await self._ask(cast(Awaitable[Any], self._redis.ping()))

    async def get(self, key: str) -> Seen:
        """What is cached. Raises CacheDown within the budget."""
        if not self.breaker.allows():
            raise CacheDown
        try:
            async with asyncio.timeout(self._budget_s):
                return await self._lookups.get(key)
        except (TimeoutError, Unanswered) as error:
            raise CacheDown from error

    def fill(self, seen: Seen, value: bytes, *, ttl_s: float) -> None:
        """Cache a value read from Postgres after `seen`, soon, unless the key has changed since."""
        if len(self._fills) >= MAX_WAITING_FILLS or not self.breaker.closed:
            return
        self._fills.append((seen, value, ttl_s))
        if self._filling is None:
            self._filling = asyncio.create_task(self._write(), name="cache.fill")

    async def invalidate(self, keys: Iterable[str], *, ttl_s: float) -> None:
        """Make sure that nothing read before now is served under these keys.

        `ttl_s` must be longer than a reader can take from `get` to `fill`. Raises CacheDown; then
        an older value may be served until it expires.
        """
        waiting = list(keys)
        for start in range(0, len(waiting), BATCH):
            if not self.breaker.allows():
                raise CacheDown
            pipe = self._redis.pipeline(transaction=False)
            for key in waiting[start : start + BATCH]:
                pipe.set(key, _MARK + secrets.token_bytes(12), px=int(ttl_s * 1000))
            await self._ask(pipe.execute())

    async def close(self) -> None:
        """Give up what is under way; never raises for a server that is gone."""
        await self._lookups.close()
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        await self._redis.aclose()

    async def _lookup(self, keys: list[str]) -> dict[str, Seen]:
        values = await self._ask(cast(Awaitable[Any], self._redis.mget(keys)))
        return {key: _seen(key, raw) for key, raw in zip(keys, values, strict=True)}

    async def _write(self) -> None:
        try:
            while self._fills:
                batch, self._fills = self._fills[:BATCH], self._fills[BATCH:]
                pipe = self._redis.pipeline(transaction=False)
                for seen, value, ttl_s in batch:
                    ttl_ms = str(int(ttl_s * 1000))
                    pipe.eval(_FILL, 1, seen.key, cast(str, seen.stamp), _VALUE + value, ttl_ms)
                try:
                    await self._ask(pipe.execute())
                except CacheDown:
                    self._fills.clear()
        finally:
            self._filling = None

    async def _ask(self, command: Awaitable[Any]) -> Any:
        """Raises CacheDown. redis-py closes a connection whose command did not end."""
        try:
            async with asyncio.timeout(self._budget_s):
                answer = await command
        except (TimeoutError, OSError, RedisError) as error:
            self.breaker.failed(error)
            raise CacheDown from error
        self.breaker.succeeded()
        return answer


def _seen(key: str, raw: bytes | None) -> Seen:
    value = raw[1:] if raw is not None and raw.startswith(_VALUE) else None
    return Seen(key, value, raw or b"")
