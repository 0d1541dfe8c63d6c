"""From an accepted request to dispatched work: load what is known, assemble, publish."""

import asyncio
from typing import Any

import structlog

from services.context.database import Database
from services.context.dispatch import Publication, publications
from services.context.endings import fail_stream, refuse_stream
from services.context.loaders import Loaders
from services.context.requests import BadRequest, read
from shared.actor import Service
from shared.bus import BusError, Link, PublishRefused, WorkItem, WorkQueue
from shared.cache import Cache, CacheKeys
from shared.errors import BraidError
from shared.ids import new_instance_id
from shared.intake import open_log
from shared.messages import StartStream
from shared.pieces import room_in
from shared.settings import Settings
from shared.telemetry import Counters

log = structlog.get_logger()

AGAIN_S = 1.0
"""Pause before an item that could not be published is delivered again."""


class Context(Service):
    name = "context"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.instance = settings.service_id or new_instance_id(self.name)
        self.drain_deadline_s = settings.drain_deadline_s
        self.counters = Counters()
        self._settings = settings
        self._cache = Cache(settings.redis_url)
        self._database = Database(settings.postgres_url)
        self._loaders = Loaders(self._cache, CacheKeys(settings.prefix), self._database)
        self._opened: Link | None = None
        self._queue: WorkQueue | None = None

    async def start(self) -> None:
        settings = self._settings
        self._opened = link = await Link.open(settings, self.name, self.instance, self.stats)
        self._queue = link.work_queue(
            link.subjects.requests_stream, "request", self.name, slots=settings.context_slots
        )
        await asyncio.gather(self._cache.warm_up(), self._database.warm_up())
        await self._queue.start(self._handle)
        await link.announce()

    async def drain(self) -> None:
        if self._opened is not None:
            await self._opened.withdraw()
        if self._queue is not None:
            await self._queue.drain(self.drain_deadline_s / 2)
        await self._cache.close()
        await self._database.close()
        if self._opened is not None:
            await self._opened.close()

    def stats(self) -> dict[str, Any]:
        return {
            **self.counters,
            "running": self._queue.running if self._queue else 0,
            "postgres_up": self._database.breaker.closed,
            "redis_up": self._cache.breaker.closed,
        }

    @property
    def _link(self) -> Link:
        assert self._opened is not None
        return self._opened

    async def _handle(self, item: WorkItem) -> None:
        """Decode, decide, publish; every way out settles the item."""
        try:
            request = read(item.data, self._settings.max_branches)
            if request.accepted_seq == 0:
                request, _ = await open_log(self._link.log, request)
            if item.poisoned:
                await self._give_up(item, request)
            else:
                await self._dispatch(item, request)
        except BadRequest as bad:
            await self._refuse(item, bad)
        except BraidError as error:
            # The id is another request's: its readers are not to be disturbed.
            self.counters["conflicts"] += 1
            log.warning("request.conflict", code=error.code)
            item.term()
        except (BusError, PublishRefused) as error:
            self.counters["retries"] += 1
            log.warning("request.retried", delivery=item.delivery, error=str(error)[:200])
            item.nak(AGAIN_S)

    async def _dispatch(self, item: WorkItem, request: StartStream) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        link = self._link
        loaded = await self._loaders.load(request)
        try:
            to_publish = publications(
                request, loaded, link.subjects, max_bytes=room_in(link.bus.max_payload)
            )
        except BraidError as error:
            self.counters["refused"] += 1
            await fail_stream(link.log, request.sid, error)
            item.term()
            return
        await self._publish(to_publish)
        item.ack()
        self.counters["dispatched"] += 1
        for part in loaded.degraded:
            self.counters[f"degraded_{part}"] += 1
        log.info(
            "request.dispatched",
            stream_id=request.sid,
            branches=len(request.branches),
            degraded=loaded.degraded,
            took_ms=round((clock() - started) * 1000, 2),
        )

    async def _publish(self, to_publish: list[Publication]) -> None:
        """All at once; raises the first failure when every publish has ended."""
        publisher = self._link.publisher
        results = await asyncio.gather(
            *(publisher.publish(p.subject, p.payload, msg_id=p.msg_id) for p in to_publish),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _refuse(self, item: WorkItem, bad: BadRequest) -> None:
        self.counters["refused"] += 1
        envelope = bad.envelope
        stream_id = envelope.sid if envelope else None
        log.error("request.refused", stream_id=stream_id, reason=bad.error.message)
        if envelope is not None:
            try:
                await refuse_stream(self._link.log, envelope, item.data, bad.error)
            except BusError:
                item.nak(AGAIN_S)
                return
        item.term()

    async def _give_up(self, item: WorkItem, request: StartStream) -> None:
        self.counters["gave_up"] += 1
        log.error("request.gave_up", stream_id=request.sid, delivery=item.delivery)
        error = BraidError(
            "attempts_exhausted",
            f"the request could not be dispatched in {item.delivery - 1} tries: send it again",
        )
        await fail_stream(self._link.log, request.sid, error)
        item.term()


def build(settings: Settings) -> Context:
    """The service with everything it needs; it connects when started."""
    return Context(settings)
