"""From the stored messages of a turn to what a client is told of its stream. Pure.

| statuses of the branches | the stream was |
|--------------------------|----------------|
| one is cancelled         | cancelled      |
| else one is done         | done           |
| else one is incomplete   | incomplete     |
| else                     | error          |

The merger has the same order, so this is how the stream ended. Only the code of an error is not
stored.
"""

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from services.edge.answers import BranchSnapshot, Snapshot, status_of
from services.edge.sse import BranchTranscript, branch_transcript, last_event
from shared.events import Cancelled, Done, Failed, Incomplete, Terminal
from shared.messages import BranchAnswered, Transcript


def answers_in(turn: Sequence[Transcript]) -> list[BranchAnswered]:
    return [message for message in turn if isinstance(message, BranchAnswered)]


def terminal_of(answers: Sequence[BranchAnswered]) -> Terminal:
    statuses = {answer.status for answer in answers}
    if "cancelled" in statuses:
        return Cancelled()
    if "done" in statuses:
        return Done()
    if "incomplete" in statuses:
        return Incomplete(reason="the upstream stopped without a finish reason")
    return Failed(code="gone", message="the stream ended with an error that is past retention")


def events_of(answers: Sequence[BranchAnswered]) -> Iterator[bytes]:
    """Every event after `open`, encoded."""
    for answer in answers:
        yield branch_transcript(
            BranchTranscript(
                branch=answer.branch,
                section=answer.section or UNSET,
                model=answer.model,
                status=answer.status,
                text=answer.content,
                reasoning=answer.reasoning,
                tool_calls=answer.tool_calls,
                finish_reason=answer.finish_reason,
                usage=answer.usage,
                ttft_ms=answer.ttft_ms,
                duration_ms=answer.duration_ms,
            )
        )
    yield last_event(terminal_of(answers))


def snapshot_of(sid: str, turn: Sequence[Transcript]) -> Snapshot:
    """`turn` must hold an answer."""
    answers = answers_in(turn)
    terminal = terminal_of(answers)
    return Snapshot(
        id=sid,
        source="transcript",
        session_id=answers[0].session_id,
        status=status_of(terminal),
        position=0,
        created_at=min(message.created_at for message in turn),
        branches=[_branch(answer) for answer in answers],
        context=None,
        stats=None,
        terminal=terminal,
    )


def _branch(answer: BranchAnswered) -> BranchSnapshot:
    return BranchSnapshot(
        branch=answer.branch,
        section=answer.section,
        model=answer.model,
        status=answer.status,  # type: ignore[arg-type]  # the fold's own words
        text=answer.content,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        ttft_ms=answer.ttft_ms,
        duration_ms=answer.duration_ms,
        error=None,
    )
