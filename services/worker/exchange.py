"""The worker's side of the talk with mergers: chunks out, acks and control in, resending.

One ack subject, one control subscription per active stream and one timer serve all branches.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import structlog

from services.worker.outbox import Outbox
from shared.actor import Tasks
from shared.bus import Bus, BusError, EventLog, Link, Message, Subscription
from shared.events import Delta, decode_record
from shared.messages import (
    Ack,
    AskStanding,
    BranchEnd,
    Hello,
    Standing,
    StreamClosed,
    acks_decoder,
    control_decoder,
    msgpack_encoder,
    standing_decoder,
)
from shared.telemetry import Counters

log = structlog.get_logger()

CHECK_AFTER_S = 5.0
"""A merger that is silent for so long may have ended the stream while nobody heard it."""


class Closed(Exception):
    """The branch needs nothing more: it is final, or its stream has its terminal."""


class Refused(Exception):
    """The owner refuses the attempt: a later one has taken the branch over, or it doesn't fit."""


class Superseded(Exception):
    """The task was delivered to this process again."""


class Line:
    """One branch's way to whoever merges it."""

    def __init__(
        self,
        sid: str,
        branch: int,
        outbox: Outbox,
        on_over: Callable[[Exception], None],
        *,
        bus: Bus,
        subject: str,
        acks: str,
        counters: Counters,
    ) -> None:
        """`on_over` is called with Closed, Refused or Superseded."""
        self.sid = sid
        self.branch = branch
        self.outbox = outbox
        self._on_over = on_over
        self.spoke_at = 0.0
        """When a merger was last heard of."""
        self._bus = bus
        self._subject = subject
        self._acks = acks
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()

    def send(self, deltas: tuple[Delta, ...], end: BranchEnd | None = None) -> None:
        payload = self.outbox.add(deltas, end, self._loop.time())
        self._bus.send(self._subject, payload, self._acks)
        self._counters["chunks"] += 1

    def send_again(self, *, asked: bool) -> None:
        payloads = self.outbox.again(self._loop.time(), asked=asked)
        self._counters["resends"] += len(payloads)
        for payload in payloads:
            self._bus.send(self._subject, payload, self._acks)

    async def room(self) -> None:
        """Wait until the merger has caught up enough for more to be sent."""
        while self.outbox.full:
            self._moved.clear()
            await self._moved.wait()

    async def settled(self) -> None:
        """Wait until everything sent is committed."""
        while len(self.outbox):
            self._moved.clear()
            await self._moved.wait()

    def on_ack(self, ack: Ack) -> None:
        self.spoke_at = self._loop.time()
        if self.outbox.acknowledge(ack.attempt, ack.k, self.spoke_at):
            self._moved.set()
        if ack.state == "closed":
            self.close()
        elif ack.state == "fenced" and ack.attempt >= self.outbox.attempt:
            self._on_over(Refused())

    def close(self) -> None:
        """Nothing more is needed. Work that is complete is left to tidy up after itself."""
        if self.outbox.ended:
            self.outbox.forget()
            self._moved.set()
        else:
            self._on_over(Closed())

    def supersede(self) -> None:
        self._on_over(Superseded())


