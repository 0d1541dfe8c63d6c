"""Clocks and interruptions end exactly their block, and leave other cancellations alone."""

import asyncio
from collections.abc import Callable

import pytest

from services.worker.clocks import ClockExpired, Clocks, Interruptible, Limits

FOR_EVER = 3_600.0


class Stop(Exception):
    """What the tests interrupt with."""


def clocks(
    *, first_token_s: float = FOR_EVER, idle_s: float = FOR_EVER, total_s: float = FOR_EVER
) -> Clocks:
    limits = Limits(10.0, first_token_s, idle_s, total_s)
    return Clocks(limits, asyncio.get_running_loop().time() + total_s)


async def test_an_interrupted_block_raises_the_error_where_it_waits() -> None:
    block = Interruptible()
    asyncio.get_running_loop().call_soon(block.interrupt, Stop())
    with pytest.raises(Stop), block:
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_outside_of_its_block_an_interruption_does_nothing() -> None:
    block = Interruptible()
    block.interrupt(Stop())
    with block:
        await asyncio.sleep(0)
    block.interrupt(Stop())
    await asyncio.sleep(0)


async def test_a_block_can_be_entered_again() -> None:
    block = Interruptible()
    for _ in range(2):
        asyncio.get_running_loop().call_soon(block.interrupt, Stop())
        with pytest.raises(Stop), block:
            await asyncio.Event().wait()


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        with Interruptible(), clocks():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_two_interruptions_the_outer_block_wins() -> None:
    outer, inner = Interruptible(), Interruptible()
    loop = asyncio.get_running_loop()
    loop.call_soon(inner.interrupt, ValueError())
    loop.call_soon(outer.interrupt, Stop())
    with pytest.raises(Stop), outer, inner:
        await asyncio.Event().wait()


async def clock_that_ends(running: Clocks, *steps: Callable[[Clocks], None]) -> str:
    """Which clock runs out in a block that takes these steps and then waits for ever."""
    try:
        with running:
            for step in steps:
                step(running)
            await asyncio.Event().wait()
    except ClockExpired as expired:
        return expired.clock
    raise AssertionError("the block ended by itself")


@pytest.mark.parametrize(
    ("limits", "clock"),
    [
        ({"first_token_s": 0.01}, "first token"),
        ({"total_s": 0.01}, "total"),
        ({"first_token_s": 0.02, "total_s": 0.01}, "total"),
        ({"total_s": -1.0}, "total"),
    ],
)
async def test_without_a_token_the_nearer_clock_runs_out(
    limits: dict[str, float], clock: str
) -> None:
    assert await clock_that_ends(clocks(**limits)) == clock


@pytest.mark.parametrize("first_token_s", [0.01, FOR_EVER])
async def test_the_idle_clock_runs_from_the_last_token(first_token_s: float) -> None:
    loop = asyncio.get_running_loop()
    last: list[float] = []

    def token(running: Clocks, more: int = 5) -> None:
        last.append(loop.time())
        running.progress()
        if more:
            loop.call_later(0.02, token, running, more - 1)

    assert await clock_that_ends(clocks(first_token_s=first_token_s, idle_s=0.3), token) == "idle"
    assert len(last) == 6
    assert loop.time() - last[-1] >= 0.3


async def test_while_we_do_not_read_the_provider_is_not_idle_but_the_total_clock_goes_on() -> None:
    running = clocks(idle_s=0.01, total_s=0.1)
    assert await clock_that_ends(running, Clocks.progress, Clocks.pause) == "total"


async def test_the_idle_clock_is_shorter_once_the_answer_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.worker.clocks.END_GRACE_S", 0.01)
    assert await clock_that_ends(clocks(), Clocks.progress, Clocks.finishing) == "idle"
