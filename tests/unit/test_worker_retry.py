"""After an attempt that came to nothing: again, the next model, or the end."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.failures import Failure
from services.worker.retry import (
    MAX_BACKOFF_S,
    RETRIES,
    Again,
    GiveUp,
    Move,
    NextModel,
    backoff_s,
    decide,
)
from shared.errors import KINDS


def after(failure: Failure | str, **how: Any) -> Move:
    if isinstance(failure, str):
        failure = Failure(failure, "said")
    usual = {"tries": 1, "fallback_left": False, "left_s": 60.0, "patience_s": 30.0, "chance": 1.0}
    return decide(failure, **{**usual, **how})


@pytest.mark.parametrize(
    "code", ["upstream_refused", "upstream_error", "upstream_reset", "upstream_malformed"]
)
def test_what_may_pass_is_tried_again_twice_then_falls_back(code: str) -> None:
    assert after(code, tries=1) == Again(0.2)
    assert after(code, tries=2, fallback_left=True) == Again(0.4)
    assert after(code, tries=3, fallback_left=True) == NextModel()
    assert after(code, tries=3) == GiveUp()


@pytest.mark.parametrize("code", ["upstream_auth", "upstream_rejected", "no_provider"])
def test_what_would_fail_again_is_not_repeated_but_another_model_may_do(code: str) -> None:
    assert after(code, fallback_left=True) == NextModel()
    assert after(code) == GiveUp()


def test_a_first_token_that_never_came_is_not_waited_for_twice() -> None:
    late = Failure("upstream_timeout", "said", repeat=False)
    assert after(late, fallback_left=True) == NextModel()
    assert after(late) == GiveUp()


def limited(retry_after_s: float) -> Failure:
    return Failure("upstream_rate_limited", "said", retry_after_s)


def test_retry_after_is_honoured_and_a_little_more() -> None:
    assert after(limited(3.0)) == Again(3.1)


def test_retry_after_that_does_not_fit_is_relayed() -> None:
    assert after(limited(31.0)) == GiveUp()
    assert after(limited(20.0), left_s=10.0) == GiveUp()


def test_with_a_fallback_nobody_waits_long() -> None:
    assert after(limited(1.0), fallback_left=True) == Again(1.1)
    assert after(limited(3.0), fallback_left=True) == NextModel()


def test_nothing_is_tried_when_the_total_budget_is_used_up() -> None:
    assert after("upstream_error", left_s=0.0, fallback_left=True) == GiveUp()
    assert after("upstream_error", left_s=0.1) == GiveUp()


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(min_value=1, max_value=20),
    st.booleans(),
    st.floats(min_value=0, max_value=1_000),
    st.floats(min_value=0, max_value=1),
    st.none() | st.floats(min_value=0, max_value=1_000),
)
def test_every_retry_ends_within_the_budget(
    code: str,
    tries: int,
    fallback_left: bool,
    left_s: float,
    chance: float,
    retry_after_s: float | None,
) -> None:
    move = after(
        Failure(code, "said", retry_after_s),
        tries=tries,
        fallback_left=fallback_left,
        left_s=left_s,
        chance=chance,
    )
    if isinstance(move, Again):
        assert tries <= RETRIES
        assert move.delay_s < left_s
        assert KINDS[code].retryable
    if isinstance(move, NextModel):
        assert fallback_left


@given(st.integers(min_value=1, max_value=50), st.floats(min_value=0, max_value=1))
def test_backoff_grows_spreads_and_is_bounded(tries: int, chance: float) -> None:
    assert backoff_s(tries, 0.0) <= backoff_s(tries, chance) <= backoff_s(tries, 1.0)
    assert backoff_s(tries, 1.0) == 2 * backoff_s(tries, 0.0)
    assert backoff_s(tries, 1.0) <= backoff_s(tries + 1, 1.0) <= MAX_BACKOFF_S
