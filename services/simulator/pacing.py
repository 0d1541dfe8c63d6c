"""When each token is due, as absolute offsets from the request's start: a late sleep never
delays the tokens after it."""

from __future__ import annotations

from dataclasses import dataclass

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Seconds since the start of the request. `due_s` never decreases with the index.

    `jitter` is the part of a gap (0 to 1) within which a token may move, half before and half
    after its place; the first token does not move, and the mean rate stays.
    """

    ttft_s: float
    gap_s: float
    jitter: float = 0.0
    seed: int = 0

    def due_s(self, index: int) -> float:
        if index <= 0:
            return self.ttft_s
        place = float(index)
        if self.jitter:
            place += self.jitter * (_uniform(self.seed, index) - 0.5)
        return self.ttft_s + self.gap_s * place


def _uniform(seed: int, index: int) -> float:
    """[0, 1) from the seed and the index alone (splitmix64, Steele et al. 2014)."""
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
