"""A request becomes one merge item, one task for every branch and the question's transcript."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest
from msgspec.structs import replace

from services.context.service import build
from services.persistence.migrate import migrate
from shared.bus import Link, WorkItem, WorkQueue
from shared.events import Failed
from shared.ids import new_sid
from shared.intake import open_log
from shared.messages import (
    BranchRequest,
    GenerateBranch,
    MergeStream,
    QuestionAsked,
    StartStream,
    Timeouts,
    generate_branch_decoder,
    json_encoder,
    merge_stream_decoder,
    transcript_decoder,
)
from shared.settings import Settings
from tests.support.meshkit import PATIENCE_S, finished_log, link_of, running

T = TypeVar("T")


class Taker:
    """Plays whoever consumes one work queue; acknowledges what it takes."""

    def __init__(self, link: Link, stream: str, kind: str) -> None:
        self.items: asyncio.Queue[WorkItem] = asyncio.Queue()
        self.queue = WorkQueue(
            link.bus,
            stream=stream,
            consumer=kind,
            subject=link.subjects.all(kind),
            slots=64,
            ack_wait_s=5,
            max_deliver=5,
        )

    async def take(self) -> WorkItem:
        """Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.items.get()

    async def _keep(self, item: WorkItem) -> None:
        item.ack()
        self.items.put_nowait(item)

    async def start(self) -> None:
        await self.queue.start(self._keep)


