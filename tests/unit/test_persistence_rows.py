"""What becomes of a transcript before Postgres sees it."""

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.persistence.rows import (
    assemble,
    claims,
    clean,
    moment,
    problem_of,
    row_of,
    transcript_of,
)
from shared.events import Usage
from shared.ids import SID_LENGTH
from shared.messages import BranchAnswered, QuestionAsked, Transcript

SID = "a" * SID_LENGTH


def question(content: str = "why?", **fields: object) -> QuestionAsked:
    given = {"sid": SID, "user_id": "ann", "session_id": "s1", "created_at": 100.0} | fields
    return msgspec.convert({"type": "question", "content": content} | given, QuestionAsked)


def answer(content: str = "because", branch: int = 0, **fields: object) -> BranchAnswered:
    given = {"sid": SID, "user_id": "ann", "session_id": "s1", "created_at": 101.0} | fields
    whole = {"type": "answer", "content": content, "branch": branch, "model": "m", "status": "done"}
    return msgspec.convert(whole | given, BranchAnswered)


def test_ids_are_made_of_the_stream_and_the_branch_so_that_a_repetition_hits_the_same_row() -> None:
    assert row_of(question()).id == f"{SID}.q"
    assert row_of(answer(branch=3)).id == f"{SID}.3"


def test_a_question_stands_before_its_answers_and_these_in_the_order_of_their_branches() -> None:
    rows = [row_of(answer(branch=1)), row_of(question()), row_of(answer(branch=0))]
    assert [row.id[-1] for row in sorted(rows, key=lambda row: row.position)] == ["q", "0", "1"]


def test_nul_bytes_are_dropped_wherever_they_are_because_postgres_takes_them_nowhere() -> None:
    call = {"id": "c1", "function": {"name": "f\0", "arguments": '{"a": "\\u0000"}'}}
    usage = Usage(1, 2, 3, "up\0stream")
    dirty = answer("be\0cause", reasoning="\0", tool_calls=[call])
    row = row_of(clean(msgspec.structs.replace(dirty, usage=usage)))
    assert (row.content, row.reasoning) == ("because", "")
    assert row.tool_calls is not None
    assert row.usage is not None
    [kept] = msgspec.json.decode(row.tool_calls)
    assert kept["function"] == {"name": "f", "arguments": '{"a": "\\u0000"}'}  # text, not a NUL
    assert msgspec.json.decode(row.usage)["source"] == "upstream"


def test_a_row_gives_back_the_message_it_was_made_of() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    full = answer(
        section="facts", reasoning="hm", tool_calls=[call], finish_reason="stop", ttft_ms=1.5
    )
    whole = msgspec.structs.replace(full, usage=Usage(1, 2, 3, "upstream"), duration_ms=2.5)
    for message in (question(), answer(), whole):
        assert transcript_of(row_of(message)) == message


def test_what_is_clean_is_not_copied() -> None:
    whole = answer()
    assert clean(whole) is whole


def test_only_what_no_sender_of_ours_makes_is_impossible_to_store() -> None:
    assert problem_of(question()) is None
    assert problem_of(answer(piece=1, pieces=2)) is None
    assert problem_of(question(piece=2, pieces=2)) is not None
    assert problem_of(question(pieces=0)) is not None
    assert problem_of(answer(branch=-1)) is not None


def test_a_session_is_claimed_by_the_first_user_who_names_it() -> None:
    found = claims([question(), question(user_id="eve", created_at=50.0), answer()])
    assert [(claim.session_id, claim.user_id) for claim in found] == [("s1", "ann")]
    assert (found[0].first_at, found[0].last_at) == (moment(100.0), moment(101.0))


def test_sessions_are_claimed_in_one_order_so_that_two_writers_cannot_deadlock() -> None:
    found = claims([question(session_id=name) for name in ("c", "a", "b")])
    assert [claim.session_id for claim in found] == ["a", "b", "c"]


@given(st.floats())
def test_any_number_is_a_time_that_postgres_can_hold(unix_s: float) -> None:
    assert 1970 <= moment(unix_s).year <= 9999


def cut(whole: BranchAnswered, texts: list[str]) -> list[Transcript]:
    first = {"piece": 0, "pieces": len(texts), "content": texts[0]}
    rest = [
        {"piece": n, "pieces": len(texts), "content": text, "reasoning": "", "tool_calls": []}
        for n, text in enumerate(texts)
        if n
    ]
    return [msgspec.structs.replace(whole, **fields) for fields in [first, *rest]]


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_pieces_make_the_message_in_any_order_and_however_often_they_come(
    texts: list[str], chance: random.Random
) -> None:
    whole = answer("".join(texts), reasoning="hm", tool_calls=[{"id": "c1"}])
    pieces = cut(whole, texts)
    shuffled = pieces + chance.choices(pieces, k=3)
    chance.shuffle(shuffled)
    assert assemble(shuffled) == whole


@given(st.integers(2, 6), st.data())
def test_a_message_with_a_missing_piece_is_not_a_message(total: int, data: st.DataObject) -> None:
    pieces = cut(answer(), ["x"] * total)
    del pieces[data.draw(st.integers(0, total - 1))]
    assert assemble(pieces) is None


def test_a_message_that_was_cut_anew_is_joined_from_one_cut_alone() -> None:
    whole = answer("abcdef")
    in_three, in_two = cut(whole, ["ab", "cd", "ef"]), cut(whole, ["abc", "def"])
    assert assemble([in_three[0], *in_two, in_three[2]]) == whole
