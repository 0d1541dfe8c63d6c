"""How a request says what it wants of the simulator: body `sim`, `x-sim-…` headers, or the
model's name (`sim-echo?ttft_s=0.2&fault=stall`). Pure: parsing and merging, no clock.

The body wins over headers, headers over the model's name, and that over the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from services.simulator.config import SimulatorConfig
from services.simulator.errors import bad_request
from services.simulator.faults import FAULTS

HEADER_PREFIX = "x-sim-"

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Knobs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None: not said here."""

    ttft_s: Seconds | None = None
    gap_s: Seconds | None = None
    jitter: Annotated[float, Meta(ge=0, le=1)] | None = None
    tokens: Count | None = None
    reasoning_tokens: Count | None = None
    tokens_per_chunk: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    seed: int | None = None
    marker: bool | None = None
    fault: str | int | None = None
    fault_at: Count | None = None
    fault_s: Seconds | None = None
    fault_times: Count | None = None
    fault_key: str | None = None
    retry_after_s: Seconds | None = None
    keepalive_s: Annotated[float, Meta(ge=0.001, le=3_600)] | None = None
    giant_bytes: Annotated[int, Meta(ge=1, le=64 * 1024 * 1024)] | None = None


KNOWN = Knobs.__struct_fields__


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Everything decided about how one answer runs."""

    ttft_s: float = 0.0
    gap_s: float = 0.0
    jitter: float = 0.0
    tokens: int = 80
    exact: bool = False
    """The length was asked for by number; otherwise the last sentence may end."""
    reasoning_tokens: int | None = None
    tokens_per_chunk: int = 1
    seed: int = 0
    marker: bool = False
    fault: str | None = None
    fault_at: int = 5
    fault_s: float | None = None
    fault_times: int | None = None
    fault_key: str = ""
    retry_after_s: float | None = None
    keepalive_s: float = 1.0
    giant_bytes: int = 2 * 1024 * 1024


def split_model(model: str) -> tuple[str, dict[str, str]]:
    """The model's own name, and the knobs after the question mark."""
    name, _, query = model.partition("?")
    return name, {key: value or "true" for key, value in parse_qsl(query, keep_blank_values=True)}


def read_knobs(body: Mapping[str, Any] | None, headers: Mapping[str, str], model: str) -> Knobs:
    """Raises ApiError (400) that names an unknown key or a wrong value and where it stood."""
    in_headers = {
        key.lower().removeprefix(HEADER_PREFIX).replace("-", "_"): value
        for key, value in headers.items()
        if key.lower().startswith(HEADER_PREFIX)
    }
    merged: dict[str, Any] = {}
    for where, given, strict in (
        ("model", split_model(model)[1], False),
        ("x-sim headers", in_headers, False),
        ("sim", body or {}, True),
    ):
        if given:
            merged.update(_said(_checked(where, given, strict)))
    return Knobs(**merged)


def _said(knobs: Knobs) -> dict[str, Any]:
    return {key: value for key, value in msgspec.structs.asdict(knobs).items() if value is not None}


def _checked(where: str, given: Mapping[str, Any], strict: bool) -> Knobs:
    unknown = [key for key in given if key not in KNOWN]
    if unknown:
        raise bad_request(
            f"Unknown key '{unknown[0]}' in {where}. Known keys: {', '.join(KNOWN)}.", where
        )
    try:
        knobs = msgspec.convert(dict(given), Knobs, strict=strict)
    except msgspec.ValidationError as error:
        raise bad_request(f"Wrong value in {where}: {error}.", where) from None
    if knobs.fault is not None and str(knobs.fault) not in (*FAULTS, "none"):
        raise bad_request(
            f"Unknown fault '{knobs.fault}' in {where}. Known faults: none, {', '.join(FAULTS)}.",
            where,
        )
    return knobs


def script_for(knobs: Knobs, config: SimulatorConfig, seed: int | None) -> Script:
    """Fills what the request left open: the seed from the request's own, the rest from the
    configuration and then from the fixed defaults."""
    said = _said(knobs)
    fault = str(said.pop("fault", "none"))
    settled: dict[str, Any] = {
        "ttft_s": config.ttft_s,
        "gap_s": config.gap_s,
        "tokens": config.tokens,
        "seed": config.seed if seed is None else seed,
        "exact": knobs.tokens is not None,
        "fault": None if fault == "none" else fault,
    }
    return Script(**{**settled, **said})
