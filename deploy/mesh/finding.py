"""One line of `braid doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    is_ok: bool
    detail: str
    advice: str = ""
    """What to do; empty when all is well."""
