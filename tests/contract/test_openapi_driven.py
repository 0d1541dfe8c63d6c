"""The OpenAPI document tells the truth: every status it names is made to happen on a real edge, and
is answered with the body, the kind of content and the headers that the document says.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped]  # has no stubs
import pytest

from services.edge.health import NEEDED
from services.edge.openapi import document
from shared.bus import BusError, Presence
from shared.events import Accepted, Checkpoint, Done, Record, encode_record
from shared.ids import new_sid
from shared.settings import Settings
from tests.support.edge import MergerPlayer, RunningEdge, running_edge

DOCUMENT = document()
SSE = {"Accept": "text/event-stream"}

Send = Callable[[RunningEdge], Awaitable[aiohttp.ClientResponse]]


# The states a stream can be in --------------------------------------------------------------------


async def accepted(edge: RunningEdge) -> str:
    return (await edge.accepted()).sid


async def finished(edge: RunningEdge) -> str:
    merger = await edge.accepted()
    await merger.commit(Done(), finished=True)
    return merger.sid


async def unknown(_edge: RunningEdge) -> str:
    return new_sid()


async def foreign(edge: RunningEdge) -> str:
    sid = new_sid()
    accepted = Accepted("somebody-else", "s", "f", 0.0)
    await edge.link.log.accept(sid, encode_record(Record(0, 1, (), Checkpoint(()), accepted)))
    return sid


async def headless(edge: RunningEdge) -> str:
    """Its first record, which says whose it is, has expired."""
    sid = new_sid()
    await MergerPlayer(edge.link, sid, 0, 5).commit(Done(), finished=True)
    return sid


async def damaged(edge: RunningEdge) -> str:
    sid = new_sid()
    await edge.link.log.accept(sid, b"not a record")
    return sid


State = Callable[[RunningEdge], Awaitable[str]]


class Away:
    """A log that NATS no longer answers for."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def fail(*_args: object, **_named: object) -> None:
            raise BusError("away")

        return fail


@asynccontextmanager
async def nats_away(edge: RunningEdge) -> AsyncIterator[None]:
    link = edge.service.link
    assert link is not None
    log, link.log = link.log, Away()  # type: ignore[assignment]  # as far as the edge can tell
    yield
    link.log = log


# How to bring every status about ------------------------------------------------------------------


def post(path: str, body: Any, headers: dict[str, str] | None = None) -> Send:
    return lambda edge: edge.http.post(path, json=body, headers=headers)


def raw(path: str, body: bytes, kind: str = "application/json") -> Send:
    return lambda edge: edge.http.post(path, data=body, headers={"Content-Type": kind})


def of(state: State, method: str, path: str, **options: Any) -> Send:
    async def send(edge: RunningEdge) -> aiohttp.ClientResponse:
        sid = await state(edge)
        return await edge.http.request(method, path.format(id=sid), **options)

    return send


def again(state: State, path: str) -> Send:
    """Start with the id of a stream that is in this state already."""

    async def send(edge: RunningEdge) -> aiohttp.ClientResponse:
        body = {"id": await state(edge), "message": "another question"}
        return await edge.http.post(path, json=body)

    return send


def away(send: Send) -> Send:
    async def wrapped(edge: RunningEdge) -> aiohttp.ClientResponse:
        async with nats_away(edge):
            return await send(edge)

    return wrapped


def starts(path: str) -> dict[int, Send]:
    body = {"message": "Why?"}
    return {
        200: post(path, body, SSE),
        400: raw(path, b"{"),
        404: again(foreign, path),
        409: again(accepted, path),
        410: again(headless, path),
        413: raw(path, b'{"message": "' + b"x" * 70_000 + b'"}'),
        415: raw(path, b"message=x", "application/x-www-form-urlencoded"),
        422: post(path, {"message": 5}),
        500: again(damaged, path),
        503: away(post(path, body)),
    }


def finds(method: str, path: str) -> dict[int, Send]:
    return {
        404: of(unknown, method, path),
        410: of(headless, method, path),
        500: of(damaged, method, path),
        503: away(of(unknown, method, path)),
    }


def follows(path: str) -> dict[int, Send]:
    return {
        200: of(accepted, "GET", path),
        204: of(finished, "GET", path, params={"after": "1"}),
        400: of(accepted, "GET", path, params={"after": "-1"}),
        **finds("GET", path),
    }


def cancels(method: str, path: str) -> dict[int, Send]:
    return {200: of(finished, method, path), 202: of(accepted, method, path), **finds(method, path)}


def get(path: str) -> Send:
    return lambda edge: edge.http.get(path)


async def ready(edge: RunningEdge) -> aiohttp.ClientResponse:
    bus, subjects = edge.link.bus, edge.link.subjects
    others = [Presence(bus, subjects, name, name, dict) for name in NEEDED if name != "edge"]
    for other in others:
        await other.start()
    while (answer := await edge.http.get("/readyz")).status != 200:
        answer.release()  # what was found before is believed for a second
    for other in others:
        await other.close()
    return answer


CASES: dict[str, dict[int, Send]] = {
    "start": {**starts("/v1/streams"), 202: post("/v1/streams", {"message": "Why?"})},
    "start_chat": starts("/api/v1/chat/message/stream"),
    "events": follows("/v1/streams/{id}/events"),
    "events_of_task": follows("/stream/{id}"),
    "show": {
        200: of(finished, "GET", "/v1/streams/{id}"),
        **finds("GET", "/v1/streams/{id}"),
    },
    "cancel": cancels("POST", "/v1/streams/{id}/cancel"),
    "delete": cancels("DELETE", "/v1/streams/{id}"),
    "alive": {200: get("/healthz")},
    "ready": {503: get("/readyz"), 200: ready},
    "openapi": {200: get("/openapi.json")},
    "welcome": {200: get("/")},
}

DOCUMENTED: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation["responses"]
    for operations in DOCUMENT["paths"].values()
    for operation in operations.values()
}


def test_every_documented_status_is_driven_and_no_other() -> None:
    assert {name: {int(status) for status in answers} for name, answers in DOCUMENTED.items()} == {
        name: set(cases) for name, cases in CASES.items()
    }


@pytest.mark.parametrize("operation", CASES)
async def test_an_operation_answers_as_documented(operation: str, bus_settings: Settings) -> None:
    settings = bus_settings.model_copy(update={"max_body_bytes": 64 * 1024})
    async with running_edge(settings) as edge:
        for status, send in CASES[operation].items():
            answer = await send(edge)
            assert answer.status == status, (operation, status, await answer.text())
            await require_as_documented(answer, DOCUMENTED[operation][str(status)])
            answer.close()


async def require_as_documented(answer: aiohttp.ClientResponse, said: dict[str, Any]) -> None:
    for name in said.get("headers", {}):
        assert name in answer.headers, (name, answer.status)
    [(kind, content)] = said.get("content", {None: None}).items()
    if kind is None:
        assert await answer.read() == b""
        return
    assert answer.content_type == kind
    if kind == "text/event-stream":
        assert (await answer.content.readline()).startswith(b"retry: ")
        return
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    body = json.loads(await answer.read())
    jsonschema.Draft202012Validator(schema).validate(body)
    if answer.status >= 400 and "error" in body:
        assert body["error"]["retryable"] == ("Retry-After" in answer.headers)
