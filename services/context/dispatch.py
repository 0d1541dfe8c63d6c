"""What a request becomes: one question, one merge item, one task for every branch. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.context.loaders import Loaded
from services.context.prompt import assemble
from services.context.requests import needs_prompt
from shared.errors import BraidError
from shared.events import ContextLoaded
from shared.messages import (
    BranchPlan,
    ChatMessage,
    GenerateBranch,
    MergeStream,
    QuestionAsked,
    StartStream,
    msgpack_encoder,
)
from shared.pieces import split
from shared.subjects import Subjects

POOL = "default"


@dataclass(frozen=True, slots=True)
class Publication:
    """One JetStream publish; `msg_id` makes a repetition harmless."""

    subject: str
    payload: bytes
    msg_id: str


def publications(
    request: StartStream, loaded: Loaded, subjects: Subjects, *, max_bytes: int
) -> list[Publication]:
    """Everything to publish, in no order.

    Raises BraidError: `payload_too_large` when a branch's prompt does not fit into a message,
    `invalid` when it can't be written.
    """
    return [
        *_tasks(request, loaded, subjects, max_bytes),
        _merge(request, loaded, subjects),
        *_question(request, subjects, max_bytes),
    ]


def _tasks(
    request: StartStream, loaded: Loaded, subjects: Subjects, max_bytes: int
) -> Iterator[Publication]:
    prompt: list[ChatMessage] = []
    if needs_prompt(request):
        prompt = assemble(request.message or "", profile=loaded.profile, history=loaded.history)
    subject = subjects.task(POOL, request.priority)
    for index, branch in enumerate(request.branches):
        task = GenerateBranch(
            sid=request.sid,
            branch=index,
            model=branch.model,
            messages=branch.messages or prompt,
            params=branch.params,
            fallbacks=branch.fallbacks,
            mid_stream=request.mid_stream,
            timeouts=request.timeouts,
        )
        try:
            payload = msgpack_encoder.encode(task)
        except OverflowError:
            raise BraidError(
                "invalid", f"branch {index} has an integer of more than 64 bits: make it smaller"
            ) from None
        if len(payload) > max_bytes:
            raise BraidError(
                "payload_too_large",
                f"the messages and parameters of branch {index} take {len(payload)} bytes, and "
                f"{max_bytes} are the most that can be sent: shorten them",
            )
        yield Publication(subject, payload, f"{request.sid}.{index}")


def _merge(request: StartStream, loaded: Loaded, subjects: Subjects) -> Publication:
    used = needs_prompt(request)
    item = MergeStream(
        sid=request.sid,
        user_id=request.user_id,
        session_id=request.session_id,
        branches=[BranchPlan(section=b.label, model=b.model) for b in request.branches],
        context=ContextLoaded(
            history_messages=len(loaded.history) if used else 0,
            profile=bool(loaded.profile) and used,
            timings_ms=loaded.timings_ms,
            degraded=sorted(loaded.degraded),
        ),
        accepted_seq=request.accepted_seq,
        accepted_at=request.accepted_at,
        total_s=request.timeouts.total_s,
    )
    return Publication(subjects.merge(request.sid), msgpack_encoder.encode(item), request.sid)


def _question(request: StartStream, subjects: Subjects, max_bytes: int) -> Iterator[Publication]:
    text = question_of(request)
    if not text:
        return
    pieces = split(text, max_bytes)
    for number, piece in enumerate(pieces):
        part = "q" if len(pieces) == 1 else f"q-{number}"
        asked = QuestionAsked(
            sid=request.sid,
            user_id=request.user_id,
            session_id=request.session_id,
            content=piece,
            created_at=request.accepted_at,
            piece=number,
            pieces=len(pieces),
        )
        yield Publication(
            subjects.persist(request.session_id, request.sid, part),
            msgpack_encoder.encode(asked),
            f"{request.sid}.{part}",
        )


def question_of(request: StartStream) -> str:
    """What the user said: `message`, or the last user message that the first branch brings."""
    if request.message:
        return request.message
    said = [m for m in request.branches[0].messages if m.get("role") == "user"]
    return _text_of(said[-1].get("content")) if said else ""


def _text_of(content: Any) -> str:
    """The text of a message, without its images and sounds."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
