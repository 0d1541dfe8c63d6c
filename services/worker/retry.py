"""What to do after an attempt that failed before its first token. Pure."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from services.worker.failures import Failure

RETRIES: Final = 2
"""Of one model, before the next one is tried."""
BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 5.0
MAX_WAIT_WITH_FALLBACK_S: Final = 2.0
"""A provider that asks for more patience than this loses the request to the next model."""


@dataclass(frozen=True, slots=True)
class Again:
    """The same model once more."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class NextModel:
    pass


@dataclass(frozen=True, slots=True)
class GiveUp:
    pass


Move: TypeAlias = Again | NextModel | GiveUp


def decide(
    failure: Failure,
    *,
    tries: int,
    fallback_left: bool,
    left_s: float,
    patience_s: float,
    chance: float,
) -> Move:
    """Retries first, then the fallback models in order.

    `tries` of this model so far; `left_s` of the generation's whole budget; `patience_s` is the
    longest Retry-After worth waiting for; `chance` is random, from 0 to 1.
    """
    if left_s <= 0:
        return GiveUp()
    otherwise: Move = NextModel() if fallback_left else GiveUp()
    if not failure.retryable or not failure.repeat or tries > RETRIES:
        return otherwise
    delay_s = backoff_s(tries, chance)
    if failure.retry_after_s is not None:
        most_s = MAX_WAIT_WITH_FALLBACK_S if fallback_left else patience_s
        if failure.retry_after_s > most_s:
            return otherwise
        # A little over: the provider's clock and ours differ, and others wait for the same moment.
        delay_s = failure.retry_after_s + delay_s * 0.5
    return Again(delay_s) if delay_s < left_s else otherwise


def backoff_s(tries: int, chance: float) -> float:
    """Doubles with every try; between half and all of it, so that retries don't march in step."""
    whole_s = min(BACKOFF_S * 2 ** (tries - 1), MAX_BACKOFF_S)
    return float(whole_s * (0.5 + chance / 2))
