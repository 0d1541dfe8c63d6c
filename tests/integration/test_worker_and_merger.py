"""With a real merger, every fault ends in the events it was promised, and nothing is spliced."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.merger.service import build as build_merger
from services.simulator.service import Simulator
from shared.bus import Link
from shared.events import (
    BranchContinued,
    BranchDone,
    BranchFailed,
    BranchReset,
    Done,
    Failed,
    Incomplete,
)
from shared.fold import BranchView, fold
from shared.messages import GenerateBranch
from shared.settings import Settings
from tests.support.meshkit import accepted, finished_log, order_merge, running
from tests.support.workerkit import a_task, order_branch, settled, working


@pytest.fixture
async def mesh(bus_settings: Settings, upstream: Simulator, tmp_path: Path) -> AsyncIterator[None]:
    """A worker, a merger, and a provider that can go on with a partial answer."""
    file = tmp_path / "providers.toml"
    file.write_text(f"""
        [[providers]]
        name = "house"
        base_url = "{upstream.base_url}"
        capabilities = {{ continue_partial = true }}
    """)
    async with running(build_merger(bus_settings)), working(bus_settings, providers_file=file):
        yield


async def stream(link: Link, *, task: dict[str, Any] | None = None, **sim: Any) -> "Told":
    """Run one branch of ten marked tokens to the stream's terminal."""
    item = await accepted(link, ["sim-echo"])
    script = {"marker": True, "tokens": 10, "fault_at": 5, **sim}
    asked = a_task(params={"sim": script}, **(task or {}))
    asked = GenerateBranch(
        sid=item.sid,
        branch=0,
        model=asked.model,
        messages=asked.messages,
        params=asked.params,
        mid_stream=asked.mid_stream,
    )
    await order_branch(link, asked)
    await order_merge(link, item)
    records = await finished_log(link, item.sid)
    await settled(link)
    return Told(item.sid, [event for record in records for event in record.events], fold(records))


class Told:
    def __init__(self, sid: str, events: list[Any], view: Any) -> None:
        self.events = events
        self.terminal = type(view.terminal)
        self.branch: BranchView = view.branches[0]
        self._sid = sid

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)

    def said(self, attempt: int, tokens: int) -> str:
        return "".join(f"{self._sid}|0|{attempt}|{index} " for index in range(tokens))


@pytest.mark.usefixtures("mesh")
async def test_a_whole_answer_is_done(link: Link) -> None:
    told = await stream(link)
    assert told.branch.text == told.said(0, 10)
    assert told.has(BranchDone)
    assert told.terminal is Done
    assert told.branch.usage is not None


@pytest.mark.usefixtures("mesh")
async def test_retries_before_the_first_token_leave_no_trace(link: Link) -> None:
    told = await stream(link, fault="500", fault_times=2)
    assert told.branch.text == told.said(2, 10)
    assert not told.has(BranchReset)
    assert told.terminal is Done


@pytest.mark.usefixtures("mesh")
async def test_a_reset_is_restarted_with_a_seam(link: Link) -> None:
    told = await stream(link, fault="reset", fault_times=1, gap_s=0.002)
    assert told.has(BranchReset)
    assert told.branch.text == told.said(1, 10)
    assert told.terminal is Done


@pytest.mark.usefixtures("mesh")
async def test_a_reset_is_continued_with_a_seam_if_that_is_wanted(link: Link) -> None:
    continued = {"mid_stream": "continue"}
    told = await stream(link, task=continued, fault="reset", fault_times=1, gap_s=0.002)
    assert told.has(BranchContinued)
    assert told.branch.text == told.said(0, 5) + told.said(1, 10)
    assert told.terminal is Done


@pytest.mark.usefixtures("mesh")
async def test_a_reset_fails_the_branch_if_that_is_wanted(link: Link) -> None:
    told = await stream(link, task={"mid_stream": "fail"}, fault="reset")
    assert told.has(BranchFailed)
    assert told.branch.text == told.said(0, 5)
    assert told.terminal is Failed


@pytest.mark.usefixtures("mesh")
async def test_a_truncated_answer_is_incomplete(link: Link) -> None:
    told = await stream(link, fault="cut")
    assert told.branch.text == told.said(0, 5)
    assert told.terminal is Incomplete
