"""A task whose worker was lost goes on where its stream stands, by the policy that was chosen."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.simulator.service import Simulator
from services.worker import branch
from services.worker.service import Worker
from shared.bus import Link, WorkItem, WorkQueue
from shared.messages import GenerateBranch, Standing, attempt_number
from shared.settings import Settings
from tests.support.meshkit import until
from tests.support.workerkit import (
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


async def idle(worker: Worker) -> None:
    await until(lambda: worker.stats()["active"] == 0)


async def lost_once(link: Link, task: GenerateBranch, times: int = 1) -> None:
    """Queue a task and have it delivered, `times` times, to a worker that comes to nothing."""
    taken = 0

    async def take(item: WorkItem) -> None:
        nonlocal taken
        taken += 1
        if taken < times:
            item.nak()
        else:
            item.nak(0.3)

    queue = WorkQueue(
        link.bus,
        stream=link.subjects.tasks_stream,
        consumer="worker",
        subject=link.subjects.all("task"),
        slots=1,
        ack_wait_s=5,
        max_deliver=5,
    )
    await order_branch(link, task)
    await queue.start(take)
    await until(lambda: taken == times)
    await queue.drain(1)


def left(k: int = 3, text: str = "so far", *, final: bool = False, tools: bool = False) -> Standing:
    return Standing(0, k, final, tools, text)


def continuing(settings: Settings, upstream: Simulator, folder: Path) -> Settings:
    """A provider that can go on with a partial answer."""
    file = folder / "providers.toml"
    file.write_text(f"""
        [[providers]]
        name = "house"
        base_url = "{upstream.base_url}"
        capabilities = {{ continue_partial = true }}
    """)
    return settings.model_copy(update={"providers_file": file})


async def test_a_task_that_was_lost_before_its_first_token_starts_over(
    link: Link, with_upstream: Settings
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        merger.standing = left(-1, "")
        await lost_once(link, task)
        async with working(with_upstream):
            await merger.until_ended()
            await settled(link)
    assert merger.text() == said(task, SECOND)
    assert [each.attempt for each in merger.asked] == [SECOND]


async def test_a_lost_attempt_that_said_something_is_restarted_with_a_seam(
    link: Link, with_upstream: Settings
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        merger.standing = left()
        await lost_once(link, task)
        async with working(with_upstream):
            await merger.until_ended()
    assert merger.attempts() == [(SECOND, "restart")]
    assert merger.text() == said(task, SECOND)


async def test_a_provider_that_can_is_asked_to_go_on_where_the_lost_attempt_broke_off(
    link: Link, bus_settings: Settings, upstream: Simulator, tmp_path: Path
) -> None:
    task = talkative(task={"mid_stream": "continue"})
    async with merging(link, task.sid) as merger:
        merger.standing = left()
        await lost_once(link, task)
        async with working(continuing(bus_settings, upstream, tmp_path)):
            await merger.until_ended()
    assert merger.attempts() == [(SECOND, "continue")]
    assert merger.received[0].kept_chars == len("so far")
    (asked,) = upstream.journal
    assert json.loads(asked.body)["messages"] == [
        *task.messages,
        {"role": "assistant", "content": "so far"},
    ]


@pytest.mark.parametrize(
    ("standing", "able"),
    [(left(tools=True), True), (left(text=""), True), (left(), False)],
    ids=["after a tool call", "without text", "a provider that can't"],
)
async def test_what_cannot_be_continued_is_restarted(
    link: Link,
    with_upstream: Settings,
    upstream: Simulator,
    tmp_path: Path,
    standing: Standing,
    able: bool,
) -> None:
    task = talkative(task={"mid_stream": "continue"})
    settings = continuing(with_upstream, upstream, tmp_path) if able else with_upstream
    async with merging(link, task.sid) as merger:
        merger.standing = standing
        await lost_once(link, task)
        async with working(settings):
            await merger.until_ended()
    assert merger.attempts() == [(SECOND, "restart")]
    assert merger.text() == said(task, SECOND)


async def test_a_continuation_that_no_longer_fits_is_restarted(
    link: Link, bus_settings: Settings, upstream: Simulator, tmp_path: Path
) -> None:
    task = talkative(task={"mid_stream": "continue"})
    async with merging(link, task.sid) as merger:
        merger.standing = left()
        merger.fenced = {SECOND}
        await lost_once(link, task)
        async with working(continuing(bus_settings, upstream, tmp_path)):
            await merger.until_ended()
            await settled(link)
    assert merger.attempts() == [(SECOND + 1, "restart")]
    assert merger.text() == said(task, SECOND + 1)


async def test_a_zombie_that_asks_after_its_successor_calls_nobody(
    link: Link, with_upstream: Settings, upstream: Simulator
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        merger.standing = Standing(attempt_number(3, 0), 3, False, False, "so far")
        await lost_once(link, task)
        async with working(with_upstream) as worker:
            await until(lambda: worker.stats().get("superseded") == 1)
            await idle(worker)
    assert len(upstream.journal) == 0
    assert await tasks_left(link) == 1


async def test_a_continuation_that_its_successor_has_fenced_is_not_made_again(
    link: Link, bus_settings: Settings, upstream: Simulator, tmp_path: Path
) -> None:
    task = talkative(task={"mid_stream": "continue"}, ttft_s=0.3)
    async with merging(link, task.sid) as merger:
        merger.standing = left()
        merger.fenced = {SECOND}
        await lost_once(link, task)
        async with working(continuing(bus_settings, upstream, tmp_path)) as worker:
            await until(lambda: bool(merger.asked))
            merger.standing = Standing(attempt_number(3, 0), 3, False, False, "so far")
            await until(lambda: worker.stats().get("superseded") == 1)
    assert [entry.attempt for entry in upstream.journal] == [str(SECOND)]


async def test_a_reset_in_mid_stream_is_continued_from_what_is_committed(
    link: Link, bus_settings: Settings, upstream: Simulator, tmp_path: Path
) -> None:
    reset: dict[str, Any] = {"fault": "reset", "fault_at": 5, "fault_times": 1}
    task = talkative(task={"mid_stream": "continue"}, **reset)
    async with merging(link, task.sid) as merger:
        merger.standing = left(4, said(task, 0, 5))
        async with working(continuing(bus_settings, upstream, tmp_path)):
            await order_branch(link, task)
            await merger.until_ended()
    assert merger.attempts() == [(0, ""), (1, "continue")]
    assert merger.text() == said(task, 0, 5) + said(task, 1)
    assert [each.attempt for each in merger.asked] == [1]


async def test_a_lost_attempt_fails_the_branch_when_that_is_wanted(
    link: Link, with_upstream: Settings, upstream: Simulator
) -> None:
    task = talkative(task={"mid_stream": "fail"})
    async with merging(link, task.sid) as merger:
        merger.standing = left()
        await lost_once(link, task)
        async with working(with_upstream):
            await merger.until_ended()
    assert merger.attempts() == [(SECOND, "fail")]
    assert merger.end().code == "attempts_exhausted"
    assert len(upstream.journal) == 0


async def test_a_branch_that_is_final_needs_nothing_more(
    link: Link, with_upstream: Settings, upstream: Simulator
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        merger.standing = left(final=True)
        await lost_once(link, task)
        async with working(with_upstream):
            await settled(link)
    assert merger.received == []
    assert len(upstream.journal) == 0


async def test_while_nobody_owns_the_stream_a_lost_task_waits_for_an_answer(
    link: Link, with_upstream: Settings
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        await lost_once(link, task)
        async with working(with_upstream):
            await until(lambda: len(merger.asked) >= 2)
            assert merger.received == []
            merger.standing = left(-1, "")
            await merger.until_ended()
    assert merger.text() == said(task, SECOND)


async def test_when_nobody_ever_answers_the_task_is_handed_back(
    link: Link, with_upstream: Settings, upstream: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branch, "ASK_FOR_S", 0.1)
    task = talkative()
    await lost_once(link, task)
    async with working(with_upstream) as worker:
        await until(lambda: worker.stats().get("orphaned") == 1)
        await idle(worker)
    assert await tasks_left(link) == 1
    assert len(upstream.journal) == 0


async def test_a_poisoned_task_ends_its_branch(
    link: Link, with_upstream: Settings, upstream: Simulator
) -> None:
    task = talkative()
    async with merging(link, task.sid) as merger:
        await lost_once(link, task, times=2)
        async with working(with_upstream, max_deliver=2):
            await merger.until_ended()
            await settled(link)
    assert merger.end().code == "attempts_exhausted"
    assert merger.attempts() == [(attempt_number(3, 0), "fail")]
    assert len(upstream.journal) == 0
