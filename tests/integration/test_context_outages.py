"""A cache and a database that are away, frozen or late cost a bounded time and mix up nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.mesh.ports import free_ports
from deploy.mesh.postgres_server import PostgresServer
from deploy.mesh.redis_server import RedisServer
from services.context.database import Database, DatabaseDown
from services.context.loaders import HISTORY_BUDGET_S, Loaders
from services.persistence.migrate import migrate
from shared.cache import BUDGET_S, Cache, CacheDown, CacheKeys
from shared.ids import new_sid
from shared.messages import BranchRequest, StartStream
from tests.support.stoppable import Stoppable, stoppable

SLACK_S = 0.25
"""What a busy machine may add to a budget before a test calls it broken."""


@pytest.fixture(scope="module")
def own_redis(servers_dir: Path) -> Iterator[Stoppable]:
    server = RedisServer(servers_dir / "own-redis", free_ports(1)[0], "test")
    with stoppable(server, servers_dir / "own-redis.log") as own:
        yield own


@pytest.fixture(scope="module")
def own_postgres(servers_dir: Path) -> Iterator[Stoppable]:
    server = PostgresServer(servers_dir / "own-pg", free_ports(1)[0], "test", durable=False)
    with stoppable(server, servers_dir / "own-pg.log") as own:
        migrate(own.url)
        with psycopg.connect(own.url) as connection:
            connection.execute("INSERT INTO users (id) VALUES ('ann')")
            connection.execute("INSERT INTO profiles VALUES ('ann', '{\"name\": \"A\"}')")
        yield own


@pytest.fixture
async def cache(own_redis: Stoppable) -> AsyncIterator[Cache]:
    """With a budget that a busy machine keeps."""
    cache = Cache(own_redis.url, budget_s=1.0)
    yield cache
    await cache.close()


@pytest.fixture
async def database(own_postgres: Stoppable) -> AsyncIterator[Database]:
    database = Database(own_postgres.url)
    await database.warm_up()
    yield database
    await database.close()


async def put(cache: Cache, key: str, value: bytes) -> None:
    async def is_there() -> bool:
        seen = await cache.get(key)
        if seen.value != value:
            cache.fill(seen, value, ttl_s=60)
        return seen.value == value

    await eventually(is_there)


async def _has(cache: Cache, key: str, value: bytes) -> bool:
    return (await cache.get(key)).value == value


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds and nothing is down. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            try:
                if await condition():
                    return
            except (CacheDown, DatabaseDown):
                pass
            await asyncio.sleep(0.02)


async def first_answer(cache: Cache, key: str) -> bytes | None:
    """What is said of the key as soon as anything is. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            try:
                return (await cache.get(key)).value
            except CacheDown:
                await asyncio.sleep(0.02)


def request() -> StartStream:
    return StartStream(
        sid=new_sid(),
        user_id="ann",
        session_id="s1",
        branches=[BranchRequest(model="m")],
        message="why?",
    )


async def test_a_frozen_cache_costs_its_budget_a_few_times_and_then_nothing(
    own_redis: Stoppable,
) -> None:
    cache = Cache(own_redis.url)
    await put(cache, "k", b"v")
    with own_redis.frozen():
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(CacheDown):
                await cache.get("k")
        assert time.monotonic() - started < 3 * BUDGET_S + SLACK_S
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(CacheDown):
                await cache.get("k")
        assert time.monotonic() - started < SLACK_S
    await cache.close()


async def test_a_lookup_that_was_given_up_leaves_its_reply_to_nobody(
    own_redis: Stoppable,
) -> None:
    cache = Cache(own_redis.url)
    for n in range(4):
        await put(cache, f"key{n}", b"value%d" % n)
    with own_redis.frozen(), pytest.raises(CacheDown):
        await cache.get("key0")
    for n in (3, 2, 1):
        assert await first_answer(cache, f"key{n}") == b"value%d" % n
    await cache.close()


async def test_a_cancelled_lookup_does_not_disturb_who_asks_with_it(cache: Cache) -> None:
    await put(cache, "a", b"1")
    await put(cache, "b", b"2")
    first = asyncio.create_task(cache.get("a"))
    second = asyncio.create_task(cache.get("b"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).value == b"2"


async def test_a_crowd_of_lookups_all_fit_into_the_budget(cache: Cache) -> None:
    await put(cache, "k7", b"7")
    found = await asyncio.gather(*(cache.get(f"k{n}") for n in range(1000)))
    assert [seen.key for seen in found if seen.value] == ["k7"]


async def test_a_value_read_before_an_invalidation_is_never_cached_after_it(cache: Cache) -> None:
    key = new_sid()
    early = await cache.get(key)
    await cache.invalidate([key], ttl_s=60)
    cache.fill(early, b"outdated", ttl_s=60)
    late = await cache.get(key)
    cache.fill(late, b"new", ttl_s=60)
    await eventually(lambda: _has(cache, key, b"new"))


async def test_an_invalidation_voids_what_is_cached(cache: Cache) -> None:
    key = new_sid()
    await put(cache, key, b"outdated")
    await cache.invalidate([key], ttl_s=60)
    assert (await cache.get(key)).value is None


async def test_a_frozen_database_degrades_an_answer_within_the_budget(
    own_postgres: Stoppable, database: Database
) -> None:
    cache = Cache("redis://127.0.0.1:1/0")
    loaders = Loaders(cache, CacheKeys("t"), database)
    assert (await loaders.load(request())).profile == {"name": "A"}
    with own_postgres.frozen():
        for tries in range(20):
            started = time.monotonic()
            loaded = await loaders.load(request())
            took_s = time.monotonic() - started
            assert sorted(loaded.degraded) == ["history", "profile"]
            assert took_s < (HISTORY_BUDGET_S if tries < 3 else 0) + SLACK_S
    await eventually(lambda: _has_profile(database))
    await cache.close()


async def test_a_restarted_database_is_used_again_without_a_failed_answer(
    own_postgres: Stoppable, database: Database
) -> None:
    assert await _has_profile(database)
    own_postgres.stop()
    own_postgres.start()  # not on another thread: the server dies with the one it starts from
    assert await _has_profile(database)  # its old connection is dead, and nobody hears of it


async def test_a_crowd_of_lookups_asks_the_database_together(database: Database) -> None:
    found = await asyncio.gather(*(database.profile(f"user{n}") for n in range(500)))
    assert found == [None] * 500
    sessions = await asyncio.gather(*(database.history(f"s{n}", "ann") for n in range(500)))
    assert sessions == [[]] * 500


async def _has_profile(database: Database) -> bool:
    profile: dict[str, Any] | None = await database.profile("ann")
    return profile == {"name": "A"}


async def test_a_cached_value_of_another_release_is_read_anew_and_written_over(
    cache: Cache, database: Database
) -> None:
    keys = CacheKeys(new_sid())
    await put(cache, keys.profile("ann"), b"\xc1 not ours")
    await put(cache, keys.history("s1"), b"\x90")
    loaded = await Loaders(cache, keys, database).load(request())
    assert (loaded.profile, loaded.degraded) == ({"name": "A"}, [])

    async def is_written_over() -> bool:
        return (await cache.get(keys.profile("ann"))).value != b"\xc1 not ours"

    await eventually(is_written_over)
