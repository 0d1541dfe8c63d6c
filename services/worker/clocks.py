"""Ending a block of a task from outside: because somebody says so, or because time is up.

An exception is raised in the block wherever it waits, as `asyncio.timeout` does it: by cancelling
the task and turning that one cancellation into the exception. A cancellation from elsewhere passes.
"""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

END_GRACE_S = 5.0
"""After a finish reason, how long usage and `[DONE]` may take before the end is taken as it is."""

Clock = Literal["first token", "idle", "total"]


class Interruptible:
    """A block that `interrupt` ends with an error. Can be entered again, not nested."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._error = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._error is None or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is not None:
            raise self._error from None

    def interrupt(self, error: Exception) -> None:
        """End the block; the first error counts. Without effect outside of the block."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds; see the settings of the same names."""

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float


class ClockExpired(Exception):
    """A clock of the attempt ran out."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.clock: Clock = clock


class Clocks:
    """First token, idle and total clock of one attempt; raises ClockExpired in its block.

    A token costs one stamp: the timer looks at it only when it fires, then sets itself anew.
    """

    def __init__(self, limits: Limits, total_at: float) -> None:
        """`total_at` is a time of the event loop's clock; it outlives attempts."""
        self._loop = asyncio.get_running_loop()
        self._block = Interruptible()
        self._idle_s = limits.idle_s
        self._total_at = total_at
        self._first_at: float | None = self._loop.time() + limits.first_token_s
        self._seen = 0.0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._block.__enter__()
        self._look()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._block.__exit__(kind, raised, trace)

    def progress(self) -> None:
        """A token came."""
        self._seen = self._loop.time()
        if self._first_at is not None:
            self._first_at = None
            self._look_anew()  # the timer stands on the first token's clock, which may be longer

    def pause(self) -> None:
        """We are not reading: the provider isn't to blame."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.progress()

    def finishing(self) -> None:
        """The answer is complete; only its trimmings may follow."""
        self._idle_s = min(self._idle_s, END_GRACE_S)
        self.progress()
        self._look_anew()

    def _look_anew(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    def _look(self) -> None:
        now = self._loop.time()
        clock, due = self._next(now)
        if due <= now:
            self._timer = None
            self._block.interrupt(ClockExpired(clock))
        else:
            self._timer = self._loop.call_at(due, self._look)

    def _next(self, now: float) -> tuple[Clock, float]:
        if self._first_at is not None:
            clock, due = _FIRST, self._first_at
        else:
            clock, due = _IDLE, (now if self._paused else self._seen) + self._idle_s
        return (clock, due) if due < self._total_at else (_TOTAL, self._total_at)


_FIRST: Clock = "first token"
_IDLE: Clock = "idle"
_TOTAL: Clock = "total"
