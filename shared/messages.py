"""Every message between services. Commands are imperative, facts are in the past tense.

Requests are JSON, because anybody may publish them; the rest is msgpack. New fields have defaults,
so that a service reads what the previous release wrote.
"""

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from shared.events import ContextLoaded, Delta, Usage

ChatMessage: TypeAlias = dict[str, Any]
"""One message in the OpenAI chat form, passed on as it came."""

MidStream: TypeAlias = Literal["continue", "restart", "fail"]
OnDisconnect: TypeAlias = Literal["continue", "cancel"]
Priority: TypeAlias = Literal["high", "normal", "low"]

# Work items: JetStream, acknowledged after their effect ------------------------------------


class Timeouts(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The clocks of an attempt, in seconds; None means the service's default."""

    connect_s: float | None = None
    first_token_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None


class BranchRequest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One upstream generation as asked for. `params` are passed on to the provider untouched."""

    label: str | None = None
    model: str
    messages: list[ChatMessage] = []
    params: dict[str, Any] = {}
    fallbacks: list[str] = []


class StartStream(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`braid.request.<kind>`: make a stream. `accepted_seq` is 0 when its log isn't opened yet."""

    sid: str
    user_id: str
    session_id: str
    branches: list[BranchRequest]
    message: str | None = None
    use_rag: bool = True
    profile: dict[str, Any] | None = None
    history: list[ChatMessage] | None = None
    mid_stream: MidStream | None = None
    on_disconnect: OnDisconnect | None = None
    priority: Priority = "normal"
    timeouts: Timeouts = Timeouts()
    accepted_seq: int = 0
    accepted_at: float = 0.0


class GenerateBranch(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`braid.task.<pool>.<priority>`: produce one branch."""

    sid: str
    branch: int
    model: str
    messages: list[ChatMessage]
    params: dict[str, Any] = {}
    fallbacks: list[str] = []
    mid_stream: MidStream | None = None
    timeouts: Timeouts = Timeouts()


class BranchPlan(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the merger knows of a branch before its first chunk."""

    section: str | None = None
    model: str


class MergeStream(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`braid.merge.<shard>`: own a stream, whose first record is `accepted_seq`, to its end."""

    sid: str
    user_id: str
    session_id: str
    branches: list[BranchPlan]
    context: ContextLoaded
    accepted_seq: int
    accepted_at: float
    total_s: float | None = None


# Transcripts: `braid.persist.<session>.<sid>.<part>` ----------------------------------------


class _Transcript(Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True):
    sid: str
    user_id: str
    session_id: str
    content: str
    created_at: float
    """Unix seconds."""
    piece: int = 0
    pieces: int = 1
    """A text too long for one message comes as pieces 0 to pieces - 1."""


class QuestionAsked(_Transcript, frozen=True, tag="question"):
    """The user's message, known from acceptance."""


class BranchAnswered(_Transcript, frozen=True, tag="answer"):
    """What one branch said, as it was streamed; `status` is the branch's final phase in words."""

    branch: int
    model: str
    status: str
    section: str | None = None
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0


Transcript: TypeAlias = QuestionAsked | BranchAnswered

# Reading them again: core NATS, a question and its answer ------------------------------------


class ReadTranscript(Struct, frozen=True, array_like=True):
    """`braid.archive.<sid>`: send what is stored of this user's stream, from byte `offset` on.

    Answered by one TranscriptPart.
    """

    sid: str
    user_id: str
    offset: int = 0


class TranscriptPart(Struct, frozen=True, array_like=True):
    """Part of what is stored, or why there is none.

    `found`: `data` is what fits of `size` bytes, a msgpack list of whole Transcripts in the order
    of the turn. `foreign`: it is another user's. `waiting`: some of it is not stored yet. `away`:
    Postgres doesn't answer.
    """

    state: Literal["found", "unknown", "foreign", "waiting", "away"]
    data: bytes = b""
    size: int = 0


# Chunks, acks and control: core NATS ----------------------------------------------------------


class BranchEnd(Struct, frozen=True, array_like=True):
    """How an attempt ended: a `code` is a failure; without it or a reason, a truncation."""

    finish_reason: str | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False
    model: str = ""
    usage: Usage | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0


class Chunk(Struct, frozen=True, array_like=True):
    """`braid.chunks.<sid>`, reply = the worker's ack subject.

    Numbered `k` from 0 within an attempt. `attempt` grows with every try of a branch on any worker
    (see `attempt_number`). `seam` on an attempt's first chunk says what to do with a prefix that an
    earlier attempt has committed. `continue` holds only on top of exactly `kept_chars` committed
    characters of text, so that a prefix which has grown meanwhile is never spliced.
    """

    branch: int
    attempt: int
    k: int
    deltas: tuple[Delta, ...] = ()
    end: BranchEnd | None = None
    seam: Literal["", "continue", "restart", "fail"] = ""
    kept_chars: int = 0


AckState: TypeAlias = Literal["open", "closed", "fenced"]


class Ack(Struct, frozen=True, array_like=True):
    """Cumulative: every chunk of `attempt` up to `k` is committed (-1: none).

    `closed`: the branch needs nothing more, close the upstream connection. `fenced`: a later
    attempt has taken the branch over.
    """

    sid: str
    branch: int
    attempt: int
    k: int
    state: AckState = "open"


class Hello(Struct, frozen=True, tag_field="type", tag="hello", kw_only=True):
    """A merger owns the stream now: send again what is not acknowledged."""

    sid: str
    epoch: int


class StreamClosed(Struct, frozen=True, tag_field="type", tag="closed", kw_only=True):
    """The stream has its terminal: stop working for it."""

    sid: str


class CancelRequested(Struct, frozen=True, tag_field="type", tag="cancel", kw_only=True):
    """A durable cancel mark was set: look at it."""

    sid: str


class AskStanding(Struct, frozen=True, tag_field="type", tag="standing", kw_only=True):
    """A redelivered task's worker asks the owner where the branch stands; answered by Standing.

    From then on, chunks of attempts below `attempt` are fenced.
    """

    sid: str
    branch: int
    attempt: int = 0


class Standing(Struct, frozen=True, array_like=True):
    """The owner's answer to AskStanding; `text` is what is committed of the branch.

    `attempt` is the highest the owner has heard of: whoever has asked with a lower one is too late.
    """

    attempt: int
    k: int
    final: bool
    used_tools: bool
    text: str = ""


Control: TypeAlias = Hello | StreamClosed | CancelRequested | AskStanding

ATTEMPTS_PER_DELIVERY = 1_000


def attempt_number(delivery: int, local_try: int) -> int:
    """The attempt of the `local_try`-th call (from 0) during a task's `delivery` (from 1).

    JetStream counts deliveries, so two workers that hold the same task never share a number, and a
    zombie's is always lower than its successor's.
    """
    if not 0 <= local_try < ATTEMPTS_PER_DELIVERY or delivery < 1:
        raise ValueError(f"attempt out of range: delivery {delivery}, try {local_try}")
    return (delivery - 1) * ATTEMPTS_PER_DELIVERY + local_try


json_encoder = msgspec.json.Encoder()
msgpack_encoder = msgspec.msgpack.Encoder()
start_stream_decoder = msgspec.json.Decoder(StartStream)
generate_branch_decoder = msgspec.msgpack.Decoder(GenerateBranch)
merge_stream_decoder = msgspec.msgpack.Decoder(MergeStream)
transcript_decoder: msgspec.msgpack.Decoder[Transcript] = msgspec.msgpack.Decoder(Transcript)
stored_turn_decoder: msgspec.msgpack.Decoder[list[Transcript]] = msgspec.msgpack.Decoder(
    list[Transcript]
)
read_transcript_decoder = msgspec.msgpack.Decoder(ReadTranscript)
transcript_part_decoder = msgspec.msgpack.Decoder(TranscriptPart)
chunk_decoder = msgspec.msgpack.Decoder(Chunk)
acks_decoder = msgspec.msgpack.Decoder(list[Ack])
control_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
standing_decoder = msgspec.msgpack.Decoder(Standing)
