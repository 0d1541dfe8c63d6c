"""The braid: which chunk yields which events, as a pure state machine. No await, clock or logger.

A branch is WAITING, STREAMING, or final (DONE, INCOMPLETE, FAILED). `a` and `k` are the attempt and
chunk number of its state, `floor` is the lowest attempt still welcome. A chunk comes with its own
`attempt` and `k`; the first row that fits decides:

| state     | chunk                              | verdict   | events                   |
|-----------|------------------------------------|-----------|--------------------------|
| ended     | any                                | CLOSED    |                          |
| final     | any                                | CLOSED    |                          |
| not final | attempt < max(a, floor)            | FENCED    |                          |
| not final | attempt = a, k' <= k               | DUPLICATE |                          |
| not final | attempt = a, k' > k + 1            | GAP       |                          |
| not final | attempt = a, k' = k + 1            | ACCEPTED  | deltas, end              |
| not final | attempt > a, k' > 0                | GAP       |                          |
| WAITING   | attempt > a, k' = 0                | ACCEPTED  | deltas, end              |
| STREAMING | attempt > a, k' = 0, restart       | ACCEPTED  | branch.reset, deltas     |
| STREAMING | attempt > a, k' = 0, continue (*)  | ACCEPTED  | branch.continued, deltas |
| STREAMING | attempt > a, k' = 0, fail          | ACCEPTED  | branch.error             |
| STREAMING | attempt > a, k' = 0, anything else | FENCED    |                          |

(*) only on top of exactly the prefix that is there, and never after a tool call.

An accepted chunk without an end leaves the branch STREAMING if anything was ever said, with an end
it is final: a code makes it FAILED (branch.error), a finish reason DONE, neither INCOMPLETE
(branch.done). When all branches are final, the last record closes with `stats` and the terminal:
`done` if any branch is done, else `incomplete` if any is, else `error`.

Accepted chunks wait in order until `take` makes a record of them; the record's checkpoint is the
state after exactly those chunks.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from msgspec import UNSET
from msgspec.structs import replace

from services.merger.joining import join_adjacent, weight_of
from shared.events import (
    BranchContinued,
    BranchDone,
    BranchFailed,
    BranchPhase,
    BranchReset,
    BranchStarted,
    BranchState,
    Cancelled,
    Checkpoint,
    ContextLoaded,
    Done,
    Event,
    Failed,
    Incomplete,
    Record,
    Stats,
    Terminal,
    Usage,
)
from shared.messages import BranchEnd, BranchPlan, Chunk

MAX_RECORD_WEIGHT = 128 * 1024
"""Bytes of events in one record; JetStream refuses messages above 256 KiB."""


def opening_events(plan: Sequence[BranchPlan], context: ContextLoaded) -> list[Event]:
    """What a stream that nobody has owned before starts with."""
    starts = [
        BranchStarted(branch=index, section=branch.section or UNSET, model=branch.model)
        for index, branch in enumerate(plan)
    ]
    return [context, *starts]


class Verdict(Enum):
    ACCEPTED = auto()
    DUPLICATE = auto()
    GAP = auto()
    FENCED = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class _Entry:
    branch: int
    events: tuple[Event, ...]
    state: BranchState
    weight: int
    at: float


class Braid:
    """One stream's state. `now` arguments are Unix seconds."""

    def __init__(
        self,
        plan: Sequence[BranchPlan],
        *,
        epoch: int,
        n_next: int,
        accepted_at: float,
        checkpoint: Checkpoint | None = None,
        opening: Sequence[Event] = (),
    ) -> None:
        """A new stream, or with a `checkpoint` one that is taken over; `opening` comes first."""
        self._plan = tuple(plan)
        self.epoch = epoch
        self._n_next = n_next
        self._accepted_at = accepted_at
        if checkpoint is not None and len(checkpoint.branches) != len(self._plan):
            raise ValueError("the checkpoint has another number of branches than the plan")
        states = checkpoint.branches if checkpoint else tuple(BranchState() for _ in self._plan)
        self._accepted = list(states)
        """The state after every accepted chunk."""
        self._taken = list(states)
        """The state after every chunk that is in a record."""
        self._first_delta_at = checkpoint.first_delta_at if checkpoint else 0.0
        self._floor = [0] * len(states)
        self._entries: deque[_Entry] = deque()
        self._opening = tuple(opening)
        self._claim = True
        self._verdict: Terminal | None = None
        self.ended = False
        """The record with the terminal was taken."""

    def state(self, branch: int) -> BranchState:
        """Where a branch stands after all that was accepted. Raises IndexError."""
        return self._accepted[branch]

    def offer(self, chunk: Chunk, now: float) -> Verdict:
        """Take a chunk in, or say why not. A branch the plan doesn't have is CLOSED."""
        if self._verdict is not None or not 0 <= chunk.branch < len(self._accepted):
            return Verdict.CLOSED
        state = self._accepted[chunk.branch]
        if state.final:
            return Verdict.CLOSED
        if chunk.attempt < state.attempt or chunk.attempt < self._floor[chunk.branch]:
            return Verdict.FENCED
        events: list[Event] = []
        if chunk.attempt > state.attempt:
            if chunk.k != 0:
                return Verdict.GAP
            if state.phase is BranchPhase.STREAMING and not self._cross_seam(chunk, state, events):
                return Verdict.FENCED
            state = self._after_seam(chunk, state)
        elif chunk.k <= state.k:
            return Verdict.DUPLICATE
        elif chunk.k > state.k + 1:
            return Verdict.GAP
        state = self._add(chunk, state, events)
        self._accepted[chunk.branch] = state
        weight = sum(map(weight_of, events))
        self._entries.append(_Entry(chunk.branch, tuple(events), state, weight, now))
        return Verdict.ACCEPTED

    def highest(self, branch: int) -> int:
        """The highest attempt that has spoken, or has been announced. Raises IndexError."""
        return max(self._accepted[branch].attempt, self._floor[branch])

    def fence_below(self, branch: int, attempt: int) -> None:
        """Refuse every attempt below this one from now on. Raises IndexError."""
        self._floor[branch] = max(self._floor[branch], attempt)

    def cancel(self, reason: str) -> None:
        """End with `cancelled` after what is accepted; the first of cancel, fail and end wins."""
        self._conclude(Cancelled(reason=reason))

    def fail(self, code: str, message: str, *, retryable: bool = False) -> None:
        """End with `error` after what is accepted."""
        self._conclude(Failed(code=code, message=message, retryable=retryable))

    @property
    def has_record(self) -> bool:
        """True when `take` would return a record."""
        return not self.ended and (
            self._claim or bool(self._entries) or self._verdict is not None or self._all_final()
        )

    def take(self, now: float) -> Record | None:
        """The next record, or None when there is nothing to commit."""
        if not self.has_record:
            return None
        events: list[Event] = list(self._opening)
        self._opening = ()
        self._claim = False
        weight = 0
        while self._entries and (
            not weight or weight + self._entries[0].weight <= MAX_RECORD_WEIGHT
        ):
            entry = self._entries.popleft()
            weight += entry.weight
            events += entry.events
            self._taken[entry.branch] = entry.state
            if not self._first_delta_at and entry.state.chunks:
                self._first_delta_at = entry.at
        if not self._entries and (self._verdict is not None or self._all_final()):
            terminal = self._verdict or self._natural_end()
            events += [self._stats(now), terminal]
            self.ended = True
        record = Record(
            epoch=self.epoch,
            n_first=self._n_next,
            events=join_adjacent(events),
            checkpoint=Checkpoint(tuple(self._taken), self._first_delta_at),
            finished=self.ended,
        )
        self._n_next = record.n_next
        return record

    def _conclude(self, terminal: Terminal) -> None:
        if self._verdict is None and not self.ended:
            self._verdict = terminal

    def _all_final(self) -> bool:
        return all(state.final for state in self._accepted)

    def _cross_seam(self, chunk: Chunk, state: BranchState, events: list[Event]) -> bool:
        """Write the seam between two attempts, or return False when it may not be crossed."""
        plan = self._plan[chunk.branch]
        if chunk.seam == "fail":
            return chunk.end is not None and bool(chunk.end.code)
        if chunk.seam == "restart":
            events.append(
                BranchReset(
                    branch=chunk.branch,
                    section=plan.section or UNSET,
                    model=plan.model,
                    attempt=state.seams + 1,
                    reason="the attempt broke off and was started again",
                    discarded_chars=state.chars,
                )
            )
            return True
        if chunk.seam == "continue" and not state.used_tools and chunk.kept_chars == state.chars:
            events.append(
                BranchContinued(
                    branch=chunk.branch,
                    section=plan.section or UNSET,
                    model=plan.model,
                    attempt=state.seams + 1,
                    reason="the attempt broke off and another goes on from there",
                    kept_chars=state.chars,
                )
            )
            return True
        return False

    def _after_seam(self, chunk: Chunk, state: BranchState) -> BranchState:
        """The state an attempt starts from."""
        if state.phase is BranchPhase.WAITING:
            return replace(state, attempt=chunk.attempt, k=-1)
        if chunk.seam == "restart":
            return replace(
                state,
                attempt=chunk.attempt,
                k=-1,
                chars=0,
                chunks=0,
                used_tools=False,
                seams=state.seams + 1,
            )
        seams = state.seams + (chunk.seam == "continue")
        return replace(state, attempt=chunk.attempt, k=-1, seams=seams)

    def _add(self, chunk: Chunk, state: BranchState, events: list[Event]) -> BranchState:
        """Append a chunk's events and return the state after it."""
        events += chunk.deltas
        chars = state.chars
        used_tools = state.used_tools
        for delta in chunk.deltas:
            chars += len(delta.text)
            used_tools = used_tools or delta.tool_call is not None
        said = bool(chunk.deltas)
        after = BranchState(
            attempt=chunk.attempt,
            k=chunk.k,
            phase=BranchPhase.STREAMING if said else state.phase,
            chunks=state.chunks + said,
            chars=chars,
            used_tools=used_tools,
            seams=state.seams,
        )
        return after if chunk.end is None else self._finish(chunk.branch, chunk.end, after, events)

    def _finish(
        self, branch: int, end: BranchEnd, state: BranchState, events: list[Event]
    ) -> BranchState:
        plan = self._plan[branch]
        if end.code:
            events.append(
                BranchFailed(
                    branch=branch,
                    section=plan.section or UNSET,
                    model=end.model or plan.model,
                    code=end.code,
                    message=end.message,
                    retryable=end.retryable,
                    chunks=state.chunks,
                    chars=state.chars,
                )
            )
            return replace(state, phase=BranchPhase.FAILED, usage=end.usage, code=end.code)
        events.append(
            BranchDone(
                branch=branch,
                section=plan.section or UNSET,
                model=end.model or plan.model,
                finish_reason=end.finish_reason or "incomplete",
                usage=end.usage,
                ttft_ms=end.ttft_ms,
                duration_ms=end.duration_ms,
                chunks=state.chunks,
                chars=state.chars,
            )
        )
        phase = BranchPhase.DONE if end.finish_reason else BranchPhase.INCOMPLETE
        return replace(state, phase=phase, usage=end.usage)

    def _natural_end(self) -> Terminal:
        phases = [state.phase for state in self._taken]
        if BranchPhase.DONE in phases:
            return Done()
        if BranchPhase.INCOMPLETE in phases:
            return Incomplete(reason="the upstream stopped without a finish reason")
        code = next(state.code for state in self._taken if state.code)
        return Failed(code=code, message="no branch could be completed")

    def _stats(self, now: float) -> Stats:
        states = self._taken
        duration_s = max(0.0, now - self._accepted_at)
        first = self._first_delta_at
        chunks = sum(state.chunks for state in states)
        chars = sum(state.chars for state in states)
        return Stats(
            branches=len(states),
            succeeded=sum(state.phase is BranchPhase.DONE for state in states),
            failed=sum(state.phase is BranchPhase.FAILED for state in states),
            chunks=chunks,
            chars=chars,
            ttft_ms=round(max(0.0, first - self._accepted_at) * 1000, 1) if first else None,
            duration_ms=round(duration_s * 1000, 1),
            chunks_per_s=round(chunks / duration_s, 1) if duration_s else 0.0,
            chars_per_s=round(chars / duration_s, 1) if duration_s else 0.0,
            usage=total_usage([state.usage for state in states if state.usage is not None]),
        )


def total_usage(usages: Sequence[Usage]) -> Usage | None:
    """The sum; its source is that of all parts, or `mixed`."""
    if not usages:
        return None
    sources = {usage.source for usage in usages}
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        total_tokens=sum(usage.total_tokens for usage in usages),
        source=sources.pop() if len(sources) == 1 else "mixed",
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )
