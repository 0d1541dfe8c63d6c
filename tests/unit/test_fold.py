"""What is stored is what was streamed: one fold of the records says it for everybody."""

from typing import Any

import pytest

from shared.events import (
    Accepted,
    BranchContinued,
    BranchDone,
    BranchFailed,
    BranchReset,
    BranchStarted,
    Cancelled,
    Checkpoint,
    ContextLoaded,
    Delta,
    Done,
    Event,
    Failed,
    Incomplete,
    Record,
    ToolFragment,
)
from shared.fold import StreamView, fold


def view_of(*events: Event) -> StreamView:
    return fold([Record(1, 1, events, Checkpoint(()))])


def test_the_first_record_says_whose_the_stream_is() -> None:
    accepted = Accepted("me", "sess", "ff", 1.0)
    view = fold([Record(0, 1, (), Checkpoint(()), accepted)])
    assert view.accepted == accepted
    assert view.position == 0
    assert view.terminal is None


def test_text_and_reasoning_are_kept_apart_and_in_order() -> None:
    view = view_of(
        BranchStarted(branch=0, model="m"),
        Delta(0, reasoning="so "),
        Delta(0, "a"),
        Delta(0, reasoning="then"),
        Delta(0, "b"),
    )
    branch = view.branches[0]
    assert (branch.text, branch.reasoning, branch.status) == ("ab", "so then", "streaming")
    assert view.position == 5


def test_fragments_of_tool_calls_become_whole_calls_by_index() -> None:
    view = view_of(
        Delta(0, tool_call=ToolFragment(1, "c2", "g", "{}")),
        Delta(0, tool_call=ToolFragment(0, "c1", "f", '{"a":')),
        Delta(0, tool_call=ToolFragment(0, arguments="1}")),
    )
    assert view.branches[0].tool_calls == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_after_a_reset_only_the_new_attempt_counts() -> None:
    view = view_of(
        Delta(0, "old"),
        Delta(0, tool_call=ToolFragment(0, "c", "f", "{}")),
        BranchReset(branch=0, attempt=1, reason="r", discarded_chars=3),
        Delta(0, "new"),
    )
    branch = view.branches[0]
    assert (branch.text, branch.tool_calls, branch.attempts) == ("new", [], 2)


def test_a_continuation_keeps_the_prefix() -> None:
    view = view_of(
        Delta(0, "Hello "),
        BranchContinued(branch=0, attempt=1, reason="r", kept_chars=6),
        Delta(0, "world"),
    )
    assert view.branches[0].text == "Hello world"


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([BranchDone(branch=0, finish_reason="stop"), Done()], "done"),
        ([BranchDone(branch=0, finish_reason="incomplete"), Incomplete()], "incomplete"),
        ([BranchFailed(branch=0, code="internal", message="x"), Done()], "failed"),
        ([Cancelled(reason="user")], "cancelled"),
        ([Failed(code="expired", message="late")], "failed"),
    ],
)
def test_the_end_of_a_branch_is_its_own_or_its_stream_s(events: list[Any], status: str) -> None:
    view = view_of(ContextLoaded(), Delta(0, "x"), *events)
    assert view.branches[0].status == status
    assert view.terminal == (events[-1] if not isinstance(events[-1], BranchFailed) else None)
