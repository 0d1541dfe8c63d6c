"""What Postgres is to keep is what the folded log says, whole or in pieces that fit."""

from hypothesis import given
from hypothesis import strategies as st

from services.merger.transcript import transcripts
from shared.events import (
    BranchDone,
    BranchStarted,
    Checkpoint,
    ContextLoaded,
    Delta,
    Done,
    Event,
    Record,
)
from shared.fold import fold
from shared.messages import BranchAnswered, BranchPlan, MergeStream


def answers(*events: Event, branches: int = 1, max_bytes: int = 1000) -> dict[str, BranchAnswered]:
    item = MergeStream(
        sid="s",
        user_id="u",
        session_id="x",
        branches=[BranchPlan(model=f"m{index}") for index in range(branches)],
        context=ContextLoaded(),
        accepted_seq=1,
        accepted_at=0.0,
    )
    view = fold([Record(1, 1, events, Checkpoint(()))])
    return dict(transcripts(item, view, max_bytes=max_bytes, created_at=5.0))


def test_every_branch_has_an_answer_even_one_that_never_began() -> None:
    found = answers(
        BranchStarted(branch=0, model="m0"),
        Delta(0, "hello"),
        BranchDone(branch=0, model="m0-fallback", finish_reason="stop"),
        Done(),
        branches=2,
    )
    assert list(found) == ["a0", "a1"]
    assert (found["a0"].content, found["a0"].status) == ("hello", "done")
    assert found["a0"].model == "m0-fallback", "the model that answered, not the one asked for"
    assert (found["a1"].content, found["a1"].model) == ("", "m1")


@given(st.text(max_size=200), st.text(max_size=200), st.integers(4, 60))
def test_pieces_fit_and_join_to_the_whole(text: str, reasoning: str, max_bytes: int) -> None:
    events: list[Event] = [BranchStarted(branch=0, model="m")]
    events += [Delta(0, text)] if text else []
    events += [Delta(0, reasoning=reasoning)] if reasoning else []
    found = answers(*events, max_bytes=max_bytes)
    pieces = list(found.values())
    assert [piece.piece for piece in pieces] == list(range(len(pieces)))
    assert {piece.pieces for piece in pieces} == {len(pieces)}
    assert "".join(piece.content for piece in pieces) == text
    assert "".join(piece.reasoning for piece in pieces) == reasoning
    assert all(len((p.content + p.reasoning).encode()) <= max_bytes for p in pieces)
    assert len(found) == len(pieces), "every piece has a subject of its own"
