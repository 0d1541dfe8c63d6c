"""From a folded stream to the transcripts that Postgres keeps. Pure."""

from collections.abc import Iterator

from msgspec.structs import replace

from shared.fold import BranchView, StreamView
from shared.messages import BranchAnswered, MergeStream


def transcripts(
    item: MergeStream, view: StreamView, *, max_bytes: int, created_at: float
) -> Iterator[tuple[str, BranchAnswered]]:
    """For every branch its answer, as (subject part, message).

    A text whose message would exceed `max_bytes` comes in pieces; the first has everything else.
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
            reasoning=branch.reasoning,
            tool_calls=branch.tool_calls,
            finish_reason=branch.finish_reason,
            usage=branch.usage,
            ttft_ms=branch.ttft_ms,
            duration_ms=branch.duration_ms,
        )
        pieces = list(_split(branch.text, max_bytes))
        for number, piece in enumerate(pieces):
            part = f"a{index}" if number == 0 else f"a{index}-{number}"
            first = whole if number == 0 else replace(whole, reasoning="", tool_calls=[])
            yield part, replace(first, content=piece, piece=number, pieces=len(pieces))


def _split(text: str, max_bytes: int) -> Iterator[str]:
    """Pieces of at most `max_bytes` in UTF-8; at least one, perhaps empty."""
    max_chars = max(1, max_bytes if text.isascii() else max_bytes // 4)
    for start in range(0, max(1, len(text)), max_chars):
        yield text[start : start + max_chars]
