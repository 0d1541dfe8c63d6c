"""A conversation remembers what persistence has stored, also when the cache thought otherwise."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.context.service import build as build_context
from services.persistence.migrate import migrate
from services.persistence.service import build as build_persistence
from shared.bus import Link, WorkItem, WorkQueue
from shared.ids import new_sid
from shared.messages import (
    BranchAnswered,
    BranchRequest,
    ChatMessage,
    StartStream,
    generate_branch_decoder,
    json_encoder,
    msgpack_encoder,
)
from shared.settings import Settings
from tests.support.meshkit import PATIENCE_S, link_of, running


class Chat:
    """Plays the edge, and a worker and merger that answer at once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._tasks: asyncio.Queue[WorkItem] = asyncio.Queue()

    async def start(self) -> None:
        subjects = self._link.subjects
        queue = WorkQueue(
            self._link.bus,
            stream=subjects.tasks_stream,
            consumer="worker",
            subject=subjects.all("task"),
            slots=8,
            ack_wait_s=5,
            max_deliver=5,
        )
        await queue.start(self._keep)
        self._queue = queue

    async def stop(self) -> None:
        await self._queue.drain(1)

    async def turn(self, message: str, answer: str) -> list[ChatMessage]:
        """Ask, answer, wait until both are stored; returns the prompt the model was given."""
        request = StartStream(
            sid=new_sid(),
            user_id="ann",
            session_id="s1",
            branches=[BranchRequest(model="m1")],
            message=message,
        )
        publish, subjects = self._link.publisher.publish, self._link.subjects
        await publish(subjects.request("chat"), json_encoder.encode(request))
        async with asyncio.timeout(PATIENCE_S):
            task = generate_branch_decoder.decode((await self._tasks.get()).data)
        said = BranchAnswered(
            sid=request.sid,
            user_id="ann",
            session_id="s1",
            content=answer,
            created_at=0.0,
            branch=0,
            model="m1",
            status="done",
        )
        part = subjects.persist("s1", request.sid, "a0")
        await publish(part, msgpack_encoder.encode(said))
        await self._stored()
        return task.messages

    async def _stored(self) -> None:
        stream = self._link.subjects.transcripts_stream
        async with asyncio.timeout(PATIENCE_S):
            while (await self._link.bus.jetstream().stream_info(stream)).state.messages:
                await asyncio.sleep(0.01)

    async def _keep(self, item: WorkItem) -> None:
        item.ack()
        self._tasks.put_nowait(item)


@pytest.fixture
async def chat(settings: Settings) -> AsyncIterator[Chat]:
    migrate(settings.postgres_url)
    async with (
        link_of(settings) as link,
        running(build_persistence(settings)),
        running(build_context(settings)),
    ):
        chat = Chat(link)
        await chat.start()
        yield chat
        await chat.stop()


async def test_every_turn_sees_all_the_turns_that_were_stored_before_it(chat: Chat) -> None:
    assert await chat.turn("q1", "a1") == [{"role": "user", "content": "q1"}]
    second = await chat.turn("q2", "a2")
    assert [message["content"] for message in second] == ["q1", "a1", "q2"]
    third = await chat.turn("q3", "a3")
    assert [message["content"] for message in third] == ["q1", "a1", "q2", "a2", "q3"]
