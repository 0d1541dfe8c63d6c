"""`braid ask` reconnects from the last event, and its figures are what a reader saw."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from deploy.cli import client
from deploy.cli.ask import Figures
from deploy.cli.client import follow
from deploy.mesh.errors import MeshError


def test_latency_is_the_mean_gap_between_chunks() -> None:
    figures = Figures(started=10.0)
    for now in (10.5, 10.6, 10.7):
        figures.count("abc", now)
    lines = figures.lines()
    assert "500.0 ms" in lines[0]
    assert lines[1].split()[-1] == "3"
    assert lines[2].split()[-1] == "9"
    assert "100.0 ms" in lines[3]


def test_a_stream_without_text_has_no_latency() -> None:
    assert Figures(started=0.0).lines() == ["no text came"]


EVENTS = [
    {"type": "delta", "branch": 0, "text": "a"},
    {"type": "delta", "branch": 0, "text": "b"},
    {"type": "done"},
]


@asynccontextmanager
async def edge(cut_after: int | None) -> AsyncIterator[tuple[str, list[str | None]]]:
    """Answers like an edge that is killed after `cut_after` events of the first connection."""
    positions: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        position = request.headers.get("last-event-id")
        positions.append(position)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        start = {"type": "open", "stream_id": "s1", "session_id": "s1", "position": 0}
        await response.write(b"retry: 1000\ndata: %s\n\n" % json.dumps(start).encode())
        for number, event in enumerate(EVENTS, start=1):
            if number <= int(position or 0):
                continue
            if position is None and cut_after is not None and number > cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(b"id: %d\ndata: %s\n\n" % (number, json.dumps(event).encode()))
        return response

    async def refuse(_: web.Request) -> web.Response:
        body = {"error": {"code": "invalid", "message": "message: must not be empty"}}
        return web.json_response(body, status=422)

    app = web.Application()
    app.router.add_post("/v1/streams", answer)
    app.router.add_get("/v1/streams/s1/events", answer)
    app.router.add_post("/strict/v1/streams", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", positions
    finally:
        await runner.cleanup()


async def collect(url: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        return [event async for event in follow(url, {"message": "hi"})]


async def test_a_whole_stream_needs_one_connection() -> None:
    async with edge(cut_after=None) as (url, positions):
        events = await collect(url)
    assert events[1:] == EVENTS
    assert positions == [None]


async def test_a_broken_connection_goes_on_after_the_last_event_that_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "RECONNECT_PAUSE_S", 0.01)
    async with edge(cut_after=1) as (url, positions):
        events = await collect(url)
    assert [event for event in events if event["type"] != "open"] == EVENTS
    assert positions == [None, "1"]


async def test_a_refusal_is_shown_in_the_mesh_s_own_words() -> None:
    async with edge(cut_after=None) as (url, _):
        with pytest.raises(MeshError, match="refused with 422: message: must not be empty"):
            await collect(f"{url}/strict")


async def test_a_mesh_that_is_not_there_is_said_with_what_to_do() -> None:
    with pytest.raises(MeshError, match="start one with `braid up`"):
        await collect("http://127.0.0.1:1")
