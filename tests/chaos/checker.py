"""Journals in, violations out. Pure: nothing is read but the argument.

| invariant | what is proved | in |
|---|---|---|
| I1 | a branch's text is one attempt's tokens, dense from the first, or has a seam | check_text |
| I2 | `n` dense, unique, growing over all connections; log and readers agree | check_order |
| I3 | accepted: one terminal, last, in time; `done` unless another end is allowed | check_ends |
| I4 | Postgres has what was streamed, once | check_store |
| I5 | no token of another stream or branch | check_text |
| I6 | calls within the budget, each closed, soon after a cancel | check_calls |
| I8 | after healing nothing is left over, and the mesh works | check_store |
| stale | epochs never go back, records join: no fenced owner's write was accepted | check_order |
"""

from collections.abc import Iterable
from itertools import chain

from tests.chaos.check_calls import check_calls
from tests.chaos.check_ends import check_ends
from tests.chaos.check_order import check_order
from tests.chaos.check_store import check_store
from tests.chaos.check_text import check_text
from tests.chaos.journals import Journals, Violation

INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I8", "stale")


def check(journals: Journals) -> list[Violation]:
    """Everything that is wrong, in the order of the invariants."""
    found: Iterable[Violation] = chain(
        check_text(journals),
        check_order(journals),
        check_ends(journals),
        check_store(journals),
        check_calls(journals),
    )
    return sorted(found, key=lambda violation: INVARIANTS.index(violation.invariant))
