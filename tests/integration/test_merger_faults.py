"""What goes wrong around a merger: it sleeps, its connection breaks, the log is slow."""

import asyncio
from pathlib import Path

import pytest

from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports
from services.merger.acks import Acks
from services.merger.owner import Owner, Surroundings
from services.merger.service import Merger, build
from shared.bus import CancelMarks, EventLog, WorkItem, WorkQueue
from shared.events import (
    Cancelled,
)
from shared.messages import (
    Chunk,
)
from shared.settings import MIB, Settings
from shared.telemetry import Counters
from tests.support.meshkit import (
    STOP,
    FakeWorker,
    accepted,
    begun,
    finished_log,
    link_of,
    order_merge,
    running,
    say,
    until,
)
from tests.support.stoppable import stoppable


async def test_a_branch_is_called_closed_only_when_its_end_is_in_the_log(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker forgets what is closed: had the merger died now, the rest would be lost."""
    stored = asyncio.Event()
    commit = EventLog.commit

    async def slow(log: EventLog, sid: str, payload: bytes, *, expected_seq: int) -> int:
        await stored.wait()
        return await commit(log, sid, payload, expected_seq=expected_seq)

    merger = Merger(bus_settings)
    async with link_of(bus_settings) as link, running(merger):
        item, worker = await begun(link)
        await worker.deliver(say(0, "one "))
        monkeypatch.setattr(EventLog, "commit", slow)
        heard = len(worker.acks)
        for _ in range(3):
            worker.send(say(1, "two", end=STOP))
        await until(lambda: merger.stats().get("chunks_closed", 0) == 2)
        # A branch that is none is closed at once: what was said before that has arrived.
        other = FakeWorker(link, item.sid)
        await other.start()
        other.send(Chunk(7, 0, 0))
        await until(lambda: bool(other.acks))
        assert worker.acks[heard:] == []
        stored.set()
        await finished_log(link, item.sid)
        await until(lambda: worker.acks[-1].state == "closed")


async def test_a_merger_that_wakes_with_a_first_delivery_leaves_the_stream_to_its_owner(
    bus_settings: Settings,
) -> None:
    """It was stopped before it had read the item, which was handed to another after the lease."""
    async with link_of(bus_settings) as link:
        item = await accepted(link, ["m"])
        worker = FakeWorker(link, item.sid)
        await worker.start()
        late: list[WorkItem] = []

        async def take(first: WorkItem) -> None:
            late.append(first)
            first.nak()

        queue = WorkQueue(
            link.bus,
            stream=link.subjects.merges_stream,
            consumer="merger",
            subject=link.subjects.all("merge"),
            slots=1,
            ack_wait_s=5,
            max_deliver=5,
        )
        await queue.start(take)
        await order_merge(link, item)
        await until(lambda: bool(late))
        await queue.drain(1)
        async with running(build(bus_settings)):
            await worker.deliver(say(0, "one "))
            first, counters = late[0], Counters()
            first.settled = False
            marks = CancelMarks(link.bus, link.subjects)
            around = Surroundings(link, marks, Acks(link.bus), counters)
            await Owner(around, first, item, total_s=60.0).run()
            assert (counters["fenced"], first.settled) == (1, True)
            await worker.deliver(say(1, "two", end=STOP))
            records = await finished_log(link, item.sid)
            assert {record.epoch for record in records} == {0, 1}


async def test_a_cancel_whose_poke_was_lost_with_the_connection_ends_the_stream(
    bus_settings: Settings, tmp_path: Path
) -> None:
    port, monitor_port = free_ports(2)
    server = NatsServer(tmp_path / "nats", port, monitor_port, "test-only", 256 * MIB)
    with stoppable(server, tmp_path / "nats.log") as nats:
        own = bus_settings.model_copy(update={"nats_url": nats.url})
        async with link_of(own) as link, running(build(own)):
            item = await accepted(link, ["m"])
            worker = FakeWorker(link, item.sid)
            await worker.start()
            await order_merge(link, item)
            await worker.deliver(say(0, "half an ans"))
            await CancelMarks(link.bus, link.subjects).set(item.sid, "user")
            await asyncio.to_thread(nats.stop)
            await asyncio.to_thread(nats.start)
            records = await finished_log(link, item.sid)
            assert records[-1].events[-1] == Cancelled(reason="user")
