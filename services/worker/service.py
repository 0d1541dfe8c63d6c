"""The worker: takes branches to generate, calls providers, sends what they say to the mergers."""

from typing import Any

import msgspec
import structlog

from services.worker.branch import BranchRun
from services.worker.clocks import Limits
from services.worker.exchange import Exchange
from services.worker.outbox import Outbox
from services.worker.upstream import Upstreams
from shared.actor import Service
from shared.bus import Link, WorkItem, WorkQueue
from shared.ids import is_sid, new_instance_id
from shared.messages import Timeouts, generate_branch_decoder
from shared.providers import Providers
from shared.settings import Settings
from shared.telemetry import Counters

log = structlog.get_logger()

HAND_BACK_BEFORE_S = 3.0
"""Of the drain's deadline, kept for handing back what could not be finished."""


class Worker(Service):
    name = "worker"

    def __init__(self, settings: Settings, providers: Providers) -> None:
        super().__init__()
        self.instance = settings.service_id or new_instance_id(self.name)
        self.drain_deadline_s = settings.drain_deadline_s
        self._settings = settings
        self._counters = Counters()
        self._upstreams = Upstreams(providers, max_connections=settings.worker_slots + 16)
        self._link: Link | None = None
        self._exchange: Exchange | None = None
        self._queue: WorkQueue | None = None

    async def start(self) -> None:
        """Raises BusError when NATS can't be reached."""
        settings = self._settings
        self._upstreams.start()
        link = self._link = await Link.open(settings, self.name, self.instance, self.stats)
        # Not the instance's name, which a restart may use again: acks of its predecessor's chunks
        # would be taken for acks of ours.
        acks_id = new_instance_id(self.name)
        self._exchange = Exchange(
            link, self.tasks, self._counters, acks_id, resend_after_s=settings.resend_after_s
        )
        await self._exchange.start()
        self._queue = link.work_queue(
            link.subjects.tasks_stream, "task", self.name, slots=settings.worker_slots
        )
        await self._queue.start(self._generate)
        await link.announce()

    async def drain(self) -> None:
        """Take no new branches, let running ones end, hand back the rest in time."""
        if self._link is None:
            await self._upstreams.close()
            return
        await self._link.withdraw()
        if self._queue is not None:
            await self._queue.drain(max(0.0, self.drain_deadline_s - HAND_BACK_BEFORE_S))
        await self._upstreams.close()
        if self._exchange is not None:
            await self._exchange.close()
        await self._link.close()

    def stats(self) -> dict[str, Any]:
        active = self._queue.running if self._queue is not None else 0
        return {"active": active, **self._counters}

    async def _generate(self, item: WorkItem) -> None:
        assert self._exchange is not None
        try:
            task = generate_branch_decoder.decode(item.data)
        except msgspec.DecodeError:
            task = None
        if task is None or not is_sid(task.sid):
            self._counters["tasks_malformed"] += 1
            log.warning("worker.task_malformed", subject=item.subject)
            item.term()
            return
        self._counters["tasks"] += 1
        settings = self._settings
        outbox = Outbox(
            task.branch,
            max_chunks=settings.unacked_max_chunks,
            max_bytes=settings.unacked_max_bytes,
        )
        run = BranchRun(
            task,
            item,
            self._upstreams,
            self._exchange,
            outbox,
            counters=self._counters,
            limits=limits_of(task.timeouts, settings),
            mid_stream=task.mid_stream or settings.mid_stream,
        )
        await run.run()


def limits_of(timeouts: Timeouts, settings: Settings) -> Limits:
    """The task's clocks, and the settings' where it names none."""
    return Limits(
        connect_s=timeouts.connect_s or settings.connect_timeout_s,
        first_token_s=timeouts.first_token_s or settings.first_token_timeout_s,
        idle_s=timeouts.idle_s or settings.idle_timeout_s,
        total_s=timeouts.total_s or settings.total_timeout_s,
    )


def build(settings: Settings) -> Service:
    """Raises SettingsError for a providers file that is wrong."""
    return Worker(settings, Providers.load(settings))
