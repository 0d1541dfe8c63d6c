"""The bus on a real server: acknowledged publishes, work queues, the log, presence."""

import asyncio

import pytest

from deploy.mesh.nats_server import NatsServer
from shared.bus import (
    Bus,
    BusError,
    CancelMarks,
    Link,
    Message,
    StreamExists,
    WorkItem,
    WorkQueue,
    WrongSequence,
    declare_streams,
    discover,
    missing_streams,
)
from shared.bus.queue import LOST_AFTER_S
from shared.ids import new_sid
from shared.settings import Settings
from tests.support.meshkit import link_of, until


async def test_the_streams_of_the_design_exist_and_declaring_them_again_changes_nothing(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link:
        assert await missing_streams(link.bus, link.subjects) == []
        await declare_streams(link.bus, link.subjects, bus_settings)
        changed = bus_settings.model_copy(update={"retention_s": 7200.0})
        await declare_streams(link.bus, link.subjects, changed)
        info = await link.bus.jetstream().stream_info(link.subjects.events_stream(0))
        assert info.config.max_age == 7200
        assert info.config.republish is not None


async def test_a_server_that_is_not_there_is_an_error_that_names_it_and_keeps_its_password() -> (
    None
):
    with pytest.raises(BusError, match=r"can't reach NATS at nats://me:\*\*\*@127\.0\.0\.1:1"):
        await Bus.connect("nats://me:hunter2@127.0.0.1:1", "nobody", timeout_s=0.5)


async def test_a_message_id_makes_a_repeated_publish_harmless(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        subject = link.subjects.request("chat")
        first = await link.publisher.publish(subject, b"x", msg_id="one")
        again = await link.publisher.publish(subject, b"x", msg_id="one")
        assert (first.seq, first.duplicate, again.duplicate) == (again.seq, False, True)


async def test_a_wrong_expectation_is_refused_and_a_missing_stream_is_an_error(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link:
        subject = link.subjects.events(new_sid())
        await link.publisher.publish(subject, b"1", expected_seq=0)
        with pytest.raises(WrongSequence):
            await link.publisher.publish(subject, b"2", expected_seq=0)
        with pytest.raises(BusError, match="not stored"):
            await link.publisher.publish("nowhere.at.all", b"x", patience_s=0.05)


async def test_the_log_replays_in_batches_and_tails_what_is_committed(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bus.log.READ_BATCH", 7)
    async with link_of(bus_settings) as link:
        sid, other = new_sid(), new_sid()
        live: list[bytes] = []
        tail = await link.log.tail(sid, lambda entry: live.append(entry.payload))
        await link.bus.flush()
        seq = await link.log.accept(sid, b"0")
        await link.log.accept(other, b"not mine")
        for number in range(1, 30):
            seq = await link.log.commit(sid, b"%d" % number, expected_seq=seq)
        entries = await link.log.read(sid, through_seq=seq)
        assert [entry.payload for entry in entries] == [b"%d" % n for n in range(30)]
        rest = await link.log.read(sid, after_seq=entries[27].seq, through_seq=seq)
        assert [entry.payload for entry in rest] == [b"28", b"29"]
        await until(lambda: len(live) == 30)
        assert live == [entry.payload for entry in entries]
        last, first = await link.log.last(sid), await link.log.first(sid)
        assert last is not None
        assert first is not None
        assert (first.payload, last.payload, last.seq) == (b"0", b"29", seq)
        assert await link.log.last(new_sid()) is None
        assert await link.log.first(new_sid()) is None
        assert await link.log.read(new_sid()) == []
        await tail.close()


async def test_a_stream_is_accepted_once(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        sid = new_sid()
        seq = await link.log.accept(sid, b"mine")
        assert await link.log.accept(sid, b"mine") == seq, "a repetition finds its own record"
        with pytest.raises(StreamExists):
            await link.log.accept(sid, b"other")


def queue_of(
    link: Link, slots: int = 4, ack_wait_s: float = 5.0, max_deliver: int = 3
) -> WorkQueue:
    return WorkQueue(
        link.bus,
        stream=link.subjects.tasks_stream,
        consumer="test",
        subject=link.subjects.all("task"),
        slots=slots,
        ack_wait_s=ack_wait_s,
        max_deliver=max_deliver,
    )


async def test_work_is_fetched_into_free_slots_only_and_none_is_lost(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link:
        queue = queue_of(link)
        seen: list[bytes] = []
        gate, most = asyncio.Event(), 0

        async def work(item: WorkItem) -> None:
            nonlocal most
            most = max(most, queue.running)
            await gate.wait()
            seen.append(item.data)
            item.ack()

        await queue.start(work)
        for number in range(50):
            await link.publisher.publish(link.subjects.task("default", "normal"), b"%d" % number)
        await until(lambda: queue.running == 4)
        gate.set()
        await until(lambda: len(seen) == 50)
        await queue.drain(1)
        assert sorted(seen) == sorted(b"%d" % n for n in range(50))
        assert most == 4


async def test_a_failed_item_comes_again_and_says_how_often_until_it_counts_as_poisoned(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bus.queue.RETRY_AFTER_S", 0.01)
    async with link_of(bus_settings) as link:
        queue = queue_of(link, max_deliver=2)
        deliveries: list[tuple[int, bool]] = []

        async def work(item: WorkItem) -> None:
            deliveries.append((item.delivery, item.poisoned))
            if item.poisoned:
                item.term()
            else:
                raise RuntimeError("not today")

        await queue.start(work)
        await link.publisher.publish(link.subjects.task("default", "normal"), b"x")
        await until(lambda: len(deliveries) == 3)
        await queue.drain(1)
        assert deliveries == [(1, False), (2, False), (3, True)]


async def test_long_work_is_not_given_to_anybody_else_while_it_is_in_progress(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link:
        queue = queue_of(link, ack_wait_s=0.3)
        deliveries: list[int] = []
        released = asyncio.Event()
        # Three times the silence after which JetStream would hand it out again.
        asyncio.get_running_loop().call_later(0.9, released.set)

        async def work(item: WorkItem) -> None:
            deliveries.append(item.delivery)
            if item.delivery == 1:
                await released.wait()
            item.ack()

        await queue.start(work)
        await link.publisher.publish(link.subjects.task("default", "normal"), b"x")
        await until(lambda: bool(deliveries) and queue.running == 0)
        await queue.drain(1)
        assert deliveries == [1]


def mute_until_told_again(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Progress goes unheard, as while a cluster elects a leader, until the item has come again."""
    again = asyncio.Event()
    in_progress, continues_as = WorkItem.in_progress, WorkItem.continues_as

    def on_progress(item: WorkItem) -> None:
        if again.is_set():
            in_progress(item)

    def on_again(item: WorkItem, reply: str) -> None:
        again.set()
        continues_as(item, reply)

    monkeypatch.setattr(WorkItem, "in_progress", on_progress)
    monkeypatch.setattr(WorkItem, "continues_as", on_again)
    return again


@pytest.mark.parametrize("queues", [1, 3])
async def test_an_item_that_comes_again_while_it_is_handled_is_handled_once(
    queues: int, bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whomever it is taken the second time."""
    again = mute_until_told_again(monkeypatch)
    async with link_of(bus_settings) as link, link_of(bus_settings) as other:
        started: list[WorkItem] = []
        released = asyncio.Event()

        async def work(item: WorkItem) -> None:
            started.append(item)
            await released.wait()
            item.ack()

        # One slot: once it is taken, the queue does not ask for more.
        slots = 4 if queues == 1 else 1
        places = (link, other, other)[:queues]
        first, *others = [queue_of(at, slots, ack_wait_s=0.3) for at in places]
        await first.start(work)
        await link.publisher.publish(link.subjects.task("default", "normal"), b"x")
        await until(lambda: bool(started))
        for queue in others:
            await queue.start(work)
        await asyncio.wait_for(again.wait(), 5)
        await until(lambda: not any(queue.running for queue in others))
        released.set()
        await until(lambda: first.running == 0)
        for queue in (first, *others):
            await queue.drain(1)
        info = await link.bus.jetstream().stream_info(link.subjects.tasks_stream)
        assert ([item.delivery for item in started], info.state.messages) == ([1], 0)


async def test_a_pull_request_nobody_remembers_is_made_again_before_it_would_expire(
    bus_settings: Settings,
) -> None:
    """As when the leader that held it is killed: it can't say so."""
    async with link_of(bus_settings) as link:
        heard: list[bytes] = []
        await link.bus.subscribe("nowhere.in.particular", lambda message: heard.append(b""))
        queue = queue_of(link)
        right, queue._pull_subject = queue._pull_subject, "nowhere.in.particular"
        taken = asyncio.Event()

        async def take(item: WorkItem) -> None:
            item.ack()
            taken.set()

        await queue.start(take)
        await until(lambda: bool(heard))
        queue._pull_subject = right
        await link.publisher.publish(link.subjects.task("default", "normal"), b"x")
        async with asyncio.timeout(LOST_AFTER_S + 2):
            await taken.wait()
        await queue.drain(1)


async def test_work_of_a_frozen_process_goes_to_a_living_one_when_its_lease_is_over(
    bus_settings: Settings,
) -> None:
    """Its connection and its last pull request stay with the server while it is away."""
    async with link_of(bus_settings) as one, link_of(bus_settings) as two:
        frozen, living = (queue_of(link, slots=64, ack_wait_s=1.0) for link in (one, two))
        taken: list[bytes] = []
        deliveries: list[int] = []

        async def hold(item: WorkItem) -> None:
            taken.append(item.data)
            await asyncio.Event().wait()

        async def work(item: WorkItem) -> None:
            deliveries.append(item.delivery)
            item.ack()

        await frozen.start(hold)
        for number in range(12):
            await one.publisher.publish(one.subjects.task("default", "normal"), b"%d" % number)
        await until(lambda: len(taken) == 12)
        frozen._fetching = False
        frozen._start_handler = lambda item: None  # type: ignore[method-assign]
        for loop in frozen._loops:
            loop.cancel()
        assert frozen._asked_for is not None
        await frozen._asked_for.close()
        await living.start(work)
        await until(lambda: len(deliveries) == 12)
        await living.drain(1)
        await frozen.drain(0)
        assert set(deliveries) == {2}


async def test_work_left_at_the_drain_deadline_goes_back_at_once(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as one, link_of(bus_settings) as two:
        first, second = queue_of(one), queue_of(two)
        held, taken = asyncio.Event(), asyncio.Event()

        async def hold(_item: WorkItem) -> None:
            held.set()
            await asyncio.Event().wait()

        async def take(item: WorkItem) -> None:
            taken.set()
            item.ack()

        await first.start(hold)
        await one.publisher.publish(one.subjects.task("default", "normal"), b"x")
        await held.wait()
        await first.drain(0.05)
        await second.start(take)
        async with asyncio.timeout(2):
            await taken.wait()
        await second.drain(1)


async def test_cancel_marks_are_durable_and_may_be_set_twice(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        marks, sid = CancelMarks(link.bus, link.subjects), new_sid()
        assert await marks.get(sid) is None
        await marks.set(sid, "user")
        await marks.set(sid, "user")
        assert await CancelMarks(link.bus, link.subjects).get(sid) == "user"


async def test_an_announced_service_answers_the_services_api_until_it_withdraws(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings, "worker") as link:
        await link.announce()
        (found,) = await discover(link.bus, bus_settings.prefix)
        assert found.name == f"{bus_settings.prefix}-worker"
        answer = await link.bus.request(f"$SRV.STATS.{found.name}", b"")
        assert b"stats_response" in answer.data
        await link.withdraw()
        assert await discover(link.bus, bus_settings.prefix) == []


async def test_a_restarted_server_finds_its_clients_again(
    nats_server: NatsServer, bus_settings: Settings
) -> None:
    """A forced reconnect stands for the restart: subscriptions and sends must survive it."""
    async with link_of(bus_settings) as link:
        heard: list[bytes] = []
        reconnects: list[int] = []
        link.bus.on_reconnect(lambda: reconnects.append(1))
        await link.bus.subscribe("t.echo", lambda message: heard.append(message.data))
        await link.bus.client.force_reconnect()
        await until(lambda: bool(reconnects))
        link.bus.send("t.echo", b"after")
        await until(lambda: heard == [b"after"])


async def test_a_handler_that_raises_does_not_take_the_connection_with_it(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link:
        heard: list[bytes] = []

        def stumble(message: Message) -> None:
            if message.data == b"bad":
                raise ValueError("not for me")
            heard.append(message.data)

        await link.bus.subscribe("t.stumble", stumble)
        for data in (b"one", b"bad", b"two"):
            link.bus.send("t.stumble", data)
        await until(lambda: heard == [b"one", b"two"])
        assert link.bus.connected


async def test_a_closed_subscription_hears_nothing_more(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        heard: list[bytes] = []
        closed = await link.bus.subscribe("t.close", lambda message: heard.append(message.data))
        open_ = await link.bus.subscribe(
            "t.close", lambda message: heard.append(message.subject.encode())
        )
        await closed.close()
        link.bus.send("t.close", b"x")
        await until(lambda: bool(heard))
        assert heard == [b"t.close"]
        await open_.close()
