"""When a dependency is left alone, and how lookups share one query."""

import asyncio

import pytest

from shared.batched import Batched, Unanswered
from shared.breaker import Breaker

ERROR = OSError("gone")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker("redis", failures=3, pause_s=5, clock=clock)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed(ERROR)
    return breaker


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker("redis", failures=2)
    breaker.failed(ERROR)
    breaker.succeeded()
    breaker.failed(ERROR)
    assert breaker.allows()
    breaker.failed(ERROR)
    assert not breaker.allows()


def test_after_a_pause_one_tries_for_all() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.allows()
    clock.now = 5
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


def test_a_failed_try_is_followed_by_another_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now = 5
    assert breaker.allows()
    breaker.failed(ERROR)
    clock.now = 9
    assert not breaker.allows()
    clock.now = 10
    assert breaker.allows()


def test_a_try_nobody_reports_on_does_not_keep_it_open_for_ever() -> None:
    clock = Clock()
    breaker = opened(clock)
    for clock.now in (5, 10, 15):
        assert breaker.allows()


class Source:
    """Counts how it is asked; answers when told to."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, keys: list[str]) -> dict[str, str]:
        self.asked.append(keys)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return {key: key.upper() for key in keys if key != "unknown"}


async def test_what_is_asked_for_during_a_query_shares_the_next_one() -> None:
    source = Source()
    batched = Batched(source)
    first = asyncio.create_task(batched.get("a"))
    while not source.asked:
        await asyncio.sleep(0)
    rest = [asyncio.create_task(batched.get(key)) for key in ("b", "c", "b")]
    await asyncio.sleep(0)
    source.may_answer.set()
    assert await asyncio.gather(first, *rest) == ["A", "B", "C", "B"]
    assert source.asked == [["a"], ["b", "c"]]


async def test_a_query_has_a_largest_size() -> None:
    source = Source()
    source.may_answer.set()
    batched = Batched(source, max_keys=2)
    await asyncio.gather(*(batched.get(key) for key in "abcde"))
    assert [len(keys) for keys in source.asked] == [2, 2, 1]


async def test_a_failed_query_fails_those_who_waited_for_it_and_no_later_one() -> None:
    source = Source()
    source.may_answer.set()
    source.error = ERROR
    batched = Batched(source)
    failed = await asyncio.gather(batched.get("a"), batched.get("b"), return_exceptions=True)
    assert [type(error) for error in failed] == [Unanswered, Unanswered]
    source.error = None
    assert await batched.get("a") == "A"


async def test_a_key_the_source_leaves_out_is_unanswered() -> None:
    source = Source()
    source.may_answer.set()
    with pytest.raises(Unanswered):
        await Batched(source).get("unknown")


async def test_closing_leaves_nobody_waiting() -> None:
    source = Source()
    batched = Batched(source)
    asking = [asyncio.create_task(batched.get(key)) for key in "ab"]
    while not source.asked:
        await asyncio.sleep(0)
    asking.append(asyncio.create_task(batched.get("c")))
    await asyncio.sleep(0)
    await batched.close()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in results] == [Unanswered] * 3
