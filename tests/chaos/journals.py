"""What a campaign writes down, as data: the checker and the report read nothing else.

Times are seconds of the machine's monotonic clock, which the upstream uses too.
"""

import gzip
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

End = Literal["terminal", "ended", "broken", "refused"]
"""terminal: the stream's end was read. ended: a clean end without it. broken: cut, or silent for
too long. refused: an HTTP status that is no stream."""


class Seen(Struct, frozen=True, array_like=True):
    """One event as it came; `raw` is its block of the text/event-stream."""

    n: int
    raw: str
    connection: int
    at: float


class Connection(Struct, array_like=True):
    """One try to read a stream; `opened_at` is when its `open` event came."""

    number: int
    method: str
    began_at: float
    opened_at: float | None = None
    ended_at: float | None = None
    end: End | None = None
    status: int | None = None


class Reading(Struct):
    """Everything one reader has had of a stream, after event `after`; append-only."""

    sid: str
    reader: str
    after: int = 0
    connections: list[Connection] = []
    events: list[Seen] = []
    strange: list[str] = []
    """What no right edge answers: a refused position, a stream that is not known, …"""


class AskedBranch(Struct, frozen=True):
    label: str | None
    tokens: int


class Asked(Struct):
    """One stream as its client asked for it, and what it knows besides its events."""

    sid: str
    session_id: str
    question: str
    branches: list[AskedBranch]
    mid_stream: Literal["continue", "restart", "fail"]
    deadline_s: float
    asked_at: float
    accepted_at: float | None = None
    """When the first answer with status 200 came."""
    cancel_tried_at: float | None = None
    cancelled_at: float | None = None
    """When a cancel was answered with 202: it is durable from then on."""


class Call(Struct, frozen=True):
    """One generation as the upstream saw it."""

    sid: str
    branch: int
    attempt: int
    started_at: float
    ended_at: float | None
    ended: str | None
    tokens_sent: int


class Logged(Struct):
    """One record of a stream's log; events in their JSON form."""

    seq: int
    epoch: int
    n_first: int
    events: list[dict[str, Any]]
    opens: bool = False
    """It is the record of acceptance."""
    finished: bool = False
    at: float | None = None
    """When it was committed; known of the first record of a take-over."""


class Row(Struct):
    """One row of `messages`."""

    id: str
    sid: str
    session_id: str
    role: str
    branch: int | None
    section: str | None
    status: str | None
    content: str


class Hit(Struct):
    """One fault: `until` is when a stopped process was continued (a killed one: the kill)."""

    service: str
    name: str
    kind: Literal["kill", "stop"]
    at: float = 0.0
    until: float = 0.0
    healed_at: float | None = None


class Health(Struct):
    """The mesh after its last fault."""

    backlog: dict[str, int]
    """Messages left in each work queue when the wait for them was over."""
    pieces_left: int
    """Rows of `message_pieces`: parts of messages that were never completed."""
    probe: str
    """The terminal of one more stream, or what came instead."""
    drained_s: float
    calls_dropped: int = 0
    """Entries the upstream's journal had no room for."""


class Journals(Struct):
    """A whole campaign."""

    seed: int
    asked: list[Asked]
    readings: list[Reading]
    calls: list[Call]
    log: dict[str, list[Logged]]
    rows: list[Row]
    hits: list[Hit]
    health: Health


class Violation(Struct, frozen=True):
    """`invariant` is I1 to I8, or `stale` for a write of a fenced owner that was accepted."""

    invariant: str
    sid: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.sid}: {self.detail}"


def save(journals: Journals, path: Path) -> None:
    path.write_bytes(gzip.compress(msgspec.msgpack.encode(journals), mtime=0))


def load(path: Path) -> Journals:
    """Raises OSError, or msgspec.DecodeError for what `save` has not written."""
    return msgspec.msgpack.decode(gzip.decompress(path.read_bytes()), type=Journals)


def shown(event: Seen) -> dict[str, Any]:
    """The JSON of an event as a client reads it. Raises ValueError for anything else."""
    lines = event.raw.removesuffix("\n\n").split("\n")
    if len(lines) != 2 or lines[0] != f"id: {event.n}" or not lines[1].startswith("data: "):
        raise ValueError("not one id and one data line")
    value: dict[str, Any] = msgspec.json.decode(lines[1].removeprefix("data: "), type=dict)
    return value


TERMINALS = frozenset({"done", "error", "cancelled", "incomplete"})


def terminal_of(records: list[Logged]) -> str | None:
    """How a stream ended, as its log has it."""
    for record in reversed(records):
        for event in reversed(record.events):
            if event["type"] in TERMINALS:
                return str(event["type"])
    return None
