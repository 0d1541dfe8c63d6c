"""The HTTP routes: decode, decide, play."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
from aiohttp import web

from services.simulator import errors
from services.simulator.answer import Answer, Origin, answers, usage
from services.simulator.chunks import ChunkWriter, completion
from services.simulator.config import DEFAULT_MODELS, SimulatorConfig
from services.simulator.embeddings import as_base64, embed
from services.simulator.errors import ApiError
from services.simulator.faults import FaultLedger
from services.simulator.journal import Entry, Journal
from services.simulator.knobs import Script, read_knobs, script_for, split_model
from services.simulator.plan import error_plan, instead_plan, stream_plan, whole_plan
from services.simulator.player import Player
from services.simulator.steps import Plan
from services.simulator.tokens import count
from services.simulator.wire import ChatRequest, EmbeddingRequest, chat_request, embedding_request

Decide = Callable[[Entry, Mapping[str, str]], Plan]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Endpoints:
    def __init__(self, config: SimulatorConfig, journal: Journal, player: Player) -> None:
        self._config = config
        self._journal = journal
        self._player = player
        self._ledger = FaultLedger()
        self._born = int(time.time())

    def app(self) -> web.Application:
        app = web.Application(
            middlewares=[_as_openai_error], client_max_size=self._config.max_body_bytes
        )
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/embeddings", self._embeddings),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{id:.+}", self._model),
                web.get("/healthz", self._healthz),
                web.get("/sim/requests", self._journaled),
                web.delete("/sim/requests", self._forget),
            ]
        )
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, self._decide_chat)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, self._decide_embeddings)

    async def _answered(self, request: web.Request, decide: Decide) -> web.StreamResponse:
        started_s = time.monotonic()
        entry = self._journal.open(
            id=f"req_{secrets.token_hex(12)}",
            path=request.path,
            headers=request.headers,
            body=await request.read(),
            started_s=started_s,
        )
        try:
            self._check_key(request.headers)
            plan = decide(entry, request.headers)
        except ApiError as error:
            plan = error_plan(error)
        return await self._player.play(request, entry, plan)

    def _decide_chat(self, entry: Entry, headers: Mapping[str, str]) -> Plan:
        asked = chat_request(entry.body)
        entry.model, entry.stream = asked.model, bool(asked.stream)
        name, script = self._script(entry, asked, headers, asked.seed)
        instead = instead_plan(script, name)
        if instead is not None:
            return instead
        given = answers(asked, script, name, Origin.of(headers))
        counted = usage(asked, given)
        id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        if not asked.stream:
            told = None if script.fault == "usage_missing" else counted
            if script.fault == "role_only":
                given = [Answer((), "stop") for _ in given]
            body = completion(id, created, name, given, told)
            return whole_plan(body, script, sum(answer.size() for answer in given))
        include = bool(asked.stream_options and asked.stream_options.include_usage)
        writer = ChunkWriter(id, created, name, include)
        return stream_plan(given, writer, script, counted if include else None)

    def _decide_embeddings(self, entry: Entry, headers: Mapping[str, str]) -> Plan:
        asked = embedding_request(entry.body)
        entry.model = asked.model
        name, script = self._script(entry, asked, headers, None)
        instead = instead_plan(script, name)
        if instead is not None:
            return instead
        dimensions = asked.dimensions or self._config.embedding_dimensions
        texts = asked.texts()
        vectors = [embed(text, dimensions) for text in texts]
        packed = asked.encoding_format == "base64"
        tokens = sum(map(count, texts))
        body = {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": as_base64(vector) if packed else vector,
                }
                for index, vector in enumerate(vectors)
            ],
            "model": name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return whole_plan(msgspec.json.encode(body), script, 1)

    def _script(
        self,
        entry: Entry,
        asked: ChatRequest | EmbeddingRequest,
        headers: Mapping[str, str],
        seed: int | None,
    ) -> tuple[str, Script]:
        """The model's own name and how its answer runs; counts the fault if it strikes."""
        name = self._known(asked.model)
        script = script_for(read_knobs(asked.sim, headers, asked.model), self._config, seed)
        if script.fault is None:
            return name, script
        origin = Origin.of(headers)
        key = "\n".join((origin.stream, origin.branch, asked.model, script.fault, script.fault_key))
        if not self._ledger.strikes(key, script.fault_times):
            return name, replace(script, fault=None)
        entry.fault = script.fault
        return name, script

    def _check_key(self, headers: Mapping[str, str]) -> None:
        keys = self._config.api_keys
        if keys is None:
            return
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise errors.missing_key()
        # Every key is compared, so that the time taken says nothing about which one is near.
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
        if not any(matches):
            raise errors.wrong_key()

    def _known(self, model: str) -> str:
        name = split_model(model)[0]
        if self._config.models and name not in self._config.models:
            raise errors.unknown_model(name, self._config.models)
        return name

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request.headers)
        listed = self._config.models or DEFAULT_MODELS
        return _json({"object": "list", "data": [self._described(name) for name in listed]})

    async def _model(self, request: web.Request) -> web.Response:
        self._check_key(request.headers)
        return _json(self._described(self._known(request.match_info["id"])))

    def _described(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._born, "owned_by": "simulator"}

    async def _healthz(self, _: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _journaled(self, request: web.Request) -> web.Response:
        """Oldest first; `?stream=` shows one stream's requests only."""
        sid = request.query.get("stream")
        shown = [entry.public() for entry in self._journal if sid in (None, entry.sid)]
        return _json({"requests": shown, "dropped": self._journal.dropped})

    async def _forget(self, _: web.Request) -> web.Response:
        """Empties the journal and the counts of `fault_times`."""
        self._journal.clear()
        self._ledger.forget()
        return web.Response(status=204)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


@web.middleware
async def _as_openai_error(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What aiohttp refuses by itself (unknown path, method, size) in OpenAI's shape too."""
    try:
        return await handler(request)
    except ApiError as error:
        refused = error
    except web.HTTPRequestEntityTooLarge:
        refused = ApiError(413, "The request body is too large: send fewer or shorter messages.")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        refused = ApiError(
            405, f"Not allowed to {request.method} on {request.path}: use {allowed}."
        )
    except web.HTTPNotFound:
        refused = ApiError(404, f"Invalid URL ({request.method} {request.path})")
    return web.Response(
        status=refused.status,
        body=refused.body(),
        content_type="application/json",
        headers=refused.headers,
    )
