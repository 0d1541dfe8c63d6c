"""I3: whatever was accepted ends, once, in time, and as well as the faults allow. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.chaos.journals import (
    TERMINALS,
    Asked,
    Call,
    Hit,
    Journals,
    Logged,
    Reading,
    Violation,
    shown,
    terminal_of,
)

DEADLINE_GRACE_S = 5.0
TAKE_OVER_S = 8.0
"""Until a lost owner is replaced: lease 5 s, and 3 s more."""
CANCEL_GRACE_S = 10.0
"""A cancel that was answered holds after a take-over at the latest: lease 5 s, and a second try."""


def check_ends(journals: Journals) -> Iterator[Violation]:
    readings: dict[str, list[Reading]] = defaultdict(list)
    for reading in journals.readings:
        readings[reading.sid].append(reading)
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in journals.calls:
        calls[call.sid].append(call)
    for asked in journals.asked:
        records = journals.log.get(asked.sid, [])
        if asked.accepted_at is None:
            yield Violation("I3", asked.sid, "was never accepted")
            if not records and calls[asked.sid]:
                yield Violation("I3", asked.sid, "was rejected, and the upstream called")
        if records or asked.accepted_at is not None:
            yield from _check_log(asked.sid, records)
            ours = readings[asked.sid], calls[asked.sid]
            yield from _check_kind(asked, records, *ours, journals.hits)
        for reading in readings[asked.sid]:
            yield from _check_reading(asked, reading)


def _check_log(sid: str, records: list[Logged]) -> Iterator[Violation]:
    kinds = [event["type"] for record in records for event in record.events]
    ends = [kind for kind in kinds if kind in TERMINALS]
    if len(ends) != 1:
        yield Violation("I3", sid, f"the log has {len(ends)} terminals")
    elif kinds[-1] not in TERMINALS:
        yield Violation("I3", sid, f"{kinds[-1]} follows the terminal in the log")
    marked = [record.finished for record in records]
    if ends and (not marked[-1] or any(marked[:-1])):
        yield Violation("I3", sid, "not the last record alone is marked as the end")


def _check_reading(asked: Asked, reading: Reading) -> Iterator[Violation]:
    def wrong(detail: str) -> Violation:
        return Violation("I3", asked.sid, f"{reading.reader}: {detail}")

    for strange in reading.strange:
        yield wrong(strange)
    ends = []
    for seen in reading.events:
        try:
            if shown(seen).get("type") in TERMINALS:
                ends.append(seen)
        except ValueError:
            continue  # said by I2
    if len(ends) != 1:
        yield wrong(f"had {len(ends)} terminals")
        return
    if reading.events[-1] is not ends[0]:
        yield wrong(f"had event {reading.events[-1].n} after the terminal {ends[0].n}")
    if reading.reader == "first" and asked.accepted_at is not None:
        took_s = ends[0].at - asked.accepted_at
        if took_s > asked.deadline_s + DEADLINE_GRACE_S:
            yield wrong(f"the terminal came {took_s:.1f} s after acceptance")


def _check_kind(
    asked: Asked, records: list[Logged], readings: list[Reading], calls: list[Call], hits: list[Hit]
) -> Iterator[Violation]:
    """`done`, unless it was cancelled, or its policy is to fail with its worker."""
    kind = terminal_of(records)
    failed = [event for record in records for event in record.events if _is_failure(event)]
    for event in failed:
        if not is_excused(asked, [c for c in calls if c.branch == event["branch"]], hits):
            code = event.get("code", "incomplete")
            yield Violation(
                "I3",
                asked.sid,
                f"branch {event['branch']} ended with {code}, policy {asked.mid_stream}",
            )
    if kind in ("error", "incomplete") and not failed:
        code = records[-1].events[-1].get("code", "")
        yield Violation("I3", asked.sid, f"ended with {kind} {code}, and no branch had failed")
    if kind == "cancelled" and asked.cancel_tried_at is None:
        yield Violation("I3", asked.sid, "was cancelled, and nobody had asked for it")
    if kind == "done" and asked.cancelled_at is not None:
        first = next((r for r in readings if r.reader == "first" and r.events), None)
        late_s = first.events[-1].at - asked.cancelled_at if first else 0.0
        if late_s > CANCEL_GRACE_S:
            yield Violation("I3", asked.sid, f"went on to `done` {late_s:.1f} s after its cancel")


def _is_failure(event: dict[str, Any]) -> bool:
    """The upstream cuts nothing off here, so an incomplete branch is one too."""
    return event["type"] == "branch.error" or event.get("finish_reason") == "incomplete"


def is_excused(asked: Asked, calls: list[Call], hits: list[Hit]) -> bool:
    """A worker was hit while it generated the branch, or held what nobody had acknowledged yet."""
    return asked.mid_stream == "fail" and any(
        hit.service == "worker"
        for call in calls
        for hit in hits_within(hits, call.started_at, _held_until(call, hits))
    )


def _held_until(call: Call, hits: list[Hit]) -> float:
    """When a worker had surely been acknowledged: at once, or when a lost owner was replaced."""
    ended_at = call.ended_at or math.inf
    lost = any(
        hit.service in {"merger", "nats"} for hit in hits_within(hits, call.started_at, ended_at)
    )
    return ended_at + (TAKE_OVER_S if lost else 1.0)


def hits_within(hits: list[Hit], begin: float, end: float) -> list[Hit]:
    """The faults whose effects may reach into a time: until 5 s after the process was back."""
    return [
        hit
        for hit in hits
        if hit.at <= end and max(hit.until, hit.healed_at or hit.until) + 5.0 >= begin
    ]
