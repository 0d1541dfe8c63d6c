"""The JSON bodies that the edge answers with, and how they become responses."""

import math
from typing import Any, Literal, TypeAlias

import msgspec
from aiohttp import web
from msgspec import Struct, field

from services.edge.sse import SourceName
from shared.errors import BraidError
from shared.events import (
    BranchFailed,
    Cancelled,
    ContextLoaded,
    Done,
    Failed,
    Incomplete,
    Stats,
    Terminal,
    Usage,
)
from shared.fold import BranchView, StreamView

StreamStatus: TypeAlias = Literal["queued", "streaming", "done", "error", "cancelled", "incomplete"]
BranchStatus: TypeAlias = Literal[
    "waiting", "streaming", "done", "incomplete", "failed", "cancelled"
]


class ErrorDetail(Struct, frozen=True, omit_defaults=True):
    """`param` is the member, header or query parameter to change."""

    code: str
    message: str
    retryable: bool
    param: str | None = None


class ErrorBody(Struct, frozen=True):
    error: ErrorDetail


class Started(Struct, frozen=True):
    """The stream is accepted; `url` is where its events are."""

    id: str
    session_id: str
    url: str


class CancelState(Struct, frozen=True):
    """`cancelling` until the stream has its terminal, then how it ended."""

    id: str
    status: Literal["cancelling", "done", "error", "cancelled", "incomplete"]


class BranchSnapshot(Struct, frozen=True, kw_only=True):
    branch: int
    section: str | None
    model: str | None
    status: BranchStatus
    text: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str | None
    usage: Usage | None
    ttft_ms: float | None
    duration_ms: float
    error: BranchFailed | None


class Snapshot(Struct, frozen=True, kw_only=True):
    """A stream as its log has it: everything up to event `position`.

    Past retention it is as the transcript has it: `position` is 0, and `context` and `stats` are
    gone.
    """

    id: str
    source: SourceName = field(default="log", name="from")
    session_id: str
    status: StreamStatus
    position: int
    created_at: float
    """Unix seconds of acceptance."""
    branches: list[BranchSnapshot]
    context: ContextLoaded | None
    stats: Stats | None
    terminal: Done | Failed | Cancelled | Incomplete | None


class Alive(Struct, frozen=True):
    status: Literal["ok"] = "ok"


class ReadyState(Struct, frozen=True, kw_only=True):
    """`services` counts the instances that answer; `missing` names what must be there and isn't."""

    status: Literal["ready", "not_ready", "draining"]
    missing: list[str]
    services: dict[str, int]


class Welcome(Struct, frozen=True):
    name: str = "braidstream"
    openapi: str = "/openapi.json"
    streams: str = "/v1/streams"
    health: str = "/readyz"


def status_of(terminal: Terminal) -> Literal["done", "error", "cancelled", "incomplete"]:
    match terminal:
        case Done():
            return "done"
        case Failed():
            return "error"
        case Cancelled():
            return "cancelled"
        case Incomplete():
            return "incomplete"


def snapshot(sid: str, view: StreamView) -> Snapshot:
    """`view` must have folded the record that accepted the stream."""
    if view.accepted is None:
        raise ValueError("the view lacks the stream's first record")
    status: StreamStatus = "streaming" if view.position else "queued"
    return Snapshot(
        id=sid,
        session_id=view.accepted.session_id,
        status=status_of(view.terminal) if view.terminal is not None else status,
        position=view.position,
        created_at=view.accepted.accepted_at,
        branches=[_branch(branch) for _, branch in sorted(view.branches.items())],
        context=view.context,
        stats=view.stats,
        terminal=view.terminal,
    )


def _branch(view: BranchView) -> BranchSnapshot:
    return BranchSnapshot(
        branch=view.branch,
        section=view.section,
        model=view.model,
        status=view.status,  # type: ignore[arg-type]  # the view's own words
        text=view.text,
        reasoning=view.reasoning,
        tool_calls=view.tool_calls,
        finish_reason=view.finish_reason,
        usage=view.usage,
        ttft_ms=view.ttft_ms,
        duration_ms=view.duration_ms,
        error=view.error,
    )


def json_answer(
    body: Struct, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def error_answer(error: BraidError) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    detail = ErrorDetail(error.code, error.message, error.retryable, error.param)
    return json_answer(ErrorBody(detail), error.status, headers)
