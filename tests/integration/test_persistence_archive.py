"""What is stored of a stream is told to its user: whole, or with the reason why not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.mesh.ports import free_ports
from deploy.mesh.postgres_server import PostgresServer
from services.persistence.migrate import migrate
from services.persistence.service import build
from shared.bus import BusError, Link
from shared.events import Usage
from shared.ids import new_sid
from shared.messages import (
    BranchAnswered,
    QuestionAsked,
    ReadTranscript,
    Transcript,
    TranscriptPart,
    msgpack_encoder,
    stored_turn_decoder,
    transcript_part_decoder,
)
from shared.settings import Settings
from tests.support.meshkit import link_of, running
from tests.support.stoppable import stoppable

DEADLINE_S = 30.0


class Asker:
    """Plays merger and edge: publishes transcripts, and asks for them."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, question: ReadTranscript) -> TranscriptPart:
        subject = self._link.subjects.archive(question.sid)
        payload = msgpack_encoder.encode(question)
        answer = await self._link.bus.request(subject, payload, timeout_s=5)
        return transcript_part_decoder.decode(answer.data)

    async def until(self, state: str, sid: str, user_id: str = "ann") -> TranscriptPart:
        async with asyncio.timeout(DEADLINE_S):
            while (part := await self.ask(ReadTranscript(sid, user_id))).state != state:
                await asyncio.sleep(0.01)
        return part

    async def publish(self, *transcripts: Transcript) -> None:
        for transcript in transcripts:
            subjects, session = self._link.subjects, transcript.session_id
            subject = subjects.persist(session, transcript.sid, f"p{transcript.piece}")
            await self._link.publisher.publish(subject, msgpack_encoder.encode(transcript))

    async def store(self, *transcripts: Transcript) -> None:
        await self.publish(*transcripts)
        await self.until("found", transcripts[0].sid, transcripts[0].user_id)


@asynccontextmanager
async def asking(settings: Settings) -> AsyncIterator[Asker]:
    async with link_of(settings) as link, running(build(settings)):
        yield Asker(link)


@pytest.fixture
async def asker(settings: Settings) -> AsyncIterator[Asker]:
    migrate(settings.postgres_url)
    async with asking(settings) as asker:
        yield asker


def turn(sid: str, text: str = "because", **fields: Any) -> list[Transcript]:
    common: dict[str, Any] = {"sid": sid, "user_id": "ann", "session_id": "s1"} | fields
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return [
        QuestionAsked(**common, content="why?", created_at=100.0),
        BranchAnswered(
            **common,
            content=text,
            created_at=101.5,
            branch=0,
            model="m1",
            status="done",
            section="facts",
            reasoning="hm",
            tool_calls=[call],
            finish_reason="stop",
            usage=Usage(1, 2, 3, "upstream"),
            ttft_ms=12.5,
            duration_ms=99.0,
        ),
        BranchAnswered(
            **common, content="", created_at=101.5, branch=1, model="m2", status="failed"
        ),
    ]


async def test_a_turn_comes_back_as_it_was_sent(asker: Asker) -> None:
    sid = new_sid()
    question, first, second = turn(sid)
    await asker.store(second, first, question)
    part = await asker.until("found", sid)
    assert part.size == len(part.data)
    assert stored_turn_decoder.decode(part.data) == [question, first, second]


async def test_a_turn_larger_than_a_message_comes_in_parts(asker: Asker) -> None:
    sid = new_sid()
    told = turn(sid, "wörd " * 150_000)
    common: dict[str, Any] = {"sid": sid, "user_id": "ann", "session_id": "s1"}
    pieces = [
        BranchAnswered(
            **common,
            created_at=101.5,
            content="wörd " * 75_000,
            branch=0,
            model="m1",
            status="done",
            piece=number,
            pieces=2,
        )
        for number in (0, 1)
    ]
    await asker.store(told[0], *pieces)
    data, size = b"", 1
    while len(data) < size:
        part = await asker.ask(ReadTranscript(sid, "ann", len(data)))
        assert 0 < len(part.data) < 1024 * 1024
        data, size = data + part.data, part.size
    assert size > 900_000
    [_, answer] = stored_turn_decoder.decode(data)
    assert answer.content == told[1].content


async def test_a_turn_is_its_users_alone(asker: Asker) -> None:
    sid = new_sid()
    await asker.store(*turn(sid))
    assert await asker.ask(ReadTranscript(sid, "bob")) == TranscriptPart("foreign")
    assert await asker.ask(ReadTranscript(new_sid(), "bob")) == TranscriptPart("unknown")


async def test_while_postgres_is_frozen_the_answer_is_soon_that_nobody_can_tell(
    settings: Settings, servers_dir: Path
) -> None:
    own = PostgresServer(servers_dir / "archive", free_ports(1)[0], "test", durable=False)
    with stoppable(own, servers_dir / "archive.log") as server:
        theirs = settings.model_copy(update={"postgres_url": server.url})
        migrate(server.url)
        async with asking(theirs) as asker:
            sid, late = new_sid(), new_sid()
            await asker.store(*turn(sid))
            with server.frozen():
                for _ in range(5):
                    assert (await asker.ask(ReadTranscript(sid, "ann"))).state == "away"
                await asker.publish(*turn(late))
                assert (await asker.ask(ReadTranscript(late, "ann"))).state == "waiting"
                assert (await asker.ask(ReadTranscript(late, "bob"))).state == "away"
            assert stored_turn_decoder.decode((await asker.until("found", late)).data)
            assert (await asker.until("found", sid)).size > 0


async def test_a_question_that_makes_no_sense_disturbs_nobody(
    settings: Settings, asker: Asker
) -> None:
    sid = new_sid()
    await asker.store(*turn(sid))
    async with link_of(settings) as link:
        with pytest.raises(BusError):
            await link.bus.request(link.subjects.archive(sid), b"\xff", timeout_s=0.2)
    assert (await asker.ask(ReadTranscript(sid, "ann"))).state == "found"
