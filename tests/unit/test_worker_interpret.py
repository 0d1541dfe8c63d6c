"""What a provider's events mean, by table; and nothing of what it said is lost or doubled."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.failures import Failure
from services.worker.interpret import MAX_CHUNK_TEXT_BYTES, Interpreter
from shared.events import Delta, ToolFragment, Usage
from shared.fold import BranchView

ROLE = {"role": "assistant", "content": ""}


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **rest: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **rest}).encode()


def text(said: str) -> bytes:
    return event({"content": said})


def meaning_of(*events: bytes, **how: Any) -> Interpreter:
    meaning = Interpreter(0, **how)
    for each in events:
        meaning.read(each)
    return meaning


def deltas_of(meaning: Interpreter) -> list[Delta]:
    return [delta for batch in meaning.take() for delta in batch]


def code_of(meaning: Interpreter) -> str:
    ended = meaning.conclude()
    assert isinstance(ended, Failure)
    return ended.code


FINISH = event(finish="stop")
DONE = b"[DONE]"


@pytest.mark.parametrize(
    "nothing",
    [
        event(ROLE),
        event({}),
        event({"content": None, "reasoning_content": ""}),
        event({"content": ""}),
        event({"tool_calls": []}),
        b'{"choices":[]}',
        b"{}",
        b'{"choices":[{"index":1,"delta":{"content":"another choice"}}]}',
    ],
)
def test_what_says_nothing_is_no_first_token(nothing: bytes) -> None:
    meaning = meaning_of(nothing)
    assert not meaning.pending
    assert meaning.tokens == 0
    assert meaning.take() == []


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"content": "a"}, Delta(0, "a")),
        ({"refusal": "no"}, Delta(0, "no")),
        ({"reasoning_content": "hm"}, Delta(0, reasoning="hm")),
        ({"reasoning": "hm"}, Delta(0, reasoning="hm")),
        (
            {"tool_calls": [{"index": 2, "id": "c", "function": {"name": "f"}}]},
            Delta(0, tool_call=ToolFragment(2, "c", "f")),
        ),
        (
            {"tool_calls": [{"function": {"arguments": "{"}}]},
            Delta(0, tool_call=ToolFragment(0, arguments="{")),
        ),
    ],
)
def test_each_kind_of_delta_is_read(delta: dict[str, Any], expected: Delta) -> None:
    meaning = meaning_of(event(delta))
    assert meaning.tokens == 1
    assert deltas_of(meaning) == [expected]


def test_adjacent_pieces_of_one_kind_are_joined_and_kinds_keep_their_order() -> None:
    meaning = meaning_of(
        event({"reasoning": "a"}),
        event({"reasoning": "b", "content": "c"}),
        text("d"),
        event({"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f"}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
        text("e"),
    )
    assert deltas_of(meaning) == [
        Delta(0, reasoning="ab"),
        Delta(0, "cd"),
        Delta(0, tool_call=ToolFragment(0, "x", "f", "{}")),
        Delta(0, "e"),
    ]
    assert meaning.used_tools


def test_what_is_taken_is_taken_once() -> None:
    meaning = meaning_of(text("a"))
    assert deltas_of(meaning) == [Delta(0, "a")]
    assert not meaning.pending
    meaning.read(text("b"))
    assert deltas_of(meaning) == [Delta(0, "b")]


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ([text("a"), FINISH, DONE], "stop"),
        ([text("a"), FINISH], "stop"),
        ([FINISH, DONE], "stop"),
        ([text("a"), FINISH, event(finish="length"), DONE], "stop"),
        ([text("a")], None),
        ([text("a"), DONE], None),
    ],
)
def test_only_a_finish_reason_finishes(events: list[bytes], ended: str | None) -> None:
    assert meaning_of(*events).conclude() == ended


def test_a_relaxed_provider_may_end_with_done_alone_but_not_with_nothing() -> None:
    assert meaning_of(text("a"), DONE, relaxed_end=True).conclude() == "stop"
    assert meaning_of(text("a"), relaxed_end=True).conclude() is None


@pytest.mark.parametrize("events", [[DONE], [], [event(ROLE)], [event(ROLE), DONE]])
def test_an_answer_of_nothing_is_malformed_so_that_it_is_tried_again(events: list[bytes]) -> None:
    assert code_of(meaning_of(*events)) == "upstream_malformed"


def test_what_comes_after_the_end_is_ignored_and_counted() -> None:
    meaning = meaning_of(text("a"), FINISH, text("b"), event(finish="length"), event({}))
    assert deltas_of(meaning) == [Delta(0, "a")]
    assert meaning.ignored == 2
    assert meaning.conclude() == "stop"


@pytest.mark.parametrize(
    "broken",
    [
        b'{"choices": [{"delta": {"content": "unfinish',
        b"not json",
        b'{"choices":[{"delta":{"content":"\xff\xfe"}}]}',
        b'{"choices":[{"delta":{"content":"\\ud83d"}}]}',
        b'{"choices":[{"delta":{"content":7}}]}',
        b"[]",
    ],
)
def test_an_unreadable_event_fails_the_branch_and_what_was_valid_is_kept(broken: bytes) -> None:
    meaning = meaning_of(text("a"), broken, text("b"), FINISH)
    assert meaning.over
    assert deltas_of(meaning) == [Delta(0, "a")]
    assert code_of(meaning) == "upstream_malformed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "boom", "type": "server_error"}, "upstream_error"),
        ({"message": "slow down", "code": 429}, "upstream_rate_limited"),
        ({"message": "slow down", "code": "rate_limit_exceeded"}, "upstream_rate_limited"),
        ({"message": "too long", "code": "context_length_exceeded"}, "upstream_rejected"),
        ({"message": "who?", "code": 401}, "upstream_auth"),
        ("boom", "upstream_error"),
        (["boom"], "upstream_error"),
    ],
)
def test_an_error_in_the_stream_fails_the_branch_by_its_kind(error: Any, code: str) -> None:
    meaning = meaning_of(text("a"), json.dumps({"error": error}).encode(), DONE)
    assert deltas_of(meaning) == [Delta(0, "a")]
    assert code_of(meaning) == code


def test_an_error_after_the_finish_reason_changes_nothing() -> None:
    meaning = meaning_of(text("a"), FINISH, b'{"error":{"message":"late"}}')
    assert meaning.conclude() == "stop"


def test_usage_is_the_providers_wherever_it_comes() -> None:
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    last = json.dumps({"choices": [], "usage": usage}).encode()
    meaning = meaning_of(event({"content": "a"}, usage=None), FINISH, last, DONE)
    assert meaning.count_usage([]) == Usage(7, 5, 12, "upstream", 2, 3)


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": "many"}, [], 3])
def test_usage_that_says_nothing_is_estimated_instead(usage: Any) -> None:
    meaning = meaning_of(text("12345"), event({"reasoning": "1234"}), event(usage=usage), FINISH)
    question: list[dict[str, Any]] = [
        {"role": "user", "content": "12345678"},
        {"role": "user", "content": [{"type": "text", "text": "1234"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
    ]
    assert meaning.count_usage(question) == Usage(3, 3, 6, "estimate", 1, 0)


def test_a_whole_answer_is_read_like_a_stream_of_one_event() -> None:
    message = {"role": "assistant", "content": "all of it", "reasoning_content": "hm"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    meaning = Interpreter(0)
    meaning.read_whole(json.dumps(body).encode())
    assert deltas_of(meaning) == [Delta(0, reasoning="hm"), Delta(0, "all of it")]
    assert meaning.conclude() == "stop"


says = st.one_of(
    st.tuples(st.just("content"), st.text(max_size=8)),
    st.tuples(st.just("reasoning_content"), st.text(max_size=8)),
    st.tuples(st.just("tool"), st.text(max_size=8)),
)


@given(st.lists(st.tuples(says, st.booleans()), max_size=30))
def test_nothing_that_was_said_is_lost_or_doubled(script: list[tuple[Any, bool]]) -> None:
    meaning = Interpreter(0)
    view = BranchView(0)
    said = {"content": "", "reasoning_content": "", "tool": ""}
    for (kind, piece), take in script:
        said[kind] += piece
        call = {"index": 0, "function": {"arguments": piece}}
        meaning.read(event({"tool_calls": [call]} if kind == "tool" else {kind: piece}))
        for delta in deltas_of(meaning) if take else ():
            view.add(delta)
    for delta in deltas_of(meaning):
        view.add(delta)
    arguments = "".join(call["function"]["arguments"] for call in view.tool_calls)
    assert (view.text, view.reasoning, arguments) == tuple(said.values())


@pytest.mark.parametrize("char", ["x", "é", "😀"])
@pytest.mark.parametrize("kind", ["content", "reasoning", "tool"])
def test_a_giant_delta_is_split_into_chunks_that_fit(char: str, kind: str) -> None:
    giant = char * 300_000
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": giant}}
    meaning = meaning_of(
        text("before"), event({"tool_calls": [call]} if kind == "tool" else {kind: giant})
    )
    batches = meaning.take()
    view = BranchView(0)
    for batch in batches:
        size = 0
        for delta in batch:
            view.add(delta)
            arguments = delta.tool_call.arguments if delta.tool_call else ""
            size += len((delta.text + delta.reasoning + arguments).encode())
        assert 0 < size <= MAX_CHUNK_TEXT_BYTES
    assert view.text == "before" + (giant if kind == "content" else "")
    assert view.reasoning == (giant if kind == "reasoning" else "")
    if kind == "tool":
        function = {"name": "f", "arguments": giant}
        assert view.tool_calls == [{"id": "c", "type": "function", "function": function}]
