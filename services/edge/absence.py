"""`on_disconnect: cancel`: a stream that nobody reads any more is cancelled after a grace period.

Readers of one stream may be on several edges, and a client that was cut off may come back to any of
them. So before an edge cancels, it asks all edges whether somebody reads the stream. Whoever says
yes, or waits for a reader of its own to come back, has the duty from then on.

An edge that shuts down or dies cancels nothing: its clients had no part in that.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog

from shared.actor import Tasks
from shared.bus import Bus, BusError, Message, Subscription
from shared.subjects import Subjects
from shared.telemetry import Counters

log = structlog.get_logger()

ANSWER_WITHIN_S = 0.5
RETRY_S = 1.0


class Absence:
    """Counts the readers of streams that want it. `start` before use, `close` after."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        cancel: Callable[[str], Awaitable[object]],
        counters: Counters,
        *,
        grace_s: float,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._cancel = cancel
        self._counters = counters
        self._grace_s = grace_s
        self._readers: Counter[str] = Counter()
        self._waits: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._question: Subscription | None = None
        self._closing = False

    @property
    def waiting(self) -> int:
        """Streams that may be cancelled before long."""
        return len(self._tasks)

    async def start(self) -> None:
        self._question = await self._bus.subscribe(self._subjects.all("readers"), self._on_question)

    async def close(self) -> None:
        self._closing = True
        await self._tasks.cancel()
        if self._question is not None:
            await self._question.close()

    def arrived(self, sid: str) -> None:
        self._readers[sid] += 1
        if (wait := self._waits.pop(sid, None)) is not None:
            wait.cancel()

    def left(self, sid: str, *, ended: bool) -> None:
        """A reader has gone; `ended` when it had the terminal."""
        self._readers[sid] -= 1
        if self._readers[sid] > 0:
            return
        del self._readers[sid]
        if not (ended or self._closing):
            self._waits[sid] = self._tasks.spawn(f"edge.absence.{sid}", self._wait(sid))

    async def _wait(self, sid: str) -> None:
        await asyncio.sleep(self._grace_s)
        self._waits.pop(sid, None)  # from here on this edge doesn't answer for the stream
        while sid not in self._readers:
            try:
                if not await self._is_read(sid):
                    await self._cancel(sid)
                    self._counters["streams_abandoned"] += 1
                    log.info("edge.stream_abandoned", stream_id=sid)
                return
            except BusError:
                await asyncio.sleep(RETRY_S)

    async def _is_read(self, sid: str) -> bool:
        """Ask all edges. Raises BusError when the question may not have reached them."""
        answered = asyncio.Event()
        inbox = self._bus.inbox()
        answers = await self._bus.subscribe(inbox, lambda _message: answered.set())
        try:
            self._bus.send(self._subjects.readers(sid), b"", inbox)
            await self._bus.flush()
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await answered.wait()
        except TimeoutError:
            return False
        finally:
            await answers.close()
        return True

    def _on_question(self, message: Message) -> None:
        sid = message.subject.rpartition(".")[2]
        if sid in self._readers or sid in self._waits:
            self._bus.send(message.reply, b"yes")
