"""I2 and stale writes: one order, without holes, the same for the log and all readers. Pure."""

from collections.abc import Iterator
from typing import Any

from tests.chaos.journals import Journals, Logged, Reading, Violation, shown

UNNAMED = frozenset({"context", "stats", "done", "error", "cancelled", "incomplete"})


def check_order(journals: Journals) -> Iterator[Violation]:
    committed: dict[str, dict[int, dict[str, Any]]] = {}
    for sid, records in journals.log.items():
        yield from _check_log(sid, records)
        committed[sid] = {
            n: event
            for record in records
            for n, event in enumerate(record.events, start=record.n_first)
        }
    first_seen: dict[tuple[str, int], str] = {}
    for reading in journals.readings:
        yield from _check_dense(reading)
        yield from _check_committed(reading, committed.get(reading.sid, {}))
        for event in reading.events:
            if first_seen.setdefault((reading.sid, event.n), event.raw) != event.raw:
                yield _wrong(reading, f"event {event.n} differs from what another reader had")


def _wrong(reading: Reading, detail: str) -> Violation:
    return Violation("I2", reading.sid, f"{reading.reader}: {detail}")


def _check_log(sid: str, records: list[Logged]) -> Iterator[Violation]:
    if not records:
        return
    first = records[0]
    if not first.opens or first.epoch != 0 or first.n_first != 1 or first.events:
        yield Violation("I2", sid, "the log does not begin with its acceptance")
    epoch, n_next, seq = first.epoch, first.n_first + len(first.events), first.seq
    for record in records[1:]:
        if record.opens:
            yield Violation("I2", sid, f"record {record.seq} accepts the stream once more")
        if record.seq <= seq:
            yield Violation("I2", sid, f"record {record.seq} does not follow {seq}")
        if record.epoch < epoch:
            yield Violation(
                "stale", sid, f"record {record.seq} of epoch {record.epoch} follows epoch {epoch}"
            )
        if record.n_first != n_next:
            yield Violation(
                "stale", sid, f"record {record.seq} begins with {record.n_first}, not {n_next}"
            )
        epoch, n_next, seq = record.epoch, record.n_first + len(record.events), record.seq


def _check_dense(reading: Reading) -> Iterator[Violation]:
    expected = reading.after + 1
    for event in reading.events:
        if event.n != expected:
            yield _wrong(reading, f"event {event.n} came where {expected} was due")
        expected = event.n + 1


def _check_committed(reading: Reading, committed: dict[int, dict[str, Any]]) -> Iterator[Violation]:
    names = _names(committed)
    for event in reading.events:
        try:
            got = shown(event)
        except ValueError as error:
            yield _wrong(reading, f"event {event.n} can't be read: {error}")
            continue
        logged = committed.get(event.n)
        if logged is None:
            yield _wrong(reading, f"event {event.n} was delivered but is not in the log")
        elif got != _as_shown(logged, names):
            yield _wrong(reading, f"event {event.n} is not what the log has")
    last = max(committed, default=0)
    if reading.events and reading.events[-1].n < last:
        yield _wrong(reading, f"had events up to {reading.events[-1].n} of {last} in the log")


def _names(committed: dict[int, dict[str, Any]]) -> dict[int, dict[str, str]]:
    """What the edge adds to every event of a branch."""
    names = {}
    for event in committed.values():
        if event["type"] == "branch.start":
            kind = "section" if event.get("section") is not None else "model"
            names[event["branch"]] = {kind: event[kind]}
    return names


def _as_shown(event: dict[str, Any], names: dict[int, dict[str, str]]) -> dict[str, Any]:
    if event["type"] in UNNAMED or event.get("section") or event.get("model"):
        return event
    return {**event, **names.get(event["branch"], {})}
