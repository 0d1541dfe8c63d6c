"""Transcripts to Postgres, stored once and acknowledged after their commit, and from it again."""

from typing import Any

import msgspec
import structlog

from services.persistence.archive import Archive
from services.persistence.caches import HistoryInvalidator
from services.persistence.rows import clean, message_id, problem_of
from services.persistence.store import Outcome
from services.persistence.writer import NotStored, Refused, Writer
from shared.actor import Service
from shared.bus import Link, WorkItem, WorkQueue
from shared.cache import Cache, CacheKeys
from shared.ids import new_instance_id
from shared.messages import transcript_decoder
from shared.settings import Settings
from shared.telemetry import Counters

log = structlog.get_logger()

SLOTS = 512
"""Items waiting for their commit; while Postgres is away, the rest stays in the queue."""
REFUSED_AGAIN_S = 60.0
"""When an item that Postgres refuses is tried again: an operator may have seen the log."""


class Persistence(Service):
    name = "persistence"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.instance = settings.service_id or new_instance_id(self.name)
        self.drain_deadline_s = settings.drain_deadline_s
        self.counters = Counters()
        self._settings = settings
        self._link: Link | None = None
        self._queue: WorkQueue | None = None
        self._cache: Cache | None = None
        self._writer: Writer | None = None
        self._caches: HistoryInvalidator | None = None
        self._archive: Archive | None = None

    async def start(self) -> None:
        settings = self._settings
        self._link = link = await Link.open(settings, self.name, self.instance, self.stats)
        self._cache = Cache(settings.redis_url)
        self._caches = HistoryInvalidator(self._cache, CacheKeys(settings.prefix))
        self._writer = Writer(settings.postgres_url, self._caches.invalidate, self.counters)
        self._queue = link.work_queue(
            link.subjects.transcripts_stream, "persist", self.name, slots=SLOTS
        )
        self.tasks.spawn("writer", self._writer.run())
        self.tasks.spawn("caches", self._caches.run())
        self._archive = Archive(link, settings.postgres_url, self.counters)
        await self._queue.start(self._handle)
        await self._archive.start()
        await link.announce()

    async def drain(self) -> None:
        if self._link is not None:
            await self._link.withdraw()
        if self._archive is not None:
            await self._archive.close()
        if self._writer is not None:
            self._writer.hurry()
        if self._queue is not None:
            await self._queue.drain(self.drain_deadline_s / 2)
        await self.tasks.cancel()
        if self._cache is not None:
            await self._cache.close()
        if self._link is not None:
            await self._link.close()

    def stats(self) -> dict[str, Any]:
        return {
            **self.counters,
            "waiting": self._queue.running if self._queue else 0,
            "postgres_up": self._writer.postgres_up if self._writer else False,
            "redis_up": self._cache.breaker.closed if self._cache else False,
        }

    async def _handle(self, item: WorkItem) -> None:
        """Decode, store, settle. However often an item was tried, it is never given up."""
        assert self._writer is not None
        try:
            transcript = transcript_decoder.decode(item.data)
            problem = problem_of(transcript)
        except msgspec.DecodeError:
            transcript, problem = None, "not a transcript"
        if transcript is None or problem is not None:
            self.counters["unreadable"] += 1
            log.error("transcript.unreadable", subject=item.subject, problem=problem)
            item.term()
            return
        try:
            outcome = await self._writer.put(clean(transcript), len(item.data))
        except NotStored:
            item.nak()
        except Refused:
            item.nak(REFUSED_AGAIN_S)
        else:
            if outcome is Outcome.FOREIGN:
                log.error("transcript.foreign_session", message=message_id(transcript)[:100])
                item.term()
            else:
                item.ack()


def build(settings: Settings) -> Persistence:
    """The service with everything it needs; it connects when started."""
    return Persistence(settings)
