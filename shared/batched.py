"""Looking things up together: what is asked for while one query runs goes into the next."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Unanswered(Exception):
    """The lookup failed, and so did the one of everybody in the same batch."""


class Batched(Generic[K, V]):
    """One query at a time for all who ask: an idle system asks at once, a busy one asks for many.

    The query runs on a task of its own, so a caller that is cancelled interrupts nobody else's.
    `fetch` is given distinct keys and must answer, or raise, within a time of its own.
    """

    def __init__(
        self, fetch: Callable[[list[K]], Awaitable[Mapping[K, V]]], *, max_keys: int = 256
    ) -> None:
        self._fetch = fetch
        self._max_keys = max_keys
        self._wanted: dict[K, asyncio.Future[V]] = {}
        self._running: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V:
        """Raises Unanswered when `fetch` raised or left the key out."""
        future = self._wanted.get(key)
        if future is None:
            future = self._wanted[key] = asyncio.get_running_loop().create_future()
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="batched")
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Whoever still waits gets Unanswered."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        _settle(self._wanted, {})
        self._wanted = {}

    async def _run(self) -> None:
        asked: dict[K, asyncio.Future[V]] = {}
        try:
            while self._wanted:
                keys = list(self._wanted)[: self._max_keys]
                asked = {key: self._wanted.pop(key) for key in keys}
                try:
                    found = await self._fetch(keys)
                except Exception as error:  # noqa: BLE001 - belongs to those who wait for it
                    _settle(asked, {}, error)
                else:
                    _settle(asked, found)
        finally:
            _settle(asked, {})
            self._running = None


def _settle(
    asked: Mapping[K, "asyncio.Future[V]"],
    found: Mapping[K, V],
    cause: Exception | None = None,
) -> None:
    for key, future in asked.items():
        if future.done():
            continue
        if key in found:
            future.set_result(found[key])
            continue
        error = Unanswered()
        error.__cause__ = cause
        future.set_exception(error)
        future.exception()  # its last waiter may have left: nobody must be warned of that
