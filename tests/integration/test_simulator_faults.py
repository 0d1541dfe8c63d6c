"""Every fault on the wire, as a client without any library's mercy sees it."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from services.simulator.faults import FAULTS
from services.simulator.service import Simulator, SimulatorConfig

DONE = "[DONE]"
COMMENT = ": keep-alive"


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorConfig(ttft_s=0, gap_s=0)) as simulator:
        yield simulator


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Wire:
    """What came over one connection, and how it ended."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.raw = b""
        self.broken: Exception | None = None

    @property
    def events(self) -> list[str]:
        return [block for block in self.raw.decode("utf-8", "replace").split("\n\n") if block]

    @property
    def data(self) -> list[str]:
        return [event.removeprefix("data: ") for event in self.events if event[:1] != ":"]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(data) for data in self.data if data != DONE]

    @property
    def deltas(self) -> list[str]:
        return [
            choice["delta"].get("content") or ""
            for chunk in self.chunks
            for choice in chunk.get("choices", ())
        ]

    @property
    def tokens(self) -> int:
        return sum(map(bool, self.deltas))

    @property
    def finishes(self) -> list[str]:
        reasons = [choice["finish_reason"] for c in self.chunks for choice in c["choices"]]
        return [reason for reason in reasons if reason]


def body(fault: str, **sim: Any) -> dict[str, Any]:
    return {
        "model": "sim-echo",
        "messages": [{"role": "user", "content": "Why?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "sim": {"fault": fault, "tokens": 12, "fault_at": 4, **sim},
    }


async def meet(
    http: aiohttp.ClientSession, upstream: Simulator, asked: dict[str, Any], **headers: str
) -> Wire:
    wire = Wire()
    try:
        async with http.post(
            f"{upstream.base_url}/chat/completions", json=asked, headers=headers
        ) as response:
            wire.status = response.status
            wire.headers = {key.lower(): value for key, value in response.headers.items()}
            async for data in response.content.iter_any():
                wire.raw += data
    except (aiohttp.ClientError, ConnectionError) as error:
        wire.broken = error
    return wire


@pytest.mark.parametrize("status", ["401", "429", "500", "503"])
async def test_a_status_fault_answers_with_that_status_and_an_openai_error(
    http: aiohttp.ClientSession, upstream: Simulator, status: str
) -> None:
    wire = await meet(http, upstream, body(status, retry_after_s=7))
    assert wire.status == int(status)
    assert set(json.loads(wire.raw)["error"]) == {"message", "type", "param", "code"}
    assert wire.headers.get("retry-after") == ("7" if status in ("429", "503") else None)


async def test_429_says_when_to_come_back_unasked(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    assert (await meet(http, upstream, body("429"))).headers["retry-after"] == "1"


async def test_refuse_closes_without_a_byte(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("refuse"))
    assert wire.status == 0
    assert isinstance(wire.broken, OSError)
    assert wire.broken.errno == errno.ECONNRESET, "reset, not closed"


async def test_wrong_content_type_is_a_page_with_status_200(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("wrong_content_type"))
    assert (wire.status, wire.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert wire.raw.startswith(b"<!doctype html>")


async def test_empty_is_only_done(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    wire = await meet(http, upstream, body("empty"))
    assert (wire.status, wire.data) == (200, [DONE])


async def test_role_only_has_deltas_but_no_text(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("role_only"))
    assert len(wire.deltas) > 2
    assert (wire.tokens, wire.finishes, wire.data[-1]) == (0, ["stop"], DONE)


async def test_slow_first_is_silent_after_the_headers(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    asked = body("slow_first", fault_s=0.15)
    started = time.monotonic()
    async with http.post(f"{upstream.base_url}/chat/completions", json=asked) as response:
        headers_s = time.monotonic() - started
        first = await response.content.readany()
        first_s = time.monotonic() - started
        assert headers_s < 0.15 <= first_s
        assert first.startswith(b"data: ")
        await response.read()


async def test_keepalive_first_sends_comments_before_the_first_token(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("keepalive_first", fault_s=0.1, keepalive_s=0.02))
    assert wire.events[:2] == [COMMENT, COMMENT]
    assert (wire.tokens, wire.finishes) == (12, ["stop"])


@pytest.mark.parametrize("fault", ["stall", "stall_keepalive"])
async def test_a_stall_keeps_the_connection_open_after_its_tokens(
    http: aiohttp.ClientSession, upstream: Simulator, fault: str
) -> None:
    asked = body(fault, keepalive_s=0.01)
    async with http.post(f"{upstream.base_url}/chat/completions", json=asked) as response:
        wire = Wire()
        while wire.tokens < 4 or (fault == "stall_keepalive" and wire.events[-1] != COMMENT):
            wire.raw += await response.content.readany()
        assert wire.tokens == 4
        silent = asyncio.create_task(response.content.readany())
        done, _ = await asyncio.wait([silent], timeout=0.05)
        if fault == "stall":
            assert not done, "a stalled stream says nothing"
            silent.cancel()
        else:
            assert (await silent).startswith(COMMENT.encode())
    entry = await upstream.journal.until(lambda seen: seen.aborted)
    assert (entry.fault, entry.tokens_sent) == (fault, 4)


async def test_a_stall_with_an_end_goes_on_afterwards(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    started = time.monotonic()
    wire = await meet(http, upstream, body("stall", fault_s=0.1))
    assert time.monotonic() - started >= 0.1
    assert (wire.tokens, wire.data[-1]) == (12, DONE)


async def test_cut_ends_cleanly_without_finish_or_done(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("cut"))
    assert wire.broken is None
    assert (wire.tokens, wire.finishes) == (4, [])
    assert DONE not in wire.data


async def test_reset_breaks_the_connection_after_exactly_its_tokens(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("reset"))
    assert wire.broken is not None
    assert "reset" in str(wire.broken).lower()
    assert wire.tokens == 4
    entry = await upstream.journal.until(lambda seen: seen.ended is not None)
    assert (entry.ended, entry.aborted) == ("fault", False)


async def test_bad_json_is_one_event_among_good_ones(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("bad_json"))
    with pytest.raises(json.JSONDecodeError):
        json.loads(wire.data[5])
    assert wire.data[-1] == DONE


async def test_bad_utf8_is_one_event_among_good_ones(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("bad_utf8"))
    with pytest.raises(UnicodeDecodeError):
        wire.raw.decode()
    assert wire.data[-1] == DONE


async def test_giant_chunk_is_one_delta_of_the_size_asked_for(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    assert max(map(len, (await meet(http, upstream, body("giant_chunk"))).deltas)) == 2 * 1024**2
    small = await meet(http, upstream, body("giant_chunk", giant_bytes=5_000))
    assert len(small.deltas[5]) == 5_000


async def test_an_error_in_the_stream_ends_it_without_done(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("error_in_stream"))
    assert wire.broken is None
    assert wire.chunks[-1]["error"]["type"] == "server_error"
    assert DONE not in wire.data


async def test_cut_no_done_finishes_without_done(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("cut_no_done"))
    assert (wire.tokens, wire.finishes) == (12, ["stop"])
    assert DONE not in wire.data


async def test_double_finish_contradicts_itself(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("double_finish"))
    assert wire.finishes == ["stop", "content_filter"]


async def test_data_after_finish_sends_text_behind_the_end(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("data_after_finish"))
    reasons = [choice["finish_reason"] for c in wire.chunks for choice in c["choices"]]
    assert reasons[-2:] == ["stop", None]
    assert wire.deltas[-1] == " and one more thing"


async def test_usage_missing_leaves_out_what_was_asked_for(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    wire = await meet(http, upstream, body("usage_missing"))
    assert all(chunk["usage"] is None for chunk in wire.chunks)
    assert wire.data[-1] == DONE


async def test_only_the_first_requests_fail_when_a_number_is_given(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    asked = {**body("none"), "model": "sim-echo?fault=503&fault_times=2", "sim": {"tokens": 3}}
    statuses = [(await meet(http, upstream, asked)).status for _ in range(3)]
    assert statuses == [503, 503, 200]
    other = await meet(http, upstream, asked, **{"x-braid-stream": "S2"})
    assert other.status == 503, "each stream counts for itself"
    assert [entry.fault for entry in upstream.journal] == ["503", "503", None, "503"]


async def test_the_same_fault_can_be_asked_for_in_a_header_or_the_model(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    plain = {**body("none"), "sim": None}
    assert (await meet(http, upstream, plain, **{"x-sim-fault": "500"})).status == 500
    in_model = {**plain, "model": "sim-echo?fault=cut&fault_at=2"}
    assert (await meet(http, upstream, in_model)).tokens == 2


@pytest.mark.parametrize("fault", sorted(FAULTS))
async def test_no_fault_hides_from_a_client_that_does_not_stream(
    http: aiohttp.ClientSession, upstream: Simulator, fault: str
) -> None:
    asked = {
        **body(fault, fault_s=0.01, keepalive_s=0.002),
        "stream": False,
        "stream_options": None,
    }
    wire = await meet(http, upstream, asked)
    if fault in ("refuse", "cut", "reset"):
        assert wire.broken is not None
    elif fault in ("cut_no_done", "double_finish", "data_after_finish", "giant_chunk"):
        assert json.loads(wire.raw)["choices"][0]["finish_reason"] == "stop"
    elif "first" in fault or "stall" in fault:
        assert json.loads(wire.raw)["usage"]["completion_tokens"] == 12
    else:
        assert wire.status != 200 or not _is_whole(wire.raw)


def _is_whole(raw: bytes) -> bool:
    try:
        answer = json.loads(raw.decode())
    except ValueError:
        return False
    return "usage" in answer and bool(answer["choices"][0]["message"]["content"])


async def test_the_openai_client_raises_what_it_should(upstream: Simulator) -> None:
    said: Any = [{"role": "user", "content": "Why?"}]
    async with AsyncOpenAI(base_url=upstream.base_url, api_key="any", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="sim-echo?fault=429", messages=said)
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model="sim-echo?fault=refuse", messages=said)
        stream = await client.chat.completions.create(
            model="sim-echo?fault=error_in_stream", messages=said, stream=True
        )
        with pytest.raises(openai.APIError, match="had an error"):
            async for _ in stream:
                pass


async def test_embeddings_meet_faults_too(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    asked = {"model": "sim-embed?fault=503", "input": "text"}
    async with http.post(f"{upstream.base_url}/embeddings", json=asked) as response:
        assert response.status == 503
