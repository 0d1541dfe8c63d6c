"""Playing the neighbours of a service in an integration test: a link, a log reader, a worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from shared.actor import Service
from shared.bus import Link, Message, Subscription
from shared.events import ContextLoaded, Delta, Record, decode_record
from shared.ids import new_instance_id, new_sid
from shared.intake import open_log
from shared.messages import (
    Ack,
    BranchEnd,
    BranchPlan,
    BranchRequest,
    Chunk,
    MergeStream,
    StartStream,
    acks_decoder,
    msgpack_encoder,
)
from shared.settings import Settings

PATIENCE_S = 15.0


@asynccontextmanager
async def link_of(settings: Settings, name: str = "test") -> AsyncIterator[Link]:
    link = await Link.open(settings, name, new_instance_id(name), dict)
    try:
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    await service.start()
    try:
        yield service
    finally:
        await service.drain()
        await service.tasks.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of this process. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def accepted(link: Link, models: list[str]) -> MergeStream:
    """A stream whose log is open, as the edge leaves it, and its merge item, not published yet."""
    request = StartStream(
        sid=new_sid(),
        user_id="local",
        session_id="session1",
        branches=[BranchRequest(model=model) for model in models],
        message="hello",
    )
    request, _ = await open_log(link.log, request)
    return MergeStream(
        sid=request.sid,
        user_id=request.user_id,
        session_id=request.session_id,
        branches=[BranchPlan(model=model) for model in models],
        context=ContextLoaded(),
        accepted_seq=request.accepted_seq,
        accepted_at=request.accepted_at,
    )


async def order_merge(link: Link, item: MergeStream) -> None:
    await link.publisher.publish(
        link.subjects.merge(item.sid), msgpack_encoder.encode(item), msg_id=item.sid
    )


async def records_of(link: Link, sid: str) -> list[Record]:
    """Everything that is committed, also when a replica that lags behind is asked."""
    last = await link.log.last(sid)
    entries = await link.log.read(sid, through_seq=last.seq if last else 0)
    return [decode_record(entry.payload) for entry in entries]


async def records_until(
    link: Link, sid: str, condition: Callable[[list[Record]], bool]
) -> list[Record]:
    """The log, once it satisfies a condition. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            records = await records_of(link, sid)
            if condition(records):
                return records
            await asyncio.sleep(0.01)


async def finished_log(link: Link, sid: str) -> list[Record]:
    return await records_until(link, sid, lambda records: bool(records) and records[-1].finished)


class FakeWorker:
    """Sends chunks until they are acknowledged, as a worker does."""

    def __init__(self, link: Link, sid: str) -> None:
        self._link = link
        self._sid = sid
        self._subject = link.subjects.acks(new_instance_id("worker"))
        self._subscription: Subscription | None = None
        self.acks: list[Ack] = []

    async def start(self) -> None:
        self._subscription = await self._link.bus.subscribe(self._subject, self._on_acks)
        await self._link.bus.flush()

    def send(self, chunk: Chunk) -> None:
        payload = msgpack_encoder.encode(chunk)
        self._link.bus.send(self._link.subjects.chunks(self._sid), payload, self._subject)

    async def deliver(self, *chunks: Chunk) -> None:
        """Send, again and again, until the last of them is acknowledged. Raises TimeoutError."""
        last = chunks[-1]
        async with asyncio.timeout(PATIENCE_S):
            while not self.is_acked(last):
                for chunk in chunks:
                    self.send(chunk)
                await self._wait_for_ack(last)

    def is_acked(self, chunk: Chunk) -> bool:
        return any(
            ack.branch == chunk.branch and ack.attempt == chunk.attempt and ack.k >= chunk.k
            for ack in self.acks
        )

    async def _wait_for_ack(self, chunk: Chunk) -> None:
        for _ in range(40):
            if self.is_acked(chunk):
                return
            await asyncio.sleep(0.005)

    def _on_acks(self, message: Message) -> None:
        self.acks += acks_decoder.decode(message.data)


async def begun(link: Link) -> tuple[MergeStream, FakeWorker]:
    """An accepted stream whose merge item is queued, and a worker for its branch."""
    item = await accepted(link, ["m"])
    worker = FakeWorker(link, item.sid)
    await worker.start()
    await order_merge(link, item)
    return item, worker


STOP = BranchEnd(finish_reason="stop", model="m")


def say(k: int, words: str, attempt: int = 0, **kwargs: Any) -> Chunk:
    """A chunk of the only branch."""
    return Chunk(0, attempt, k, (Delta(0, words),), **kwargs)
