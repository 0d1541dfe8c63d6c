"""Loading what a prompt needs: every part at the same time, within its budget, or not at all."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.msgpack import Decoder

from services.context.database import Database, DatabaseDown
from services.context.history import CachedHistory, HistoryRow, chat_messages
from services.context.requests import needs_prompt
from shared.cache import HISTORY_TTL_S, PROFILE_TTL_S, Cache, CacheDown, CacheKeys, Seen
from shared.messages import ChatMessage, StartStream

PROFILE_BUDGET_S = 0.3
HISTORY_BUDGET_S = 0.3
"""For Redis (at most 0.05 of it) and Postgres together."""
MAX_CACHED_BYTES = 256 * 1024
"""A longer history is read from Postgres each time, rather than push others out of the cache."""


class CachedProfile(Struct, frozen=True, array_like=True):
    """What Redis holds for a user; `data` is None when there is no profile."""

    data: dict[str, Any] | None


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_profile_decoder = Decoder(CachedProfile)
_history_decoder = Decoder(CachedHistory)


@dataclass(slots=True)
class Loaded:
    """What was found, and how long each part took; `degraded` names parts that were not had."""

    profile: dict[str, Any] | None = None
    history: list[ChatMessage] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table: `load` puts what it finds where the prompt looks for it."""

    name: str
    budget_s: float
    is_wanted: Callable[[StartStream], bool]
    load: Callable[[StartStream, Loaded], Awaitable[None]]


class Loaders:
    """Reads through the cache; a part that can't be had in time is absent, never an error."""

    def __init__(self, cache: Cache, keys: CacheKeys, database: Database) -> None:
        self._cache = cache
        self._keys = keys
        self._database = database
        self._parts = [
            Part("profile", PROFILE_BUDGET_S, _wants_profile, self._load_profile),
            Part("history", HISTORY_BUDGET_S, _wants_history, self._load_history),
        ]

    async def load(self, request: StartStream) -> Loaded:
        """What the request brings itself is taken as it is. Raises nothing."""
        loaded = Loaded(profile=request.profile, history=list(request.history or []))
        wanted = [part for part in self._parts if part.is_wanted(request)]
        await asyncio.gather(*(self._load_part(part, request, loaded) for part in wanted))
        return loaded

    async def _load_part(self, part: Part, request: StartStream, loaded: Loaded) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(part.budget_s):
                await part.load(request, loaded)
        except (TimeoutError, DatabaseDown):
            loaded.degraded.append(part.name)
        loaded.timings_ms[part.name] = round((clock() - started) * 1000, 2)

    async def _load_profile(self, request: StartStream, loaded: Loaded) -> None:
        seen = await self._seen(self._keys.profile(request.user_id))
        cached = _decoded(seen, _profile_decoder)
        if cached is not None:
            loaded.profile = cached.data
            return
        loaded.profile = await self._database.profile(request.user_id)
        self._fill(seen, _encoder.encode(CachedProfile(loaded.profile)), PROFILE_TTL_S)

    async def _load_history(self, request: StartStream, loaded: Loaded) -> None:
        loaded.history = chat_messages(await self._rows(request.session_id, request.user_id))

    async def _rows(self, session_id: str, user_id: str) -> list[HistoryRow]:
        seen = await self._seen(self._keys.history(session_id))
        cached = _decoded(seen, _history_decoder)
        # Whoever names a foreign session finds nothing, and leaves nothing for its owner.
        if cached is not None and cached.user_id == user_id:
            return cached.rows
        rows = await self._database.history(session_id, user_id)
        self._fill(seen, _encoder.encode(CachedHistory(user_id, rows)), HISTORY_TTL_S)
        return rows

    async def _seen(self, key: str) -> Seen | None:
        try:
            return await self._cache.get(key)
        except CacheDown:
            return None

    def _fill(self, seen: Seen | None, value: bytes, ttl_s: float) -> None:
        if seen is not None and len(value) <= MAX_CACHED_BYTES:
            self._cache.fill(seen, value, ttl_s=ttl_s)


def _decoded(seen: Seen | None, decoder: Decoder[T]) -> T | None:
    if seen is None or seen.value is None:
        return None
    try:
        return decoder.decode(seen.value)
    except msgspec.DecodeError:
        return None  # another release wrote it: it is read anew and written over


def _wants_profile(request: StartStream) -> bool:
    return request.profile is None and needs_prompt(request)


def _wants_history(request: StartStream) -> bool:
    return request.history is None and needs_prompt(request)
