"""The native dialect: a stream's events as Server-Sent Events. Pure.

An event is `id: <n>` and `data: <json>`, ended by an empty line, LF only. JSON never holds a raw
line end, so one `data:` line is enough. The format is WHATWG HTML, section 9.2.
"""

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType, field
from msgspec.structs import replace

from shared.events import (
    BranchContinued,
    BranchDone,
    BranchFailed,
    BranchReset,
    BranchStarted,
    Delta,
    Event,
    JsonParsed,
    Terminal,
    Usage,
)

KEEP_ALIVE = b": keep-alive\n\n"
RETRY_MIN_MS = 1_000
RETRY_MAX_MS = 3_000
RETRY_NEVER_MS: Final = 24 * 3_600 * 1_000
"""For a terminal without a number: an EventSource would come back for the whole again and again."""

_json = msgspec.json.Encoder()
_BRANCH_EVENTS = (
    BranchStarted,
    BranchReset,
    BranchContinued,
    BranchDone,
    BranchFailed,
    JsonParsed,
)


SourceName = Literal["log", "transcript"]


class Open(msgspec.Struct, frozen=True, tag_field="type", tag="open"):
    """The first thing a reader is told; events after `position` follow. It has no id.

    From the log, they are numbered. From the transcript, there is one for every branch, then the
    terminal; none has a number, and `position` is 0.
    """

    stream_id: str
    session_id: str
    position: int
    source: SourceName = field(default="log", name="from")


class BranchTranscript(
    msgspec.Struct, frozen=True, tag_field="type", tag="transcript", kw_only=True
):
    """All that is stored of one branch. It has no id."""

    branch: int
    section: str | UnsetType = UNSET
    model: str
    status: str
    text: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str | None
    usage: Usage | None
    ttft_ms: float | None
    duration_ms: float


def open_event(event: Open, retry_ms: int) -> bytes:
    """The `open` event and, in the same block, when to reconnect after a lost connection."""
    return b"retry: %d\ndata: %b\n\n" % (retry_ms, _json.encode(event))


def branch_transcript(event: BranchTranscript) -> bytes:
    return b"data: %b\n\n" % _json.encode(event)


def last_event(event: Terminal) -> bytes:
    """A terminal that has no number."""
    return b"retry: %d\ndata: %b\n\n" % (RETRY_NEVER_MS, _json.encode(event))


class NativeEvents:
    """Encodes the events of one stream for one reader; it must be shown all of them, in order.

    A delta is the hot path: what its branch has in common with every other is encoded once.
    """

    def __init__(self) -> None:
        self._names: dict[int, dict[str, str]] = {}
        self._prefixes: dict[int, bytes] = {}

    def skip(self, event: Event) -> None:
        """Take note of an event that the reader has already."""
        if isinstance(event, BranchStarted):
            self._name(event)

    def encode(self, n: int, event: Event) -> bytes:
        if isinstance(event, Delta):
            return b"id: %d\ndata: %b%b}\n\n" % (n, self._prefix(event.branch), _content(event))
        if isinstance(event, BranchStarted):
            self._name(event)
        elif isinstance(event, _BRANCH_EVENTS) and event.section is UNSET and event.model is UNSET:
            event = replace(event, **self._names.get(event.branch, {}))
        return b"id: %d\ndata: %b\n\n" % (n, _json.encode(event))

    def _name(self, event: BranchStarted) -> None:
        if event.section is not UNSET:
            self._names[event.branch] = {"section": event.section}
        elif event.model is not UNSET:
            self._names[event.branch] = {"model": event.model}
        self._prefixes.pop(event.branch, None)

    def _prefix(self, branch: int) -> bytes:
        prefix = self._prefixes.get(branch)
        if prefix is None:
            head = {"type": "delta", "branch": branch, **self._names.get(branch, {})}
            prefix = self._prefixes[branch] = _json.encode(head)[:-1]
        return prefix


def _content(delta: Delta) -> bytes:
    parts = []
    if delta.text:
        parts.append(b',"text":' + _json.encode(delta.text))
    if delta.reasoning:
        parts.append(b',"reasoning":' + _json.encode(delta.reasoning))
    if delta.tool_call is not None:
        parts.append(b',"tool_call":' + _json.encode(delta.tool_call))
    return b"".join(parts)
