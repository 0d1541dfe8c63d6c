"""One branch from its task to its end: attempts, fallbacks, seams, and the settling of the task."""

import asyncio
import random
from typing import Final

import structlog

from services.worker.attempt import Attempt
from services.worker.clocks import Interruptible, Limits
from services.worker.exchange import Closed, Exchange, Refused, Superseded
from services.worker.failures import Failure
from services.worker.outbox import Outbox, Seam
from services.worker.retry import Again, NextModel, backoff_s, decide
from services.worker.upstream import Call, Upstreams
from shared.bus import BusError, WorkItem
from shared.errors import BraidError
from shared.messages import (
    BranchEnd,
    GenerateBranch,
    MidStream,
    Standing,
    attempt_number,
)
from shared.telemetry import Counters

log = structlog.get_logger()

MAX_RESTARTS: Final = 2
"""After output was sent; each one voids or continues it."""
MAX_MODELS: Final = 17
"""The model asked for and 16 fallbacks."""
ACK_PATIENCE_S: Final = 60.0
"""Beyond the total clock, how long the merger may take before the task is handed back."""
ASK_FOR_S: Final = 30.0
ASK_EVERY_S: Final = 0.3
HAND_BACK_S: Final = 5.0


class Orphaned(Exception):
    """Nobody owns the stream: what an earlier attempt left behind can't be known."""


