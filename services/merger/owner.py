"""One stream's owner: it claims the log, commits one record after another, ends with the terminal.

Ownership may overlap after a pause; fencing decides. Every commit expects the sequence of the
last record this owner has seen, so a zombie's next write is refused, and it stops.
"""

import asyncio
import time
from dataclasses import dataclass

import msgspec
import structlog

from services.merger.acks import Acks
from services.merger.braid import Braid, Verdict, opening_events
from services.merger.transcript import transcripts
from shared.bus import (
    CancelMarks,
    Fenced,
    Link,
    LogEntry,
    Message,
    WorkItem,
)
from shared.events import BranchState, Record, decode_record, encode_record
from shared.fold import StreamView, fold
from shared.messages import (
    Ack,
    AckState,
    AskStanding,
    CancelRequested,
    Hello,
    MergeStream,
    Standing,
    StreamClosed,
    chunk_decoder,
    control_decoder,
    msgpack_encoder,
)
from shared.pieces import room_in
from shared.telemetry import Counters

log = structlog.get_logger()

CLAIM_TRIES = 20
GRACE_S = 30.0
"""How long after the generation's total budget an unfinished stream is ended with an error."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all owners of a process share."""

    link: Link
    marks: CancelMarks
    acks: Acks
    counters: Counters


