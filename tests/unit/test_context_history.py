"""What of a session's rows a model is shown."""

from services.context.history import HistoryRow, chat_messages


def turn(sid: str, question: str, *answers: tuple[str | None, str]) -> list[HistoryRow]:
    asked = [HistoryRow(sid, 0, None, question)] if question else []
    said = [HistoryRow(sid, n + 1, section, text) for n, (section, text) in enumerate(answers)]
    return [*asked, *said]


def shown(rows: list[HistoryRow], limit: int = 10) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in chat_messages(rows, limit)]


def test_a_turn_is_a_question_and_an_answer() -> None:
    rows = [*turn("s1", "q1", (None, "a1")), *turn("s2", "q2", (None, "a2"))]
    assert shown(rows) == [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]


def test_of_models_side_by_side_the_first_that_said_anything_speaks() -> None:
    assert shown(turn("s1", "q", (None, ""), (None, "second"), (None, "third"))) == [
        ("user", "q"),
        ("assistant", "second"),
    ]


def test_the_sections_of_one_answer_stay_together_under_their_headings() -> None:
    [_, (_, text)] = shown(turn("s1", "q", ("Facts", "one"), ("Empty", ""), ("Ideas", "two")))
    assert text == "## Facts\n\none\n\n## Ideas\n\ntwo"


def test_a_turn_without_an_answer_keeps_its_question() -> None:
    assert shown(turn("s1", "q", (None, ""))) == [("user", "q")]


def test_only_the_last_messages_count_and_never_an_answer_without_its_question() -> None:
    rows = [row for n in range(4) for row in turn(f"s{n}", f"q{n}", (None, f"a{n}"))]
    assert [text for _, text in shown(rows, limit=5)] == ["q2", "a2", "q3", "a3"]
    assert [text for _, text in shown(rows, limit=8)][:2] == ["q0", "a0"]


def test_an_empty_session_has_no_history() -> None:
    assert shown([]) == []
