"""What the headers of a request ask for. Pure functions of header values."""

import re
from typing import Final

from shared.errors import BraidError

_POSITION: Final = re.compile(r"[0-9]{1,15}")
_JSON: Final = re.compile(r"application/([\w.-]+\+)?json")


def require_json(content_type: str | None) -> None:
    """Raises BraidError `unsupported_media_type` unless the body is said to be JSON in UTF-8."""
    kind, *parameters = (part.strip().lower() for part in (content_type or "").split(";"))
    charsets = [value for value in parameters if value.startswith("charset=")]
    if not _JSON.fullmatch(kind) or any(
        value.removeprefix("charset=").strip('"') not in {"utf-8", "utf8"} for value in charsets
    ):
        raise BraidError(
            "unsupported_media_type",
            "send JSON in UTF-8, with the header Content-Type: application/json",
            param="Content-Type",
        )


def wants_events(accept: str | None) -> bool:
    """True when the answer is to be a stream: `Accept` names text/event-stream."""
    kinds = [part.split(";") for part in (accept or "").lower().split(",")]
    return any(
        kind.strip() == "text/event-stream"
        and not any(value.strip().replace(" ", "") in {"q=0", "q=0.0"} for value in parameters)
        for kind, *parameters in kinds
    )


def position(last_event_id: str | None, after: str | None) -> int:
    """After which event to go on: 0 is the beginning.

    `Last-Event-ID` wins over `?after=`: an EventSource that reconnects sends the address it was
    given at first, and in the header what it has seen since. Raises BraidError `bad_request`.
    """
    param, value = ("Last-Event-ID", last_event_id) if last_event_id else ("after", after)
    if not value:
        return 0
    if not _POSITION.fullmatch(value):
        raise BraidError(
            "bad_request",
            f"`{param}` must be the id of an event of this stream: a whole number from 0",
            param=param,
        )
    return int(value)


def require_reached(after: int, last_n: int) -> None:
    """Raises BraidError `bad_request` for a position that the stream has not come to."""
    if after > last_n:
        raise BraidError(
            "bad_request",
            f"event {after} is not of this stream, whose last event is {last_n}: "
            "go on after an id that was received from it",
            param="after",
        )
