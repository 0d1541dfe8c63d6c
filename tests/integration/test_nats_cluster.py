"""A NATS node dies or hangs while everybody works: it costs seconds, and nothing else."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shared.bus import (
    CancelMarks,
    Fenced,
    Link,
    WorkItem,
    WorkQueue,
    missing_streams,
    replicas_of,
)
from shared.ids import new_sid
from shared.settings import Settings
from tests.support.cluster import NatsCluster
from tests.support.meshkit import link_of, until
from tests.support.servers import PASSWORD

PAUSE_S = 15.0
"""The longest anybody may have to wait for a new leader."""
VICTIM = "nats-2"
RECORDS = 60
STREAMS = 4


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


async def step_down(link: Link, subject: str, node: str) -> None:
    body = json.dumps({"placement": {"preferred": node}}).encode()
    await link.bus.request(f"$JS.API.{subject}", body)


async def let_lead(link: Link, node: str, *consumers: tuple[str, str]) -> None:
    """Make one node the leader of every stream, and of the consumers (stream, name)."""

    async def leads() -> bool:
        states, _ = await replicas_of(link.bus, link.subjects)
        others = [state.stream for state in states if state.leader and state.leader != node]
        for stream in others:
            await step_down(link, f"STREAM.LEADER.STEPDOWN.{stream}", node)
        is_all = all(state.leader == node and not state.behind for state in states)
        for stream, name in consumers:
            info = await link.bus.jetstream().consumer_info(stream, name)
            leader = info.cluster.leader if info.cluster else None
            is_all = is_all and leader == node
            if leader not in {None, node}:
                await step_down(link, f"CONSUMER.LEADER.STEPDOWN.{stream}.{name}", node)
        return is_all

    await wait_until(leads)


async def all_current(link: Link) -> bool:
    states, missing = await replicas_of(link.bus, link.subjects)
    return not missing and all(len(state.current) == 2 for state in states)


class Writer:
    """Commits numbered records to one stream, one after another."""

    def __init__(self, link: Link) -> None:
        self.sid = new_sid()
        self.seq = 0
        self.written = 0
        self.longest_s = 0.0
        self._link = link

    async def run(self) -> None:
        while self.written < RECORDS:
            began = time.monotonic()
            self.seq = await self._link.log.commit(
                self.sid, b"%d" % self.written, expected_seq=self.seq
            )
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.written += 1
            await asyncio.sleep(0.01)

    async def assert_exact(self) -> None:
        entries = await self._link.log.read(self.sid, through_seq=self.seq)
        assert [entry.payload for entry in entries] == [b"%d" % n for n in range(RECORDS)]


class Workshop:
    """A queue whose items are short, but for those that say otherwise."""

    def __init__(self, link: Link) -> None:
        self.done: list[bytes] = []
        self.started: list[bytes] = []
        self.released = asyncio.Event()
        self.stream = link.subjects.tasks_stream
        self.queue = WorkQueue(
            link.bus,
            stream=self.stream,
            consumer="test",
            subject=link.subjects.all("task"),
            slots=4,
            ack_wait_s=2,
            max_deliver=5,
        )

    async def work(self, item: WorkItem) -> None:
        self.started.append(item.data)
        if item.data == b"long":
            await self.released.wait()
        self.done.append(item.data)
        item.ack()


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_when_the_leader_of_everything_goes_nothing_is_lost_doubled_or_out_of_order(
    how: str, nats_cluster: NatsCluster, cluster_settings: Settings
) -> None:
    async with link_of(cluster_settings) as link, link_of(cluster_settings, "worker") as other:
        shop = Workshop(other)
        await shop.queue.start(shop.work)
        await let_lead(link, f"braid-{VICTIM}", (shop.stream, "test"))
        writers = [Writer(link) for _ in range(STREAMS)]
        writing = [asyncio.create_task(writer.run()) for writer in writers]
        task = link.subjects.task("default", "normal")
        await link.publisher.publish(task, b"long", msg_id="long")
        await until(lambda: b"long" in shop.started)
        await until(lambda: all(writer.written > RECORDS // 3 for writer in writers))
        if how == "dies":
            await asyncio.to_thread(nats_cluster.kill, VICTIM)
        else:
            nats_cluster.freeze(VICTIM)
        began = time.monotonic()
        try:
            marks, sid = CancelMarks(link.bus, link.subjects), new_sid()
            await marks.set(sid, "user")
            assert await CancelMarks(other.bus, other.subjects).get(sid) == "user"
            await link.publisher.publish(task, b"short", msg_id="short")
            async with asyncio.timeout(PAUSE_S):
                while b"short" not in shop.done:
                    await asyncio.sleep(0.01)
            assert time.monotonic() - began <= PAUSE_S
            await asyncio.gather(*writing)
        finally:
            if how == "hangs":
                nats_cluster.thaw(VICTIM)
            await asyncio.to_thread(nats_cluster.start)
        for writer in writers:
            await writer.assert_exact()
            assert writer.longest_s <= PAUSE_S
        # The lease of the long item ran out while nobody could hear of its progress.
        assert shop.started == [b"long", b"short"], "one who works must not be given it twice"
        shop.released.set()
        await until(lambda: shop.queue.running == 0)
        await wait_until(lambda: all_current(link))
        await shop.queue.drain(1)


async def test_a_zombie_is_fenced_on_a_cluster_too(
    nats_cluster: NatsCluster, cluster_settings: Settings
) -> None:
    async with link_of(cluster_settings) as one, link_of(cluster_settings) as two:
        sid = new_sid()
        seq = await one.log.accept(sid, b"0")
        await two.log.commit(sid, b"theirs", expected_seq=seq)
        with pytest.raises(Fenced) as fenced:
            await one.log.commit(sid, b"mine", expected_seq=seq)
        assert fenced.value.last is not None
        assert fenced.value.last.payload == b"theirs"


async def test_services_may_start_before_the_cluster_has_a_leader(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path, PASSWORD)
    settings = Settings(
        nats_url=cluster.url,
        nats_nodes=3,
        event_shards=1,
        events_max_bytes=1024 * 1024,
        transcripts_max_bytes=1024 * 1024,
    )
    try:
        await asyncio.to_thread(cluster.start_alone, "nats-1")
        opening = asyncio.create_task(Link.open(settings, "edge", "edge-1", dict))
        # The first question is given up after three seconds, and asked again.
        await asyncio.wait({opening}, timeout=0.5)
        assert not opening.done()
        await asyncio.to_thread(cluster.start)
        async with asyncio.timeout(30):
            link = await opening
        assert await missing_streams(link.bus, link.subjects) == []
        await link.close()
    finally:
        await asyncio.to_thread(cluster.stop)