class BranchRun:
    """One delivery of one task. Times are of the event loop's clock."""

    def __init__(
        self,
        task: GenerateBranch,
        item: WorkItem,
        upstreams: Upstreams,
        exchange: Exchange,
        outbox: Outbox,
        *,
        counters: Counters,
        limits: Limits,
        mid_stream: MidStream,
    ) -> None:
        """Raises ValueError for a task whose sid is none."""
        self._task = task
        self._item = item
        self._upstreams = upstreams
        self._exchange = exchange
        self._counters = counters
        self._limits = limits
        self._policy: MidStream = mid_stream
        self._guard = Interruptible()
        self._outbox = outbox
        self._line = exchange.line(task.sid, task.branch, outbox, self._guard.interrupt)
        self._log = log.bind(stream_id=task.sid, branch=task.branch, delivery=item.delivery)
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._total_at = self._started_at + limits.total_s
        self._models = (task.model, *task.fallbacks)[:MAX_MODELS]
        self._model_at = 0
        self._tries = 0
        """Of the present model, since output was last sent."""
        self._attempts = 0
        """All calls of this delivery."""
        self._restarts = 0
        self._standing: Standing | None = None
        """What earlier attempts left behind, as far as the owner was asked."""
        self._dirty = False
        """Earlier attempts may have left something behind."""
        self._used_tools = False
        self._attempt: Attempt | None = None

    async def run(self) -> None:
        """Produce the branch and settle the task. Cancellation closes the upstream connection and
        leaves the task unsettled."""
        try:
            async with asyncio.timeout_at(self._total_at + ACK_PATIENCE_S):
                await self._until_over()
        except TimeoutError:
            self._log.warning("branch.unacknowledged", chunks=len(self._outbox))
            self._counters["unacknowledged"] += 1
            self._item.nak(HAND_BACK_S)
        except Orphaned:
            self._log.warning("branch.orphaned")
            self._counters["orphaned"] += 1
            self._item.nak(HAND_BACK_S)

    async def _until_over(self) -> None:
        while True:
            try:
                with self._guard:
                    async with self._exchange.joined(self._line):
                        await self._produce()
                        await self._line.settled()
                self._item.ack()
                self._log.info(
                    "branch.ended", attempt=self._outbox.attempt, chunks=self._outbox.next_k
                )
            except Closed:
                self._counters["closed"] += 1
                self._item.ack()
            except Refused:
                if self._outbox.seam == "continue" and self._outbox.acked_k < 0:
                    # Somebody else has the branch, or what we wanted to continue has changed.
                    self._policy = "restart"
                    self._standing = None
                    self._outbox.ended = False
                    continue
                self._superseded()
            except Superseded:
                self._superseded()
            return

    def _superseded(self) -> None:
        self._counters["superseded"] += 1
        self._log.info("branch.superseded", attempt=self._outbox.attempt)
        self._item.abandon()

    async def _produce(self) -> None:
        if self._item.poisoned:
            self._begin("fail")
            self._end_with(
                Failure("attempts_exhausted", "the branch was tried too often without success")
            )
        elif self._standing is None and (self._item.delivery > 1 or self._dirty):
            self._dirty = True
            self._standing = await self._ask()
            self._used_tools = self._standing.used_tools
            if self._standing.k >= 0 and self._policy == "fail":
                self._begin("fail")
                self._end_with(
                    Failure("attempts_exhausted", "the worker was lost in the middle of the branch")
                )
        while not self._outbox.ended:
            await self._try()

    async def _ask(self) -> Standing:
        """Raises Closed for a branch that is final, Superseded when a later attempt has it,
        Orphaned when nobody answers."""
        give_up_at = self._loop.time() + ASK_FOR_S
        attempt = attempt_number(self._item.delivery, self._attempts)
        while True:
            try:
                standing = await self._exchange.ask(self._task.sid, self._task.branch, attempt)
                break
            except BusError:
                if self._loop.time() > give_up_at:
                    raise Orphaned from None
            await asyncio.sleep(ASK_EVERY_S)
        if standing.final:
            raise Closed
        if standing.attempt > attempt:
            raise Superseded
        return standing

    # Attempts ------------------------------------------------------------------------------

    async def _try(self) -> None:
        """One call and what follows from it."""
        model = self._models[self._model_at]
        self._tries += 1
        failure = await self._call(model)
        if failure is None:
            return
        self._counters[f"failed.{failure.code}"] += 1
        self._log.warning(
            "attempt.failed",
            attempt=self._outbox.attempt,
            model=model,
            code=failure.code,
            chunks=self._outbox.next_k,
        )
        if self._outbox.next_k:
            await self._broke_off(failure)
        elif self._outbox.seam == "continue" and failure.code == "upstream_rejected":
            self._policy = "restart"
        else:
            await self._came_to_nothing(failure)

    async def _came_to_nothing(self, failure: Failure) -> None:
        """Before the first token: again, or the next model, or the end."""
        move = decide(
            failure,
            tries=self._tries,
            fallback_left=self._model_at + 1 < len(self._models),
            left_s=self._total_at - self._loop.time(),
            patience_s=self._limits.first_token_s,
            chance=random.random(),  # noqa: S311 - jitter
        )
        match move:
            case Again(delay_s):
                self._counters["retries"] += 1
                await asyncio.sleep(delay_s)
            case NextModel():
                self._counters["fallbacks"] += 1
                self._model_at += 1
                self._tries = 0
            case _:
                self._end_with(failure)

    async def _broke_off(self, failure: Failure) -> None:
        """After output was sent: what `mid_stream` says for a lost connection, else the end."""
        assert self._attempt is not None
        self._used_tools = self._used_tools or self._attempt.used_tools
        if (
            failure.code != "upstream_reset"
            or self._policy == "fail"
            or self._restarts >= MAX_RESTARTS
        ):
            self._end_with(failure)
            return
        self._restarts += 1
        self._tries = 0
        self._dirty = True
        self._counters["restarts"] += 1
        if self._policy == "continue" and not self._used_tools:
            self._standing = await self._ask()
            self._used_tools = self._standing.used_tools
        await asyncio.sleep(backoff_s(self._restarts, random.random()))  # noqa: S311 - jitter

    async def _call(self, model: str) -> Failure | None:
        """One attempt. Returns None when the branch's end was sent."""
        self._attempt = None
        try:
            provider = self._upstreams.route(model)
        except BraidError as error:
            self._begin(self._seam())
            return Failure(error.code, error.message)
        seam, messages = self._seam(), self._task.messages
        standing = self._standing
        if (
            self._policy == "continue"
            and provider.capabilities.continue_partial
            and standing is not None
            and standing.text
            and not self._used_tools
        ):
            seam = "continue"
            messages = [*messages, {"role": "assistant", "content": standing.text}]
        call = Call(
            sid=self._task.sid,
            branch=self._task.branch,
            attempt=self._begin(seam),
            model=model,
            messages=messages,
            params=self._task.params,
            connect_s=self._limits.connect_s,
        )
        self._attempt = Attempt(
            self._upstreams,
            provider,
            call,
            self._line,
            counters=self._counters,
            limits=self._limits,
            started_at=self._started_at,
            total_at=self._total_at,
        )
        self._counters["calls"] += 1
        return await self._attempt.run()

    def _seam(self) -> Seam:
        """What becomes of a committed prefix; without one it means nothing."""
        return "restart" if self._dirty else ""

    def _begin(self, seam: Seam) -> int:
        attempt = attempt_number(self._item.delivery, self._attempts)
        self._attempts += 1
        kept = self._standing.text if seam == "continue" and self._standing else ""
        self._outbox.begin(attempt, seam, len(kept))
        return attempt

    def _end_with(self, failure: Failure) -> None:
        """Send the end; what an earlier attempt said stays when this one said nothing."""
        if self._dirty and not self._outbox.next_k:
            self._outbox.seam = "fail"
        if self._attempt is not None:
            self._attempt.end_with(failure)
            return
        end = BranchEnd(
            code=failure.code,
            message=failure.message,
            retryable=failure.retryable,
            model=self._models[self._model_at],
        )
        self._line.send((), end)
