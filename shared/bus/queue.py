"""Pull work queues: fetch only into free slots, report progress, acknowledge after the effect.

A lease that ran out does not mean that its holder is dead: while NATS restarts or elects a leader,
nobody hears of progress. So an item that comes again is first asked for among all who take from the
queue. That saves work and proves nothing: two may still handle one item, and fencing decides.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from nats.js.api import AckPolicy, ConsumerConfig

from shared.bus.connection import Bus, BusError, Message, Subscription, status_of
from shared.bus.declare import TRY_S, declare
from shared.subjects import Subjects

log = structlog.get_logger()

MAX_PULL_EXPIRES_S = 30.0
HEARTBEAT_S = 1.0
"""How often JetStream says that it still holds our request, while there is nothing to hand out."""
LOST_AFTER_S = 2.5
"""Silence after which the request is taken for lost: its leader died, or hangs."""
LOOK_EVERY_S = 0.25
"""How soon a request that was refused, because there is no leader just now, is made again."""
HOLDER_ANSWERS_S = 0.15
"""How long an item that comes again waits for a word of whoever had it before."""
RETRY_AFTER_S = 1.0
"""Pause before an item whose handler failed is delivered again."""
MAX_ACK_PENDING = 65_536
"""The server's default of 1,000 would cap the concurrent generations of the whole mesh."""


class _IsHeld(Struct, array_like=True, frozen=True):
    """The question to all holders. Whoever handles the item reports to `reply` from now on."""

    seq: int
    reply: str
    asker: str


_is_held_decoder = msgspec.msgpack.Decoder(_IsHeld)


class WorkItem:
    """One delivery of a work item."""

    __slots__ = ("_bus", "_queue", "data", "delivery", "reply", "seq", "settled", "subject")

    def __init__(self, bus: Bus, message: Message, queue: "WorkQueue") -> None:
        self._bus = bus
        self._queue = queue
        self.reply = message.reply
        """Where JetStream hears of this delivery."""
        self.subject = message.subject
        self.data = message.data
        self.delivery, self.seq = _delivery_of(message.reply)
        """How often JetStream has handed this item out, from 1, and its sequence in the stream."""
        self.settled = False

    @property
    def poisoned(self) -> bool:
        """True when the item was delivered more often than is reasonable."""
        return self.delivery > self._queue.max_deliver

    def ack(self) -> None:
        """Done: never deliver again."""
        self._settle(b"+ACK")

    def nak(self, delay_s: float = 0.0) -> None:
        """Not done: deliver again after `delay_s`, to anybody."""
        self._settle(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s else b"-NAK")

    def term(self) -> None:
        """Never deliver again, though it was not done."""
        self._settle(b"+TERM")

    def abandon(self) -> None:
        """Say nothing more of it: somebody else owns it now."""
        self.settled = True

    def in_progress(self) -> None:
        if not self.settled:
            self._bus.send(self.reply, b"+WPI")

    def continues_as(self, reply: str) -> None:
        """JetStream handed it out once more while it is being handled: report to that delivery."""
        self.reply = reply
        self.in_progress()

    def _settle(self, verb: bytes) -> None:
        if not self.settled:
            self.settled = True
            self._bus.send(self.reply, verb)


WorkHandler = Callable[[WorkItem], Awaitable[None]]


