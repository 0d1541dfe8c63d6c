"""A prompt holds the most important that fits, in the order in which it was said."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.context.prompt import TOKENS_PER_MESSAGE, assemble, tokens_of
from shared.messages import ChatMessage


def user(text: str) -> ChatMessage:
    return {"role": "user", "content": text}


def assistant(text: str) -> ChatMessage:
    return {"role": "assistant", "content": text}


HISTORY = [user("q1"), assistant("a1"), user("q2"), assistant("a2")]


def test_with_nothing_known_the_prompt_is_the_message() -> None:
    assert assemble("why?") == [user("why?")]


def test_everything_stands_in_the_order_in_which_a_model_reads_it() -> None:
    prompt = assemble(
        "why?",
        instructions="Be brief.",
        profile={"name": "Ann", "likes": ["tea"], "note": "", "age": None},
        history=HISTORY,
    )
    system = 'Be brief.\n\nWhat is known about the user:\nname: Ann\nlikes: ["tea"]'
    assert prompt == [{"role": "system", "content": system}, *HISTORY, user("why?")]


def test_history_gives_way_from_the_oldest_and_never_starts_with_an_answer() -> None:
    three = sum(map(tokens_of, [*HISTORY[1:], user("why?")]))
    assert assemble("why?", history=HISTORY, budget_tokens=three) == [*HISTORY[2:], user("why?")]


def test_a_history_that_fits_is_kept_even_if_a_client_began_it_with_an_answer() -> None:
    assert assemble("why?", history=HISTORY[1:]) == [*HISTORY[1:], user("why?")]


def test_a_huge_message_in_between_hides_what_is_before_it_rather_than_leave_a_gap() -> None:
    history = [user("q1"), assistant("x" * 1000), user("q2"), assistant("a2")]
    assert assemble("why?", history=history, budget_tokens=100) == [*history[2:], user("why?")]


def test_a_profile_that_does_not_fit_leaves_the_instructions() -> None:
    profile = {"life": "x" * 1000}
    prompt = assemble("why?", instructions="Be brief.", profile=profile, budget_tokens=50)
    assert prompt == [{"role": "system", "content": "Be brief."}, user("why?")]


def test_a_message_over_budget_is_sent_alone() -> None:
    long = "x" * 1000
    prompt = assemble(long, instructions="Be brief.", history=HISTORY, budget_tokens=50)
    assert prompt == [user(long)]


def test_content_that_is_not_text_is_counted_as_it_is_sent() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "x" * 400}]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c" * 400}]}
    assert tokens_of(parts) > 100
    assert tokens_of(call) > 100
    assert tokens_of(user("")) == TOKENS_PER_MESSAGE


messages = st.lists(st.tuples(st.sampled_from([user, assistant]), st.text(max_size=60))).map(
    lambda said: [make(text) for make, text in said]
)


@given(
    message=st.text(max_size=200),
    instructions=st.text(max_size=100),
    profile=st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=40)),
    history=messages,
    budget=st.integers(0, 200),
)
def test_a_prompt_keeps_to_its_budget_and_to_the_order_unless_the_message_alone_is_over(
    message: str,
    instructions: str,
    profile: dict[str, Any] | None,
    history: list[ChatMessage],
    budget: int,
) -> None:
    prompt = assemble(
        message, instructions=instructions, profile=profile, history=history, budget_tokens=budget
    )
    assert prompt[-1] == user(message)
    assert sum(map(tokens_of, prompt)) <= max(budget, tokens_of(user(message)))
    kept = prompt[1:-1] if prompt[0]["role"] == "system" else prompt[:-1]
    assert kept == history[len(history) - len(kept) :]
