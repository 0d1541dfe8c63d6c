"""What Redis missed while it was away, it is told when it is back."""

import asyncio
from pathlib import Path

from deploy.mesh.ports import free_ports
from deploy.mesh.redis_server import RedisServer
from services.persistence.caches import HistoryInvalidator
from shared.cache import Cache, CacheDown, CacheKeys
from tests.support.meshkit import until
from tests.support.stoppable import stoppable

KEYS = CacheKeys("t")
PATIENT_S = 1.0
"""A budget that a busy machine keeps; the short one is proved elsewhere."""


async def test_an_outdated_history_does_not_outlive_an_outage(servers_dir: Path) -> None:
    server = RedisServer(servers_dir / "missed", free_ports(1)[0], "test")
    with stoppable(server, servers_dir / "missed.log") as redis:
        cache = Cache(redis.url, budget_s=PATIENT_S)
        invalidator = HistoryInvalidator(cache, KEYS)
        paying = asyncio.create_task(invalidator.run())
        seen = await cache.get(KEYS.history("s1"))
        cache.fill(seen, b"outdated", ttl_s=60)
        async with asyncio.timeout(10):
            while (await cache.get(KEYS.history("s1"))).value is None:
                await asyncio.sleep(0.005)

        with redis.frozen():
            await invalidator.invalidate({"s1", "s2"})
            assert invalidator.owed == 2
        await until(lambda: invalidator.owed == 0)
        assert (await _ask(cache, KEYS.history("s1"))) is None
        paying.cancel()
        await cache.close()


async def test_what_redis_hears_at_once_is_owed_to_nobody(empty_redis_url: str) -> None:
    cache = Cache(empty_redis_url, budget_s=PATIENT_S)
    invalidator = HistoryInvalidator(cache, KEYS)
    await invalidator.invalidate({f"s{n}" for n in range(300)})
    assert invalidator.owed == 0
    await cache.close()


async def _ask(cache: Cache, key: str) -> bytes | None:
    async with asyncio.timeout(10):
        while True:
            try:
                return (await cache.get(key)).value
            except CacheDown:
                await asyncio.sleep(0.05)
