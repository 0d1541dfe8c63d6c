"""Past retention: the edge answers with what is stored, or says exactly why it can't."""

from typing import Any

import aiohttp
import pytest

from services.edge.archive import MAX_OPEN
from shared.bus import LogEntry
from shared.events import Accepted, Checkpoint, Done, Record, encode_record
from shared.ids import new_sid
from shared.messages import BranchAnswered, QuestionAsked, Transcript, TranscriptPart
from shared.settings import Settings
from tests.support.edge import Follower, MergerPlayer, RunningEdge, running_edge
from tests.support.meshkit import until

SSE = "text/event-stream"
PATHS = ("/v1/streams/{}/events", "/stream/{}", "/v1/streams/{}")


def turn(sid: str, user_id: str = "local", text: str = "because") -> list[Transcript]:
    common: dict[str, Any] = {"sid": sid, "user_id": user_id, "session_id": "s"}
    return [
        QuestionAsked(**common, content="why?", created_at=5.0),
        *(
            BranchAnswered(
                **common, content=text, created_at=9.0, branch=branch, model="m", status="done"
            )
            for branch in (0, 1)
        ),
    ]


async def headless(edge: RunningEdge, sid: str) -> None:
    """Its first record, which says whose it is, has expired."""
    await MergerPlayer(edge.link, sid, 0, 5).commit(Done(), finished=True)


async def statuses(edge: RunningEdge, sid: str) -> list[tuple[int, str | None]]:
    found = []
    for path in PATHS:
        answer = await edge.http.get(path.format(sid))
        found.append((answer.status, answer.headers.get("Retry-After")))
    return found


@pytest.mark.parametrize("is_partly_there", [False, True])
async def test_an_expired_stream_is_told_whole_from_whatever_position_it_is_asked_for(
    is_partly_there: bool, bus_settings: Settings
) -> None:
    async with running_edge(bus_settings) as edge:
        sid = new_sid()
        edge.archive.turns[sid] = turn(sid)
        if is_partly_there:
            await headless(edge, sid)
        for after in (None, 0, 3, 10**9):
            heard = await (await edge.follow(sid, after)).to_the_end()
            assert heard.opening == {
                "type": "open",
                "stream_id": sid,
                "session_id": "s",
                "position": 0,
                "from": "transcript",
            }
            assert heard.ids == [None, None, None]
            assert heard.types == ["transcript", "transcript", "done"]
            assert heard.text == "becausebecause"
        by_task = await edge.http.get(f"/stream/{sid}", headers={"Last-Event-ID": "7"})
        assert (await Follower(by_task).to_the_end()).types == heard.types
        snapshot = await (await edge.http.get(f"/v1/streams/{sid}")).json()
        assert (snapshot["from"], snapshot["position"], snapshot["status"]) == (
            *("transcript", 0, "done"),
        )
        assert [branch["text"] for branch in snapshot["branches"]] == ["because", "because"]
        cancelled = await edge.http.delete(f"/v1/streams/{sid}")
        assert (cancelled.status, await cancelled.json()) == (200, {"id": sid, "status": "done"})


