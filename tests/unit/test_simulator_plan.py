"""Faults and pacing as data: the plan of an answer before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.answer import Answer, Span
from services.simulator.chunks import DONE, ChunkWriter
from services.simulator.faults import FAULTS, Stage
from services.simulator.knobs import Script
from services.simulator.plan import instead_plan, stream_plan, whole_plan
from services.simulator.steps import Hang, Head, Reset, Send, Step
from services.simulator.tools import ToolCall

WORDS = tuple(f" w{index}" for index in range(10))
ANSWER = Answer((Span("content", WORDS),), "stop")
USAGE = {"total_tokens": 10}


def writer(include_usage: bool = False) -> ChunkWriter:
    return ChunkWriter("id", 1, "m", include_usage)


def plan(script: Script, given: list[Answer] | None = None) -> list[Step]:
    return list(stream_plan(given or [ANSWER], writer(), script, None))


def sends(steps: list[Step]) -> list[Send]:
    return [step for step in steps if isinstance(step, Send)]


def chunks(steps: list[Step]) -> list[dict[str, Any]]:
    events = [step.data.decode() for step in sends(steps) if step.data != DONE]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text(steps: list[Step], choice: int = 0, key: str = "content") -> str:
    return "".join(
        given["delta"].get(key) or ""
        for chunk in chunks(steps)
        for given in chunk["choices"]
        if given["index"] == choice
    )


def test_a_plain_stream_is_role_tokens_finish_done() -> None:
    steps = plan(Script())
    assert steps[0] == Head(
        200, "text/event-stream; charset=utf-8", (("Cache-Control", "no-cache"),)
    )
    first, *middle, last = chunks(steps)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *middle))
    assert last["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    assert sends(steps)[-1].data == DONE
    assert text(steps) == "".join(WORDS)
    assert "usage" not in first


def test_usage_is_null_on_every_chunk_and_then_a_chunk_of_its_own() -> None:
    steps = list(stream_plan([ANSWER], writer(True), Script(), USAGE))
    *before, last = chunks(steps)
    assert all(chunk["usage"] is None for chunk in before)
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_every_token_is_due_at_its_own_time_and_the_end_with_the_last() -> None:
    steps = plan(Script(ttft_s=2.0, gap_s=0.5))
    assert [step.due_s for step in sends(steps) if step.tokens] == [
        2.0 + 0.5 * i for i in range(10)
    ]
    assert sends(steps)[0].due_s == 2.0
    assert sends(steps)[-1].due_s == 6.5


def test_tokens_per_chunk_keeps_the_rate_of_tokens() -> None:
    steps = plan(Script(ttft_s=1.0, gap_s=1.0, tokens_per_chunk=4))
    carried = [(step.tokens, step.due_s) for step in sends(steps) if step.tokens]
    assert carried == [(4, 1.0), (4, 5.0), (2, 9.0)]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(0, 40),
    st.booleans(),
)
def test_however_it_is_cut_into_chunks_the_text_stays_and_due_times_rise(
    sizes: list[int], per_chunk: int, fault_at: int, stalls: bool
) -> None:
    given = [
        Answer((Span("reasoning_content", ("r",) * (n // 3)), Span("content", ("ab",) * n)), "stop")
        for n in sizes
    ]
    script = Script(
        gap_s=0.1,
        tokens_per_chunk=per_chunk,
        fault="stall" if stalls else None,
        fault_at=fault_at,
        fault_s=3.0,
    )
    steps = plan(script, given)
    for choice, size in enumerate(sizes):
        assert text(steps, choice) == "ab" * size
        assert text(steps, choice, "reasoning_content") == "r" * (size // 3)
    due = [step.due_s for step in sends(steps)]
    assert due == sorted(due)
    assert sum(step.tokens for step in sends(steps)) == sum(answer.size() for answer in given)


@given(st.integers(0, 12), st.integers(1, 7))
def test_a_mid_stream_fault_strikes_after_exactly_fault_at_tokens(at: int, per_chunk: int) -> None:
    steps = plan(Script(fault="reset", fault_at=at, tokens_per_chunk=per_chunk))
    assert text(steps) == "".join(WORDS[:at])
    assert steps[-1] == Reset()


def test_tool_calls_open_with_id_and_name_and_send_arguments_in_fragments() -> None:
    call = ToolCall("call_1", "look", '{"a":1}')
    answer = Answer((Span("tool", ("{", '"a"', ":1}"), call), Span("tool", ("{}",), call)), "stop")
    role, opening, *fragments = [
        chunk["choices"][0]["delta"] for chunk in chunks(plan(Script(), [answer]))
    ]
    assert role["content"] is None
    assert opening["tool_calls"] == [
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": ""},
        }
    ]
    carried = [delta["tool_calls"][0] for delta in fragments if delta]
    assert "".join(c["function"]["arguments"] for c in carried if c["index"] == 0) == '{"a":1}'
    assert [c["id"] for c in carried if "id" in c] == ["call_1"], "the second call opens too"


def test_a_finite_stall_moves_everything_after_it() -> None:
    steps = plan(Script(gap_s=1.0, fault="stall", fault_at=2, fault_s=10.0))
    at = steps.index(Hang(10.0))
    assert [step.due_s for step in sends(steps[:at])][-1] == 1.0
    assert sends(steps[at:])[0].due_s == 12.0


def test_an_endless_stall_is_a_hang_without_end() -> None:
    assert Hang(None) in plan(Script(fault="stall"))
    assert Hang(None, 0.5) in plan(Script(fault="stall_keepalive", keepalive_s=0.5))


def test_a_slow_first_token_comes_after_the_headers_and_before_the_role() -> None:
    steps = plan(Script(fault="slow_first", fault_s=4.0, ttft_s=1.0))
    assert steps[1] == Hang(4.0)
    assert sends(steps)[0].due_s == 5.0


def test_every_fault_of_the_table_changes_the_plan() -> None:
    plain = list(stream_plan([ANSWER], writer(True), Script(), USAGE))
    for name, fault in FAULTS.items():
        script = Script(fault=name, giant_bytes=100)
        struck = instead_plan(script, "m")
        if struck is None:
            struck = stream_plan([ANSWER], writer(True), script, USAGE)
        assert list(struck) != plain, name
        assert fault.does


def test_a_fault_past_the_last_token_still_strikes_before_the_finish() -> None:
    for name, fault in FAULTS.items():
        if fault.stage is Stage.AT and name not in ("cut", "reset", "error_in_stream"):
            steps = plan(Script(fault=name, fault_at=999, fault_s=1.0, giant_bytes=10))
            assert len(steps) == len(plan(Script())) + 1, name


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_cut_body_announces_more_than_it_sends(fault: str) -> None:
    steps = list(whole_plan(b"x" * 10, Script(fault=fault), 1))
    assert steps == [Head(200, "application/json", size=10), Send(b"x" * 5), Reset()]


def test_a_whole_answer_is_due_when_its_stream_would_have_ended() -> None:
    steps = list(whole_plan(b"{}", Script(ttft_s=1.0, gap_s=0.5), 5))
    assert steps == [Head(200, "application/json", size=2, due_s=3.0), Send(b"{}", 3.0, 5)]
