"""I4 and I8: what Postgres holds, and what is left when all is over. Pure."""

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.check_text import replay
from tests.chaos.journals import Asked, Journals, Reading, Row, Violation, shown, terminal_of


def check_store(journals: Journals) -> Iterator[Violation]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in journals.rows:
        rows[row.sid].append(row)
    first = {r.sid: r for r in journals.readings if r.reader == "first"}
    known = set()
    for asked in journals.asked:
        known.add(asked.sid)
        reading = first.get(asked.sid)
        if terminal_of(journals.log.get(asked.sid, [])) and reading is not None:
            yield from _check_stream(asked, reading, rows[asked.sid])
    for sid in rows.keys() - known:
        yield Violation("I4", sid, "is stored, but nobody has asked for it")
    yield from _check_health(journals)


def _check_stream(asked: Asked, reading: Reading, rows: list[Row]) -> Iterator[Violation]:
    def wrong(detail: str) -> Violation:
        return Violation("I4", asked.sid, detail)

    questions = [row for row in rows if row.role == "user"]
    if len(questions) != 1:
        yield wrong(f"{len(questions)} rows of its question")
    for row in questions:
        if row.content != asked.question or row.branch is not None:
            yield wrong("the stored question is not the one that was asked")
    for row in rows:
        if row.session_id != asked.session_id:
            yield wrong(f"{row.id} is stored in session {row.session_id}")
    answers: dict[int | None, list[Row]] = defaultdict(list)
    for row in rows:
        if row.role == "assistant":
            answers[row.branch].append(row)
    branches = replay(reading, asked, {})
    statuses = _statuses(asked, reading)
    for index, branch in branches.items():
        stored = answers.pop(index, [])
        if len(stored) != 1:
            yield wrong(f"{len(stored)} rows of branch {index}")
        for row in stored:
            if row.content != branch.text:
                yield wrong(
                    f"branch {index}: {len(row.content)} characters are stored, and others than "
                    f"the {len(branch.text)} that were streamed"
                )
            if row.status != statuses.get(index):
                yield wrong(f"branch {index} is stored as {row.status}, not {statuses.get(index)}")
            if index < len(asked.branches) and row.section != asked.branches[index].label:
                yield wrong(f"branch {index} is stored under {row.section}")
    for extra in answers:
        yield wrong(f"a row of branch {extra}, which was not asked for")


def _statuses(asked: Asked, reading: Reading) -> dict[int, str]:
    """What each branch's row must say of its end."""
    statuses: dict[int, str] = {}
    end = ""
    for seen in reading.events:
        try:
            event = shown(seen)
        except ValueError:
            continue  # said by I2
        match event.get("type"):
            case "branch.done":
                cut = event["finish_reason"] == "incomplete"
                statuses[event["branch"]] = "incomplete" if cut else "done"
            case "branch.error":
                statuses[event["branch"]] = "failed"
            case "cancelled":
                end = "cancelled"
            case "error" | "incomplete":
                end = "failed"
    for index in range(len(asked.branches)):
        statuses.setdefault(index, end)
    return statuses


def _check_health(journals: Journals) -> Iterator[Violation]:
    health = journals.health
    for queue, left in health.backlog.items():
        if left:
            yield Violation("I8", "", f"{left} messages are left in {queue}")
    if health.pieces_left:
        yield Violation("I8", "", f"{health.pieces_left} pieces of messages were never joined")
    if health.probe != "done":
        yield Violation("I8", "", f"a probe after healing ended with {health.probe}")
    for hit in journals.hits:
        if hit.healed_at is None:
            yield Violation("I8", "", f"{hit.name} did not come back after its {hit.kind}")
