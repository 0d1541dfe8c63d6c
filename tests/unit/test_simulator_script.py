"""What a request may ask of the simulator, in its three ways, and when its tokens are due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.config import SimulatorConfig
from services.simulator.errors import ApiError
from services.simulator.faults import FAULTS, FaultLedger
from services.simulator.knobs import KNOWN, Script, read_knobs, script_for, split_model
from services.simulator.pacing import Schedule

OUR = SimulatorConfig(ttft_s=0.5, gap_s=0.25, tokens=40, seed=7)


def script(
    body: dict[str, object] | None = None,
    headers: dict[str, str] | None = None,
    model: str = "sim-echo",
    seed: int | None = None,
) -> Script:
    return script_for(read_knobs(body, headers or {}, model), OUR, seed)


def test_what_the_request_leaves_open_comes_from_the_configuration() -> None:
    settled = script()
    assert (settled.ttft_s, settled.gap_s, settled.tokens, settled.seed) == (0.5, 0.25, 40, 7)
    assert settled.fault is None
    assert not settled.exact


@pytest.mark.parametrize(
    ("body", "headers", "model"),
    [
        ({"gap_s": 0.02, "tokens": 9, "fault": "429", "marker": True}, None, "sim-echo"),
        (
            None,
            {"X-Sim-Gap-S": "0.02", "x-sim-tokens": "9", "x-sim-fault": "429", "x-sim-marker": "1"},
            "sim-echo",
        ),
        (None, None, "sim-echo?gap_s=0.02&tokens=9&fault=429&marker"),
        ({"gap_s": 0.02, "tokens": 9, "fault": 429, "marker": True}, None, "sim-echo"),
    ],
    ids=["body", "headers", "model", "fault as a number"],
)
def test_all_three_ways_say_the_same(
    body: dict[str, object] | None, headers: dict[str, str] | None, model: str
) -> None:
    settled = script(body, headers, model)
    assert (settled.gap_s, settled.tokens, settled.fault) == (0.02, 9, "429")
    assert settled.marker
    assert settled.exact


def test_the_body_wins_over_headers_and_headers_over_the_model() -> None:
    settled = script({"tokens": 1}, {"x-sim-tokens": "2", "x-sim-seed": "2"}, "m?tokens=3&seed=3")
    assert (settled.tokens, settled.seed) == (1, 2)


def test_fault_none_takes_back_a_fault_of_the_model() -> None:
    assert script({"fault": "none"}, None, "m?fault=stall").fault is None


def test_the_seed_of_the_request_is_used_unless_the_simulators_own_is_given() -> None:
    assert script(seed=11).seed == 11
    assert script({"seed": 12}, seed=11).seed == 12


@pytest.mark.parametrize(
    ("body", "headers", "model", "where"),
    [
        ({"tokenz": 1}, {}, "m", "sim"),
        (None, {"x-sim-tokenz": "1"}, "m", "x-sim headers"),
        (None, {}, "m?tokenz=1", "model"),
    ],
)
def test_an_unknown_key_is_refused_by_name_with_the_known_ones(
    body: dict[str, object] | None, headers: dict[str, str], model: str, where: str
) -> None:
    with pytest.raises(ApiError) as refused:
        read_knobs(body, headers, model)
    assert refused.value.status == 400
    assert refused.value.param == where
    assert "'tokenz'" in refused.value.message
    assert all(key in refused.value.message for key in KNOWN)


@pytest.mark.parametrize(
    "model",
    [
        "m?gap_s=-1",
        "m?gap_s=nan",
        "m?ttft_s=inf",
        "m?tokens=x",
        "m?jitter=2",
        "m?tokens_per_chunk=0",
    ],
)
def test_a_wrong_value_is_refused(model: str) -> None:
    with pytest.raises(ApiError, match="Wrong value in model"):
        read_knobs(None, {}, model)


def test_an_unknown_fault_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ApiError) as refused:
        read_knobs({"fault": "explode"}, {}, "m")
    assert all(name in refused.value.message for name in FAULTS)


def test_a_model_without_knobs_keeps_its_whole_name() -> None:
    assert split_model("org/model:free") == ("org/model:free", {})


def test_only_the_first_requests_of_a_key_fail() -> None:
    ledger = FaultLedger()
    assert [ledger.strikes("a", 2) for _ in range(4)] == [True, True, False, False]
    assert ledger.strikes("b", 2)
    assert all(ledger.strikes("a", None) for _ in range(3))
    ledger.forget()
    assert ledger.strikes("a", 2)


def test_the_ledger_forgets_the_key_not_used_for_longest() -> None:
    ledger = FaultLedger(max_keys=2)
    for key in ("a", "b", "a", "c"):
        ledger.strikes(key, 1)
    assert not ledger.strikes("a", 1)
    assert ledger.strikes("b", 1), "b was pushed out by c"


def test_without_jitter_tokens_are_due_on_a_grid() -> None:
    schedule = Schedule(ttft_s=0.5, gap_s=0.25)
    assert [schedule.due_s(index) for index in range(4)] == [0.5, 0.75, 1.0, 1.25]


@given(
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(0, 1),
    st.integers(-(2**70), 2**70),
    st.integers(1, 10_000),
)
def test_jitter_moves_tokens_by_half_a_gap_at_most_and_never_reorders_them(
    ttft_s: float, gap_s: float, jitter: float, seed: int, index: int
) -> None:
    schedule = Schedule(ttft_s, gap_s, jitter, seed)
    due_s, next_s = schedule.due_s(index), schedule.due_s(index + 1)
    assert ttft_s <= due_s <= next_s
    assert abs(due_s - (ttft_s + gap_s * index)) <= gap_s * jitter / 2 + 1e-6
    assert due_s == Schedule(ttft_s, gap_s, jitter, seed).due_s(index)
