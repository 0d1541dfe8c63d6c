"""What was said is in Postgres once, whatever is repeated, refused or away for a while."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from deploy.mesh.ports import free_ports
from deploy.mesh.postgres_server import PostgresServer
from services.persistence.migrate import migrate
from services.persistence.service import Persistence, build
from shared.bus import Link
from shared.cache import HISTORY_TTL_S, Cache, CacheKeys
from shared.events import Usage
from shared.ids import new_sid
from shared.messages import BranchAnswered, QuestionAsked, Transcript, msgpack_encoder
from shared.settings import Settings
from tests.support.meshkit import link_of, running, until
from tests.support.stoppable import stoppable

DEADLINE_S = 30.0


class Sender:
    """Plays the services that publish transcripts."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send(self, *transcripts: Transcript) -> None:
        """Publish each, without Msg-Id: a repetition arrives."""
        await asyncio.gather(*(self._send(transcript) for transcript in transcripts))

    async def send_raw(self, payload: bytes) -> None:
        await self._link.publisher.publish(self._subject("s1", new_sid(), "q"), payload)

    async def waiting(self) -> int:
        """Transcripts the queue still holds."""
        info = await self._link.bus.jetstream().stream_info(self._link.subjects.transcripts_stream)
        return int(info.state.messages)

    async def emptied(self, *, left: int = 0) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.waiting() != left:
                await asyncio.sleep(0.02)

    async def _send(self, transcript: Transcript) -> None:
        subject = self._subject(transcript.session_id, transcript.sid, f"p{transcript.piece}")
        await self._link.publisher.publish(subject, msgpack_encoder.encode(transcript))

    def _subject(self, session: str, sid: str, part: str) -> str:
        return self._link.subjects.persist(session, sid, part)


@asynccontextmanager
async def meeting(settings: Settings) -> AsyncIterator[tuple[Sender, Persistence]]:
    async with link_of(settings) as link:
        service = build(settings)
        async with running(service):
            yield Sender(link), service


@pytest.fixture
async def storing(settings: Settings) -> AsyncIterator[tuple[Sender, Persistence]]:
    migrate(settings.postgres_url)
    async with meeting(settings) as pair:
        yield pair


def question(content: str = "why?", sid: str | None = None, **fields: Any) -> QuestionAsked:
    given: dict[str, Any] = {"user_id": "ann", "session_id": "s1", "created_at": 100.0} | fields
    return QuestionAsked(sid=sid or new_sid(), content=content, **given)


def answer(content: str = "because", sid: str | None = None, **fields: Any) -> BranchAnswered:
    given: dict[str, Any] = {
        "user_id": "ann",
        "session_id": "s1",
        "created_at": 101.0,
        "branch": 0,
        "model": "m1",
        "status": "done",
    } | fields
    return BranchAnswered(sid=sid or new_sid(), content=content, **given)


