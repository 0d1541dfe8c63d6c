"""Every fault of an upstream ends in what was promised: retried, kept, or said; never spliced."""

from typing import Any

import pytest
from aiohttp import web

from deploy.mesh.ports import free_ports
from services.simulator.service import Simulator
from services.worker.service import Worker
from shared.bus import Link
from shared.messages import GenerateBranch, Timeouts
from shared.settings import Settings
from tests.support.workerkit import FakeMerger, a_task, run, serving, working

LONG_S = 30.0
SHORT_S = 0.15


def faulty(fault: str, *, task: dict[str, Any] | None = None, **sim: Any) -> GenerateBranch:
    """Ten tokens that say where they come from; the fault strikes before the sixth."""
    script = {"marker": True, "tokens": 10, "fault_at": 5, "fault": fault, **sim}
    return a_task(params={"sim": script}, **(task or {}))


def said(task: GenerateBranch, attempt: int, tokens: int) -> str:
    return "".join(f"{task.sid}|0|{attempt}|{index} " for index in range(tokens))


async def test_a_provider_that_fails_for_a_moment_is_asked_again_without_a_trace(
    link: Link, worker: Worker
) -> None:
    for fault in ("500", "503", "refuse", "empty", "wrong_content_type"):
        task = faulty(fault, fault_times=2)
        merger = await run(link, task)
        assert merger.text() == said(task, 2, 10)
        assert merger.attempts() == [(2, "")]
        assert merger.end().finish_reason == "stop"
    assert worker.stats()["retries"] == 10


@pytest.mark.parametrize(
    ("fault", "code", "calls"),
    [
        ("500", "upstream_error", 3),
        ("503", "upstream_error", 3),
        ("refuse", "upstream_reset", 3),
        ("empty", "upstream_malformed", 3),
        ("wrong_content_type", "upstream_malformed", 3),
        ("401", "upstream_auth", 1),
    ],
)
async def test_a_provider_that_keeps_failing_is_given_up(
    link: Link, worker: Worker, upstream: Simulator, fault: str, code: str, calls: int
) -> None:
    merger = await run(link, faulty(fault))
    assert merger.end().code == code
    assert merger.end().finish_reason is None
    assert merger.end().message
    assert merger.text() == ""
    assert len(upstream.journal) == calls
    assert worker.stats()[f"failed.{code}"] == calls


async def test_a_provider_nobody_can_reach_is_refused(link: Link, bus_settings: Settings) -> None:
    dead = f"http://127.0.0.1:{free_ports(1)[0]}/v1"
    async with working(bus_settings, openai_base_url=dead):
        merger = await run(link, a_task())
    assert merger.end().code == "upstream_refused"
    assert "127.0.0.1" not in merger.end().message


async def test_without_a_provider_the_branch_says_so(link: Link, bus_settings: Settings) -> None:
    async with working(bus_settings):
        merger = await run(link, a_task())
    assert merger.end().code == "no_provider"
    assert "OPENAI_BASE_URL" in merger.end().message