class Exchange:
    """All lines of this process. `start` before use, `close` after."""

    def __init__(
        self, link: Link, tasks: Tasks, counters: Counters, worker: str, *, resend_after_s: float
    ) -> None:
        """`worker` names this process's ack subject and must be used by no other process, ever."""
        self._bus = link.bus
        self._subjects = link.subjects
        self._log: EventLog = link.log
        self._tasks = tasks
        self._counters = counters
        self._acks = link.subjects.acks(worker)
        self._resend_after_s = resend_after_s
        self._lines: dict[str, dict[int, Line]] = defaultdict(dict)
        self._controls: dict[str, Subscription] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(self._acks, self._on_acks)
        self._bus.on_reconnect(self._on_reconnect)
        self._tasks.spawn("worker.resend", self._resend())

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()

    def line(
        self, sid: str, branch: int, outbox: Outbox, on_over: Callable[[Exception], None]
    ) -> Line:
        """Raises ValueError for a sid that is none."""
        return Line(
            sid,
            branch,
            outbox,
            on_over,
            bus=self._bus,
            subject=self._subjects.chunks(sid),
            acks=self._acks,
            counters=self._counters,
        )

    @asynccontextmanager
    async def joined(self, line: Line) -> AsyncIterator[None]:
        """Hear acks and control messages for a line while the block runs.

        An earlier line of the same branch in this process is over: its task was delivered again.
        """
        lines = self._lines[line.sid]
        earlier = lines.get(line.branch)
        lines[line.branch] = line
        if earlier is not None:
            earlier.supersede()
        try:
            if line.sid not in self._controls:
                await self._hear(line.sid)
            # The stream may have ended before we listened; the call to the provider doesn't wait.
            self._tasks.spawn(f"check.{line.sid}", self._check(line))
            yield
        finally:
            if lines.get(line.branch) is line:
                del lines[line.branch]
            if not lines and self._lines.get(line.sid) is lines:
                del self._lines[line.sid]
                control = self._controls.pop(line.sid, None)
                if control is not None:
                    await control.close()

    async def ask(self, sid: str, branch: int, attempt: int, *, timeout_s: float = 1.0) -> Standing:
        """Where the branch stands; the owner refuses attempts below `attempt` from then on.

        Raises BusError when nobody owns the stream just now.
        """
        question = msgpack_encoder.encode(AskStanding(sid=sid, branch=branch, attempt=attempt))
        answer = await self._bus.request(self._subjects.control(sid), question, timeout_s=timeout_s)
        try:
            return standing_decoder.decode(answer.data)
        except msgspec.DecodeError as error:
            raise BusError("the owner's answer can't be read") from error

    async def _hear(self, sid: str) -> None:
        def on_control(message: Message) -> None:
            try:
                control = control_decoder.decode(message.data)
            except msgspec.DecodeError:
                self._counters["control_malformed"] += 1
                return
            lines = list(self._lines.get(sid, {}).values())
            if isinstance(control, Hello):
                for line in lines:
                    line.send_again(asked=True)
            elif isinstance(control, StreamClosed):
                for line in lines:
                    line.close()

        subscription = await self._bus.subscribe(self._subjects.control(sid), on_control)
        if sid in self._controls:  # two branches of the stream came at once
            await subscription.close()
        else:
            self._controls[sid] = subscription

    def _on_acks(self, message: Message) -> None:
        try:
            acks = acks_decoder.decode(message.data)
        except msgspec.DecodeError:
            self._counters["acks_malformed"] += 1
            return
        for ack in acks:
            lines = self._lines.get(ack.sid)
            line = lines.get(ack.branch) if lines else None
            if line is not None:
                line.on_ack(ack)

    def _on_reconnect(self) -> None:
        """Chunks, acks and a word of the stream's end may have been lost."""
        for line in self._all():
            line.send_again(asked=True)
            self._tasks.spawn(f"check.{line.sid}", self._check(line))

    def _all(self) -> list[Line]:
        return [line for lines in self._lines.values() for line in lines.values()]

    async def _resend(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._resend_after_s / 2)
            now = loop.time()
            for line in self._all():
                if not line.outbox.is_due(now, self._resend_after_s):
                    continue
                line.send_again(asked=False)
                if now - line.spoke_at > CHECK_AFTER_S:
                    line.spoke_at = now
                    self._tasks.spawn(f"check.{line.sid}", self._check(line))

    async def _check(self, line: Line) -> None:
        """Nobody listens for chunks of a stream that has ended, so the log is asked."""
        try:
            last = await self._log.last(line.sid)
            if last is not None and decode_record(last.payload).finished:
                line.close()
        except BusError as error:
            log.info("worker.check_failed", stream_id=line.sid, error=str(error))
        except msgspec.DecodeError:
            log.warning("worker.record_malformed", stream_id=line.sid)
