"""Whatever is lost, doubled or late on the way, every chunk arrives once and in order."""

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.worker.outbox import MAX_RESEND_BACKOFF, Outbox
from shared.events import Delta
from shared.messages import BranchEnd, Chunk, chunk_decoder

RESEND_AFTER_S = 0.5


def an_outbox(**limits: Any) -> Outbox:
    outbox = Outbox(0, **{"max_chunks": 4, "max_bytes": 1_000_000, **limits})
    outbox.begin(0)
    return outbox


def say(outbox: Outbox, text: str = "x", now: float = 0.0) -> Chunk:
    return chunk_decoder.decode(outbox.add((Delta(0, text),), None, now))


class Talk(RuleBasedStateMachine):
    """A merger that commits in order behind a network that loses, repeats and delays."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = an_outbox()
        self.now = 0.0
        self.said: list[str] = []
        """By the present attempt."""
        self.to_merger: deque[bytes] = deque()
        self.to_worker: deque[tuple[int, int]] = deque()
        self.attempt = 0
        self.committed: list[str] = []

    @rule(text=st.text(max_size=4))
    def worker_says(self, text: str) -> None:
        self.said.append(text)
        self.to_merger.append(self.outbox.add((Delta(0, text),), None, self.now))

    @rule(seconds=st.floats(min_value=0, max_value=10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.outbox.is_due(self.now, RESEND_AFTER_S):
            self.to_merger.extend(self.outbox.again(self.now, asked=False))

    @rule()
    def merger_says_hello(self) -> None:
        self.to_merger.extend(self.outbox.again(self.now, asked=True))

    @rule()
    def worker_starts_over(self) -> None:
        self.outbox.begin(self.outbox.attempt + 1, "restart")
        self.said = []

    @precondition(lambda self: self.to_merger)
    @rule()
    def chunk_arrives(self) -> None:
        chunk = chunk_decoder.decode(self.to_merger.popleft())
        if chunk.attempt > self.attempt and chunk.k == 0:
            assert chunk.seam == "restart"
            self.attempt, self.committed = chunk.attempt, []
        if chunk.attempt == self.attempt and chunk.k == len(self.committed):
            self.committed.append(chunk.deltas[0].text)
        committed = len(self.committed) - 1 if chunk.attempt == self.attempt else -1
        self.to_worker.append((chunk.attempt, committed))

    @precondition(lambda self: self.to_merger)
    @rule()
    def chunk_is_lost(self) -> None:
        self.to_merger.popleft()

    @precondition(lambda self: self.to_merger)
    @rule()
    def chunk_is_doubled(self) -> None:
        self.to_merger.append(self.to_merger[0])

    @precondition(lambda self: self.to_worker)
    @rule()
    def ack_arrives(self) -> None:
        attempt, k = self.to_worker.popleft()
        self.outbox.acknowledge(attempt, k, self.now)

    @precondition(lambda self: len(self.to_worker) > 1)
    @rule()
    def ack_is_overtaken(self) -> None:
        self.to_worker.rotate(1)

    @invariant()
    def what_is_committed_was_said(self) -> None:
        if self.attempt == self.outbox.attempt:
            assert self.committed == self.said[: len(self.committed)]

    @invariant()
    def what_is_forgotten_is_committed(self) -> None:
        if self.outbox.acked_k >= 0:
            assert self.attempt == self.outbox.attempt
            assert self.outbox.acked_k < len(self.committed)

    def teardown(self) -> None:
        """Once nothing is lost any more, a few repetitions bring everything over."""
        for _ in range(2):
            self.time_passes(RESEND_AFTER_S * MAX_RESEND_BACKOFF)
            while self.to_merger:
                self.chunk_arrives()
            while self.to_worker:
                self.ack_arrives()
        assert len(self.outbox) == 0
        if self.said:
            assert self.committed == self.said


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_chunks_are_numbered_from_zero_and_only_the_first_carries_the_seam() -> None:
    outbox = Outbox(3, max_chunks=4, max_bytes=1_000)
    outbox.begin(1_000, "continue", 12)
    first, second = say(outbox), say(outbox)
    assert (first.branch, first.attempt, first.k) == (3, 1_000, 0)
    assert (first.seam, first.kept_chars) == ("continue", 12)
    assert (second.k, second.seam, second.kept_chars) == (1, "", 0)


def test_more_unacknowledged_chunks_or_bytes_than_allowed_is_full_until_acknowledged() -> None:
    by_count = an_outbox(max_chunks=2)
    by_size = an_outbox(max_bytes=100)
    for outbox in (by_count, by_size):
        while not outbox.full:
            say(outbox, "x" * 20)
        assert outbox.next_k > 1
        assert outbox.acknowledge(0, 0, 1.0)
        assert not outbox.full


def test_an_ack_that_says_nothing_new_is_no_progress() -> None:
    outbox = an_outbox()
    say(outbox)
    say(outbox)
    assert outbox.acknowledge(0, 0, 1.0)
    assert not outbox.acknowledge(0, 0, 2.0)
    assert not outbox.acknowledge(0, -1, 2.0)
    assert not outbox.acknowledge(7, 1, 2.0)
    assert len(outbox) == 1


def test_chunks_are_due_after_silence_and_ever_later_without_progress() -> None:
    outbox = an_outbox()
    assert not outbox.is_due(100.0, RESEND_AFTER_S)
    say(outbox, now=100.0)
    now = 100.0
    for patience_s in (0.5, 1.0, 2.0, 4.0, 4.0):
        assert not outbox.is_due(now + patience_s * 0.99, RESEND_AFTER_S)
        now += patience_s
        assert outbox.is_due(now, RESEND_AFTER_S)
        assert len(outbox.again(now, asked=False)) == 1
    outbox.again(now, asked=True)
    assert outbox.is_due(now + 0.5, RESEND_AFTER_S)


def test_progress_restarts_the_silence() -> None:
    outbox = an_outbox()
    say(outbox, now=0.0)
    say(outbox, now=0.1)
    outbox.acknowledge(0, 0, 0.4)
    assert not outbox.is_due(0.8, RESEND_AFTER_S)
    assert outbox.is_due(0.9, RESEND_AFTER_S)


def test_nothing_follows_the_end() -> None:
    outbox = an_outbox()
    chunk = chunk_decoder.decode(outbox.add((), BranchEnd("stop"), 0.0))
    assert chunk.end == BranchEnd("stop")
    with pytest.raises(ValueError, match="end"):
        say(outbox)


def test_an_attempt_follows_only_a_lower_one() -> None:
    outbox = an_outbox()
    with pytest.raises(ValueError, match="follow"):
        outbox.begin(0)
