"""Answers are deterministic English that visibly uses what the request holds."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.answer import Answer, Origin, answers, usage
from services.simulator.knobs import Script
from services.simulator.reading import Passage, read
from services.simulator.tokens import tokenize
from services.simulator.wire import ChatRequest, Message, chat_request

SYSTEM = """You are a helpful assistant.

Profile
name: Ada Lovelace
role: engineer

Passages:
[1] A merge sort splits the list. Its worst case takes n log n steps.
[2] Bubble sort
compares neighbours and swaps them.

Cite the passages by number."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "days", "unit"],
        },
    },
}


def ask(*messages: tuple[str, str] | dict[str, Any], **params: Any) -> ChatRequest:
    said = [m if isinstance(m, dict) else {"role": m[0], "content": m[1]} for m in messages]
    return chat_request(msgspec.json.encode({"model": "sim-echo", "messages": said, **params}))


def one(
    request: ChatRequest, script: Script | None = None, model: str = "sim-echo", **origin: str
) -> Answer:
    return answers(request, script or Script(), model, Origin(**origin))[0]


@given(st.text())
def test_tokens_join_to_the_text_they_came_from(text: str) -> None:
    assert "".join(tokenize(text)) == text


def test_tokens_are_words_with_their_space_and_punctuation_apart() -> None:
    assert tokenize("The worst case, 2048 steps!") == (
        ["The", " worst", " case", ",", " 204", "8", " steps", "!"]
    )


def test_an_answer_quotes_the_question_and_is_about_as_long_as_asked() -> None:
    answer = one(ask(("user", "How does a merge sort work?")))
    assert '"How does a merge sort work?"' in answer.text("content")
    assert 80 <= answer.size() <= 120
    assert answer.text("content").endswith(".")
    assert answer.finish == "stop"


def test_an_answer_uses_passages_profile_and_the_earlier_turn() -> None:
    text = one(
        ask(
            ("system", SYSTEM),
            ("user", "I want to sort a list."),
            ("assistant", "Sure."),
            ("user", "What is the worst case?"),
        )
    ).text("content")
    assert text.startswith("Ada Lovelace, ")
    assert 'Passage [1] says: "Its worst case takes n log n steps" [1].' in text
    assert "Bubble sort compares neighbours" in text
    assert 'Earlier you said "I want to sort a list."' in text
    assert "your role is engineer" in text


@pytest.mark.parametrize(
    "block",
    [
        "[3] Tokens are counted.",
        "Source 3: Tokens are counted.",
        '<document index="3">Tokens are counted.</document>',
        '<passage id="3">\nTokens are counted.\n</passage>',
    ],
)
def test_passages_are_found_in_the_usual_layouts(block: str) -> None:
    reading = read([Message("system", f"Be brief.\n{block}\nname: Bo"), Message("user", "Hi")])
    assert reading.passages[0].number == 3
    assert reading.passages[0].text.startswith("Tokens are counted.")


def test_passages_and_a_marked_question_are_told_apart_in_a_user_message() -> None:
    reading = read([Message("user", "[1] Water is wet.\n\nQuestion: Is water wet?")])
    assert reading.passages == (Passage(1, "Water is wet."),)
    assert reading.question == "Is water wet?"


@pytest.mark.parametrize(
    "said",
    ["The user's name is Ada.", 'user_profile: {"name": "Ada"}', "You are talking to Ada."],
)
def test_the_name_is_found_in_the_usual_layouts(said: str) -> None:
    assert dict(read([Message("system", said), Message("user", "Hi")]).facts)["name"] == "Ada"


@given(st.text(max_size=200), st.integers(0, 2**63), st.integers(0, 300))
def test_the_same_request_has_the_same_answer_of_exactly_the_length_asked_for(
    question: str, seed: int, tokens: int
) -> None:
    script = Script(seed=seed, tokens=tokens, exact=True)
    request = ChatRequest(model="m", messages=[Message("user", question)])
    assert one(request, script).size() == tokens
    assert one(request, script) == one(request, script)


def test_question_seed_model_and_context_each_change_the_answer() -> None:
    base = ask(("user", "Why is the sky blue?"))
    texts = {
        one(base).text("content"),
        one(base, Script(seed=1)).text("content"),
        one(base, model="sim-other").text("content"),
        one(ask(("user", "Why is the sea blue?"))).text("content"),
        one(ask(("system", "[1] Light scatters."), ("user", "Why is the sky blue?"))).text(
            "content"
        ),
    }
    assert len(texts) == 5


