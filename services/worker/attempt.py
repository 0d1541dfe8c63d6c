"""One call to a provider: its answer, read, understood, and sent to the merger as it comes."""

import asyncio
from typing import Final

from services.worker.clocks import ClockExpired, Clocks, Limits
from services.worker.exchange import Line
from services.worker.failures import Failure, UpstreamFailed, wrong_media
from services.worker.interpret import Interpreter
from services.worker.sse_decoder import EventTooLarge, SseDecoder
from services.worker.upstream import MAX_ANSWER_BYTES, Body, Call, Upstreams, secrets_of
from shared.events import Delta
from shared.messages import BranchEnd
from shared.providers import Provider
from shared.telemetry import Counters

EVENT_STREAM: Final = "text/event-stream"
JSON: Final = "application/json"


class Attempt:
    """Runs once. Times are of the event loop's clock."""

    def __init__(
        self,
        upstreams: Upstreams,
        provider: Provider,
        call: Call,
        line: Line,
        *,
        counters: Counters,
        limits: Limits,
        started_at: float,
        total_at: float,
    ) -> None:
        """`started_at` is when the branch's work began, from which its times are measured."""
        self._upstreams = upstreams
        self._provider = provider
        self._call = call
        self._line = line
        self._counters = counters
        self._limits = limits
        self._started_at = started_at
        self._total_at = total_at
        self._loop = asyncio.get_running_loop()
        self._first_at: float | None = None
        self._last: tuple[Delta, ...] = ()
        """The end of what was said, which travels with the end."""
        self._meaning = Interpreter(
            call.branch,
            relaxed_end=provider.capabilities.relaxed_end,
            secrets=secrets_of(provider),
        )

    @property
    def used_tools(self) -> bool:
        return self._meaning.used_tools

    async def run(self) -> Failure | None:
        """Call, read and send. Returns None when the branch's end was sent, else why it wasn't;
        what was valid before a failure has been sent."""
        meaning = self._meaning
        try:
            with Clocks(self._limits, self._total_at) as clocks:
                async with self._upstreams.open(self._provider, self._call) as body:
                    if body.media == EVENT_STREAM:
                        await self._read_stream(body, clocks)
                    elif body.media == JSON:
                        await self._read_whole(body, clocks)
                    else:
                        meaning.fail(wrong_media(body.media))
                    return self._conclude()
        except UpstreamFailed as error:
            meaning.fail(error.failure)
        except ClockExpired as error:
            meaning.fail(_late(error))
        finally:
            self._counters["tokens"] += meaning.tokens
            self._counters["ignored"] += meaning.ignored
        # An answer that had its finish reason is complete, whatever happened afterwards.
        return None if self._line.outbox.ended else self._conclude()

    def end_with(self, failure: Failure) -> None:
        """Send the branch's end: this failure."""
        self._send_end(failure.code, failure.message, retryable=failure.retryable)

    async def _read_stream(self, body: Body, clocks: Clocks) -> None:
        meaning = self._meaning
        decoder = SseDecoder(MAX_ANSWER_BYTES)
        finishing = False
        async for read in body.reads:
            try:
                for payload in decoder.feed(read):
                    meaning.read(payload)
            except EventTooLarge:
                meaning.fail(Failure("upstream_oversized", "the provider sent too large an event"))
            if meaning.over:
                break
            if meaning.pending:
                clocks.progress()
                await self._say(clocks)
            if meaning.finish_reason is not None and not finishing:
                finishing = True
                clocks.finishing()
        body.complete = meaning.failure is None
        await self._say(clocks, keep_last=True)

    async def _read_whole(self, body: Body, clocks: Clocks) -> None:
        """An answer in one piece, from a provider that doesn't stream."""
        parts: list[bytes] = []
        size = 0
        async for read in body.reads:
            parts.append(read)
            size += len(read)
            if size > MAX_ANSWER_BYTES:
                self._meaning.fail(
                    Failure("upstream_oversized", "the provider sent too large an answer")
                )
                return
        self._meaning.read_whole(b"".join(parts))
        await self._say(clocks, keep_last=True)

    async def _say(self, clocks: Clocks, *, keep_last: bool = False) -> None:
        """Send what was said since the last time; stop reading while the merger is behind."""
        batches = self._meaning.take()
        if not batches:
            return
        if self._first_at is None:
            self._first_at = self._loop.time()
        if keep_last:
            self._last = batches.pop()
        line = self._line
        for batch in batches:
            line.send(batch)
            if line.outbox.full:
                clocks.pause()
                self._counters["pauses"] += 1
                await line.room()
                clocks.resume()

    def _conclude(self) -> Failure | None:
        """Send the end, if the answer has one that counts as such."""
        ended = self._meaning.conclude()
        if not isinstance(ended, Failure):
            self._send_end(finish_reason=ended)
            return None
        if self._last:
            self._line.send(self._last)
            self._last = ()
        return ended

    def _send_end(
        self,
        code: str = "",
        message: str = "",
        *,
        retryable: bool = False,
        finish_reason: str | None = None,
    ) -> None:
        meaning = self._meaning
        first = self._first_at
        counted = meaning.tokens or meaning.usage or not code
        end = BranchEnd(
            finish_reason=finish_reason,
            code=code,
            message=message,
            retryable=retryable,
            model=self._call.model,
            usage=meaning.count_usage(self._call.messages) if counted else None,
            ttft_ms=None if first is None else _ms(first - self._started_at),
            duration_ms=_ms(self._loop.time() - self._started_at),
        )
        self._line.send(self._last, end)
        self._last = ()


def _late(expired: ClockExpired) -> Failure:
    """Waiting as long again for a first token would help nobody; another model might."""
    match expired.clock:
        case "first token":
            said = "the provider sent no first token in time"
        case "idle":
            said = "the provider stopped sending tokens"
        case _:
            said = "the generation took longer than its total budget"
    return Failure("upstream_timeout", f"{said} ({expired.clock} clock)", repeat=False)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
