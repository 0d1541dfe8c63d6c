"""Acknowledged JetStream publishes: one reply inbox, futures by token, a timeout for each.

nats-py's own asynchronous publish loses server errors and leaks a slot for every lost ack.
"""

import asyncio
import itertools

import msgspec
import structlog
from msgspec import Struct

from shared.bus.connection import Bus, BusError, Message, Subscription, status_of

log = structlog.get_logger()

WRONG_LAST_SEQUENCE = 10071
SWEEP_EVERY_S = 0.25
SLOW_S = 3.0
"""A publish that takes longer is worth a line in the log."""


class PublishRefused(Exception):
    """JetStream refused a message for good; `code` is its err_code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


class WrongSequence(PublishRefused):
    """The subject's last sequence is not the expected one (10071)."""


RETRYABLE_CODES = frozenset(
    {
        10008,  # JetStream system temporarily unavailable
        10076,  # JetStream not enabled: the server is still starting
        10158,  # the same message id is in flight: a try whose ack was lost (replicated streams)
        10163,  # the subject's last sequence is not known yet: the leader is new
        10164,  # another publish on the subject is in flight (replicated streams)
        10167,  # too many requests: the stream has more than enough in flight
        10169,  # raft: overloaded
    }
)
STREAM_FULL_CODES = frozenset({10077, 10047, 10023})
"""Maximum bytes or messages reached, insufficient storage or resources."""


class _ApiError(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(Struct, frozen=True):
    """The server's word that a message is stored as `seq` of `stream`."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class _Reply(Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_reply_decoder = msgspec.json.Decoder(_Reply)


class Publisher:
    """Publishes to JetStream and waits for the ack. `start` before use, `close` after."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.inbox()
        self._tokens = itertools.count()
        self._waiting: dict[str, tuple[asyncio.Future[PubAck], float]] = {}
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(f"{self._inbox}.*", self._on_reply)
        self._sweeper = asyncio.get_running_loop().create_task(
            self._sweep(), name="publisher.sweep"
        )

    async def close(self) -> None:
        """Stop; whoever still waits for an ack gets BusError."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(BusError("the publisher was closed"))
        self._waiting.clear()

    async def publish_once(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float = 2.0,
    ) -> PubAck:
        """One try. Raises BusError when no ack came (the message may be stored all the same),
        WrongSequence, or PublishRefused.
        """
        loop = asyncio.get_running_loop()
        reply = f"{self._inbox}.{next(self._tokens)}"
        future: asyncio.Future[PubAck] = loop.create_future()
        self._waiting[reply] = (future, loop.time() + timeout_s)
        self._bus.send(subject, payload, reply, headers)
        try:
            return await future
        finally:
            self._waiting.pop(reply, None)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str | None = None,
        expected_seq: int | None = None,
        patience_s: float = 30.0,
    ) -> PubAck:
        """Publish until it is stored: identical bytes again after a lost ack, with backoff.

        `msg_id` makes a repetition harmless within the stream's dedupe window; `expected_seq` is
        the subject's last sequence (0: none yet). Raises WrongSequence, PublishRefused, or BusError
        after `patience_s`.
        """
        headers: dict[str, str] = {}
        if msg_id is not None:
            headers["Nats-Msg-Id"] = msg_id
        if expected_seq is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected_seq)
        clock = asyncio.get_running_loop().time
        began_at = clock()
        backoff_s = 0.02
        tries = 0
        reason: Exception | None = None
        while True:
            tries += 1
            try:
                ack = await self.publish_once(subject, payload, headers or None)
            except PublishRefused as refused:
                if refused.code not in RETRYABLE_CODES:
                    raise
                reason = refused
            except BusError as error:
                reason = error
            else:
                if (took_s := clock() - began_at) > SLOW_S:
                    log.warning(
                        "bus.publish_slow", took_s=round(took_s, 2), tries=tries, reason=str(reason)
                    )
                return ack
            if clock() + backoff_s > began_at + patience_s:
                raise BusError(f"not stored within {patience_s:g} s: {reason}") from reason
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, 1.0)

    def _on_reply(self, message: Message) -> None:
        waiting = self._waiting.get(message.subject)
        if waiting is None or waiting[0].done():
            return
        future = waiting[0]
        if not message.data:
            future.set_exception(
                BusError(f"no stream answers (status {status_of(message.headers)})")
            )
            return
        try:
            reply = _reply_decoder.decode(message.data)
        except msgspec.DecodeError:
            future.set_exception(BusError("JetStream's answer can't be read"))
            return
        if reply.error is None:
            future.set_result(PubAck(reply.stream, reply.seq, reply.duplicate))
        elif reply.error.err_code == WRONG_LAST_SEQUENCE:
            future.set_exception(WrongSequence(reply.error.err_code, reply.error.description))
        else:
            future.set_exception(
                PublishRefused(reply.error.err_code or reply.error.code, reply.error.description)
            )

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now = loop.time()
            for future, deadline in list(self._waiting.values()):
                if deadline < now and not future.done():
                    future.set_exception(BusError("no ack in time"))
