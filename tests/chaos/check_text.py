"""I1 and I5: what a branch says comes from one attempt, whole and in order, or has a seam. Pure.

The upstream writes `stream|branch|attempt|index ` into every token, so the text itself says where
it comes from.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.journals import Asked, Call, Journals, Reading, Violation, shown

TOKEN = re.compile(r"([0-9A-Za-z]+)\|(\d+)\|(\d+)\|(\d+) ")


@dataclass(slots=True)
class Branch:
    """What one branch said so far, from the last seam on in `segment`."""

    segment: str = ""
    kept: str = ""
    """What stands before a continuation."""
    attempt: int = -1
    """Of the last segment that said something."""
    final: bool = False
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.kept + self.segment


def check_text(journals: Journals) -> Iterator[Violation]:
    asked = {each.sid: each for each in journals.asked}
    calls = {(call.sid, call.branch, call.attempt): call for call in journals.calls}
    for reading in journals.readings:
        stream = asked.get(reading.sid)
        if reading.after == 0 and stream is not None:
            for index, branch in replay(reading, stream, calls).items():
                for invariant, detail in branch.problems:
                    yield Violation(
                        invariant, reading.sid, f"{reading.reader}: branch {index}: {detail}"
                    )


def replay(
    reading: Reading, asked: Asked, calls: dict[tuple[str, int, int], Call]
) -> dict[int, Branch]:
    """Every branch as a client sees it, with what is wrong about it."""
    branches = {index: Branch() for index in range(len(asked.branches))}
    for seen in reading.events:
        try:
            event = shown(seen)
        except ValueError:
            continue  # said by I2
        kind = event.get("type")
        if "branch" in event:
            branch = branches.setdefault(event["branch"], Branch())
            _apply(branch, event, seen.n, asked, event["branch"], calls)
        elif kind == "done":
            for index, branch in branches.items():
                if not branch.final:
                    branch.problems.append(("I1", f"`done` came, but branch {index} had no end"))
    for index, branch in branches.items():
        _close(branch, asked.sid, index, calls)
    return branches


def _apply(
    branch: Branch,
    event: dict[str, Any],
    n: int,
    asked: Asked,
    index: int,
    calls: dict[tuple[str, int, int], Call],
) -> None:
    wrong = branch.problems
    kind = event["type"]
    if branch.final:
        wrong.append(("I1", f"{kind} at {n} after its end"))
    match kind:
        case "delta":
            branch.segment += event.get("text", "")
        case "branch.reset":
            if event["discarded_chars"] != len(branch.text):
                wrong.append(("I1", f"the reset at {n} discards not what was said"))
            _close(branch, asked.sid, index, calls)
            branch.segment = branch.kept = ""
        case "branch.continued":
            if event["kept_chars"] != len(branch.text):
                wrong.append(("I1", f"the continuation at {n} keeps not what was said"))
            _close(branch, asked.sid, index, calls)
            branch.kept, branch.segment = branch.text, ""
        case "branch.done":
            branch.final = True
            if event.get("chars", 0) != len(branch.text):
                wrong.append(("I1", f"the end at {n} counts other characters than were said"))
            said = len(TOKEN.findall(branch.segment))
            due = asked.branches[index].tokens if index < len(asked.branches) else 0
            if event["finish_reason"] != "incomplete" and said != due:
                wrong.append(("I1", f"was done with {said} of {due} tokens"))
        case "branch.error":
            branch.final = True


def _close(branch: Branch, sid: str, index: int, calls: dict[tuple[str, int, int], Call]) -> None:
    """Check the segment that ends here."""
    segment, wrong = branch.segment, branch.problems
    if not segment:
        return
    tokens = list(TOKEN.finditer(segment))
    if "".join(token[0] for token in tokens) != segment:
        wrong.append(("I1", "the text is not a row of whole tokens"))
    origins = {(token[1], int(token[2])) for token in tokens}
    for stream, other in sorted(origins - {(sid, index)}):
        wrong.append(("I5", f"holds tokens of stream {stream}, branch {other}"))
    attempts = list(dict.fromkeys(int(token[3]) for token in tokens))
    if len(attempts) > 1:
        wrong.append(("I1", f"attempts {attempts} without a seam between them"))
    if any(int(token[4]) != position for position, token in enumerate(tokens)):
        wrong.append(("I1", "its tokens are not dense from the first on"))
    if attempts:
        if attempts[0] <= branch.attempt:
            wrong.append(("I1", f"attempt {attempts[0]} follows {branch.attempt}"))
        branch.attempt = attempts[-1]
        call = calls.get((sid, index, attempts[0]))
        if call is None:
            wrong.append(("I1", f"the upstream knows no attempt {attempts[0]}"))
        elif len(tokens) > call.tokens_sent:
            wrong.append(("I1", f"{len(tokens)} tokens of {call.tokens_sent} that were sent"))
