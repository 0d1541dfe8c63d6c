"""What goes wrong around the edge: lost messages, NATS gone, slow and absent clients, shutdown."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports
from deploy.mesh.server import Running
from services.edge.service import build
from shared.bus import CancelMarks, LogEntry, Subscription
from shared.events import BranchStarted, Delta, Done
from shared.settings import MIB, Settings
from tests.support.edge import Follower, MergerPlayer, RunningEdge, client_of, running_edge
from tests.support.meshkit import until

SSE = "text/event-stream"


def hasty(settings: Settings, **changed: Any) -> Settings:
    return settings.model_copy(update={"tail_check_s": 0.2, **changed})


async def talk(merger: MergerPlayer, count: int) -> None:
    await merger.commit(BranchStarted(branch=0, model="m"))
    for index in range(count):
        await merger.commit(Delta(0, text=f"{index} "))


def counters_of(edge: RunningEdge) -> dict[str, int]:
    return edge.service.counters


# NATS ---------------------------------------------------------------------------------------------


async def test_a_reader_whose_tail_carries_nothing_still_gets_every_event(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_edge(hasty(bus_settings)) as edge:
        assert edge.service.link is not None
        log = edge.service.link.log

        async def deaf(sid: str, _handler: Callable[[LogEntry], None]) -> Subscription:
            return await type(log).tail(log, sid, lambda _: None)

        monkeypatch.setattr(log, "tail", deaf)
        merger = await edge.accepted()
        follower = await edge.follow(merger.sid)
        await follower.until(events=1)
        await talk(merger, 3)
        await follower.until(events=5)
        await merger.commit(Done(), finished=True)
        heard = await follower.to_the_end()
        assert heard.ids == [1, 2, 3, 4, 5]
        assert counters_of(edge)["tails_reread"] >= 1


async def test_a_record_that_is_lost_in_the_middle_is_not_missing_to_the_client(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_edge(bus_settings) as edge:
        assert edge.service.link is not None
        log = edge.service.link.log
        seen = 0

        async def lossy(sid: str, handler: Callable[[LogEntry], None]) -> Subscription:
            def every_third(entry: LogEntry) -> None:
                nonlocal seen
                seen += 1
                if seen % 3:
                    handler(entry)

            return await type(log).tail(log, sid, every_third)

        monkeypatch.setattr(log, "tail", lossy)
        merger = await edge.accepted()
        follower = await edge.follow(merger.sid)
        await follower.until(events=1)
        await talk(merger, 30)
        await merger.commit(Done(), finished=True)
        assert (await follower.to_the_end()).ids == list(range(1, 33))


async def test_readers_outlive_a_restart_of_nats(tmp_path: Path) -> None:
    port, monitor_port = free_ports(2)
    server = NatsServer(tmp_path / "nats", port, monitor_port, "test-only", 256 * MIB)
    settings = Settings(
        nats_url=server.url,
        port=0,
        events_max_bytes=16 * MIB,
        work_max_bytes=MIB,
        transcripts_max_bytes=MIB,
    )
    running = Running(server, tmp_path / "nats.log")
    await asyncio.to_thread(running.__enter__)
    try:
        async with running_edge(settings) as edge:
            merger = await edge.accepted()
            follower = await edge.follow(merger.sid)
            await talk(merger, 3)
            await follower.until(events=5)
            await asyncio.to_thread(running.__exit__)
            away = await edge.http.get("/readyz")
            assert (await away.json())["missing"] == ["nats"]
            await asyncio.to_thread(running.__enter__)
            await merger.commit(Delta(0, text="after"))
            await merger.commit(Done(), finished=True)
            heard = await follower.to_the_end()
            assert heard.ids == [1, 2, 3, 4, 5, 6]
            assert heard.text == "0 1 2 after"
    finally:
        await asyncio.to_thread(running.__exit__)


async def test_a_full_queue_sheds_with_when_to_come_back_and_the_same_id_works_then(
    bus_settings: Settings,
) -> None:
    settings = bus_settings.model_copy(update={"work_max_bytes": 8 * 1024})
    body = {"id": "Stream0000000000000001", "message": "x" * 500}
    async with running_edge(settings) as edge:
        while (answer := await edge.start({"message": "x" * 1000})).status == 202:
            pass
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        error = (await answer.json())["error"]
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        while (await edge.start(body)).status == 202:
            body["id"] = body["id"][:-4] + str(int(body["id"][-4:]) + 1).zfill(4)
        await edge.link.bus.jetstream().purge_stream(edge.link.subjects.requests_stream)
        assert (await edge.start(body)).status == 202
        assert [request.sid for request in await edge.queued()] == [body["id"]]


# Clients ------------------------------------------------------------------------------------------


async def test_a_silent_stream_is_kept_alive_also_before_its_first_event(
    bus_settings: Settings,
) -> None:
    async with running_edge(hasty(bus_settings, heartbeat_s=0.2)) as edge:
        merger = await edge.accepted()
        follower = await edge.follow(merger.sid)
        heard = await follower.until(comments=2)
        assert heard.comments[0] == ": keep-alive"
        await talk(merger, 1)
        await follower.until(events=3)
        await follower.until(comments=len(heard.comments) + 1)
        await merger.commit(Done(), finished=True)
        assert (await follower.to_the_end()).ids == [1, 2, 3]


async def test_a_client_that_leaves_frees_its_reader_and_changes_nothing(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.start(Accept=SSE)
        await Follower(answer).until(events=1)
        answer.close()
        await until(lambda: counters_of(edge)["readers_closed"] == 1)
        merger = await MergerPlayer.of(edge.link, answer.headers["X-Stream-Id"])
        await merger.commit(Done(), finished=True)
        assert (await (await edge.follow(merger.sid)).to_the_end()).types == ["done"]


async def test_a_client_that_reads_nothing_is_cut_off_and_harms_nobody(
    bus_settings: Settings,
) -> None:
    settings = hasty(bus_settings, write_deadline_s=0.5, reader_buffer_bytes=64 * 1024)
    async with running_edge(settings) as edge:
        merger = await edge.accepted()
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.to_thread(stalled.connect, ("127.0.0.1", edge.service.port))
        path = f"/v1/streams/{merger.sid}/events"
        stalled.sendall(f"GET {path} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
        await until(lambda: counters_of(edge)["readers_opened"] == 1)
        healthy = await edge.follow(merger.sid)
        reading = asyncio.create_task(healthy.to_the_end())
        await merger.commit(BranchStarted(branch=0, model="m"))
        committed = 1
        while not counters_of(edge)["readers_too_slow"]:
            await merger.commit(Delta(0, text="x" * 100_000))
            committed += 1
        await merger.commit(Done(), finished=True)
        assert (await reading).ids == list(range(1, committed + 2))
        await until(lambda: counters_of(edge)["readers_closed"] == 2)
        stalled.close()


async def test_a_log_that_expires_under_a_reader_cuts_it_off_and_is_gone_for_the_next(
    bus_settings: Settings,
) -> None:
    async with running_edge(hasty(bus_settings)) as edge:
        merger = await edge.accepted()
        follower = await edge.follow(merger.sid)
        await follower.until(events=1)
        subject = edge.link.subjects.events(merger.sid)
        stream = edge.link.subjects.events_stream(0)
        await edge.link.bus.jetstream().purge_stream(stream, subject=subject)
        lost = MergerPlayer(edge.link, merger.sid, 0, n_next=5)
        await lost.commit(Done(), finished=True)
        heard = await follower.to_the_end()
        assert heard.numbered == [], "nothing with a hole in it"
        answer = await edge.http.get(f"/v1/streams/{merger.sid}/events")
        assert answer.status == 410


# on_disconnect: cancel ----------------------------------------------------------------------------

ABANDONABLE = {"message": "Why?", "on_disconnect": "cancel"}


def patient(settings: Settings, grace_s: float = 0.3) -> Settings:
    return hasty(settings, cancel_grace_s=grace_s)


async def mark_of(edge: RunningEdge, sid: str) -> str | None:
    return await CancelMarks(edge.link.bus, edge.link.subjects).get(sid)


async def test_a_stream_that_asks_for_it_is_cancelled_when_its_last_reader_stays_away(
    bus_settings: Settings,
) -> None:
    async with running_edge(patient(bus_settings)) as edge:
        merger = await edge.accepted(ABANDONABLE)
        one, other = await edge.follow(merger.sid), await edge.follow(merger.sid)
        for follower in (one, other):
            await follower.until(events=1)
        one.answer.close()
        await until(lambda: counters_of(edge)["readers_closed"] == 1)
        assert await mark_of(edge, merger.sid) is None, "somebody still reads"
        other.answer.close()
        await until(lambda: counters_of(edge)["streams_abandoned"] == 1)
        assert await mark_of(edge, merger.sid) == "disconnected"


async def test_a_reader_that_comes_back_within_the_grace_period_keeps_its_stream(
    bus_settings: Settings,
) -> None:
    async with running_edge(patient(bus_settings, 1.0)) as edge:
        merger, clock = await edge.accepted(ABANDONABLE), await edge.accepted(ABANDONABLE)
        for left in [await edge.follow(merger.sid), await edge.follow(clock.sid)]:
            await left.until(events=1)
            left.answer.close()
        await until(lambda: counters_of(edge)["readers_closed"] == 2)
        back = await edge.follow(merger.sid)
        await until(lambda: counters_of(edge)["streams_abandoned"] == 1)
        assert await mark_of(edge, clock.sid) == "disconnected"
        assert await mark_of(edge, merger.sid) is None
        await merger.commit(Done(), finished=True)
        assert (await back.to_the_end()).types == ["done"]


async def test_a_reader_on_another_edge_keeps_the_stream_and_has_the_duty_from_then_on(
    bus_settings: Settings,
) -> None:
    settings = patient(bus_settings)
    async with running_edge(settings) as edge, running_edge(settings) as other:
        merger = await edge.accepted(ABANDONABLE)
        here, there = await edge.follow(merger.sid), await other.follow(merger.sid)
        for follower in (here, there):
            await follower.until(events=1)
        here.answer.close()
        await until(lambda: counters_of(edge)["readers_closed"] == 1)
        absence = edge.service.absence
        await until(lambda: absence is not None and absence.waiting == 0)
        assert await mark_of(edge, merger.sid) is None
        there.answer.close()
        await until(lambda: counters_of(other)["streams_abandoned"] == 1)
        assert counters_of(edge)["streams_abandoned"] == 0


async def test_a_finished_stream_and_a_draining_edge_abandon_nothing(
    bus_settings: Settings,
) -> None:
    service = build(patient(bus_settings, 0.01))
    await service.start()
    async with running_edge(bus_settings) as edge, client_of(service) as http:
        ended, running = await edge.accepted(ABANDONABLE), await edge.accepted(ABANDONABLE)
        await ended.commit(Done(), finished=True)
        for merger in (ended, running):
            follower = Follower(await http.get(f"/v1/streams/{merger.sid}/events"))
            await follower.until(events=1)
        await service.drain()
        assert service.counters["streams_abandoned"] == 0
        assert await mark_of(edge, running.sid) is None


# Shutdown -----------------------------------------------------------------------------------------


async def test_a_draining_edge_lets_its_readers_go_and_they_resume_on_another(
    bus_settings: Settings,
) -> None:
    first = build(bus_settings)
    await first.start()
    # The other edge shares the port, as edges of one machine do.
    async with running_edge(bus_settings.model_copy(update={"port": first.port})) as edge:
        assert edge.service.port == first.port
        merger = await edge.accepted()
        await talk(merger, 2)
        followers = [await edge.follow(merger.sid) for _ in range(32)]
        for follower in followers:
            await follower.until(events=4)
        assert first.counters["readers_opened"] > 0, "the kernel spreads connections"
        assert counters_of(edge)["readers_opened"] > 0
        await first.drain()
        await merger.commit(Delta(0, text="more"))
        await merger.commit(Done(), finished=True)
        moved = 0
        for follower in followers:
            heard = await follower.to_the_end()
            if heard.types[-1] != "done":
                moved += 1
                resumed = await edge.follow(merger.sid, heard.ids[-1])
                heard.events += (await resumed.to_the_end()).numbered
            assert heard.ids == [1, 2, 3, 4, 5]
        assert moved == first.counters["readers_opened"]


async def test_a_drained_edge_takes_no_connection(bus_settings: Settings) -> None:
    service = build(bus_settings)
    await service.start()
    async with client_of(service) as http:
        assert (await http.get("/healthz")).status == 200
        await service.drain()
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get("/healthz")


async def test_readiness_is_withdrawn_before_the_door_closes(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        assert edge.service.readiness is not None
        edge.service.readiness.draining = True
        answer = await edge.http.get("/readyz")
        assert (answer.status, (await answer.json())["status"]) == (503, "draining")


# Addresses and bodies -----------------------------------------------------------------------------


async def test_wrong_addresses_and_methods_are_answered_in_the_one_error_form(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        nowhere = await edge.http.get("/v1/nothing")
        assert nowhere.status == 404
        assert (await nowhere.json())["error"]["code"] == "not_found"
        wrong = await edge.http.put("/v1/streams")
        assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
        assert (await wrong.json())["error"]["code"] == "method_not_allowed"


async def test_messages_repeated_for_every_branch_must_fit_the_queue(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        messages = [{"role": "user", "content": "x" * 200_000}]
        answer = await edge.start({"messages": messages, "branches": [{}] * 6})
        assert answer.status == 413
        assert "fewer branches" in (await answer.json())["error"]["message"]


async def test_a_failure_inside_is_500_and_says_nothing_of_the_inside(
    bus_settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_edge(bus_settings) as edge:
        assert edge.service.link is not None

        async def fail(_sid: str) -> None:
            raise RuntimeError("secret inside")

        monkeypatch.setattr(edge.service.link.log, "first", fail)
        answer = await edge.http.get("/v1/streams/Stream0000000000000001")
        assert answer.status == 500
        assert answer.headers["X-Stream-Id"] == "Stream0000000000000001"
        assert "secret" not in await answer.text()
        logged = "".join(capsys.readouterr())
        assert "edge.request_failed" in logged
        assert "Stream0000000000000001" in logged
