"""I6: the upstream is called as often as the faults explain, and every call is closed. Pure."""

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.check_ends import hits_within
from tests.chaos.journals import Asked, Call, Hit, Journals, Violation

CLOSE_WITHIN_S = 1.0
LEASE_S = 5.0
HOLDERS = ("worker", "nats")
"""Whose faults have a task delivered again."""


def check_calls(journals: Journals) -> Iterator[Violation]:
    by_branch: dict[tuple[str, int], list[Call]] = defaultdict(list)
    for call in journals.calls:
        by_branch[call.sid, call.branch].append(call)
    asked = {each.sid: each for each in journals.asked}
    for (sid, branch), calls in by_branch.items():
        stream = asked.get(sid)
        if stream is None or branch >= len(stream.branches):
            yield Violation("I6", sid, f"branch {branch} was called for, but not asked for")
            continue
        yield from _check_branch(stream, branch, calls, journals.hits)
    if journals.health.calls_dropped:
        yield Violation("I6", "", f"{journals.health.calls_dropped} calls are not in the journal")


def _check_branch(
    asked: Asked, branch: int, calls: list[Call], hits: list[Hit]
) -> Iterator[Violation]:
    def wrong(detail: str) -> Violation:
        return Violation("I6", asked.sid, f"branch {branch}: {detail}")

    attempts = [call.attempt for call in calls]
    if len(set(attempts)) < len(attempts):
        yield wrong(f"attempts {sorted(attempts)}: one was made twice")
    last_began = max(call.started_at for call in calls)
    near = hits_within(hits, asked.asked_at, last_began)
    allowed = 1 + sum(hit.service in HOLDERS for hit in near)
    if len(calls) > allowed:
        yield wrong(f"{len(calls)} calls where {allowed} are explained")
    for call in calls:
        if call.ended_at is None:
            yield wrong(f"attempt {call.attempt} was never closed")
        elif asked.cancelled_at is not None:
            began = max(asked.cancelled_at, call.started_at)
            if _is_calm(hits, began) and call.ended_at - began > CLOSE_WITHIN_S:
                yield wrong(
                    f"attempt {call.attempt} was closed {call.ended_at - began:.1f} s "
                    "after the cancel"
                )


def _is_calm(hits: list[Hit], at: float) -> bool:
    """Nobody that a cancel passes through was hit, or was still recovering."""
    return not any(
        hit.at - CLOSE_WITHIN_S <= at <= max(hit.until, hit.healed_at or hit.until) + LEASE_S
        for hit in hits
        if hit.service in ("worker", "merger", "nats")
    )
