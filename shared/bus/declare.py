"""Declaring streams and consumers, also while a cluster forms or elects a leader."""

from collections.abc import Awaitable, Callable
from typing import Any

from nats.js import errors as js_errors

from shared.bus.connection import NATS_ERRORS, BusError
from shared.bus.patience import Refused, patiently
from shared.bus.publisher import RETRYABLE_CODES, STREAM_FULL_CODES

PATIENCE_S = 30.0
TRY_S = 3.0
"""A request that comes before there is a leader is never answered; asking again is harmless."""
FORMING_CODES = RETRYABLE_CODES | {
    10005,  # no suitable peers for placement: the leader has not heard of every node yet
    10007,  # cluster not assigned
    10009,  # cluster can not handle request
}


async def declare(what: str, action: Callable[[], Awaitable[Any]]) -> None:
    """Do it, again after a failure that passes. Raises BusError when none of the tries succeeds."""

    async def attempt() -> None:
        try:
            await action()
        except NATS_ERRORS as error:
            kind = BusError if passes(error) else Refused
            raise kind(f"can't declare {what}: {error}") from error

    await patiently(attempt, PATIENCE_S)


def passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if not isinstance(error, js_errors.APIError) or error.err_code in FORMING_CODES:
        return True
    if error.err_code in STREAM_FULL_CODES:
        return False
    return isinstance(error, js_errors.ServiceUnavailableError)
