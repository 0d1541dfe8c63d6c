"""Answering what is stored of one stream: whole or not at all, in parts that fit into a message."""

import asyncio
from typing import Final

import msgspec
import psycopg
import structlog

from services.persistence.rows import MessageRow, transcript_of
from shared.actor import Tasks
from shared.breaker import Breaker
from shared.bus import BusError, Link, Message, Subscription
from shared.bus.leader import leader_get
from shared.lane import Lane
from shared.messages import (
    ReadTranscript,
    TranscriptPart,
    msgpack_encoder,
    read_transcript_decoder,
    transcript_decoder,
)
from shared.pieces import room_in
from shared.telemetry import Counters

log = structlog.get_logger()

MAX_READS: Final = 64
"""Questions at the same time; the next is told at once that it can't be answered."""
QUEUE_BUDGET_S: Final = 1.0
QUERY_BUDGET_S: Final = 1.0

# The columns are the fields of MessageRow.
TURN = """
SELECT id, session_id, sid, user_id, role, branch, section, model, status, content, reasoning,
    tool_calls::text, finish_reason, usage::text, ttft_ms, duration_ms, created_at, position
FROM messages WHERE sid = %s AND user_id = %s ORDER BY position
"""
# The user's own rows may have come since.
IS_FOREIGN = "SELECT EXISTS (SELECT FROM messages WHERE sid = %s AND user_id <> %s)"


class Archive:
    """One of the instances that answer, with one connection and one query at a time."""

    def __init__(self, link: Link, postgres_url: str, counters: Counters) -> None:
        self._link = link
        self._counters = counters
        self._breaker = Breaker("postgres")
        self._lane = Lane(postgres_url, self._breaker, budget_s=QUERY_BUDGET_S)
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._questions: Subscription | None = None
        self._part_bytes = room_in(link.bus.max_payload)

    async def start(self) -> None:
        self._questions = await self._link.bus.subscribe(
            self._link.subjects.all("archive"), self._on_question, queue="persistence"
        )

    async def close(self) -> None:
        if self._questions is not None:
            await self._questions.close()
        await self._tasks.cancel()
        await self._lane.close()

    def _on_question(self, message: Message) -> None:
        if len(self._tasks) >= MAX_READS:
            self._counters["reads_shed"] += 1
            self._reply(message, TranscriptPart("away"))
        else:
            self._tasks.spawn("archive.answer", self._answer(message))

    async def _answer(self, message: Message) -> None:
        """Decode, read, reply. A question that makes no sense has no answer."""
        try:
            question = read_transcript_decoder.decode(message.data)
        except msgspec.DecodeError:
            self._counters["unreadable"] += 1
            log.warning("archive.question_malformed")
            return
        try:
            part = await self._read(question)
        except (BusError, psycopg.Error, OSError, TimeoutError):
            part = TranscriptPart("away")
        self._counters[f"reads_{part.state}"] += 1
        self._reply(message, part)

    def _reply(self, message: Message, part: TranscriptPart) -> None:
        self._link.bus.send(message.reply, msgpack_encoder.encode(part))

    async def _read(self, question: ReadTranscript) -> TranscriptPart:
        # The queue first: an item leaves it after its commit, so none is missed in between.
        if await self._waits(question):
            return TranscriptPart("waiting")
        async with self._turn:
            if not self._breaker.allows():
                return TranscriptPart("away")
            whose = [question.sid, question.user_id]
            rows = await self._lane.query(TURN, whose)
            if not rows:
                [[is_foreign]] = await self._lane.query(IS_FOREIGN, whose)
                return TranscriptPart("foreign" if is_foreign else "unknown")
        turn = msgpack_encoder.encode([transcript_of(MessageRow(*row)) for row in rows])
        part = turn[question.offset : question.offset + self._part_bytes]
        return TranscriptPart("found", part, len(turn))

    async def _waits(self, question: ReadTranscript) -> bool:
        """Whether something of this user's stream is not stored yet."""
        subjects = self._link.subjects
        query = {"seq": 1, "next_by_subj": subjects.persist_stream(question.sid)}
        stored = await leader_get(
            self._link.bus, subjects.transcripts_stream, query, patience_s=QUEUE_BUDGET_S
        )
        if stored is None:
            return False
        try:
            return transcript_decoder.decode(stored.payload).user_id == question.user_id
        except msgspec.DecodeError:
            return False
