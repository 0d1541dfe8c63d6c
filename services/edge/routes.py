"""Every route of the edge: what it takes and all it can answer. The app and the OpenAPI document
are both made from this table, so neither can know a route that the other does not.
"""

from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct

from services.edge.answers import (
    Alive,
    CancelState,
    ErrorBody,
    ReadyState,
    Snapshot,
    Started,
    Welcome,
)
from services.edge.start_request import NewChatMessage, NewStream
from shared.errors import KINDS

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """One status of a route; `body` is None where there is none, or where it isn't JSON."""

    status: int
    description: str
    body: type[Struct] | None = None
    media: str = JSON
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    where: str
    description: str
    schema: tuple[tuple[str, Any], ...] = (("type", "string"),)


@dataclass(frozen=True, slots=True)
class Route:
    """`operation` is the operation's id where it isn't the handler's name."""

    method: str
    path: str
    handler: str
    summary: str
    answers: tuple[Answer, ...]
    parameters: tuple[Parameter, ...] = ()
    body: type[Struct] | None = None
    operation: str = ""

    @property
    def operation_id(self) -> str:
        return self.operation or self.handler


_SID: Final = (("type", "string"), ("pattern", "^[0-9A-Za-z]{22}$"))
_POSITION: Final = (("type", "integer"), ("minimum", 0), ("maximum", 10**15 - 1))
_NAMED: Final = ("X-Stream-Id",)
_EVENTS_TEXT: Final = (
    "The stream's events. The first, Open, has no id. "
    "Each further one is `id: <n>` and `data: <json>`, an Event, n growing by one; the last is "
    "done, error, cancelled or incomplete. Comments keep the connection alive. An answer that ends "
    "without one of these four can be resumed after the last id."
)
_FOLLOW_TEXT: Final = (
    f"{_EVENTS_TEXT} Past retention the numbers are gone, and any position with them: `from` in "
    "Open is `transcript` and `position` is 0, then comes a BranchTranscript for every branch, and "
    "one of the four, none with an id."
)

STREAM_ID = Parameter("id", "path", "The stream's id.", _SID)
TASK_ID = Parameter("id", "path", "The stream's id, as X-Stream-Id had it.", _SID)
AFTER = Parameter(
    "after", "query", "Go on after this event. Last-Event-ID wins when both are sent.", _POSITION
)
LAST_EVENT_ID = Parameter(
    "Last-Event-ID",
    "header",
    "Go on after this event; what an EventSource sends when it reconnects.",
    _POSITION,
)
RESUME_ID = Parameter(
    "Last-Event-ID",
    "header",
    "Attach to the stream of this id or key and go on after this event; never starts one.",
    _POSITION,
)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "A stream's id follows from it, so that a repetition attaches. An `id` in the body wins.",
    (("type", "string"), ("minLength", 1), ("maxLength", 256)),
)


def events(text: str) -> Answer:
    return Answer(200, text, media=EVENTS, headers=_NAMED)


def errors(*codes: str) -> tuple[Answer, ...]:
    """One answer for each status that the codes stand for."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(KINDS[code].status, []).append(code)
    return tuple(
        Answer(
            status,
            "Error code " + " or ".join(same) + ".",
            ErrorBody,
            headers=("Retry-After",) if any(KINDS[code].retryable for code in same) else (),
        )
        for status, same in by_status.items()
    )


_START_ERRORS: Final = errors(
    "bad_request",
    "not_found",
    "conflict",
    "gone",
    "payload_too_large",
    "unsupported_media_type",
    "invalid",
    "internal",
    "unavailable",
    "overloaded",
)
_FIND_ERRORS: Final = errors("not_found", "gone", "internal", "unavailable", "overloaded")
_FOLLOW: Final = (
    events(_FOLLOW_TEXT),
    Answer(204, "The stream has ended and the position is its end.", headers=_NAMED),
    *errors("bad_request"),
    *_FIND_ERRORS,
)
_CANCEL: Final = (
    Answer(200, "The stream had ended already.", CancelState, headers=_NAMED),
    Answer(202, "The cancellation is noted for good.", CancelState, headers=_NAMED),
    *_FIND_ERRORS,
)

ROUTES: Final = (
    Route(
        "POST",
        "/v1/streams",
        "start",
        "Start a stream, or attach to the one with this id.",
        (
            events(_EVENTS_TEXT),
            Answer(
                202,
                "Accepted; without text/event-stream in Accept.",
                Started,
                headers=(*_NAMED, "Location"),
            ),
            *_START_ERRORS,
        ),
        (IDEMPOTENCY_KEY, RESUME_ID),
        NewStream,
    ),
    Route(
        "GET",
        "/v1/streams/{id}/events",
        "events",
        "Follow a stream from a position, also after its end.",
        _FOLLOW,
        (STREAM_ID, AFTER, LAST_EVENT_ID),
    ),
    Route(
        "GET",
        "/v1/streams/{id}",
        "show",
        "What a stream has said so far.",
        (
            Answer(
                200,
                "The stream up to `position`; past retention, its transcript.",
                Snapshot,
                headers=_NAMED,
            ),
            *_FIND_ERRORS,
        ),
        (STREAM_ID,),
    ),
    Route(
        "DELETE",
        "/v1/streams/{id}",
        "cancel",
        "The same as cancel.",
        _CANCEL,
        (STREAM_ID,),
        operation="delete",
    ),
    Route(
        "POST",
        "/v1/streams/{id}/cancel",
        "cancel",
        "Stop a stream; what it has said is kept.",
        _CANCEL,
        (STREAM_ID,),
    ),
    Route(
        "POST",
        "/api/v1/chat/message/stream",
        "start_chat",
        "Send one message and follow the answer.",
        (events(_EVENTS_TEXT), *_START_ERRORS),
        (IDEMPOTENCY_KEY, RESUME_ID),
        NewChatMessage,
    ),
    Route(
        "GET",
        "/stream/{id}",
        "events",
        "Follow a stream by its task id.",
        _FOLLOW,
        (TASK_ID, AFTER, LAST_EVENT_ID),
        operation="events_of_task",
    ),
    Route("GET", "/healthz", "alive", "This process lives.", (Answer(200, "It does.", Alive),)),
    Route(
        "GET",
        "/readyz",
        "ready",
        "The mesh can take work.",
        (
            Answer(200, "Every service answers.", ReadyState),
            Answer(503, "`missing` names what does not.", ReadyState),
        ),
    ),
    Route(
        "GET",
        "/openapi.json",
        "openapi",
        "This document.",
        (Answer(200, "OpenAPI 3.1.", media=JSON),),
    ),
    Route("GET", "/", "welcome", "Where to look.", (Answer(200, "Addresses.", Welcome),)),
)
