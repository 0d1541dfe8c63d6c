"""The chaos checker is silent about a good run and catches whatever is planted in its journals.

`good_run.gz` is cut from a campaign: nine streams with kills and zombies of every service, among
them a restart, a continuation, a failed branch, take-overs, cancels, and readers that resumed.
"""

from pathlib import Path

import pytest

from tests import chaos
from tests.chaos.check_ends import is_excused
from tests.chaos.checker import INVARIANTS, check
from tests.chaos.journals import Asked, AskedBranch, Call, Hit, Journals, load
from tests.chaos.mutants import MUTATIONS
from tests.chaos.planting import Mutation

GOOD = Path(chaos.__file__).parent / "good_run.gz"
PLANTED = [(mutate, name) for name, mutations in MUTATIONS.items() for mutate in mutations]


@pytest.fixture
def good() -> Journals:
    return load(GOOD)


def test_a_good_run_violates_nothing(good: Journals) -> None:
    assert check(good) == []


@pytest.mark.parametrize(
    ("mutate", "invariant"), PLANTED, ids=[mutate.__name__ for mutate, _ in PLANTED]
)
def test_the_checker_says_so_when(mutate: Mutation, invariant: str, good: Journals) -> None:
    mutate(good)
    assert invariant in {violation.invariant for violation in check(good)}


def test_the_good_run_has_all_that_can_be_planted_into(good: Journals) -> None:
    """A run without seams, cancels or take-overs would prove the checker on too little."""
    kinds = {e["type"] for log in good.log.values() for record in log for e in record.events}
    assert {"branch.reset", "branch.continued", "branch.error", "cancelled", "error"} <= kinds
    assert any(log[-1].epoch > 1 for log in good.log.values())
    assert {"first", "start", "middle", "late middle"} <= {r.reader for r in good.readings}
    assert any(len(r.connections) > 1 for r in good.readings)


def test_every_invariant_has_a_mutant() -> None:
    assert set(MUTATIONS) == set(INVARIANTS)


@pytest.mark.parametrize("merger_was_lost", [True, False])
def test_a_branch_may_fail_when_its_worker_dies_with_what_no_owner_had_acknowledged(
    merger_was_lost: bool,
) -> None:
    """The call was over when the worker was killed, but with the merger gone nothing was kept."""
    asked = Asked("s", "s", "q", [AskedBranch(None, 3)], "fail", 60.0, 0.0, accepted_at=0.0)
    call = Call("s", 0, 0, started_at=1.0, ended_at=2.0, ended="finished", tokens_sent=3)
    hits = [Hit("worker", "worker-1", "kill", at=4.0, until=4.0, healed_at=4.5)]
    if merger_was_lost:
        hits.append(Hit("merger", "merger-1", "kill", at=1.5, until=1.5, healed_at=2.0))
    assert is_excused(asked, [call], hits) is merger_was_lost
