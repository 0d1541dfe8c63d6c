"""A service's life: one task's death ends it, and it drains whatever happens."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.actor import Mailbox, Service, Tasks
from shared.actor.life import live


class Probe(Service):
    name = "probe"
    instance = "probe-1"
    drain_deadline_s = 0.2

    def __init__(self, *, broken_start: bool = False, endless_drain: bool = False) -> None:
        super().__init__()
        self._broken_start = broken_start
        self._endless_drain = endless_drain
        self.verbs: list[str] = []

    async def start(self) -> None:
        self.verbs.append("start")
        if self._broken_start:
            raise RuntimeError("no server")

    async def drain(self) -> None:
        self.verbs.append("drain")
        if self._endless_drain:
            await asyncio.Event().wait()


async def test_a_service_that_is_told_to_stop_drains_and_exits_cleanly() -> None:
    probe, stop = Probe(), asyncio.Event()
    stop.set()
    assert await live(probe, stop) == 0
    assert probe.verbs == ["start", "drain"]


async def test_the_death_of_one_task_stops_the_service_with_an_error() -> None:
    probe = Probe()

    async def die() -> None:
        raise ValueError("boom")

    probe.tasks.spawn("dies", die())
    assert await live(probe, asyncio.Event()) == 1
    assert probe.verbs == ["start", "drain"]


async def test_a_start_that_fails_still_drains_what_it_had_opened() -> None:
    probe = Probe(broken_start=True)
    assert await live(probe, asyncio.Event()) == 1
    assert probe.verbs == ["start", "drain"]


async def test_a_drain_that_never_ends_is_cut_at_its_deadline() -> None:
    probe, stop = Probe(endless_drain=True), asyncio.Event()
    stop.set()
    async with asyncio.timeout(5):
        assert await live(probe, stop) == 1


async def test_owned_tasks_are_gone_when_their_owner_cancels_them() -> None:
    tasks = Tasks()
    task = tasks.spawn("waits", asyncio.Event().wait())
    await tasks.cancel()
    assert task.cancelled()
    assert len(tasks) == 0


async def test_a_failure_that_came_before_anybody_listened_is_not_lost() -> None:
    tasks = Tasks()

    async def die() -> None:
        raise ValueError("early")

    await asyncio.gather(tasks.spawn("dies", die()), return_exceptions=True)
    with pytest.raises(ValueError, match="early"):
        await tasks.failed()


def test_a_full_mailbox_says_no_and_keeps_what_it_has() -> None:
    box: Mailbox[int] = Mailbox(max_items=2, max_weight=100)
    assert box.offer(1, 60)
    assert not box.offer(2, 60)
    assert box.offer(2, 40)
    assert not box.offer(3, 0)
    assert box.take_now() == [1, 2]
    assert box.offer(9, 1000), "an item heavier than the limit fits an empty box"


@given(st.lists(st.integers(0, 50), max_size=40))
async def test_what_a_mailbox_took_comes_out_once_and_in_order(weights: list[int]) -> None:
    box: Mailbox[int] = Mailbox(max_items=5, max_weight=100)
    taken, accepted = [], []
    for number, weight in enumerate(weights):
        if box.offer(number, weight):
            accepted.append(number)
        else:
            taken += await box.take()
    taken += box.take_now()
    assert taken == accepted