def test_each_of_n_choices_differs() -> None:
    given_answers = answers(ask(("user", "Hi"), n=3), Script(), "m", Origin())
    assert len({answer.text("content") for answer in given_answers}) == 3


def test_max_tokens_cuts_the_answer_with_the_reason_length() -> None:
    for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        answer = one(ask(("user", "Hi"), **limit))
        assert (answer.size(), answer.finish) == (5, "length")


def test_a_limit_that_is_just_met_is_a_stop() -> None:
    answer = one(ask(("user", "Hi"), max_tokens=9), Script(tokens=9, exact=True))
    assert (answer.size(), answer.finish) == (9, "stop")


@given(st.text(alphabet="aeins .", min_size=1, max_size=3))
def test_a_stop_sequence_ends_the_answer_before_it(stop: str) -> None:
    whole = one(ask(("user", "Hi"))).text("content")
    cut = one(ask(("user", "Hi"), stop=[stop, "\x00"])).text("content")
    assert cut == whole.split(stop, maxsplit=1)[0]


def test_a_model_named_for_reasoning_thinks_first() -> None:
    answer = one(ask(("user", "Hi")), model="sim-reason")
    assert [span.kind for span in answer.spans if span.tokens] == ["reasoning_content", "content"]
    counted = usage(ask(("user", "Hi")), [answer])
    assert counted["completion_tokens_details"]["reasoning_tokens"] == 20
    assert counted["completion_tokens"] == answer.size()


def test_every_token_of_a_marked_answer_says_where_it_comes_from() -> None:
    script = Script(marker=True, tokens=3)
    marked = one(ask(("user", "Hi")), script, stream="S", branch="2", attempt="1")
    assert marked.spans[-1].tokens == ("S|2|1|0 ", "S|2|1|1 ", "S|2|1|2 ")
    assert one(ask(("user", "Hi")), script).text("content").startswith("-|-|-|0 ")
    assert Origin.of({"x-braid-branch": "4"}) == Origin("-", "4", "-")


def test_a_tool_that_the_user_asks_for_is_called_with_what_the_question_holds() -> None:
    answer = one(ask(("user", "The weather in New York for 3 days?"), tools=[WEATHER]))
    assert answer.finish == "tool_calls"
    (call,) = answer.tools
    assert call.tool is not None
    assert call.tool.name == "get_weather"
    assert json.loads(call.text) == {"city": "New York", "days": 3, "unit": "celsius"}
    assert len(call.tokens) > 5, "arguments travel in fragments"


@pytest.mark.parametrize(
    ("question", "choice", "called"),
    [
        ("Tell me a joke.", None, False),
        ("Tell me a joke.", "required", True),
        ("Tell me a joke.", {"type": "function", "function": {"name": "get_weather"}}, True),
        ("Use a tool to help me.", "auto", True),
        ("How is the weather?", "none", False),
    ],
)
def test_the_tool_choice_decides(question: str, choice: object, called: bool) -> None:
    answer = one(ask(("user", question), tools=[WEATHER], tool_choice=choice))
    assert bool(answer.tools) is called


def test_two_tools_are_called_together_unless_that_is_switched_off() -> None:
    clock = {"type": "function", "function": {"name": "readClock"}}
    question = ("user", "What do the weather and the clock say?")
    assert len(one(ask(question, tools=[WEATHER, clock])).tools) == 2
    assert len(one(ask(question, tools=[WEATHER, clock], parallel_tool_calls=False)).tools) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"temperature": 21, "sky": "clear"}', "temperature is 21, sky is clear"),
        ("It rains.", 'the result is "It rains."'),
    ],
)
def test_after_a_tool_the_answer_uses_its_result(content: str, said: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    answer = one(
        ask(
            ("user", "Weather?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": content},
            tools=[WEATHER],
            tool_choice="required",
        )
    )
    assert not answer.tools
    assert f"According to get_weather, {said}" in answer.text("content")


def test_a_json_object_is_valid_json_that_holds_the_answer() -> None:
    answer = one(
        ask(
            ("system", SYSTEM),
            ("user", "Which sort? Answer in JSON."),
            response_format={"type": "json_object"},
        )
    )
    value = json.loads(answer.text("content"))
    assert value["question"] == "Which sort? Answer in JSON."
    assert value["sources"] == [1, 2]
    assert value["answer"]


def test_text_parts_are_read_and_others_passed_over() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"type": "text", "text": "What is this?"}, image]
    answer = one(ask({"role": "user", "content": parts}))
    assert '"What is this?"' in answer.text("content")
