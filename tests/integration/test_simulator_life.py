"""Disconnects are seen at once, the journal proves them, and drain has an end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.simulator.service import Simulator, SimulatorConfig, serve


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorConfig(ttft_s=0, gap_s=0)) as simulator:
        yield simulator


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def body(model: str = "sim-echo", stream: bool = True, **sim: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Why?"}]
    return {"model": model, "messages": messages, "stream": stream, "sim": sim}


async def tokens_of(response: aiohttp.ClientResponse) -> int:
    return (await response.read()).count(b'"content":') - 1


@pytest.mark.parametrize(
    "sim",
    [
        {"ttft_s": 60},
        {"fault": "slow_first", "fault_s": 60},
        {"fault": "stall", "fault_at": 1},
        {"gap_s": 60},
        {"gap_s": 0.001, "tokens": 100_000},
        {"tokens": 300_000},
    ],
    ids=["before the first token", "slow first", "stall", "in a gap", "paced", "flat out"],
)
async def test_a_client_that_leaves_is_noticed_at_once(
    http: aiohttp.ClientSession, upstream: Simulator, sim: dict[str, Any]
) -> None:
    response = await http.post(f"{upstream.base_url}/chat/completions", json=body(**sim))
    assert response.status == 200
    response.close()
    left_s = time.monotonic()
    entry = await upstream.journal.until(lambda seen: seen.ended is not None)
    assert (entry.ended, entry.aborted, entry.finished_s) == ("client_closed", True, None)
    assert entry.aborted_s is not None
    assert entry.aborted_s - left_s < 0.5
    assert entry.tokens_sent < 100_000, "nothing is generated for nobody"


async def test_a_client_that_leaves_a_whole_answer_is_noticed_too(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    asked = body(stream=False, ttft_s=60)
    task = asyncio.create_task(http.post(f"{upstream.base_url}/chat/completions", json=asked))
    await upstream.journal.until(lambda seen: seen.status is None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await upstream.journal.until(lambda seen: seen.aborted)).tokens_sent == 0


async def test_the_journal_tells_the_story_of_a_request(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    asked = body("sim-echo?gap_s=0.001", tokens=5)
    headers = {"Authorization": "Bearer s3cret", "x-braid-stream": "S", "x-braid-attempt": "2"}
    async with http.post(
        f"{upstream.base_url}/chat/completions", json=asked, headers=headers
    ) as response:
        await response.read()
        request_id = response.headers["x-request-id"]
    await upstream.journal.until(lambda seen: seen.ended == "finished")
    async with http.get(f"{upstream.url}/sim/requests?stream=S") as response:
        text = await response.text()
        (entry,) = (await response.json())["requests"]
    assert "s3cret" not in text
    assert (entry["id"], entry["sid"], entry["attempt"]) == (request_id, "S", "2")
    assert (entry["model"], entry["body"]) == ("sim-echo?gap_s=0.001", asked)
    assert (entry["tokens_sent"], entry["status"], entry["aborted"]) == (5, 200, False)
    assert entry["started_s"] <= entry["first_token_s"] <= entry["finished_s"]
    async with http.delete(f"{upstream.url}/sim/requests") as response:
        assert response.status == 204
    async with http.get(f"{upstream.url}/sim/requests") as response:
        assert await response.json() == {"requests": [], "dropped": 0}


async def test_refused_requests_are_journaled_as_well(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    async with http.post(f"{upstream.base_url}/chat/completions", data=b"{nope") as response:
        assert response.status == 400
    (entry,) = upstream.journal
    assert (entry.status, entry.public()["body"]) == (400, "{nope")


async def test_tokens_keep_to_their_schedule_however_late_a_sleep_is(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    started = time.monotonic()
    asked = body(ttft_s=0.05, gap_s=0.002, tokens=151)
    async with http.post(f"{upstream.base_url}/chat/completions", json=asked) as response:
        await response.content.readany()
        assert time.monotonic() - started >= 0.05
        await response.read()
    took_s = time.monotonic() - started
    assert took_s >= 0.35
    assert took_s < 0.6, "150 late sleeps did not add up"


async def test_every_paced_event_is_a_write_of_its_own(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    asked = body(gap_s=0.01, tokens=5)
    reads = []
    async with http.post(f"{upstream.base_url}/chat/completions", json=asked) as response:
        async for data, _ in response.content.iter_chunks():
            reads.append(data.count(b"data: "))
    assert reads == [2, 1, 1, 1, 3], "the role goes with the first token, the end with the last"


async def test_an_unknown_path_method_and_size_are_refused_in_openais_shape(
    http: aiohttp.ClientSession,
) -> None:
    async with Simulator(SimulatorConfig(max_body_bytes=1_000)) as small:
        for method, path, data, status in (
            ("GET", "/v1/nothing", b"", 404),
            ("GET", "/v1/embeddings", b"", 405),
            ("POST", "/v1/embeddings", b"x" * 2_000, 413),
        ):
            async with http.request(method, small.url + path, data=data) as response:
                assert response.status == status
                assert (await response.json())["error"]["type"] == "invalid_request_error"
        async with http.get(f"{small.url}/healthz") as response:
            assert await response.json() == {"status": "ok"}


async def test_drain_lets_running_answers_end_and_cuts_silent_ones(
    http: aiohttp.ClientSession,
) -> None:
    upstream = Simulator(SimulatorConfig(ttft_s=0, gap_s=0))
    await upstream.start()
    url = f"{upstream.base_url}/chat/completions"
    running = await http.post(url, json=body(gap_s=0.01, tokens=20))
    silent = await http.post(url, json=body(fault="stall", fault_at=1))
    await upstream.drain(5.0)
    assert await tokens_of(running) == 20
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await silent.read()
    assert [entry.ended for entry in upstream.journal] == ["finished", "drained"]
    await asyncio.wait_for(upstream.run(), 1.0)
    await upstream.drain()


async def test_drain_aborts_what_still_runs_at_its_deadline(http: aiohttp.ClientSession) -> None:
    upstream = Simulator(SimulatorConfig())
    await upstream.start()
    endless = await http.post(f"{upstream.base_url}/chat/completions", json=body(gap_s=60))
    started = time.monotonic()
    await upstream.drain(0.05)
    assert time.monotonic() - started < 1.0
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await endless.read()
    assert [entry.ended for entry in upstream.journal] == ["drained"]


async def test_serve_listens_until_it_is_stopped(http: aiohttp.ClientSession) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(SimulatorConfig(port=port), stop))
    while True:
        assert not serving.done()
        try:
            async with http.get(f"http://127.0.0.1:{port}/healthz") as response:
                assert response.status == 200
            break
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(serving, 5.0)


async def test_the_command_resets_notices_leavers_and_drains_on_its_own_loop(
    http: aiohttp.ClientSession,
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.simulator", "--port", "0", "--ttft-s", "0",
        env={**os.environ, "SIM_GAP_S": "0"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    base_url = (await process.stdout.readline()).decode().split()[-1]
    url = f"{base_url}/chat/completions"
    resetting = await http.post(url, json=body(fault="reset", fault_at=3))
    received = b""
    while received.count(b'"content":') < 4:
        received += await resetting.content.readany()
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await resetting.content.readany()
    resetting.close()
    leaving = await http.post(url, json=body(fault="stall", fault_at=1))
    leaving.close()
    journal = base_url.removesuffix("/v1") + "/sim/requests"
    aborted = False
    while not aborted:
        async with http.get(journal) as response:
            aborted = (await response.json())["requests"][-1]["aborted"]
    stalled = await http.post(url, json=body(fault="stall"))
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 5.0) == 0
    stalled.close()
