"""Between worker and merger nothing is lost, spliced or left running, whoever is away."""

import asyncio

import pytest

from services.simulator.service import Simulator
from services.worker import branch
from services.worker.exchange import Exchange, Superseded
from services.worker.outbox import Outbox
from services.worker.service import Worker
from shared.actor import Tasks
from shared.bus import Link
from shared.events import Checkpoint, Done, Record, encode_record
from shared.ids import new_instance_id
from shared.messages import Standing, attempt_number
from shared.settings import Settings
from shared.telemetry import Counters
from tests.support.meshkit import until
from tests.support.workerkit import (
    a_task,
    endless,
    merging,
    order_branch,
    said,
    settled,
    talkative,
    tasks_left,
    working,
)

NEVER_S = 600.0
SECOND = attempt_number(2, 0)
"""The first attempt of a task's second delivery."""


async def commit_terminal(link: Link, sid: str) -> None:
    terminal = Record(1, 1, (Done(),), Checkpoint(()), finished=True)
    await link.log.accept(sid, encode_record(terminal))


async def idle(worker: Worker) -> None:
    await until(lambda: worker.stats()["active"] == 0)


# Chunks and acks ----------------------------------------------------------------------------


async def test_chunks_that_are_lost_are_sent_again(link: Link, worker: Worker) -> None:
    task = talkative(50, gap_s=0.002)
    async with merging(link, task.sid) as merger:
        merger.lose = 7
        await order_branch(link, task)
        await merger.until_ended()
        assert merger.text() == said(task, 0, 50)
        await settled(link)
    assert worker.stats()["resends"] >= 7


async def test_a_hello_has_everything_unacknowledged_sent_again_at_once(
    link: Link, with_upstream: Settings
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger, working(with_upstream, resend_after_s=NEVER_S):
        merger.silent = True
        await order_branch(link, task)
        await merger.until_ended()
        assert await tasks_left(link) == 1
        merger.accepted.clear()  # another merger, which has seen none of it
        merger.silent = False
        merger.say_hello()
        await merger.until_ended()
        assert merger.text() == said(task, 0)
        await settled(link)


async def test_the_task_is_settled_only_when_the_merger_has_committed_the_end(
    link: Link, worker: Worker
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        merger.silent = True
        await order_branch(link, task)
        await merger.until_ended()
        assert worker.stats()["active"] == 1
        assert await tasks_left(link) == 1
        merger.acknowledge()
        await settled(link)
        await idle(worker)


async def test_a_worker_stops_reading_while_too_much_is_unacknowledged(
    link: Link, with_upstream: Settings
) -> None:
    task = talkative(3_000)
    async with (
        merging(link, task.sid) as merger,
        working(with_upstream, unacked_max_chunks=4, resend_after_s=NEVER_S) as worker,
    ):
        merger.silent = True
        await order_branch(link, task)
        await until(lambda: worker.stats().get("pauses") == 1 and len(merger.received) == 5)
        assert not merger.ended()
        merger.silent = False
        merger.say_hello()
        await merger.until_ended()
        assert merger.text() == said(task, 0, 3_000)
        await settled(link)


async def test_a_merger_that_never_answers_has_the_task_handed_back(
    link: Link, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branch, "ACK_PATIENCE_S", -599.0)
    task = talkative()
    async with merging(link, task.sid) as merger:
        merger.silent = True
        await order_branch(link, task)
        await until(lambda: worker.stats().get("unacknowledged") == 1)
        await idle(worker)
    assert await tasks_left(link) == 1


# Ends from elsewhere --------------------------------------------------------------------------


async def test_a_closed_ack_closes_the_upstream_connection(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    task = endless()
    async with merging(link, task.sid) as merger:
        await order_branch(link, task)
        await until(lambda: len(merger.received) > 3)
        merger.state = "closed"
        await upstream.journal.until(lambda entry: entry.aborted)
        await settled(link)
    await idle(worker)


async def test_a_stream_that_closes_before_the_first_token_closes_the_upstream_connection(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    task = talkative(ttft_s=NEVER_S)
    async with merging(link, task.sid) as merger:
        await order_branch(link, task)
        await upstream.journal.until(lambda entry: entry.sid == task.sid)
        await commit_terminal(link, task.sid)
        merger.say_closed()
        await upstream.journal.until(lambda entry: entry.aborted)
        await settled(link)
        assert merger.received == []


async def test_a_task_of_a_stream_that_has_ended_is_dropped_though_nobody_says_so(
    link: Link, worker: Worker
) -> None:
    task = endless()
    await commit_terminal(link, task.sid)
    await order_branch(link, task)
    await until(lambda: worker.stats().get("closed") == 1)
    await settled(link)


async def test_a_fenced_attempt_stops_and_leaves_the_task_to_whoever_has_it(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    task = endless()
    async with merging(link, task.sid) as merger:
        await order_branch(link, task)
        await until(lambda: len(merger.received) > 3)
        merger.state = "fenced"
        await upstream.journal.until(lambda entry: entry.aborted)
        await idle(worker)
    assert worker.stats()["superseded"] == 1
    assert await tasks_left(link) == 1


# Drain ----------------------------------------------------------------------------------------


async def drained(worker: Worker) -> None:
    async with asyncio.timeout(worker.drain_deadline_s):
        await worker.drain()


async def test_draining_lets_a_running_branch_end(link: Link, with_upstream: Settings) -> None:
    task = talkative(30, gap_s=0.01)
    async with merging(link, task.sid) as merger, working(with_upstream) as worker:
        await order_branch(link, task)
        await until(lambda: len(merger.received) > 3)
        await drained(worker)
        assert merger.text() == said(task, 0, 30)
        await settled(link)


async def test_what_cannot_end_in_time_is_handed_back_and_goes_on_elsewhere(
    link: Link, with_upstream: Settings, upstream: Simulator
) -> None:
    task = endless()
    async with merging(link, task.sid) as merger:
        async with working(with_upstream, drain_deadline_s=3.2) as worker:
            await order_branch(link, task)
            await until(lambda: len(merger.received) > 3)
            await drained(worker)
            await upstream.journal.until(lambda entry: entry.aborted)
        merger.standing = Standing(0, 2, False, False, merger.text())
        async with working(with_upstream):
            await until(lambda: merger.accepted[0][-1].attempt == SECOND)
            merger.say_closed()
            await settled(link)


async def test_a_later_run_of_the_same_branch_in_this_process_supersedes_the_earlier(
    link: Link,
) -> None:
    tasks, over = Tasks(), list[Exception]()
    exchange = Exchange(link, tasks, Counters(), new_instance_id("worker"), resend_after_s=NEVER_S)
    await exchange.start()
    sid = a_task().sid
    earlier, later = (
        exchange.line(sid, 0, Outbox(0, max_chunks=1, max_bytes=1), over.append) for _ in range(2)
    )
    async with exchange.joined(earlier):
        async with exchange.joined(later):
            assert [type(error) for error in over] == [Superseded]
        assert len(over) == 1
    await exchange.close()
    await tasks.cancel()
