"""Calls to providers: one pooled OpenAI client for each, answers read as raw bytes.

The SDK makes the request; its own objects for a token would cost more than all the rest of the
worker, so the body goes to our decoder as it comes.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient

from services.worker.failures import UpstreamFailed, from_status, from_transport
from shared.messages import ChatMessage
from shared.providers import Provider, Providers

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Of one event, or of an answer that is not streamed."""

KEEPALIVE_S: Final = 30.0
DRAIN_S: Final = 0.1
"""What is left of a finished answer is read for this long, so that its connection is used again."""

RESERVED: Final = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "base_url",
        "api_base",
        "api_key",
        "extra_headers",
        "extra_query",
        "extra_body",
    }
)
"""Parameters of a task that would change who is asked, as whom, or how the answer is read."""

TRANSPORT_ERRORS: Final = (
    openai.APIConnectionError,
    httpx2.HTTPError,
    aiohttp.ClientError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt's request; its ids travel as headers."""

    sid: str
    branch: int
    attempt: int
    model: str
    messages: Sequence[ChatMessage]
    params: Mapping[str, Any]
    connect_s: float


class Body:
    """An answer's body: `reads` yields bytes as they come, until the end or a transport error."""

    def __init__(self, response: httpx2.Response) -> None:
        media = response.headers.get("content-type", "text/event-stream")
        self.media = media.partition(";")[0].strip().lower()
        self.reads = _reads(response)
        self.complete = False
        """Set when the answer's end was read: what follows on the wire is of no interest."""


class Upstreams:
    """Every provider's client, from `start` to `close`."""

    def __init__(self, providers: Providers, *, max_connections: int) -> None:
        self._providers = providers
        self._max_connections = max_connections
        self._clients: dict[str, AsyncOpenAI] = {}
        self._no_usage: set[str] = set()
        """Providers that refuse to be asked for usage."""

    def start(self) -> None:
        """Make the clients; needs a running loop. Loading certificates takes 20 ms, which at the
        first call would hold up every branch."""
        for provider in self._providers.all:
            self._clients[provider.name] = self._make_client(provider)

    def route(self, model: str) -> Provider:
        """Raises BraidError `no_provider`."""
        return self._providers.route(model)

    @contextlib.asynccontextmanager
    async def open(self, provider: Provider, call: Call) -> AsyncIterator[Body]:
        """Call the provider; the connection is closed, or given back, when the block is left.

        Raises UpstreamFailed for a refusal, and for a transport error within the block.
        """
        response: httpx2.Response | None = None
        body: Body | None = None
        try:
            response = await self._post(provider, call)
            body = Body(response)
            yield body
            if body.complete:
                await _drain(body)
        except TRANSPORT_ERRORS as error:
            raise UpstreamFailed(from_transport(error)) from error
        finally:
            if body is not None:
                await body.reads.aclose()
            if response is not None:
                await response.aclose()

    async def close(self) -> None:
        """Close every client with its connections."""
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            await client.close()

    async def _post(self, provider: Provider, call: Call) -> httpx2.Response:
        client = self._clients[provider.name]
        headers = request_headers(provider, call)
        asks_usage = provider.name not in self._no_usage
        try:
            return await _post(client, call, headers, asks_usage=asks_usage)
        except openai.APIStatusError as error:
            refused = error
        if asks_usage and refused.status_code in {400, 422} and b"stream_options" in _body(refused):
            self._no_usage.add(provider.name)
            try:
                return await _post(client, call, headers, asks_usage=False)
            except openai.APIStatusError as error:
                refused = error
        failure = from_status(
            refused.status_code,
            refused.response.headers,
            _body(refused),
            secrets_of(provider),
            time.time(),
        )
        raise UpstreamFailed(failure) from None

    def _make_client(self, provider: Provider) -> AsyncOpenAI:
        limits = httpx2.Limits(max_connections=self._max_connections, keepalive_expiry=KEEPALIVE_S)
        return AsyncOpenAI(
            # Without a key here, the SDK would look for one in the environment.
            api_key=provider.api_key.get_secret_value() if provider.api_key else "none",
            base_url=provider.base_url,
            max_retries=0,
            default_headers={
                name: value.get_secret_value() for name, value in provider.headers.items()
            },
            http_client=DefaultAioHttpClient(limits=limits),
        )


def secrets_of(provider: Provider) -> tuple[str, ...]:
    """What must not appear in a message."""
    keys = (provider.api_key,) if provider.api_key else ()
    return tuple(secret.get_secret_value() for secret in (*keys, *provider.headers.values()))


def request_body(call: Call, *, asks_usage: bool) -> dict[str, Any]:
    """The task's parameters as they came, around what is ours to say."""
    body = {name: value for name, value in call.params.items() if name not in RESERVED}
    body |= {"model": call.model, "messages": call.messages, "stream": True}
    options = call.params.get("stream_options")
    if asks_usage:
        asked = options if isinstance(options, dict) else {}
        body["stream_options"] = {**asked, "include_usage": True}
    return body


def request_headers(provider: Provider, call: Call) -> dict[str, str | openai.Omit]:
    """What this call adds to the client's headers."""
    headers: dict[str, str | openai.Omit] = {
        "accept": "text/event-stream, application/json",
        "accept-encoding": "identity",
        "x-braid-stream": call.sid,
        "x-braid-branch": str(call.branch),
        "x-braid-attempt": str(call.attempt),
    }
    own = {name.lower() for name in provider.headers}
    if provider.api_key is None and "authorization" not in own:
        headers["Authorization"] = openai.omit
    return headers


async def _post(
    client: AsyncOpenAI, call: Call, headers: dict[str, str | openai.Omit], *, asks_usage: bool
) -> httpx2.Response:
    answer = await client.post(
        "/chat/completions",
        cast_to=httpx2.Response,
        body=request_body(call, asks_usage=asks_usage),
        options={
            "headers": headers,
            # The SDK's read timeout would count keep-alive comments as life; our clocks don't.
            "timeout": httpx2.Timeout(
                connect=call.connect_s, pool=call.connect_s, read=None, write=None
            ),
        },
        stream=True,
        stream_cls=AsyncStream[Any],
    )
    return cast(httpx2.Response, answer)  # what `cast_to` asks for


def _body(error: openai.APIStatusError) -> bytes:
    return error.response.content[: 64 * 1024]


def _reads(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    if "content-encoding" not in response.headers:
        # The stream itself: two generators less for every token.
        reads = aiter(cast(httpx2.AsyncByteStream, response.stream))
        if isinstance(reads, AsyncGenerator):
            return reads
    return response.aiter_bytes()


async def _drain(body: Body) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in body.reads:
                pass