def rows(settings: Settings, query: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with psycopg.connect(settings.postgres_url) as connection:
        return connection.execute(query.encode(), params).fetchall()


def contents(settings: Settings, session: str = "s1") -> list[str]:
    found = rows(
        settings,
        "SELECT content FROM messages WHERE session_id = %s ORDER BY turn_at, sid, position",
        [session],
    )
    return [content for (content,) in found]


async def test_a_turn_is_stored_with_all_that_is_known_of_it(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, _ = storing
    sid = new_sid()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    await sender.send(
        question(sid=sid),
        answer(
            sid=sid,
            section="facts",
            reasoning="hm",
            tool_calls=[call],
            finish_reason="stop",
            usage=Usage(1, 2, 3, "upstream"),
            ttft_ms=12.5,
            duration_ms=99.0,
        ),
    )
    await sender.emptied()
    assert rows(settings, "SELECT id, user_id FROM sessions") == [("s1", "ann")]
    assert rows(settings, "SELECT id FROM users") == [("ann",)]
    columns = (
        "id, role, branch, section, model, status, content, reasoning, tool_calls, finish_reason,"
        " usage ->> 'total_tokens', ttft_ms, duration_ms"
    )
    asked, answered = rows(settings, f"SELECT {columns} FROM messages ORDER BY position")
    assert asked[:7] == (f"{sid}.q", "user", None, None, None, None, "why?")
    assert answered == (
        *(f"{sid}.0", "assistant", 0, "facts", "m1", "done", "because", "hm", [call], "stop"),
        *("3", 12.5, 99.0),
    )


async def test_a_repetition_changes_nothing(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, service = storing
    turn = (question(sid=new_sid()), answer())
    await sender.send(*turn)
    await sender.emptied()
    before = rows(settings, "SELECT m.*, s.* FROM messages m JOIN sessions s ON true ORDER BY m.id")
    await sender.send(*turn, *turn)
    await sender.emptied()
    after = rows(settings, "SELECT m.*, s.* FROM messages m JOIN sessions s ON true ORDER BY m.id")
    assert after == before
    await until(lambda: service.counters["duplicate"] == 4)


async def test_turns_stay_whole_when_they_overlap_and_an_answer_comes_before_its_question(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, _ = storing
    first, second = new_sid(), new_sid()
    await sender.send(answer("a2", second, created_at=250.0), answer("a1", first, created_at=300.0))
    await sender.emptied()
    await sender.send(question("q1", first, created_at=100.0))
    await sender.send(question("q2", second, created_at=200.0))
    await sender.emptied()
    assert contents(settings) == ["q1", "a1", "q2", "a2"]


async def test_pieces_make_a_message_when_the_last_of_them_has_come(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, _ = storing
    sid = new_sid()
    pieces = [answer(f"<{n}>", sid, piece=n, pieces=3) for n in range(3)]
    await sender.send(pieces[2], pieces[0], pieces[2])
    await sender.emptied()
    assert contents(settings) == []
    await sender.send(pieces[1])
    await sender.emptied()
    assert contents(settings) == ["<0><1><2>"]
    await sender.send(*pieces)
    await sender.emptied()
    assert contents(settings) == ["<0><1><2>"]
    assert rows(settings, "SELECT count(*) FROM message_pieces") == [(0,)]


async def test_nobody_writes_into_another_users_session(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, service = storing
    await sender.send(question("mine"))
    await sender.emptied()
    with capture_logs() as logs:
        sid = new_sid()
        await sender.send(
            question("forged", user_id="eve"), answer("x", sid, user_id="eve", piece=0, pieces=2)
        )
        await sender.emptied()
    assert contents(settings) == ["mine"]
    assert rows(settings, "SELECT user_id FROM sessions") == [("ann",)]
    assert rows(settings, "SELECT count(*) FROM message_pieces") == [(0,)]
    assert service.counters["foreign"] == 2
    assert [entry["event"] for entry in logs].count("transcript.foreign_session") == 2


async def test_what_postgres_takes_in_no_text_is_dropped_and_the_rest_kept(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, _ = storing
    await sender.send(question("a\0b", created_at=float("inf")))
    await sender.emptied()
    assert contents(settings) == ["ab"]


async def test_one_bad_row_does_not_hold_up_the_others_and_is_not_thrown_away(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, service = storing
    with psycopg.connect(settings.postgres_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE messages ADD CHECK (content <> 'bad')")
    with capture_logs() as logs:
        await sender.send(question("good"), question("bad"), question("better"))
        await until(lambda: service.counters["refused"] >= 1 and service.counters["stored"] == 2)
    assert sorted(contents(settings)) == ["better", "good"]
    await sender.emptied(left=1)
    [refused] = [entry for entry in logs if entry["event"] == "transcript.refused"]
    assert "bad" not in str(refused)  # ids and codes, never content


async def test_what_is_no_transcript_is_dropped_with_an_error(
    storing: tuple[Sender, Persistence],
) -> None:
    sender, service = storing
    await sender.send_raw(b"\xc1 nonsense")
    await sender.send(question(piece=3, pieces=2))
    await sender.emptied()
    assert service.counters["unreadable"] == 2


async def test_a_crowd_is_written_in_few_transactions(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, service = storing
    await sender.send(*(question(str(n), session_id=f"s{n % 40}") for n in range(400)))
    await sender.emptied()
    assert rows(settings, "SELECT count(*) FROM messages") == [(400,)]
    assert service.counters["batches"] < 100


async def test_two_writers_share_sessions_without_harming_each_other(settings: Settings) -> None:
    migrate(settings.postgres_url)
    async with meeting(settings) as (sender, _), running(build(settings)):
        turns = [
            (question(str(n), sid, session_id=f"s{n % 3}"), answer(sid=sid, session_id=f"s{n % 3}"))
            for n, sid in enumerate(new_sid() for _ in range(200))
        ]
        await sender.send(*(transcript for turn in turns for transcript in turn))
        await sender.emptied()
    assert rows(settings, "SELECT count(*), count(DISTINCT id) FROM messages") == [(400, 400)]
    assert rows(settings, "SELECT DISTINCT extract(epoch FROM turn_at)::int FROM messages") == [
        (100,)
    ]


async def test_the_cached_history_is_void_before_the_item_is_acknowledged(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, _ = storing
    cache = Cache(settings.redis_url, budget_s=1.0)
    key = CacheKeys(settings.prefix).history("s1")
    cache.fill(await cache.get(key), b"before", ttl_s=HISTORY_TTL_S)
    async with asyncio.timeout(DEADLINE_S):
        while (await cache.get(key)).value is None:
            await asyncio.sleep(0.005)
    await sender.send(question())
    await sender.emptied()
    assert (await cache.get(key)).value is None
    await cache.close()


async def test_without_redis_everything_is_stored_all_the_same(settings: Settings) -> None:
    migrate(settings.postgres_url)
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with meeting(nowhere) as (sender, _):
        await sender.send(*(question(str(n)) for n in range(20)))
        await sender.emptied()
    assert len(contents(settings)) == 20


async def test_while_postgres_is_stopped_nothing_is_lost_and_afterwards_all_is_there(
    settings: Settings, servers_dir: Path
) -> None:
    own = PostgresServer(servers_dir / "stopped", free_ports(1)[0], "test", durable=False)
    with stoppable(own, servers_dir / "stopped.log") as server, capture_logs() as logs:
        settings = settings.model_copy(update={"postgres_url": server.url, "max_deliver": 1})
        migrate(settings.postgres_url)
        async with meeting(settings) as (sender, service):
            await sender.send(question("before"))
            await sender.emptied()
            await asyncio.to_thread(server.stop)
            await sender.send(*(question(str(n)) for n in range(50)))
            await until(lambda: service.counters["retries"] >= 3)
            assert service.stats()["postgres_up"] is False
            assert await sender.waiting() == 50
            await asyncio.to_thread(server.start)
            await sender.emptied()
            assert service.stats()["postgres_up"] is True
        assert len(contents(settings)) == 51
    changes = [e["event"] for e in logs if e["event"].startswith("postgres.")]
    assert changes == ["postgres.down", "postgres.up"]


async def test_while_postgres_is_read_only_transcripts_wait(
    settings: Settings, storing: tuple[Sender, Persistence]
) -> None:
    sender, service = storing
    name = settings.postgres_url.rpartition("/")[2]
    with psycopg.connect(settings.postgres_url, autocommit=True) as connection:

        def set_read_only(value: str) -> None:
            alter = f"ALTER DATABASE {name} SET default_transaction_read_only = {value}"
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(alter.encode())

        set_read_only("on")
        await sender.send(question())
        await until(lambda: service.counters["retries"] >= 1)
        assert await sender.waiting() == 1
        set_read_only("off")
        await sender.emptied()
    assert contents(settings) == ["why?"]


async def test_a_service_that_is_told_to_stop_gives_back_what_it_could_not_write(
    settings: Settings,
) -> None:
    nowhere = settings.model_copy(
        update={"postgres_url": "postgresql://nobody@127.0.0.1:1/none", "ack_wait_s": 60}
    )
    async with meeting(nowhere) as (sender, service):
        await sender.send(question())
        await until(lambda: service.counters["retries"] >= 1)
    migrate(settings.postgres_url)
    async with meeting(settings) as (sender, _):
        await sender.emptied()
    assert contents(settings) == ["why?"]


async def test_while_postgres_is_frozen_transcripts_wait_and_are_stored_when_it_goes_on(
    settings: Settings, servers_dir: Path
) -> None:
    own = PostgresServer(servers_dir / "frozen", free_ports(1)[0], "test", durable=False)
    with stoppable(own, servers_dir / "frozen.log") as server:
        settings = settings.model_copy(update={"postgres_url": server.url})
        migrate(settings.postgres_url)
        async with meeting(settings) as (sender, service):
            await sender.send(question("before"))
            await sender.emptied()
            with server.frozen():
                await sender.send(*(question(str(n)) for n in range(20)))
                await until(lambda: service.stats()["waiting"] == 20)
            await sender.emptied()
        assert len(contents(settings)) == 21
