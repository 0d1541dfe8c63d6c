"""What a client can see: the numbered events of a stream, and the record that commits them.

An event is encoded as a map whose `type` is the name the client sees, so the native JSON of an
event is the event itself. Records, checkpoints and branch states are arrays: they are written once
per token and read by nobody but the mesh. New fields are appended and have defaults.
"""

from enum import IntEnum
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

# Pieces of events -----------------------------------------------------------------------


class ToolFragment(Struct, frozen=True, omit_defaults=True):
    """A piece of one tool call; `index` tells a branch's calls apart, `arguments` is a fragment."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Usage(Struct, frozen=True):
    """Tokens of one branch; `source` says who counted: `upstream`, `tiktoken` or `estimate`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: str
    reasoning_tokens: int = 0
    cached_tokens: int = 0


class Source(Struct, frozen=True):
    """A retrieved passage that the answer may cite as `[number]`."""

    number: int
    document: str
    passage: str
    score: float = 0.0


# Events ---------------------------------------------------------------------------------


class _Event(Struct, frozen=True, tag_field="type", kw_only=True):
    pass


class _BranchEvent(_Event, frozen=True, kw_only=True):
    branch: int
    section: str | UnsetType = UNSET
    model: str | UnsetType = UNSET


class ContextLoaded(_Event, frozen=True, tag="context"):
    """What the answer rests on; `degraded` names the parts that were wanted but not to be had."""

    history_messages: int = 0
    profile: bool = False
    sources: list[Source] = []
    timings_ms: dict[str, float] = {}
    degraded: list[str] = []


class BranchStarted(_BranchEvent, frozen=True, tag="branch.start"):
    pass


class Delta(Struct, frozen=True, tag_field="type", tag="delta", omit_defaults=True):
    """A piece of one branch; exactly one of text, reasoning and tool_call is set."""

    branch: int
    text: str = ""
    reasoning: str = ""
    tool_call: ToolFragment | None = None


class BranchReset(_BranchEvent, frozen=True, tag="branch.reset"):
    """The seam of a restart: what the branch said so far is void, a new attempt begins."""

    attempt: int
    reason: str
    discarded_chars: int


class BranchContinued(_BranchEvent, frozen=True, tag="branch.continued"):
    """The seam of a continuation: a new attempt goes on where the last one broke off."""

    attempt: int
    reason: str
    kept_chars: int


class BranchDone(_BranchEvent, frozen=True, tag="branch.done"):
    """The end of a branch. `finish_reason` is the upstream's word, or `incomplete` without one."""

    finish_reason: str
    usage: Usage | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    chunks: int = 0
    chars: int = 0


class BranchFailed(_BranchEvent, frozen=True, tag="branch.error"):
    code: str
    message: str
    retryable: bool = False
    chunks: int = 0
    chars: int = 0


class JsonParsed(_BranchEvent, frozen=True, tag="json"):
    value: Any = None
    partial: bool = False


class Stats(_Event, frozen=True, tag="stats"):
    """Totals over all branches, counted by the owner; rates are per second of the stream."""

    branches: int
    succeeded: int
    failed: int
    chunks: int
    chars: int
    ttft_ms: float | None
    duration_ms: float
    chunks_per_s: float
    chars_per_s: float
    usage: Usage | None = None


class Done(_Event, frozen=True, tag="done"):
    pass


class Failed(_Event, frozen=True, tag="error"):
    code: str
    message: str
    retryable: bool = False


class Cancelled(_Event, frozen=True, tag="cancelled"):
    reason: str = ""


class Incomplete(_Event, frozen=True, tag="incomplete"):
    """The upstream stopped without saying that it had finished."""

    reason: str = ""


Event: TypeAlias = (
    Delta
    | ContextLoaded
    | BranchStarted
    | BranchReset
    | BranchContinued
    | BranchDone
    | BranchFailed
    | JsonParsed
    | Stats
    | Done
    | Failed
    | Cancelled
    | Incomplete
)
Terminal: TypeAlias = Done | Failed | Cancelled | Incomplete
TERMINALS = (Done, Failed, Cancelled, Incomplete)

# The log --------------------------------------------------------------------------------


class BranchPhase(IntEnum):
    """Where a branch stands; everything from DONE on is final."""

    WAITING = 0
    STREAMING = 1
    DONE = 2
    INCOMPLETE = 3
    FAILED = 4


class BranchState(Struct, frozen=True, array_like=True):
    """All a new owner needs to know of a branch: `k` is the last committed chunk of `attempt`.

    `chars` counts the text of the attempt that stands, and is 0 again after a reset.
    """

    attempt: int = -1
    k: int = -1
    phase: BranchPhase = BranchPhase.WAITING
    chunks: int = 0
    chars: int = 0
    used_tools: bool = False
    seams: int = 0
    usage: Usage | None = None
    code: str = ""

    @property
    def final(self) -> bool:
        return self.phase >= BranchPhase.DONE


class Checkpoint(Struct, frozen=True, array_like=True):
    """Everything a new owner goes on from; `first_delta_at` is Unix seconds, 0 before it."""

    branches: tuple[BranchState, ...]
    first_delta_at: float = 0.0


class Accepted(Struct, frozen=True, array_like=True):
    """The first record's note of who may read the stream and what was asked (as a SHA-256)."""

    user_id: str
    session_id: str
    fingerprint: str
    accepted_at: float
    on_disconnect: str = ""
    """`continue` or `cancel`; empty: as the edge's settings say."""


class Record(Struct, frozen=True, array_like=True):
    """One committed log message: `events` are numbered `n_first`, `n_first + 1`, …

    The first record of a stream has epoch 0, no events and `accepted`. A record without events is
    an owner's claim. `finished` is true for the one record that ends in the terminal.
    """

    epoch: int
    n_first: int
    events: tuple[Event, ...]
    checkpoint: Checkpoint
    accepted: Accepted | None = None
    finished: bool = False

    @property
    def n_next(self) -> int:
        return self.n_first + len(self.events)


_record_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    return _record_encoder.encode(record)


def decode_record(payload: bytes) -> Record:
    """Raises msgspec.DecodeError (a ValueError) for anything that is not a record."""
    return _record_decoder.decode(payload)
