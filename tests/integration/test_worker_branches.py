"""A task becomes chunks of one branch, and is settled when the merger has them."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from services.simulator.service import Simulator
from services.worker.service import Worker
from shared.bus import Link, discover
from shared.ids import new_sid
from shared.settings import Settings
from tests.support.meshkit import until
from tests.support.workerkit import (
    a_task,
    merging,
    order_branch,
    run,
    serving,
    settled,
    working,
)

STREAM = b"""data: {"choices":[{"delta":{"content":"hello"}}]}

data: {"choices":[{"delta":{},"finish_reason":"stop"}]}

data: [DONE]

"""


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


async def test_reasoning_and_text_arrive_as_what_they_are(link: Link, worker: Worker) -> None:
    sim = {"marker": True, "tokens": 3, "reasoning_tokens": 2}
    merger = await run(link, a_task(params={"sim": sim}))
    assert merger.view().reasoning.endswith("|1 ")
    assert merger.text().endswith("|4 ")


async def test_tool_calls_arrive_whole(link: Link, worker: Worker) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    merger = await run(link, a_task(params={"tools": [tool], "tool_choice": "required"}))
    (call,) = merger.view().tool_calls
    assert call["function"]["name"] == "weather"
    assert call["id"]
    json.loads(call["function"]["arguments"])
    assert merger.end().finish_reason == "tool_calls"


async def test_parameters_go_to_the_provider_untouched_but_cannot_redirect_the_call(
    link: Link, worker: Worker, upstream: Simulator
) -> None:
    reserved = {"model": "other", "messages": [], "stream": False, "api_key": "x", "base_url": "y"}
    wanted = {"temperature": 0.5, "x_unheard_of": {"a": [1]}, "stream_options": {"y": 1}}
    task = a_task(params={**reserved, **wanted})
    await run(link, task)
    (asked,) = upstream.journal
    body = json.loads(asked.body)
    assert body == {
        "temperature": 0.5,
        "x_unheard_of": {"a": [1]},
        "stream_options": {"y": 1, "include_usage": True},
        "model": "sim-echo",
        "messages": task.messages,
        "stream": True,
    }
    assert asked.headers["x-braid-branch"] == "0"
    assert asked.sid == task.sid


async def test_branches_of_one_stream_are_generated_side_by_side(
    link: Link, worker: Worker
) -> None:
    sid = new_sid()
    tasks = [
        msgspec.structs.replace(a_task(params={"sim": {"marker": True}}), sid=sid, branch=branch)
        for branch in range(4)
    ]
    async with merging(link, sid) as merger:
        for task in tasks:
            await order_branch(link, task)
        for task in tasks:
            await merger.until_ended(task.branch)
            assert merger.text(task.branch).startswith(f"{sid}|{task.branch}|0|0 ")
    await settled(link)


async def test_connections_to_the_provider_are_used_again(
    link: Link, bus_settings: Settings
) -> None:
    connections = set()

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername"))
        response: web.StreamResponse = await handler(request)
        return response

    async def chat(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(STREAM)
        return response

    async with serving(chat, note) as base_url, working(bus_settings, openai_base_url=base_url):
        for _ in range(5):
            merger = await run(link, a_task())
            assert merger.text() == "hello"
    assert len(connections) == 1


async def test_an_answer_in_one_piece_is_accepted(link: Link, bus_settings: Settings) -> None:
    async def chat(_: web.Request) -> web.StreamResponse:
        message = {"role": "assistant", "content": "all at once"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})

    async with serving(chat) as base_url, working(bus_settings, openai_base_url=base_url):
        merger = await run(link, a_task())
    assert merger.text() == "all at once"
    end = merger.end()
    assert end.finish_reason == "stop"
    assert end.usage is not None
    assert end.usage.source == "estimate"


async def test_a_provider_that_refuses_to_be_asked_for_usage_is_not_asked_again(
    link: Link, bus_settings: Settings
) -> None:
    asked = []

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append("stream_options" in body)
        if "stream_options" in body:
            refusal = {"error": {"message": "unknown field: stream_options"}}
            return web.json_response(refusal, status=400)
        return web.Response(body=STREAM, content_type="text/event-stream")

    async with serving(chat) as base_url, working(bus_settings, openai_base_url=base_url):
        for _ in range(2):
            merger = await run(link, a_task())
            assert merger.text() == "hello"
            assert merger.attempts() == [(0, "")]
    assert asked == [True, False, False]


async def test_the_providers_key_and_headers_are_sent_and_without_a_key_none_is_made_up(
    link: Link, bus_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    seen = []

    async def chat(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("authorization"), request.headers.get("x-team")))
        return web.Response(body=STREAM, content_type="text/event-stream")

    async with serving(chat) as base_url:
        file = tmp_path / "providers.toml"
        file.write_text(f"""
            [[providers]]
            name = "open"
            base_url = "{base_url}"
            [[providers]]
            name = "guarded"
            base_url = "{base_url}"
            api_key = "k"
            models = ["m"]
            headers = {{ x-team = "search" }}
        """)
        async with working(bus_settings, providers_file=file):
            await run(link, a_task("other"))
            await run(link, a_task("m"))
    assert seen == [(None, None), ("Bearer k", "search")]


async def test_a_task_nobody_can_read_is_thrown_away(link: Link, worker: Worker) -> None:
    await link.publisher.publish(link.subjects.task("default", "normal"), b"\xc1")
    await settled(link)
    assert worker.stats()["tasks_malformed"] == 1


async def test_the_service_is_seen_in_the_mesh_with_its_counts(link: Link, worker: Worker) -> None:
    await run(link, a_task(params={"sim": {"tokens": 7}}))
    found = await discover(link.bus, link.subjects.prefix)
    assert f"{link.subjects.prefix}-worker" in [instance.name for instance in found]
    stats = worker.stats()
    assert (stats["tasks"], stats["calls"], stats["tokens"]) == (1, 1, 7)