class Neighbours:
    """The edge in front of context, and the services behind it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        subjects = link.subjects
        self.workers = Taker(link, subjects.tasks_stream, "task")
        self.mergers = Taker(link, subjects.merges_stream, "merge")
        self.persistence = Taker(link, subjects.transcripts_stream, "persist")

    async def start(self) -> None:
        for taker in (self.workers, self.mergers, self.persistence):
            await taker.start()

    async def stop(self) -> None:
        for taker in (self.workers, self.mergers, self.persistence):
            await taker.queue.drain(1)

    async def send(self, request: StartStream, *, msg_id: str | None = None) -> None:
        await self.publish(json_encoder.encode(request), msg_id)

    async def publish(self, payload: bytes, msg_id: str | None = None) -> None:
        await self.link.publisher.publish(
            self.link.subjects.request("chat"), payload, msg_id=msg_id
        )

    async def task(self) -> GenerateBranch:
        return generate_branch_decoder.decode((await self.workers.take()).data)

    async def merge(self) -> MergeStream:
        return merge_stream_decoder.decode((await self.mergers.take()).data)

    async def question(self) -> QuestionAsked:
        asked = transcript_decoder.decode((await self.persistence.take()).data)
        assert isinstance(asked, QuestionAsked)
        return asked


@asynccontextmanager
async def meeting(settings: Settings) -> AsyncIterator[Neighbours]:
    async with link_of(settings) as link:
        neighbours = Neighbours(link)
        async with running(build(settings)):
            await neighbours.start()
            try:
                yield neighbours
            finally:
                await neighbours.stop()


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Neighbours]:
    """Context with an empty, migrated database."""
    migrate(settings.postgres_url)
    async with meeting(settings) as neighbours:
        yield neighbours


def ask(message: str | None = "why?", **fields: Any) -> StartStream:
    base = StartStream(
        sid=new_sid(),
        user_id="ann",
        session_id="s1",
        branches=[BranchRequest(model="m1")],
        message=message,
    )
    return replace(base, **fields)


def remember(settings: Settings, user: str, session: str, *turns: tuple[str, str]) -> None:
    """Put finished turns into Postgres."""
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute("INSERT INTO users (id) VALUES (%s) ON CONFLICT DO NOTHING", [user])
        connection.execute(
            "INSERT INTO sessions VALUES (%s, %s, NULL, now(), now()) ON CONFLICT DO NOTHING",
            [session, user],
        )
        for number, turn in enumerate(turns):
            sid = new_sid()
            for position, text in enumerate(turn):
                connection.execute(
                    "INSERT INTO messages (id, session_id, sid, user_id, role, branch, content,"
                    " created_at, turn_at, position) VALUES (%s, %s, %s, %s, %s, %s, %s, now(),"
                    " to_timestamp(%s), %s)",
                    [
                        f"{sid}.{position}",
                        session,
                        sid,
                        user,
                        ("user", "assistant")[position],
                        (None, 0)[position],
                        text,
                        number,
                        position,
                    ],
                )


async def test_one_request_becomes_all_that_the_services_behind_need(mesh: Neighbours) -> None:
    request, _ = await open_log(
        mesh.link.log,
        ask(
            branches=[
                BranchRequest(model="m1", label="facts", params={"seed": 7}, fallbacks=["m2"]),
                BranchRequest(model="m3"),
            ],
            timeouts=Timeouts(total_s=9),
            mid_stream="fail",
            priority="high",
        ),
    )
    await mesh.send(request)

    merge = await mesh.merge()
    assert (merge.sid, merge.accepted_seq) == (request.sid, request.accepted_seq)
    assert [(plan.section, plan.model) for plan in merge.branches] == [
        ("facts", "m1"),
        (None, "m3"),
    ]
    assert merge.total_s == 9
    assert merge.context.degraded == []
    assert set(merge.context.timings_ms) == {"profile", "history"}

    tasks = sorted([await mesh.task(), await mesh.task()], key=lambda task: task.branch)
    assert [task.model for task in tasks] == ["m1", "m3"]
    assert (tasks[0].params, tasks[0].fallbacks) == ({"seed": 7}, ["m2"])
    assert (tasks[0].mid_stream, tasks[0].timeouts.total_s) == ("fail", 9)
    assert tasks[0].messages == [{"role": "user", "content": "why?"}]

    asked = await mesh.question()
    assert (asked.content, asked.created_at) == ("why?", request.accepted_at)


async def test_the_prompt_holds_the_profile_and_the_turns_before(
    settings: Settings, mesh: Neighbours
) -> None:
    remember(settings, "ann", "s1", ("who are you?", "a braid"), ("of what?", "of tokens"))
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute(
            "INSERT INTO profiles (user_id, data) VALUES ('ann', '{\"name\":\"A\"}')"
        )
    await mesh.send(ask())
    task = await mesh.task()
    assert [message["content"] for message in task.messages[1:]] == [
        "who are you?",
        "a braid",
        "of what?",
        "of tokens",
        "why?",
    ]
    assert "name: A" in task.messages[0]["content"]
    context = (await mesh.merge()).context
    assert (context.history_messages, context.profile) == (4, True)


async def test_nobody_is_given_the_history_of_a_foreign_session_cached_or_not(
    settings: Settings, mesh: Neighbours
) -> None:
    remember(settings, "ann", "s1", ("my secret is 42", "I see"))
    for user, expected in [("eve", 1), ("ann", 3), ("eve", 1), ("ann", 3)]:
        await mesh.send(ask(user_id=user))
        assert len((await mesh.task()).messages) == expected


async def test_what_the_request_brings_itself_is_not_looked_up(mesh: Neighbours) -> None:
    await mesh.send(ask(profile={"name": "Bo"}, history=[{"role": "user", "content": "earlier"}]))
    task = await mesh.task()
    assert [message["role"] for message in task.messages] == ["system", "user", "user"]
    assert (await mesh.merge()).context.timings_ms == {}


async def test_messages_of_a_client_are_sent_untouched(mesh: Neighbours) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url"}]}
    ]
    await mesh.send(ask(None, branches=[BranchRequest(model="m1", messages=messages)]))
    assert (await mesh.task()).messages == messages
    assert (await mesh.question()).content == "look"


async def test_a_repetition_dispatches_nothing_twice(mesh: Neighbours) -> None:
    request, last = ask(), ask("the end")
    for sent in (request, request, last):
        await mesh.send(sent)
    assert {(await mesh.task()).sid, (await mesh.task()).sid} == {request.sid, last.sid}
    assert {(await mesh.merge()).sid, (await mesh.merge()).sid} == {request.sid, last.sid}
    assert mesh.workers.items.empty()


async def test_an_id_that_is_taken_starts_nothing_and_disturbs_nobody(mesh: Neighbours) -> None:
    first = ask()
    await mesh.send(first)
    await mesh.task()
    await mesh.send(replace(first, user_id="eve"))
    await mesh.send(replace(first, message="something else"))
    await mesh.send(ask("the end"))
    assert (await mesh.task()).messages[-1]["content"] == "the end"
    last = await mesh.link.log.last(first.sid)
    assert last is not None
    assert last.seq == (await mesh.merge()).accepted_seq  # nobody has written to it since


@pytest.mark.parametrize(
    "broken",
    [
        {"branches": []},
        {"branches": [{"model": ""}]},
        {"branches": [{"model": "m"}], "message": None},
        {"branches": [{"model": "m"}] * 17},
        {"branches": "none"},
    ],
)
async def test_a_request_that_cannot_be_served_ends_in_an_error_instead_of_silence(
    mesh: Neighbours, broken: dict[str, Any]
) -> None:
    request = ask()
    await mesh.publish(json_encoder.encode(msgspec.to_builtins(request) | broken))
    records = await finished_log(mesh.link, request.sid)
    [terminal] = records[-1].events
    assert isinstance(terminal, Failed)
    assert terminal.code == "invalid"
    assert records[0].accepted is not None
    assert records[0].accepted.user_id == "ann"


async def test_what_nobody_can_read_is_dropped_and_holds_up_nothing(mesh: Neighbours) -> None:
    await mesh.publish(b"\xff not json")
    await mesh.publish(b'{"sid": "a.b"}')
    await mesh.send(ask())
    await mesh.task()


async def test_a_bad_request_for_somebody_elses_stream_does_not_end_it(mesh: Neighbours) -> None:
    victim, _ = await open_log(mesh.link.log, ask())
    forged = msgspec.to_builtins(replace(victim, user_id="eve")) | {"branches": []}
    await mesh.publish(json_encoder.encode(forged))
    await mesh.publish(json_encoder.encode(forged | {"accepted_seq": 0}))
    await mesh.send(ask())
    await mesh.task()
    last = await mesh.link.log.last(victim.sid)
    assert last is not None
    assert last.seq == victim.accepted_seq


async def test_a_prompt_no_message_can_hold_is_an_error_rather_than_a_retry(
    settings: Settings, mesh: Neighbours
) -> None:
    request = ask("x" * (1024 * 1024 - 50_000))
    await mesh.send(request)
    [terminal] = (await finished_log(mesh.link, request.sid))[-1].events
    assert isinstance(terminal, Failed)
    assert terminal.code == "payload_too_large"


async def test_a_number_the_queue_cannot_hold_is_an_error_rather_than_a_retry(
    mesh: Neighbours,
) -> None:
    request = ask(branches=[BranchRequest(model="m1", params={"seed": 10**30})])
    await mesh.send(request)
    [terminal] = (await finished_log(mesh.link, request.sid))[-1].events
    assert isinstance(terminal, Failed)
    assert terminal.code == "invalid"


async def test_without_a_schema_the_answer_goes_on_and_says_what_it_lacks(
    settings: Settings,
) -> None:
    async with meeting(settings) as mesh:
        await mesh.send(ask())
        assert (await mesh.merge()).context.degraded == ["history", "profile"]
        assert (await mesh.task()).messages == [{"role": "user", "content": "why?"}]


async def test_without_redis_everything_comes_from_postgres(settings: Settings) -> None:
    migrate(settings.postgres_url)
    remember(settings, "ann", "s1", ("earlier", "indeed"))
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with meeting(nowhere) as mesh:
        for _ in range(5):
            await mesh.send(ask())
            assert len((await mesh.task()).messages) == 3
            assert (await mesh.merge()).context.degraded == []


async def test_with_neither_redis_nor_postgres_the_answer_goes_on(settings: Settings) -> None:
    nowhere = settings.model_copy(
        update={
            "redis_url": "redis://127.0.0.1:1/0",
            "postgres_url": "postgresql://nobody@127.0.0.1:1/none",
        }
    )
    async with meeting(nowhere) as mesh:
        for _ in range(5):
            await mesh.send(ask())
            assert (await mesh.merge()).context.degraded == ["history", "profile"]


async def test_a_request_that_was_tried_too_often_ends_in_an_error(settings: Settings) -> None:
    full = settings.model_copy(update={"transcripts_max_bytes": 1024, "max_deliver": 1})
    async with meeting(full) as mesh:
        request = ask("x" * 2000)
        await mesh.send(request)
        [terminal] = (await finished_log(mesh.link, request.sid))[-1].events
        assert isinstance(terminal, Failed)
        assert (terminal.code, terminal.retryable) == ("attempts_exhausted", True)
