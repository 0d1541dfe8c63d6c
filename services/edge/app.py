"""The aiohttp application: the table of routes bound to handlers, behind one middleware."""

from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

from services.edge.answers import Alive, Welcome, error_answer, json_answer
from services.edge.health import Readiness
from services.edge.openapi import document
from services.edge.routes import ROUTES
from services.edge.streams import SID, StreamHandlers
from shared.bus import BusError
from shared.errors import BraidError

log = structlog.get_logger()

RETRY_AFTER_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(
    streams: StreamHandlers, readiness: Readiness, *, max_body_bytes: int
) -> web.Application:
    """Raises KeyError when a route of the table has no handler."""
    described = msgspec.json.encode(document())

    async def alive(_request: web.Request) -> web.StreamResponse:
        return json_answer(Alive())

    async def ready(_request: web.Request) -> web.StreamResponse:
        state = await readiness.state()
        return json_answer(state, 200 if state.status == "ready" else 503)

    async def openapi(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=described, content_type="application/json")

    async def welcome(_request: web.Request) -> web.StreamResponse:
        return json_answer(Welcome())

    handlers: dict[str, Handler] = {
        "start": streams.start,
        "start_chat": streams.start_chat,
        "events": streams.events,
        "show": streams.show,
        "cancel": streams.cancel,
        "alive": alive,
        "ready": ready,
        "openapi": openapi,
        "welcome": welcome,
    }
    app = web.Application(middlewares=[answer_errors], client_max_size=max_body_bytes)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, handlers[route.handler])
    return app


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal and failure becomes the one JSON error body; every answer names its stream."""
    try:
        answer = await handler(request)
    except BraidError as error:
        answer = error_answer(error)
    except BusError as error:
        log.warning("edge.unavailable", stream_id=request.get(SID), reason=str(error))
        answer = error_answer(
            BraidError(
                "unavailable",
                "the mesh doesn't answer right now: send the same request again, with the same id",
                retry_after_s=RETRY_AFTER_S,
            )
        )
    except web.HTTPException as refusal:
        answer = _http_error(refusal, request.client_max_size)
    except Exception:
        log.exception("edge.request_failed", stream_id=request.get(SID), method=request.method)
        answer = error_answer(BraidError("internal", "the edge failed: this is not your fault"))
    sid = request.get(SID)
    if sid is not None and not answer.prepared:
        answer.headers["X-Stream-Id"] = sid
    return answer


def _http_error(refusal: web.HTTPException, max_body_bytes: int) -> web.Response:
    """What aiohttp itself refuses, in the form of everything else."""
    if isinstance(refusal, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(refusal.allowed_methods))
        answer = error_answer(
            BraidError("method_not_allowed", f"this address takes {allowed}, not {refusal.method}")
        )
        answer.headers["Allow"] = allowed
        return answer
    if isinstance(refusal, web.HTTPRequestEntityTooLarge):
        return error_answer(
            BraidError(
                "payload_too_large", f"the body is larger than {max_body_bytes} bytes: shorten it"
            )
        )
    if refusal.status == 404:
        return error_answer(
            BraidError("not_found", "there is nothing at this address: see /openapi.json")
        )
    return error_answer(BraidError("bad_request", "the request can't be understood"))
