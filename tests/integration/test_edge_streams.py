"""The edge before a real NATS: a stream is started once and followed by anyone from anywhere."""

import asyncio

import msgspec
import pytest

from services.edge.start_request import parse_start
from shared.bus import CancelMarks, Message
from shared.events import (
    BranchDone,
    BranchReset,
    BranchStarted,
    Cancelled,
    ContextLoaded,
    Delta,
    Done,
    Event,
    Failed,
    Incomplete,
    ToolFragment,
    Usage,
)
from shared.intake import open_log
from shared.messages import CancelRequested, control_decoder
from shared.settings import Settings
from tests.support.edge import Follower, Heard, MergerPlayer, RunningEdge, running_edge
from tests.support.meshkit import until

SSE = "text/event-stream"
SID = "Stream0000000000000001"


async def play(merger: MergerPlayer) -> None:
    """A short answer of eight events in five records, one of them an owner's claim."""
    await merger.commit(ContextLoaded(), BranchStarted(branch=0, model="m"))
    await merger.commit(Delta(0, text="Hello, "))
    await merger.commit(epoch=2)
    await merger.commit(Delta(0, text="wörld\n"), Delta(0, text="\u2028 and\r\nall"))
    await merger.commit(
        BranchDone(branch=0, model="m", finish_reason="stop", usage=Usage(1, 2, 3, "upstream")),
        BranchReset(branch=1, attempt=1, reason="x", discarded_chars=0),
        Done(),
        finished=True,
    )


async def whole(edge: RunningEdge, sid: str, after: int | None = None, **headers: str) -> Heard:
    return await (await edge.follow(sid, after, **headers)).to_the_end()


# Start --------------------------------------------------------------------------------------------