async def test_a_request_the_provider_rejects_is_not_repeated_and_its_reason_is_passed_on(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    merger = await run(link, a_task(params={"temperature": "warm"}))
    end = merger.end()
    assert (end.code, end.retryable) == ("upstream_rejected", False)
    assert "temperature" in end.message
    assert len(upstream.journal) == 1


async def test_retry_after_is_waited_for_if_it_fits(link: Link, worker: Worker) -> None:
    task = faulty("429", fault_times=1, retry_after_s=0.2)
    merger = await run(link, task)
    assert merger.text() == said(task, 1, 10)
    assert merger.end().duration_ms >= 200


async def test_retry_after_that_does_not_fit_is_relayed(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    merger = await run(link, faulty("429", retry_after_s=3_000))
    assert merger.end().code == "upstream_rate_limited"
    assert merger.end().retryable
    assert "try again in 3000 s" in merger.end().message
    assert len(upstream.journal) == 1


@pytest.mark.parametrize(
    ("first", "calls"),
    [("fault=500", 4), ("fault=401", 2), ("fault=429&retry_after_s=9", 2), ("fault=refuse", 4)],
)
async def test_the_fallback_models_are_tried_in_order(
    link: Link, worker: Worker, upstream: Simulator, first: str, calls: int
) -> None:
    sim = {"marker": True, "tokens": 10}
    task = a_task(f"first?{first}", fallbacks=["second", "third"], params={"sim": sim})
    merger = await run(link, task)
    assert merger.end().model == "second"
    assert merger.end().finish_reason == "stop"
    assert merger.text() == said(task, calls - 1, 10)
    assert len(upstream.journal) == calls
    assert worker.stats()["fallbacks"] == 1


@pytest.mark.parametrize("fault", ["slow_first", "keepalive_first"])
async def test_a_first_token_that_does_not_come_is_not_waited_for_twice(
    link: Link, worker: Worker, upstream: Simulator, fault: str
) -> None:
    clocks = {"timeouts": Timeouts(first_token_s=SHORT_S)}
    task = faulty(fault, task=clocks, fault_s=LONG_S, keepalive_s=0.02)
    merger = await run(link, task)
    assert merger.end().code == "upstream_timeout"
    assert "first token clock" in merger.end().message
    asked = await upstream.journal.until(lambda entry: entry.aborted)
    assert asked.sid == task.sid
    assert len(upstream.journal) == 1


@pytest.mark.parametrize("fault", ["stall", "stall_keepalive"])
async def test_a_stall_ends_by_the_idle_clock_which_keep_alives_do_not_wind(
    link: Link, worker: Worker, upstream: Simulator, fault: str
) -> None:
    clocks = {"timeouts": Timeouts(idle_s=SHORT_S)}
    task = faulty(fault, task=clocks, keepalive_s=0.02)
    merger = await run(link, task)
    assert merger.text() == said(task, 0, 5)
    assert merger.end().code == "upstream_timeout"
    assert "idle clock" in merger.end().message
    await upstream.journal.until(lambda entry: entry.aborted)


async def test_the_total_clock_ends_what_would_go_on_for_ever(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    clocks = {"timeouts": Timeouts(total_s=0.3)}
    task = faulty("none", task=clocks, tokens=100_000, gap_s=0.02)
    merger = await run(link, task)
    assert "total clock" in merger.end().message
    assert said(task, 0, 5_000).startswith(merger.text())
    assert merger.text()
    await upstream.journal.until(lambda entry: entry.aborted)


async def test_a_truncated_answer_is_reported_as_such_and_not_repeated(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    task = faulty("cut")
    merger = await run(link, task)
    assert merger.text() == said(task, 0, 5)
    assert (merger.end().finish_reason, merger.end().code) == (None, "")
    assert merger.end().usage is not None
    assert len(upstream.journal) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("bad_json", "upstream_malformed"),
        ("bad_utf8", "upstream_malformed"),
        ("error_in_stream", "upstream_error"),
    ],
)
async def test_garbage_in_mid_stream_is_an_error_and_what_was_valid_is_kept(
    link: Link, worker: Worker, upstream: Simulator, fault: str, code: str
) -> None:
    task = faulty(fault)
    merger = await run(link, task)
    assert merger.text() == said(task, 0, 5)
    assert merger.end().code == code
    assert len(upstream.journal) == 1


async def test_garbage_before_the_first_token_is_tried_again(link: Link, worker: Worker) -> None:
    for fault in ("bad_json", "error_in_stream", "cut"):
        task = faulty(fault, fault_at=0, fault_times=1)
        merger = await run(link, task)
        assert merger.text() == said(task, 1, 10)
        assert merger.attempts() == [(1, "")]


async def test_a_giant_chunk_is_split(link: Link, worker: Worker) -> None:
    task = faulty("giant_chunk", giant_bytes=1_000_000)
    merger = await run(link, task)
    assert merger.text().replace("x" * 1_000_000, "") == said(task, 0, 10)
    assert len(merger.text()) == 1_000_000 + len(said(task, 0, 10))
    assert merger.end().finish_reason == "stop"
    assert max(len(d.text) for c in merger.received for d in c.deltas) <= 64 * 1024


async def test_a_chunk_beyond_all_measure_is_refused(link: Link, worker: Worker) -> None:
    task = faulty("giant_chunk", giant_bytes=9 * 1024 * 1024)
    merger = await run(link, task)
    assert merger.end().code == "upstream_oversized"
    assert merger.text() == said(task, 0, 5)


@pytest.mark.parametrize(
    ("fault", "ignored"), [("cut_no_done", 0), ("double_finish", 1), ("data_after_finish", 1)]
)
async def test_the_first_finish_reason_counts_whatever_follows(
    link: Link, worker: Worker, fault: str, ignored: int
) -> None:
    task = faulty(fault)
    merger = await run(link, task)
    assert merger.text() == said(task, 0, 10)
    assert (merger.end().finish_reason, merger.end().code) == ("stop", "")
    assert worker.stats()["ignored"] == ignored


async def test_an_answer_without_content_that_is_finished_is_done(
    link: Link, worker: Worker
) -> None:
    merger = await run(link, faulty("role_only"))
    assert merger.end().finish_reason == "stop"
    assert merger.end().ttft_ms is None
    assert merger.text() == ""


async def test_usage_that_was_not_sent_is_estimated_and_said_to_be(
    link: Link, worker: Worker
) -> None:
    merger = await run(link, faulty("usage_missing"))
    usage = merger.end().usage
    assert usage is not None
    assert usage.source == "estimate"
    assert usage.completion_tokens == -(-len(merger.text()) // 4)


async def reset(
    link: Link, times: int | None, mid_stream: str
) -> tuple[GenerateBranch, FakeMerger]:
    task = faulty("reset", task={"mid_stream": mid_stream}, fault_times=times)
    return task, await run(link, task)


async def test_a_reset_in_mid_stream_restarts_with_a_seam(link: Link, worker: Worker) -> None:
    task, merger = await reset(link, 1, "restart")
    assert merger.attempts() == [(0, ""), (1, "restart")]
    assert merger.text() == said(task, 1, 10)
    assert merger.end().finish_reason == "stop"


async def test_restarts_are_few_and_then_the_error_is_said(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    task, merger = await reset(link, None, "restart")
    assert merger.attempts() == [(0, ""), (1, "restart"), (2, "restart")]
    assert merger.text() == said(task, 2, 5)
    assert merger.end().code == "upstream_reset"
    assert len(upstream.journal) == 3


async def test_a_reset_fails_the_branch_when_that_is_wanted(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    task, merger = await reset(link, None, "fail")
    assert merger.text() == said(task, 0, 5)
    assert merger.end().code == "upstream_reset"
    assert merger.attempts() == [(0, "")]
    assert len(upstream.journal) == 1


async def test_a_restart_that_comes_to_nothing_leaves_what_was_said(
    link: Link, bus_settings: Settings
) -> None:
    calls = 0

    async def chat(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls > 1:
            return web.Response(status=500)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices":[{"delta":{"content":"so far"}}]}\n\n')
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(chat) as base_url, working(bus_settings, openai_base_url=base_url):
        merger = await run(link, a_task())
    assert merger.text() == "so far"
    assert merger.attempts() == [(0, ""), (3, "fail")]
    assert merger.end().code == "upstream_error"
    assert calls == 4
