"""From a folded stream to the transcripts that Postgres keeps. Pure."""

from collections.abc import Iterator

from msgspec.structs import replace

from shared.fold import BranchView, StreamView
from shared.messages import BranchAnswered, MergeStream
from shared.pieces import split


def transcripts(
    item: MergeStream, view: StreamView, *, max_bytes: int, created_at: float
) -> Iterator[tuple[str, BranchAnswered]]:
    """For every branch its answer, as (subject part, message).

    A text and a reasoning that together exceed `max_bytes` of UTF-8 come in pieces; the first has
    everything else.
    """
    for index, plan in enumerate(item.branches):
        branch = view.branches.get(index, BranchView(index, plan.section, plan.model))
        whole = BranchAnswered(
            sid=item.sid,
            user_id=item.user_id,
            session_id=item.session_id,
            content="",
            created_at=created_at,
            branch=index,
            model=branch.model or plan.model,
            section=plan.section,
            status=branch.status,
            tool_calls=branch.tool_calls,
            finish_reason=branch.finish_reason,
            usage=branch.usage,
            ttft_ms=branch.ttft_ms,
            duration_ms=branch.duration_ms,
        )
        pieces = _pieces(whole, branch.text, branch.reasoning, max_bytes)
        for number, piece in enumerate(pieces):
            part = f"a{index}" if len(pieces) == 1 else f"a{index}-{number}"
            yield part, replace(piece, piece=number, pieces=len(pieces))


def _pieces(
    whole: BranchAnswered, text: str, reasoning: str, max_bytes: int
) -> list[BranchAnswered]:
    """One message when all fits, else a piece for every part of the text and the reasoning."""
    if len(text.encode()) + len(reasoning.encode()) <= max_bytes:
        return [replace(whole, content=text, reasoning=reasoning)]
    rest = replace(whole, tool_calls=[])
    return [
        whole,
        *(replace(rest, content=piece) for piece in split(text, max_bytes)),
        *(replace(rest, reasoning=piece) for piece in split(reasoning, max_bytes)),
    ]
