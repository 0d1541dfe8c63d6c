"""How long to wait before a child that exited is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(slots=True)
class Backoff:
    """Doubling delays with jitter, forgotten once a child has lived long enough."""

    random: Random
    first_s: float = 0.2
    longest_s: float = 10.0
    stable_s: float = 30.0
    jitter: float = 0.25
    """Share of a delay that is random, either way: children that fell together get up apart."""
    _failures: int = 0

    def delay_s(self, lived_s: float) -> float:
        """The delay before the next start of a child that lived for `lived_s`."""
        if lived_s >= self.stable_s:
            self._failures = 0
        delay_s = min(self.longest_s, self.first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return delay_s * self.random.uniform(1 - self.jitter, 1 + self.jitter)