class Owner:
    """Owns one stream from its merge item to its terminal."""

    def __init__(
        self, around: Surroundings, item: WorkItem, command: MergeStream, *, total_s: float
    ) -> None:
        self._link = around.link
        self._marks = around.marks
        self._acks = around.acks
        self._counters = around.counters
        self._item = item
        self._command = command
        self._sid = command.sid
        self._budget_s = total_s + GRACE_S
        self._log = log.bind(stream_id=command.sid, delivery=item.delivery)
        self._wake = asyncio.Event()
        self._braid: Braid | None = None
        self._seq = 0
        self._view: StreamView | None = None
        """What was streamed; None after a take-over, until somebody needs it."""
        self._workers: dict[int, str] = {}
        """Ack subject of the worker that last sent a chunk of a branch."""
        self._states: tuple[BranchState, ...] = ()
        """The committed state of every branch."""
        self._over = False
        """The terminal is committed."""
        self._questions: list[tuple[AskStanding, str]] = []
        self._poked = False
        """A cancel mark may have been set."""

    async def run(self) -> None:
        """Drive the stream to its terminal and settle the work item.

        Raises BusError when NATS stays away: the item is delivered again.
        """
        subscriptions = [
            await self._link.bus.subscribe(self._link.subjects.chunks(self._sid), self._on_chunk),
            await self._link.bus.subscribe(
                self._link.subjects.control(self._sid), self._on_control
            ),
        ]
        expiry = asyncio.get_running_loop().call_later(self._budget_s, self._expire)
        try:
            if await self._claim():
                await self._commit_all()
            await self._finish()
        except Fenced:
            self._counters["fenced"] += 1
            self._log.warning("owner.fenced", epoch=self._braid.epoch if self._braid else None)
            self._item.abandon()
        finally:
            expiry.cancel()
            for subscription in subscriptions:
                await subscription.close()

    # Claiming ------------------------------------------------------------------------------

    async def _claim(self) -> bool:
        """Become the owner; False when the stream has its terminal already."""
        command = self._command
        if self._item.delivery == 1:
            # Nobody can have owned it yet, so the claim goes out without asking first.
            self._braid = self._fresh(epoch=1, n_next=1)
            self._view = StreamView()
            self._seq = command.accepted_seq
            try:
                await self._commit_next()
                self._greet()
                return True
            except Fenced as fenced:
                last = fenced.last
                if last is not None and _is_owned(decode_record(last.payload)):
                    raise  # we were away with the first delivery, and a later one is at work
        else:
            last = await self._link.log.last(self._sid)
        for _ in range(CLAIM_TRIES):
            if last is None:
                self._log.error("owner.log_gone")
                self._item.term()
                raise Fenced(None)
            if not self._take_over(last):
                return False
            try:
                await self._commit_next()
                self._counters["takeovers"] += 1
                self._log.info("owner.took_over", epoch=self._braid.epoch if self._braid else None)
                self._greet()
                return True
            except Fenced as fenced:
                last = fenced.last
        raise Fenced(last)

    def _fresh(self, *, epoch: int, n_next: int) -> Braid:
        return Braid(
            self._command.branches,
            epoch=epoch,
            n_next=n_next,
            accepted_at=self._command.accepted_at,
            opening=opening_events(self._command.branches, self._command.context),
        )

    def _take_over(self, last: LogEntry) -> bool:
        """Go on from the last record; False when it is the terminal's."""
        record = decode_record(last.payload)
        self._seq = last.seq
        self._view = None
        self._states = record.checkpoint.branches
        if record.finished:
            return False
        if record.accepted is not None:
            self._braid = self._fresh(epoch=record.epoch + 1, n_next=record.n_next)
            self._view = StreamView()
        else:
            self._braid = Braid(
                self._command.branches,
                epoch=record.epoch + 1,
                n_next=record.n_next,
                accepted_at=self._command.accepted_at,
                checkpoint=record.checkpoint,
            )
        if self._item.poisoned:
            self._braid.fail(
                "attempts_exhausted", "the stream's owner failed too often", retryable=True
            )
        return True

    def _greet(self) -> None:
        """Tell the workers; the stream may have been cancelled before it had an owner."""
        assert self._braid is not None
        self._tell(Hello(sid=self._sid, epoch=self._braid.epoch))
        self._poked = True

    def look_for_cancel(self) -> None:
        """Word of a cancel may have been missed; its mark is there."""
        self._poked = True
        self._wake.set()

    async def _look_for_cancel(self) -> None:
        assert self._braid is not None
        self._poked = False
        reason = await self._marks.get(self._sid)
        if reason is not None:
            self._braid.cancel(reason)

    # Committing ----------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        """One record in flight; what arrives meanwhile becomes the next one."""
        assert self._braid is not None
        while not self._braid.ended:
            if self._poked:
                await self._look_for_cancel()
            if self._questions:
                await self._answer_questions()
            if not await self._commit_next():
                await self._wake.wait()
                self._wake.clear()

    async def _commit_next(self) -> bool:
        """Commit what is pending, if anything. Raises Fenced."""
        assert self._braid is not None
        record = self._braid.take(time.time())
        if record is None:
            return False
        payload = encode_record(record)
        self._seq = await self._link.log.commit(self._sid, payload, expected_seq=self._seq)
        self._counters["records"] += 1
        self._counters["events"] += len(record.events)
        if self._view is not None:
            self._view.apply(record)
        self._over = record.finished
        before, self._states = self._states, record.checkpoint.branches
        self._acknowledge(before, closing=record.finished)
        return True

    def _acknowledge(self, before: tuple[BranchState, ...], *, closing: bool) -> None:
        """Tell the workers of the branches that have moved what is committed of them."""
        for branch, worker in self._workers.items():
            state = self._states[branch]
            if closing or not before or state != before[branch]:
                over: AckState = "closed" if closing or state.final else "open"
                ack = Ack(self._sid, branch, state.attempt, state.k, over)
                self._acks.add(worker, ack)

    async def _finish(self) -> None:
        """The terminal is committed: tell the workers, hand over the transcripts, settle."""
        self._tell(StreamClosed(sid=self._sid))
        view = self._view if self._view is not None else fold(await self._read_records())
        max_bytes = room_in(self._link.bus.max_payload)
        subjects = self._link.subjects
        for part, answer in transcripts(
            self._command, view, max_bytes=max_bytes, created_at=time.time()
        ):
            await self._link.publisher.publish(
                subjects.persist(self._command.session_id, self._sid, part),
                msgpack_encoder.encode(answer),
                msg_id=f"{self._sid}.{part}",
            )
        self._item.ack()
        self._counters["streams_ended"] += 1
        terminal = type(view.terminal).__name__.lower() if view.terminal else "unknown"
        self._log.info("stream.ended", terminal=terminal, position=view.position)

    async def _read_records(self) -> list[Record]:
        """All there are; a replica that lags behind what this owner knows is waited for."""
        entries = await self._link.log.read(self._sid, through_seq=self._seq)
        return [decode_record(entry.payload) for entry in entries]

    # Hearing -------------------------------------------------------------------------------

    def _on_chunk(self, message: Message) -> None:
        try:
            chunk = chunk_decoder.decode(message.data)
        except msgspec.DecodeError:
            self._counters["chunks_malformed"] += 1
            self._log.warning("owner.chunk_malformed")
            return
        braid = self._braid
        if braid is None:
            return  # not the owner yet: the hello will have it sent again
        verdict = braid.offer(chunk, time.time())
        if verdict is Verdict.ACCEPTED:
            self._workers[chunk.branch] = message.reply
            self._wake.set()
            return
        self._counters[f"chunks_{verdict.name.lower()}"] += 1
        state: AckState = "open"
        if verdict is Verdict.FENCED:
            state = "fenced"
        elif verdict is Verdict.CLOSED:
            if not self._is_over(chunk.branch):
                return  # told now, a worker would forget what only this process has
            state = "closed"
        k = chunk.k if verdict is Verdict.CLOSED else self._committed(chunk.branch, chunk.attempt)
        ack = Ack(self._sid, chunk.branch, chunk.attempt, k, state)
        self._acks.add(message.reply, ack)

    def _is_over(self, branch: int) -> bool:
        """What ends the branch, or the stream, is committed; or there is no such branch."""
        if self._over or not 0 <= branch < len(self._command.branches):
            return True
        return bool(self._states) and self._states[branch].final

    def _committed(self, branch: int, attempt: int) -> int:
        state = self._states[branch] if self._states else None
        return state.k if state is not None and state.attempt == attempt else -1

    def _on_control(self, message: Message) -> None:
        try:
            control = control_decoder.decode(message.data)
        except msgspec.DecodeError:
            self._log.warning("owner.control_malformed")
            return
        if isinstance(control, CancelRequested):
            self.look_for_cancel()
        elif isinstance(control, AskStanding):
            self._on_question(control, message.reply)

    def _on_question(self, question: AskStanding, reply: str) -> None:
        if self._braid is not None and 0 <= question.branch < len(self._command.branches):
            self._braid.fence_below(question.branch, question.attempt)
            self._questions.append((question, reply))
            self._wake.set()

    def _expire(self) -> None:
        if self._braid is not None:
            self._braid.fail("expired", "the stream did not end in time", retryable=True)
            self._wake.set()

    async def _answer_questions(self) -> None:
        """Where a branch stands, after everything accepted so far is committed."""
        while await self._commit_next():
            pass
        assert self._braid is not None
        if self._view is None:
            self._view = fold(await self._read_records())
        questions, self._questions = self._questions, []
        for question, reply in questions:
            state = self._braid.state(question.branch)
            standing = Standing(
                attempt=self._braid.highest(question.branch),
                k=state.k if state.chunks else -1,
                final=self._braid.ended or state.final,
                used_tools=state.used_tools,
                text=self._view.branch(question.branch).text,
            )
            self._link.bus.send(reply, msgpack_encoder.encode(standing))

    def _tell(self, control: Hello | StreamClosed) -> None:
        self._link.bus.send(self._link.subjects.control(self._sid), msgpack_encoder.encode(control))


def _is_owned(last: Record) -> bool:
    """Somebody has claimed the stream, and not ended it."""
    return last.epoch > 0 and not last.finished
