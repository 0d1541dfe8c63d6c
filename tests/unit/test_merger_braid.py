"""The braid by example and by property: no interleaving, loss or crash splices a text."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.merger.braid import Braid, Verdict, opening_events
from shared.events import (
    TERMINALS,
    BranchContinued,
    BranchDone,
    BranchFailed,
    BranchReset,
    Cancelled,
    ContextLoaded,
    Delta,
    Done,
    Event,
    Failed,
    Incomplete,
    Record,
    Stats,
    ToolFragment,
    decode_record,
    encode_record,
)
from shared.fold import fold
from shared.messages import BranchEnd, BranchPlan, Chunk

STOP = BranchEnd(finish_reason="stop", model="m")


def braid_of(branches: int = 1) -> Braid:
    plan = [BranchPlan(model="m") for _ in range(branches)]
    braid = Braid(
        plan,
        epoch=1,
        n_next=1,
        accepted_at=0.0,
        opening=opening_events(plan, ContextLoaded()),
    )
    assert braid.take(0.0) is not None
    return braid


def text(branch: int, attempt: int, k: int, words: str, **kwargs: object) -> Chunk:
    return Chunk(branch, attempt, k, (Delta(branch, words),), **kwargs)  # type: ignore[arg-type]


def events_of(braid: Braid) -> list[Event]:
    events: list[Event] = []
    while (record := braid.take(1.0)) is not None:
        events += record.events
    return events


def test_a_stream_opens_with_its_context_and_a_start_per_branch_before_any_token() -> None:
    plan = [BranchPlan(model="a"), BranchPlan(model="b", section="s")]
    opening = opening_events(plan, ContextLoaded())
    record = Braid(plan, epoch=1, n_next=1, accepted_at=0, opening=opening).take(0)
    assert record is not None
    assert [type(event).__name__ for event in record.events] == [
        "ContextLoaded",
        "BranchStarted",
        "BranchStarted",
    ]
    assert (record.epoch, record.n_first, record.n_next) == (1, 1, 4)


def test_chunks_that_arrive_before_a_commit_become_one_delta() -> None:
    braid = braid_of()
    for k, word in enumerate(["one ", "two ", "three"]):
        assert braid.offer(text(0, 0, k, word), 1.0) is Verdict.ACCEPTED
    record = braid.take(1.0)
    assert record is not None
    assert record.events == (Delta(0, "one two three"),)
    assert record.checkpoint.branches[0].k == 2


def test_text_reasoning_and_tool_calls_are_never_joined_into_each_other() -> None:
    braid = braid_of()
    deltas = (
        Delta(0, reasoning="hm"),
        Delta(0, reasoning="m"),
        Delta(0, "a"),
        Delta(0, tool_call=ToolFragment(0, "c1", "find", "{")),
        Delta(0, tool_call=ToolFragment(0, arguments="}")),
        Delta(0, tool_call=ToolFragment(1, "c2", "find", "{}")),
    )
    braid.offer(Chunk(0, 0, 0, deltas), 1.0)
    assert events_of(braid) == [
        Delta(0, reasoning="hmm"),
        Delta(0, "a"),
        Delta(0, tool_call=ToolFragment(0, "c1", "find", "{}")),
        Delta(0, tool_call=ToolFragment(1, "c2", "find", "{}")),
    ]


@pytest.mark.parametrize(
    ("end", "terminal", "branch_event"),
    [
        (STOP, Done, BranchDone),
        (BranchEnd(), Incomplete, BranchDone),
        (BranchEnd(code="upstream_reset", message="gone"), Failed, BranchFailed),
    ],
)
def test_the_end_of_the_only_branch_is_the_end_of_the_stream(
    end: BranchEnd, terminal: type, branch_event: type
) -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "x", end=end), 1.0)
    record = braid.take(2.0)
    assert record is not None
    assert [type(event) for event in record.events] == [Delta, branch_event, Stats, terminal]
    assert record.finished
    assert braid.ended
    assert braid.take(2.0) is None
    assert braid.offer(text(0, 0, 1, "y"), 2.0) is Verdict.CLOSED


def test_one_branch_that_succeeds_makes_the_stream_done_and_the_failed_one_is_counted() -> None:
    braid = braid_of(2)
    braid.offer(Chunk(0, 0, 0, (), BranchEnd(code="upstream_error", message="no")), 1.0)
    braid.offer(text(1, 0, 0, "x", end=STOP), 1.0)
    *_, stats, terminal = events_of(braid)
    assert isinstance(stats, Stats)
    assert (stats.succeeded, stats.failed) == (1, 1)
    assert isinstance(terminal, Done)


def test_repeated_skipped_and_stale_chunks_change_nothing() -> None:
    braid = braid_of()
    assert braid.offer(text(0, 5, 0, "a"), 1.0) is Verdict.ACCEPTED
    assert braid.offer(text(0, 5, 0, "a"), 1.0) is Verdict.DUPLICATE
    assert braid.offer(text(0, 5, 2, "c"), 1.0) is Verdict.GAP
    assert braid.offer(text(0, 4, 0, "z"), 1.0) is Verdict.FENCED
    assert braid.offer(text(0, 6, 1, "z", seam="restart"), 1.0) is Verdict.GAP
    assert braid.offer(text(1, 0, 0, "z"), 1.0) is Verdict.CLOSED
    assert events_of(braid) == [Delta(0, "a")]


def test_a_new_attempt_replaces_one_that_said_nothing_without_a_seam() -> None:
    braid = braid_of()
    assert braid.offer(text(0, 1, 0, "b"), 1.0) is Verdict.ACCEPTED
    assert braid.offer(text(0, 0, 0, "a"), 1.0) is Verdict.FENCED
    assert events_of(braid) == [Delta(0, "b")]


def test_a_new_attempt_never_follows_a_prefix_without_a_seam() -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "a"), 1.0)
    assert braid.offer(text(0, 1, 0, "b"), 1.0) is Verdict.FENCED


def test_a_restart_is_an_explicit_event_and_voids_the_prefix() -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "old"), 1.0)
    assert braid.offer(text(0, 1, 0, "new", seam="restart", end=STOP), 1.0) is Verdict.ACCEPTED
    records = list(records_of(braid))
    reset = next(e for r in records for e in r.events if isinstance(e, BranchReset))
    assert reset.discarded_chars == 3
    view = fold(records)
    assert view.branches[0].text == "new"
    assert view.stats is not None
    assert view.stats.chars == 3


def test_a_continuation_holds_only_on_top_of_exactly_the_prefix_it_was_made_for() -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "Hello"), 1.0)
    wrong = text(0, 1, 0, "world", seam="continue", kept_chars=4)
    right = text(0, 1, 0, " world", seam="continue", kept_chars=5, end=STOP)
    assert braid.offer(wrong, 1.0) is Verdict.FENCED
    assert braid.offer(right, 1.0) is Verdict.ACCEPTED
    records = list(records_of(braid))
    assert any(isinstance(e, BranchContinued) for r in records for e in r.events)
    assert fold(records).branches[0].text == "Hello world"


def test_nothing_continues_a_tool_call() -> None:
    braid = braid_of()
    call = Delta(0, tool_call=ToolFragment(0, "c", "f", "{"))
    braid.offer(Chunk(0, 0, 0, (Delta(0, "Hello"), call)), 1.0)
    refused = text(0, 1, 0, "!", seam="continue", kept_chars=5)
    assert braid.offer(refused, 1.0) is Verdict.FENCED


def test_the_policy_fail_ends_the_branch_with_what_it_said() -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "half"), 1.0)
    end = BranchEnd(code="attempts_exhausted", message="the worker was lost")
    assert braid.offer(Chunk(0, 1, 0, (), end, seam="fail"), 1.0) is Verdict.ACCEPTED
    failed = next(e for e in events_of(braid) if isinstance(e, BranchFailed))
    assert failed.chars == 4


def test_a_question_of_a_newer_attempt_fences_the_older_ones() -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "a"), 1.0)
    braid.fence_below(0, 1000)
    assert braid.offer(text(0, 0, 1, "b"), 1.0) is Verdict.FENCED
    seam = text(0, 1000, 0, "c", seam="continue", kept_chars=1)
    assert braid.offer(seam, 1.0) is Verdict.ACCEPTED


def test_cancel_keeps_what_was_accepted_and_the_first_conclusion_wins() -> None:
    braid = braid_of()
    braid.offer(text(0, 0, 0, "a"), 1.0)
    braid.cancel("the user")
    braid.fail("expired", "late")
    assert braid.offer(text(0, 0, 1, "b"), 1.0) is Verdict.CLOSED
    events = events_of(braid)
    assert events[0] == Delta(0, "a")
    assert events[-1] == Cancelled(reason="the user")


def test_a_record_stays_below_the_message_limit_and_its_checkpoint_says_how_far_it_got() -> None:
    braid = braid_of()
    for k in range(10):
        braid.offer(text(0, 0, k, "é" * 20_000), 1.0)
    ks = [record.checkpoint.branches[0].k for record in records_of(braid)]
    assert ks == sorted(set(ks))
    assert ks[-1] == 9
    assert len(ks) > 1


def records_of(braid: Braid) -> Iterator[Record]:
    while (record := braid.take(1.0)) is not None:
        payload = encode_record(record)
        assert len(payload) < 256 * 1024
        yield decode_record(payload)


# By property ---------------------------------------------------------------------------------

ATTEMPT_LENGTH = 4


def scripted(branch: int, attempt: int) -> list[Chunk]:
    """One attempt: every token names its branch, attempt and index, so that a splice shows."""
    chunks = [
        text(branch, attempt, k, f"{branch}.{attempt}.{k} ", seam="restart" if k == 0 else "")
        for k in range(ATTEMPT_LENGTH)
    ]
    return [*chunks, Chunk(branch, attempt, ATTEMPT_LENGTH, (), STOP)]


step = st.one_of(
    st.tuples(st.just("chunk"), st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)),
    st.tuples(st.just("commit"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("crash"), st.just(0), st.just(0), st.just(0)),
)


@given(st.integers(1, 3), st.lists(step, max_size=80))
def test_no_interleaving_loss_repetition_or_crash_splices_a_branch_or_breaks_the_numbering(
    branches: int, steps: list[tuple[str, int, int, int]]
) -> None:
    plan = [BranchPlan(model="m") for _ in range(branches)]
    committed: list[Record] = []

    def owner() -> Braid:
        """A new process that knows the last committed record only."""
        if not committed:
            opening = opening_events(plan, ContextLoaded())
            return Braid(plan, epoch=1, n_next=1, accepted_at=0.0, opening=opening)
        last = decode_record(encode_record(committed[-1]))
        return Braid(
            plan,
            epoch=last.epoch + 1,
            n_next=last.n_next,
            accepted_at=0.0,
            checkpoint=last.checkpoint,
        )

    def commit(braid: Braid) -> None:
        record = braid.take(1.0)
        if record is not None:
            committed.append(record)

    braid = owner()
    for kind, branch, attempt, k in steps:
        if committed and committed[-1].finished:
            break
        if kind == "chunk" and branch < branches:
            braid.offer(scripted(branch, attempt)[k], 1.0)
        elif kind == "commit":
            commit(braid)
        elif kind == "crash":
            braid = owner()
    # Healing: the newest attempt of every branch is sent again, in order, until all is committed.
    while not (committed and committed[-1].finished):
        for branch in range(branches):
            for chunk in scripted(branch, 2):
                braid.offer(chunk, 1.0)
        commit(braid)

    expected_n = 1
    for record in committed:
        assert record.n_first == expected_n
        expected_n = record.n_next
    assert [r.epoch for r in committed] == sorted(r.epoch for r in committed)
    events = [event for record in committed for event in record.events]
    assert sum(isinstance(event, TERMINALS) for event in events) == 1
    view = fold(committed)
    for branch in range(branches):
        said = view.branches[branch].text
        assert said in {
            "".join(f"{branch}.{attempt}.{k} " for k in range(ATTEMPT_LENGTH))
            for attempt in range(3)
        }
