"""Not asking a dependency that does not answer: after some failures in a row, pause."""

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()


class Breaker:
    """Opens after `failures` in a row; every `pause_s` it then lets one caller try.

    Who is allowed must report `succeeded` or `failed`, or the next try is another pause away.
    Logs its changes of state, and nothing else.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 3,
        pause_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._try_at = 0.0

    @property
    def closed(self) -> bool:
        """True while the dependency counts as well."""
        return self._failures < self._limit

    def allows(self) -> bool:
        """Whether to ask now."""
        if self.closed:
            return True
        now = self._clock()
        if now < self._try_at:
            return False
        self._try_at = now + self._pause_s
        return True

    def succeeded(self) -> None:
        if not self.closed:
            log.info("breaker.closed", dependency=self.name)
        self._failures = 0

    def failed(self, error: BaseException) -> None:
        was_closed = self.closed
        self._failures += 1
        if not self.closed:
            self._try_at = self._clock() + self._pause_s
            if was_closed:
                log.warning("breaker.open", dependency=self.name, error=type(error).__name__)
