"""The merger: takes merge items and owns their streams."""

from typing import Any

import msgspec
import structlog

from services.merger.acks import Acks
from services.merger.owner import Owner, Surroundings
from shared.actor import Service
from shared.bus import CancelMarks, Link, WorkItem, WorkQueue
from shared.ids import new_instance_id
from shared.messages import merge_stream_decoder
from shared.settings import Settings
from shared.telemetry import Counters

log = structlog.get_logger()

HAND_OVER_S = 1.0
"""What a stream that is about to end anyway gets before it is handed over."""


class Merger(Service):
    name = "merger"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.instance = settings.service_id or new_instance_id(self.name)
        self.drain_deadline_s = settings.drain_deadline_s
        self._settings = settings
        self._counters = Counters()
        self._link: Link | None = None
        self._around: Surroundings | None = None
        self._queue: WorkQueue | None = None
        self._owners: set[Owner] = set()

    async def start(self) -> None:
        """Raises BusError when NATS can't be reached."""
        settings = self._settings
        link = self._link = await Link.open(settings, self.name, self.instance, self.stats)
        marks = CancelMarks(link.bus, link.subjects)
        self._around = Surroundings(link, marks, Acks(link.bus), self._counters)
        link.bus.on_reconnect(self._on_reconnect)
        self._queue = link.work_queue(
            link.subjects.merges_stream, "merge", self.name, slots=settings.merger_slots
        )
        await self._queue.start(self._own)
        await link.announce()

    async def drain(self) -> None:
        """Take no new streams and hand the running ones over: a take-over costs a few ms."""
        if self._link is None:
            return
        await self._link.withdraw()
        if self._queue is not None:
            await self._queue.drain(HAND_OVER_S)
        await self._link.close()

    def stats(self) -> dict[str, Any]:
        owned = self._queue.running if self._queue is not None else 0
        return {"owned_streams": owned, **self._counters}

    async def _own(self, item: WorkItem) -> None:
        assert self._around is not None
        try:
            command = merge_stream_decoder.decode(item.data)
        except msgspec.DecodeError:
            log.exception("merger.item_malformed", subject=item.subject)
            item.term()
            return
        total_s = command.total_s or self._settings.total_timeout_s
        owner = Owner(self._around, item, command, total_s=total_s)
        self._owners.add(owner)
        try:
            await owner.run()
        finally:
            self._owners.discard(owner)

    def _on_reconnect(self) -> None:
        """A cancel's poke is sent once and not kept: without this its stream would run on."""
        for owner in self._owners:
            owner.look_for_cancel()


def build(settings: Settings) -> Service:
    return Merger(settings)
