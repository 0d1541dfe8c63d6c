"""A task becomes chunks of one branch, and is settled when the merger has them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.simulator.service import Simulator, SimulatorConfig
from services.worker.service import Worker, build
from shared.bus import Link
from shared.ids import new_sid
from shared.messages import GenerateBranch
from shared.settings import Settings
from tests.support.fake_merger import FakeMerger, merging, order_branch, tasks_left
from tests.support.meshkit import link_of, running, until


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorConfig(ttft_s=0, gap_s=0, models=())) as simulator:
        yield simulator


@pytest.fixture
async def link(bus_settings: Settings) -> AsyncIterator[Link]:
    async with link_of(bus_settings) as opened:
        yield opened


@pytest.fixture
async def worker(bus_settings: Settings, upstream: Simulator) -> AsyncIterator[Worker]:
    settings = bus_settings.model_copy(update={"openai_base_url": upstream.base_url})
    service = build(settings)
    assert isinstance(service, Worker)
    async with running(service):
        yield service


def a_task(model: str = "sim-echo", **given: Any) -> GenerateBranch:
    question = [{"role": "user", "content": "What does the merger do?"}]
    return GenerateBranch(sid=new_sid(), branch=0, model=model, messages=question, **given)


async def settled(link: Link) -> None:
    async with asyncio.timeout(5):
        while await tasks_left(link):
            await asyncio.sleep(0.01)


async def run(link: Link, task: GenerateBranch) -> FakeMerger:
    """Have a branch generated to its end."""
    async with merging(link, task.sid) as merger:
        await order_branch(link, task)
        await merger.until_ended(task.branch)
        await settled(link)
    return merger


async def test_a_branch_is_what_the_upstream_said(link: Link, worker: Worker) -> None:
    task = a_task(params={"sim": {"marker": True, "tokens": 50}})
    merger = await run(link, task)
    assert merger.text() == "".join(f"{task.sid}|0|0|{index} " for index in range(50))
    end = merger.end()
    assert (end.finish_reason, end.code, end.model) == ("stop", "", "sim-echo")
    assert end.usage is not None
    assert (end.usage.source, end.usage.completion_tokens) == ("upstream", 50)
    assert end.ttft_ms is not None
    assert 0 < end.ttft_ms <= end.duration_ms
    await until(lambda: worker.stats()["active"] == 0)