class WorkQueue:
    """Feeds a handler from one durable pull consumer, at most `slots` items at a time.

    The handler settles its item. One that returns without settling, or raises, has it delivered
    again after `RETRY_AFTER_S`. While it runs, JetStream is told so every third of `ack_wait_s`;
    when it hands the item out again all the same, to this queue or to another, the first handler
    goes on.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        stream: str,
        consumer: str,
        subject: str,
        slots: int,
        ack_wait_s: float,
        max_deliver: int,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._consumer = consumer
        self._subject = subject
        self._slots = slots
        self._ack_wait_s = ack_wait_s
        # A frozen process's request outlives it: what is handed out to it is lost for a lease. So
        # the request ends before the leases do that the process had reported a third of one ago.
        self._pull_expires_s = min(MAX_PULL_EXPIRES_S, ack_wait_s / 2)
        self.max_deliver = max_deliver
        self._inbox = bus.inbox()
        self._handler: WorkHandler | None = None
        self._pulled: Subscription | None = None
        self._asked_for: Subscription | None = None
        self._holders = Subjects(subject.partition(".")[0]).holders(stream, consumer)
        self._running: dict[asyncio.Task[None], WorkItem] = {}
        self._asked = 0
        self._heard_at = 0.0
        self._pulls = 0
        self._pull_inbox = ""
        self._fetching = False
        self._loops: list[asyncio.Task[None]] = []
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"

    @property
    def running(self) -> int:
        """Items being handled now."""
        return len(self._running)

    async def start(self, handler: WorkHandler) -> None:
        """Declare the consumer and begin to fetch. Raises BusError when JetStream refuses."""
        self._handler = handler
        await self._declare()
        self._asked_for = await self._bus.subscribe(self._holders, self._on_question)
        self._pulled = await self._bus.subscribe(f"{self._inbox}.*", self._on_message)
        self._fetching = True
        self._bus.on_reconnect(self._forget_pull)
        loop = asyncio.get_running_loop()
        self._loops = [
            loop.create_task(self._keep_pulling(), name=f"{self._consumer}.pull"),
            loop.create_task(self._report_progress(), name=f"{self._consumer}.progress"),
        ]
        self._pull()

    async def _declare(self) -> None:
        config = ConsumerConfig(
            durable_name=self._consumer,
            filter_subject=self._subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait_s,
            max_deliver=-1,  # a poisoned item must reach a service, which ends its stream
            max_ack_pending=MAX_ACK_PENDING,
            max_waiting=4096,
        )
        js = self._bus.jetstream(timeout_s=TRY_S)
        await declare(f"consumer {self._consumer}", lambda: js.add_consumer(self._stream, config))

    async def drain(self, deadline_s: float) -> None:
        """Fetch nothing more, wait for running items; past the deadline, hand them back."""
        self._fetching = False
        if self._pulled is not None:
            await self._pulled.close()
        if self._running:
            await asyncio.wait(list(self._running), timeout=deadline_s)
        leftover = list(self._running.items())
        for task, _ in leftover:
            task.cancel()
        if leftover:
            await asyncio.wait([task for task, _ in leftover], timeout=5)
        if self._asked_for is not None:
            await self._asked_for.close()
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def _pull(self) -> None:
        """One pull request at a time: the next is sent when this one is used up or is over."""
        free = self._slots - len(self._running)
        if not self._fetching or free <= 0 or self._asked > 0:
            return
        batch = min(free, 256)
        self._asked = batch
        self._heard_at = asyncio.get_running_loop().time()
        # Each request has an inbox of its own: what is said of an earlier one, taken for lost, must
        # not be taken for the end of this one.
        self._pulls += 1
        self._pull_inbox = f"{self._inbox}.{self._pulls}"
        body: dict[str, Any] = {
            "batch": batch,
            "expires": int(self._pull_expires_s * 1e9),
            "idle_heartbeat": int(min(HEARTBEAT_S, self._pull_expires_s / 2) * 1e9),
        }
        self._bus.send(self._pull_subject, msgspec.json.encode(body), self._pull_inbox)

    def _forget_pull(self) -> None:
        self._asked = 0
        self._pull()

    def _on_message(self, message: Message) -> None:
        status = status_of(message.headers)
        if status and not message.reply:
            self._on_status(status, message.subject)
            return
        self._heard_at = asyncio.get_running_loop().time()
        self._asked = max(0, self._asked - 1)
        item = WorkItem(self._bus, message, self)
        here = self._unsettled(item.seq) if item.delivery > 1 else None
        if here is not None:
            # A second handler would only fence the first, and what it has done be done again.
            here.continues_as(item.reply)
        else:
            self._start_handler(item)
        if self._asked == 0:
            self._pull()

    def _unsettled(self, seq: int) -> WorkItem | None:
        running = self._running.values()
        return next((item for item in running if item.seq == seq and not item.settled), None)

    def _start_handler(self, item: WorkItem) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(item))
        self._running[task] = item
        task.add_done_callback(self._done)

    def _on_status(self, status: str, inbox: str) -> None:
        if inbox != self._pull_inbox:
            return
        if status == "100":  # a heartbeat; the others end the pull request
            self._heard_at = asyncio.get_running_loop().time()
            return
        self._asked = 0
        if status in {"404", "408"}:
            self._pull()
        # 409 and 503 (the leader has changed, or there is none) are left to _keep_pulling: a
        # request at once would only be refused again.

    async def _is_held(self, item: WorkItem) -> bool:
        """Whether somebody else still handles it, and has taken this delivery for its own."""
        question = msgspec.msgpack.encode(_IsHeld(item.seq, item.reply, self._inbox))
        try:
            await self._bus.request(self._holders, question, timeout_s=HOLDER_ANSWERS_S)
        except BusError:
            is_held = False
        else:
            is_held = True
        log.info(
            "queue.redelivered",
            consumer=self._consumer,
            item=item.seq,
            delivery=item.delivery,
            held=is_held,
        )
        return is_held

    def _on_question(self, message: Message) -> None:
        try:
            question = _is_held_decoder.decode(message.data)
        except msgspec.DecodeError:
            return
        item = self._unsettled(question.seq) if question.asker != self._inbox else None
        if item is not None:
            item.continues_as(question.reply)
            self._bus.send(message.reply, b"")

    async def _handle(self, item: WorkItem) -> None:
        handler = self._handler
        assert handler is not None
        try:
            if item.delivery > 1 and await self._is_held(item):
                item.abandon()
                return
            await handler(item)
            if not item.settled:
                item.nak(RETRY_AFTER_S)
        except asyncio.CancelledError:
            item.nak()
            raise
        except Exception:
            log.exception("queue.handler_failed", consumer=self._consumer, delivery=item.delivery)
            item.nak(RETRY_AFTER_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._pull()

    async def _keep_pulling(self) -> None:
        """A pull request that ended without a word, or whose leader fell silent, is made again."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._asked and loop.time() - self._heard_at > LOST_AFTER_S:
                self._asked = 0
            self._pull()

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            for item in self._running.values():
                item.in_progress()


def _delivery_of(reply: str) -> tuple[int, int]:
    """`$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.…`, or with domain and account
    before the stream (ADR-15)."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or len(parts) < 9:
        raise ValueError("not a JetStream delivery")
    first = 4 if len(parts) == 9 else 6
    return int(parts[first]), int(parts[first + 1])