async def test_a_start_is_answered_with_open_before_anything_has_happened(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.start(Accept=SSE)
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-cache, no-transform"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "Content-Encoding" not in answer.headers
        heard = await Follower(answer).until(events=1)
        assert heard.opening == {
            "type": "open",
            "stream_id": answer.headers["X-Stream-Id"],
            "session_id": answer.headers["X-Stream-Id"],
            "position": 0,
            "from": "log",
        }
        assert heard.retry_ms is not None
        assert 1000 <= heard.retry_ms <= 3000
        [request] = await edge.queued()
        assert request.sid == answer.headers["X-Stream-Id"]
        assert request.accepted_seq > 0
        answer.close()


async def test_who_starts_a_stream_follows_it_to_its_terminal(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.start(Accept=SSE)
        follower = Follower(answer)
        await follower.until(events=1)
        await play(await MergerPlayer.of(edge.link, answer.headers["X-Stream-Id"]))
        heard = await follower.to_the_end()
        assert heard.ids == [1, 2, 3, 4, 5, 6, 7, 8]
        assert heard.types[-1] == "done"
        assert heard.text == "Hello, wörld\n\u2028 and\r\nall"
        assert all(e["model"] == "m" for _, e in heard.numbered if e.get("branch") == 0)


async def test_who_does_not_ask_for_events_is_told_where_they_are(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.start({"message": "Why?", "session_id": "our-session"})
        assert answer.status == 202
        body = await answer.json()
        sid = body["id"]
        assert body == {
            "id": sid,
            "session_id": "our-session",
            "url": f"/v1/streams/{sid}/events",
        }
        assert answer.headers["Location"] == f"/v1/streams/{sid}"
        assert answer.headers["X-Stream-Id"] == sid
        await play(await MergerPlayer.of(edge.link, sid))
        assert (await whole(edge, sid)).types[-1] == "done"


async def test_the_short_form_always_streams(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.http.post(
            "/api/v1/chat/message/stream",
            json={"message": "Why?", "session_id": "s", "use_rag": False},
            headers={"Authorization": "Bearer any-token"},
        )
        follower = Follower(answer)
        await follower.until(events=1)
        sid = answer.headers["X-Stream-Id"]
        [request] = await edge.queued()
        assert (request.message, request.session_id, request.use_rag) == ("Why?", "s", False)
        await play(await MergerPlayer.of(edge.link, sid))
        told = await follower.to_the_end()
        async with edge.http.get(f"/stream/{sid}?after=3") as again:
            assert (await Follower(again).to_the_end()).numbered == told.numbered[3:]


# Idempotent start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [({"id": SID, "message": "Why?"}, {}), ({"message": "Why?"}, {"Idempotency_Key": "key-1"})],
)
async def test_the_same_start_twice_generates_once_also_after_the_end(
    body: dict[str, str], headers: dict[str, str], bus_settings: Settings
) -> None:
    async with running_edge(bus_settings) as edge:
        first = Follower(await edge.start(body, Accept=SSE, **headers))
        await first.until(events=1)
        second = Follower(await edge.start(body, Accept=SSE, **headers))
        await second.until(events=1)
        await play(await MergerPlayer.of(edge.link, first.heard.opening["stream_id"]))
        told = await first.to_the_end()
        assert (await second.to_the_end()).events == told.events
        late = Follower(await edge.start(body, Accept=SSE, **headers))
        assert (await late.to_the_end()).events == told.events
        assert len(await edge.queued()) == 1


async def test_many_starts_at_once_with_one_key_are_one_stream(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        answers = await asyncio.gather(*(edge.start(Idempotency_Key="key-1") for _ in range(20)))
        assert {answer.status for answer in answers} == {202}
        assert len({(await answer.json())["id"] for answer in answers}) == 1
        assert len(await edge.queued()) == 1


async def test_a_key_used_for_another_body_is_a_conflict(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        await edge.start({"message": "Why?"}, Idempotency_Key="key-1")
        answer = await edge.start({"message": "How?"}, Idempotency_Key="key-1")
        assert answer.status == 409
        assert (await answer.json())["error"]["param"] == "id"
        assert len(await edge.queued()) == 1


async def test_a_crash_between_log_and_queue_is_repaired_by_the_next_try(
    bus_settings: Settings,
) -> None:
    body = {"id": SID, "message": "Why?"}
    async with running_edge(bus_settings) as edge:
        request = parse_start(msgspec.json.encode(body), bus_settings, "local", fresh_sid=SID)
        await open_log(edge.link.log, request)
        assert await edge.queued() == []
        assert (await edge.start(body)).status == 202
        [queued] = await edge.queued()
        assert queued.sid == SID


async def test_a_post_with_a_position_resumes_as_fetch_based_clients_do(
    bus_settings: Settings,
) -> None:
    body = {"id": SID, "message": "Why?"}
    async with running_edge(bus_settings) as edge:
        lost = await edge.start(body, Accept=SSE, Last_Event_ID="3")
        assert lost.status == 404, "a position never starts a stream"
        assert await edge.queued() == []
        await edge.start(body)
        await play(await MergerPlayer.of(edge.link, SID))
        resumed = Follower(await edge.start(body, Accept=SSE, Last_Event_ID="3"))
        assert (await resumed.to_the_end()).ids == [4, 5, 6, 7, 8]


# Follow -------------------------------------------------------------------------------------------


async def test_a_stream_can_be_followed_from_every_position_with_identical_events(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        await play(merger)
        told = await whole(edge, merger.sid)
        for after in range(8):
            resumed = await whole(edge, merger.sid, after)
            assert resumed.opening["position"] == after
            assert resumed.numbered == told.numbered[after:]


async def test_readers_who_come_before_during_and_after_see_the_same(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        before = await edge.follow(merger.sid)
        await merger.commit(BranchStarted(branch=0, model="m"))
        await merger.commit(Delta(0, text="a"))
        await before.until(events=3)
        during = await edge.follow(merger.sid)
        for letter in "bcdefgh":
            await merger.commit(Delta(0, text=letter))
        await merger.commit(Done(), finished=True)
        told = await before.to_the_end()
        assert told.text == "abcdefgh"
        assert (await during.to_the_end()).numbered == told.numbered
        assert (await whole(edge, merger.sid)).numbered == told.numbered


async def test_the_position_of_a_reconnecting_eventsource_wins_over_its_address(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        await play(merger)
        assert (await whole(edge, merger.sid, 2, Last_Event_ID="6")).ids == [7, 8]


async def test_a_forged_position_is_refused_with_how_far_the_stream_is(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        await merger.commit(ContextLoaded())
        for value, said in [("2", "last event is 1"), ("-1", "whole number"), ("x", "whole")]:
            answer = await edge.http.get(f"/v1/streams/{merger.sid}/events?after={value}")
            assert answer.status == 400
            assert said in (await answer.json())["error"]["message"]


async def test_an_eventsource_is_told_to_stay_away_from_a_stream_it_has_had_to_the_end(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        await play(merger)
        answer = await edge.http.get(
            f"/v1/streams/{merger.sid}/events", headers={"Last-Event-ID": "8"}
        )
        assert answer.status == 204


@pytest.mark.parametrize("sid", [SID, "short", "a.b", "%3E" * 22, "AAAAAAAAAAAAAAAAAAAAA%00"])
async def test_an_id_that_is_no_stream_is_not_found(sid: str, bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        for answer in [
            await edge.http.get(f"/v1/streams/{sid}/events"),
            await edge.http.get(f"/v1/streams/{sid}"),
            await edge.http.delete(f"/v1/streams/{sid}"),
        ]:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "not_found"


# Look ---------------------------------------------------------------------------------------------


async def test_a_snapshot_tells_what_was_said_so_far(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted({"message": "Why?", "session_id": "s"})
        look = f"/v1/streams/{merger.sid}"
        queued = await (await edge.http.get(look)).json()
        assert (queued["status"], queued["position"], queued["branches"]) == ("queued", 0, [])
        assert queued["session_id"] == "s"
        await merger.commit(BranchStarted(branch=0, section="intro", model="m"))
        await merger.commit(Delta(0, text="Hel"), Delta(0, text="lo"))
        await merger.commit(Delta(0, tool_call=ToolFragment(0, "c", "find", "{}")))
        streaming = await (await edge.http.get(look)).json()
        assert (streaming["status"], streaming["position"]) == ("streaming", 4)
        [branch] = streaming["branches"]
        assert (branch["section"], branch["status"]) == ("intro", "streaming")
        assert branch["text"] == "Hello"
        assert branch["tool_calls"][0]["function"] == {"name": "find", "arguments": "{}"}
        await merger.commit(BranchDone(branch=0, finish_reason="stop"), Done(), finished=True)
        done = await (await edge.http.get(look)).json()
        assert (done["status"], done["terminal"]) == ("done", {"type": "done"})
        assert done["branches"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("terminal", "status"),
    [
        (Done(), "done"),
        (Failed(code="internal", message="m"), "error"),
        (Cancelled(reason="client"), "cancelled"),
        (Incomplete(reason="truncated"), "incomplete"),
    ],
)
async def test_how_a_stream_ended_is_its_status(
    terminal: Event, status: str, bus_settings: Settings
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        await merger.commit(terminal, finished=True)
        snapshot = await (await edge.http.get(f"/v1/streams/{merger.sid}")).json()
        assert snapshot["status"] == status
        cancelled = await edge.http.delete(f"/v1/streams/{merger.sid}")
        assert (cancelled.status, await cancelled.json()) == (
            200,
            {"id": merger.sid, "status": status},
        )


# Cancel -------------------------------------------------------------------------------------------


async def test_a_cancel_is_durable_before_it_is_told_and_may_be_repeated(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        merger = await edge.accepted()
        marks = CancelMarks(edge.link.bus, edge.link.subjects)
        pokes: list[bytes] = []

        def on_control(message: Message) -> None:
            pokes.append(message.data)

        await edge.link.bus.subscribe(edge.link.subjects.control(merger.sid), on_control)
        await edge.link.bus.flush()
        for _ in range(2):
            answer = await edge.http.post(f"/v1/streams/{merger.sid}/cancel")
            assert answer.status == 202
            assert await answer.json() == {"id": merger.sid, "status": "cancelling"}
            assert await marks.get(merger.sid) == "client"
        await until(lambda: len(pokes) == 2)
        assert control_decoder.decode(pokes[0]) == CancelRequested(sid=merger.sid)
