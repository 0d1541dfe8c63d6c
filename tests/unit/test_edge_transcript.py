"""What is stored of a turn becomes one replay that says what it is."""

import json
from typing import Any

import pytest

from services.edge.sse import RETRY_NEVER_MS
from services.edge.transcript import events_of, snapshot_of, terminal_of
from shared.events import Usage
from shared.messages import BranchAnswered, QuestionAsked

SID = "A" * 22


def answer(branch: int = 0, status: str = "done", **fields: Any) -> BranchAnswered:
    common = {"sid": SID, "user_id": "u", "session_id": "s", "created_at": 9.0}
    given: dict[str, Any] = {"content": "hi", "model": "m"} | common | fields
    return BranchAnswered(branch=branch, status=status, **given)


def question() -> QuestionAsked:
    return QuestionAsked(sid=SID, user_id="u", session_id="s", created_at=5.0, content="why?")


@pytest.mark.parametrize(
    ("statuses", "terminal"),
    [
        (["done"], "done"),
        (["failed", "done", "incomplete"], "done"),
        (["done", "cancelled"], "cancelled"),
        (["failed", "cancelled"], "cancelled"),
        (["failed", "incomplete"], "incomplete"),
        (["failed"], "error"),
    ],
)
def test_the_terminal_is_the_one_the_merger_would_have_chosen(
    statuses: list[str], terminal: str
) -> None:
    answers = [answer(branch, status) for branch, status in enumerate(statuses)]
    *_, last = events_of(answers)
    assert json.loads(last.partition(b"data: ")[2])["type"] == terminal
    assert snapshot_of(SID, answers).status == terminal


def test_no_event_has_a_number_because_the_numbers_are_gone() -> None:
    blocks = list(events_of([answer(0), answer(1)]))
    assert len(blocks) == 3
    assert not any(b"id: " in block for block in blocks)
    assert all(block.endswith(b"\n\n") and block.count(b"\n\n") == 1 for block in blocks)


def test_an_eventsource_that_has_no_number_to_send_is_told_not_to_come_back_for_the_whole() -> None:
    first, last = events_of([answer()])
    assert b"retry" not in first
    assert last.startswith(b"retry: %d\n" % RETRY_NEVER_MS)


def test_an_event_has_all_that_is_stored_of_its_branch() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    whole = answer(
        section="facts",
        reasoning="hm",
        tool_calls=[call],
        finish_reason="stop",
        usage=Usage(1, 2, 3, "upstream"),
        ttft_ms=1.5,
        duration_ms=2.5,
    )
    first, _ = events_of([whole])
    assert json.loads(first.partition(b"data: ")[2]) == {
        "type": "transcript",
        "branch": 0,
        "section": "facts",
        "model": "m",
        "status": "done",
        "text": "hi",
        "reasoning": "hm",
        "tool_calls": [call],
        "finish_reason": "stop",
        "usage": {
            **{"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            **{"source": "upstream", "reasoning_tokens": 0, "cached_tokens": 0},
        },
        "ttft_ms": 1.5,
        "duration_ms": 2.5,
    }


def test_a_snapshot_dates_from_the_question() -> None:
    snapshot = snapshot_of(SID, [question(), answer()])
    assert (snapshot.source, snapshot.position, snapshot.created_at) == ("transcript", 0, 5.0)
    assert [branch.text for branch in snapshot.branches] == ["hi"]
    assert terminal_of([answer()]) == snapshot.terminal
