"""Following a stream over HTTP: start it, reconnect from the last event, until the terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import msgspec

from deploy.mesh.errors import MeshError

TERMINALS: Final = frozenset({"done", "error", "cancelled", "incomplete"})
RECONNECT_PAUSE_S: Final = 0.5
GIVE_UP_S: Final = 30.0
SILENCE_S: Final = 45.0
"""No line for so long, not even a keep-alive comment: the connection is dead."""
MAX_LINE_BYTES: Final = 4 * 1024 * 1024


async def follow(base_url: str, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Every event of a new stream, once and in order, over as many connections as it takes.

    Raises MeshError when the request is refused, or the mesh stays unreachable for 30 s.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE_S)
    loop = asyncio.get_running_loop()
    position = 0
    stream_id: str | None = None
    failing_since: float | None = None
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=MAX_LINE_BYTES) as http:
        while True:
            try:
                async with _connect(http, base_url, request, stream_id, position) as answer:
                    await _refuse_errors(answer)
                    async for number, event in _events(answer):
                        failing_since = None
                        stream_id = event.get("stream_id", stream_id)
                        position = number or position
                        yield event
                        if event["type"] in TERMINALS:
                            return
            except (aiohttp.ClientError, TimeoutError) as error:
                if stream_id is None:
                    raise MeshError(
                        f"no mesh answers at {base_url} ({type(error).__name__}): "
                        "start one with `braid up`, or name it with --url"
                    ) from None
            failing_since = failing_since or loop.time()
            if loop.time() - failing_since > GIVE_UP_S:
                raise MeshError(
                    f"the connection broke after event {position} and could not be made again; "
                    f"later: curl -N '{base_url}/v1/streams/{stream_id}/events?after={position}'"
                )
            await asyncio.sleep(RECONNECT_PAUSE_S)


def _connect(
    http: aiohttp.ClientSession,
    base_url: str,
    request: dict[str, Any],
    stream_id: str | None,
    position: int,
) -> Any:
    """The first connection starts the stream, the others go on from where it broke."""
    accept = {"accept": "text/event-stream"}
    if stream_id is None:
        return http.post(f"{base_url}/v1/streams", json=request, headers=accept)
    headers = {**accept, "last-event-id": str(position)}
    return http.get(f"{base_url}/v1/streams/{stream_id}/events", headers=headers)


async def _refuse_errors(answer: aiohttp.ClientResponse) -> None:
    if answer.status == 200:
        return
    body = await answer.text()
    try:
        message = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = body[:200]
    raise MeshError(f"refused with {answer.status}: {message}")


async def _events(
    answer: aiohttp.ClientResponse,
) -> AsyncIterator[tuple[int | None, dict[str, Any]]]:
    """(n, event) of the mesh's own SSE: one `data` line an event, an `id` line before it."""
    number: int | None = None
    async for line in answer.content:
        if line.startswith(b"id: "):
            number = int(line[4:])
        elif line.startswith(b"data: "):
            yield number, msgspec.json.decode(line[6:])
            number = None
