"""From transcripts to rows. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from shared.events import Usage
from shared.messages import BranchAnswered, QuestionAsked, Transcript

LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
INT_MAX = 2**31 - 1

_tool_calls = msgspec.json.Decoder(list[dict[str, Any]])
_usage = msgspec.json.Decoder(Usage)


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A row of `messages`, without what the database adds."""

    id: str
    session_id: str
    sid: str
    user_id: str
    role: str
    branch: int | None
    section: str | None
    model: str | None
    status: str | None
    content: str
    reasoning: str
    tool_calls: str | None
    """JSON, as `usage`."""
    finish_reason: str | None
    usage: str | None
    ttft_ms: float | None
    duration_ms: float | None
    created_at: datetime
    position: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a batch says of a session: whose it is, and when it was first and last spoken in."""

    session_id: str
    user_id: str
    first_at: datetime
    last_at: datetime


def message_id(transcript: Transcript) -> str:
    """`<sid>.q` or `<sid>.<branch>`: the same for every delivery and every piece."""
    match transcript:
        case QuestionAsked():
            return f"{transcript.sid}.q"
        case BranchAnswered():
            return f"{transcript.sid}.{transcript.branch}"


def problem_of(transcript: Transcript) -> str | None:
    """What makes a transcript impossible to store, ever; only a faulty sender makes such."""
    if not 0 <= transcript.piece < transcript.pieces <= INT_MAX:
        return f"piece {transcript.piece} of {transcript.pieces}"
    if isinstance(transcript, BranchAnswered) and not 0 <= transcript.branch < INT_MAX:
        return f"branch {transcript.branch}"
    return None


def clean(transcript: Transcript) -> Transcript:
    """The same without what Postgres refuses in a text: U+0000. Nothing else is lost for it."""
    changed = {
        name: value.replace("\0", "")
        for name, value in asdict(transcript).items()
        if isinstance(value, str) and "\0" in value
    }
    return replace(transcript, **changed) if changed else transcript


def row_of(transcript: Transcript) -> MessageRow:
    """The row of a whole, clean message."""
    answer = transcript if isinstance(transcript, BranchAnswered) else None
    return MessageRow(
        id=message_id(transcript),
        session_id=transcript.session_id,
        sid=transcript.sid,
        user_id=transcript.user_id,
        role="assistant" if answer else "user",
        branch=answer.branch if answer else None,
        section=answer.section if answer else None,
        model=answer.model if answer else None,
        status=answer.status if answer else None,
        content=transcript.content,
        reasoning=answer.reasoning if answer else "",
        tool_calls=_json(answer.tool_calls or None) if answer else None,
        finish_reason=answer.finish_reason if answer else None,
        usage=_json(answer.usage) if answer else None,
        ttft_ms=answer.ttft_ms if answer else None,
        duration_ms=answer.duration_ms if answer else None,
        created_at=moment(transcript.created_at),
        position=answer.branch + 1 if answer else 0,
    )


def transcript_of(row: MessageRow) -> Transcript:
    """What `row_of` made the row of, as far as Postgres keeps it. JSON is given as text."""
    common: dict[str, Any] = {
        "sid": row.sid,
        "user_id": row.user_id,
        "session_id": row.session_id,
        "content": row.content,
        "created_at": row.created_at.timestamp(),
    }
    if row.branch is None:
        return QuestionAsked(**common)
    return BranchAnswered(
        **common,
        branch=row.branch,
        section=row.section,
        model=row.model or "",
        status=row.status or "",
        reasoning=row.reasoning,
        tool_calls=_tool_calls.decode(row.tool_calls) if row.tool_calls else [],
        finish_reason=row.finish_reason,
        usage=_usage.decode(row.usage) if row.usage else None,
        ttft_ms=row.ttft_ms,
        duration_ms=row.duration_ms or 0.0,
    )


def claims(transcripts: Iterable[Transcript]) -> list[Claim]:
    """One claim for every session, sorted: two writers lock the same rows in the same order.

    When two users name one session, the first in the batch claims it.
    """
    found: dict[str, Claim] = {}
    for transcript in transcripts:
        at = moment(transcript.created_at)
        known = found.get(transcript.session_id)
        if known is None:
            found[transcript.session_id] = Claim(transcript.session_id, transcript.user_id, at, at)
        elif known.user_id == transcript.user_id:
            found[transcript.session_id] = Claim(
                known.session_id, known.user_id, min(known.first_at, at), max(known.last_at, at)
            )
    return sorted(found.values(), key=lambda claim: claim.session_id)


def assemble(pieces: Sequence[Transcript]) -> Transcript | None:
    """The whole message, or None while a piece is missing. Any order, any repetition.

    Texts and tool calls are joined in the order of the pieces; the rest is the first piece's. A
    message that was cut twice, differently, is joined from whichever cut is complete.
    """
    cuts: dict[int, dict[int, Transcript]] = {}
    for piece in pieces:
        cuts.setdefault(piece.pieces, {})[piece.piece] = piece
    complete = [cut for total, cut in cuts.items() if len(cut) == total]
    if not complete:
        return None
    ordered = [piece for _, piece in sorted(complete[0].items())]
    first = ordered[0]
    whole = replace(first, content="".join(piece.content for piece in ordered), pieces=1)
    answers = [piece for piece in ordered if isinstance(piece, BranchAnswered)]
    if not isinstance(whole, BranchAnswered):
        return whole
    return replace(
        whole,
        reasoning="".join(piece.reasoning for piece in answers),
        tool_calls=[call for piece in answers for call in piece.tool_calls],
    )


def moment(unix_s: float) -> datetime:
    """The time, brought into the range that both Python and Postgres can hold."""
    if not math.isfinite(unix_s):
        unix_s = 0.0
    return datetime.fromtimestamp(min(max(unix_s, 0.0), LATEST), UTC)


def _json(value: object) -> str | None:
    if value is None:
        return None
    return msgspec.json.encode(_without_nul(msgspec.to_builtins(value))).decode()


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", "")
        case list():
            return [_without_nul(item) for item in value]
        case dict():
            return {_without_nul(key): _without_nul(item) for key, item in value.items()}
        case _:
            return value