async def test_a_transcript_larger_than_a_message_comes_in_parts(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        sid = new_sid()
        text = "wörd " * 10_000
        edge.archive.part_bytes = 4096
        edge.archive.turns[sid] = turn(sid, text=text)
        heard = await (await edge.follow(sid)).to_the_end()
        assert [event.get("text") for _, event in heard.numbered] == [text, text, None]
        assert edge.archive.asked > 20


async def test_nobody_learns_of_another_users_stream_in_log_or_store(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        sid, logged = new_sid(), new_sid()
        edge.archive.turns[sid] = turn(sid, "somebody-else")
        accepted = Accepted("somebody-else", "s", "f", 0.0)
        record = Record(0, 1, (), Checkpoint(()), accepted)
        await edge.link.log.accept(logged, encode_record(record))
        for foreign in (sid, logged, new_sid()):
            assert await statuses(edge, foreign) == [(404, None)] * 3
            assert (await edge.http.delete(f"/v1/streams/{foreign}")).status == 404
        await headless(edge, sid)
        assert await statuses(edge, sid) == [(404, None)] * 3
        assert (await edge.start({"id": sid, "message": "Why?"})).status == 404


async def test_what_is_neither_whole_in_the_log_nor_stored_is_gone(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        sid = new_sid()
        await headless(edge, sid)
        assert await statuses(edge, sid) == [(410, None)] * 3
        edge.archive.turns[sid] = turn(sid)[:1]
        assert await statuses(edge, sid) == [(410, None)] * 3, "a question is no answer"


@pytest.mark.parametrize("state", ["away", "waiting"])
async def test_a_stream_nobody_can_tell_anything_of_is_unavailable_and_not_missing(
    state: Any, bus_settings: Settings
) -> None:
    async with running_edge(bus_settings) as edge:
        edge.archive.instead = TranscriptPart(state)
        assert await statuses(edge, new_sid()) == [(503, "2")] * 3
        resume = {"id": new_sid(), "message": "Why?"}
        answer = await edge.start(resume, Accept=SSE, Last_Event_ID="3")
        assert answer.status in {410, 503}


async def test_without_a_persistence_service_streams_start_and_unknown_ones_are_unavailable(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings, has_archive=False) as edge:
        assert await statuses(edge, new_sid()) == [(503, "1")] * 3
        assert (await edge.start({"id": new_sid(), "message": "Why?"})).status == 202


async def test_an_id_whose_stream_is_past_retention_never_generates_again(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        sid = new_sid()
        edge.archive.turns[sid] = turn(sid)
        for headers in ({}, {"Accept": SSE}, {"Accept": SSE, "Last_Event_ID": "3"}):
            answer = await edge.start({"id": sid, "message": "Why?"}, **headers)
            assert answer.status == 410
            assert (await answer.json())["error"]["param"] == "id"
        assert await edge.queued() == []
        assert await edge.link.log.last(sid) is None, "the transcript must not be hidden by a log"


async def test_only_an_id_that_a_client_has_chosen_costs_a_question(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        await edge.start()
        assert edge.archive.asked == 0
        for _ in range(3):
            assert (await edge.start(Idempotency_Key="key-1")).status == 202
        assert edge.archive.asked == 1, "those who attach don't ask"


async def test_a_start_that_was_overtaken_by_its_twin_attaches_and_is_not_told_of_the_past(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_edge(bus_settings) as edge:
        body = {"id": new_sid(), "message": "Why?"}
        assert (await edge.start(body)).status == 202
        edge.archive.instead = TranscriptPart("waiting")  # the twin's question is queued
        assert edge.service.link is not None
        log = edge.service.link.log
        looks = 0

        async def first(sid: str) -> LogEntry | None:
            nonlocal looks
            looks += 1
            return None if looks == 1 else await type(log).first(log, sid)

        monkeypatch.setattr(log, "first", first)
        assert (await edge.start(body)).status == 202


async def test_transcripts_in_memory_are_bounded_and_the_rest_are_asked_to_come_back(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        sid = new_sid()
        edge.archive.turns[sid] = turn(sid, text="x" * 4_000_000)
        slow = [await edge.follow(sid) for _ in range(MAX_OPEN)]
        assert await statuses(edge, sid) == [(503, "2")] * 3
        for follower in slow:
            assert b'{"type":"done"}' in await follower.answer.read()
        assert await statuses(edge, sid) == [(200, None)] * 3


async def test_a_client_that_takes_nothing_of_a_transcript_is_cut_off(
    bus_settings: Settings,
) -> None:
    hasty = bus_settings.model_copy(update={"write_deadline_s": 0.2})
    async with running_edge(hasty) as edge:
        sid = new_sid()
        edge.archive.turns[sid] = turn(sid, text="x" * 6_000_000)
        follower = await edge.follow(sid)
        await until(lambda: edge.service.counters["readers_too_slow"] == 1)
        with pytest.raises(aiohttp.ClientError):
            await follower.answer.read()
