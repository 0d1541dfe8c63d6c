"""What a client is promised, on a whole mesh: start once, follow from anywhere, stop for good."""

import asyncio
import time
from typing import Any

import pytest

from shared.ids import new_sid
from tests.support.mesh import Client, Mesh, client_at, events_in, until

LONG: dict[str, Any] = {"tokens": 150, "gap_s": 0.01, "ttft_s": 0.0, "marker": True}
SHORT: dict[str, Any] = {"tokens": 20, "gap_s": 0.0, "ttft_s": 0.0, "marker": True}
ENDLESS: dict[str, Any] = {"tokens": 6_000, "gap_s": 0.01, "ttft_s": 0.0}


# Resume -------------------------------------------------------------------------------------------


async def test_a_reader_whose_edge_is_killed_resumes_on_the_other_at_the_exact_event(
    client: Client,
) -> None:
    async with client_at(client.mesh, "edge-1") as first_client:
        follower = await first_client.start(sim=LONG)
        sid = (await follower.until(events=30)).opening["stream_id"]
        client.mesh.kill("edge-1")
        first = (await follower.to_the_end()).blocks
    assert b'"type":"done"' not in b"".join(first)
    resumed = await client.follow(sid, len(first))
    assert client.edges_of(resumed) == {"edge-2"}
    second = (await resumed.to_the_end()).blocks
    assert first + second == await client.whole(sid)
    assert events_in(second)[-1]["type"] == "done"


async def test_a_replay_is_the_same_bytes_from_every_position_and_every_edge(
    client: Client,
) -> None:
    branches = [{"label": label, "sim": SHORT} for label in "abc"]
    follower = await client.start(branches=branches)
    live = (await follower.to_the_end()).blocks
    sid = follower.heard.opening["stream_id"]
    positions = [*range(5), len(live) // 2, len(live) - 1]
    for edge in ("edge-1", "edge-2"):
        async with client_at(client.mesh, edge) as there:
            assert await there.whole(sid) == live
    for after in positions:
        assert await client.whole(sid, after) == live[after:]
    async with client.http.get(f"/v1/streams/{sid}/events?after={len(live)}") as answer:
        assert answer.status == 204


# Idempotent start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["id", "key"])
async def test_the_same_start_from_everywhere_at_once_is_one_generation(
    way: str, client: Client
) -> None:
    name = new_sid()
    ask: dict[str, Any] = {"sim": LONG}
    ask |= {"sid": name} if way == "id" else {"headers": {"Idempotency-Key": name}}
    followers = await asyncio.gather(*(client.start(**ask) for _ in range(20)))
    assert client.edges_of(*followers) == {"edge-1", "edge-2"}
    heard = await asyncio.gather(*(follower.to_the_end() for follower in followers))
    [sid] = {each.opening["stream_id"] for each in heard}
    assert len({b"".join(each.blocks) for each in heard}) == 1
    assert heard[0].types[-1] == "done"
    late = await (await client.start(**ask)).to_the_end()
    assert late.blocks == heard[0].blocks, "after the end as well"
    other = await client.post(**(ask | {"message": "Another question?"}))
    assert other.status == 409
    assert len(await client.mesh.calls(sid)) == 1


# Cancel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_stream_is_cancelled_before_its_first_token(method: str, client: Client) -> None:
    follower = await client.start(sim={"fault": "slow_first"})
    sid = (await follower.until(events=1)).opening["stream_id"]
    await client.mesh.call(sid)
    asked_at = time.monotonic()
    assert await cancel(client, sid, method) == (202, "cancelling")
    await require_cancelled(client, sid, asked_at)
    assert (await follower.to_the_end()).types[-1] == "cancelled"
    [_, answer] = await client.mesh.stored(sid)
    assert (answer["status"], answer["content"]) == ("cancelled", "")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_what_was_said_before_a_cancel_is_kept_and_a_second_cancel_changes_nothing(
    method: str, client: Client
) -> None:
    follower = await client.start(sim=ENDLESS)
    sid = (await follower.until(events=20)).opening["stream_id"]
    asked_at = time.monotonic()
    first, second = await asyncio.gather(cancel(client, sid, method), cancel(client, sid, method))
    assert first == (202, "cancelling")
    assert second in {(202, "cancelling"), (200, "cancelled")}
    heard = await follower.to_the_end()
    await require_cancelled(client, sid, asked_at)
    assert heard.types.count("cancelled") == 1
    assert await cancel(client, sid, method) == (200, "cancelled")
    assert await client.whole(sid) == heard.blocks
    [_, answer] = await client.mesh.stored(sid)
    assert (answer["status"], answer["content"]) == ("cancelled", heard.text)
    assert heard.text


async def test_a_cancel_after_the_end_says_how_it_ended(client: Client) -> None:
    sid = await client.finished(sim=SHORT)
    before = await client.whole(sid)
    for method in ("POST", "DELETE"):
        assert await cancel(client, sid, method) == (200, "done")
    assert await client.whole(sid) == before
    assert (await client.mesh.call(sid))["ended"] == "finished"


async def cancel(client: Client, sid: str, method: str) -> tuple[int, str]:
    path = f"/v1/streams/{sid}" + ("/cancel" if method == "POST" else "")
    async with client.http.request(method, path) as answer:
        return answer.status, (await answer.json())["status"]


async def require_cancelled(client: Client, sid: str, asked_at: float) -> None:
    """The upstream connection was closed within a second; clocks are the machine's."""
    call = await client.mesh.call(sid, lambda call: call["aborted"])
    assert call["aborted_s"] - asked_at <= 1.0


# Disconnect ---------------------------------------------------------------------------------------


async def test_a_stream_goes_on_and_is_stored_when_its_reader_leaves(client: Client) -> None:
    follower = await client.start(sim=LONG)
    sid = (await follower.until(events=10)).opening["stream_id"]
    follower.answer.close()
    [_, answer] = await client.mesh.stored(sid)
    assert (answer["status"], answer["finish_reason"]) == ("done", "stop")
    call = await client.mesh.call(sid)
    assert (call["ended"], call["tokens_sent"]) == ("finished", LONG["tokens"])


async def test_a_stream_that_asked_for_it_is_cancelled_when_its_last_reader_has_left(
    client: Client,
) -> None:
    first = await client.start(sim=ENDLESS, on_disconnect="cancel")
    sid = (await first.until(events=10)).opening["stream_id"]
    elsewhere = await client.follow(sid)
    first.answer.close()
    await elsewhere.until(events=100)  # a second: the grace is over, and it is still read
    assert not (await client.mesh.call(sid))["aborted"]
    left_at = time.monotonic()
    elsewhere.answer.close()
    call = await client.mesh.call(sid, lambda call: call["aborted"])
    assert call["aborted_s"] - left_at <= 3.0
    assert events_in(await client.whole(sid))[-1] == {"type": "cancelled", "reason": "disconnected"}
    [_, answer] = await client.mesh.stored(sid)
    assert answer["status"] == "cancelled"
    assert answer["content"]


# Out of retention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1])
async def test_past_retention_a_stream_is_told_from_what_was_stored(
    keep: int, client: Client
) -> None:
    branches = [{"label": "a", "sim": SHORT}, {"label": "b", "sim": SHORT}]
    follower = await client.start(branches=branches)
    live = await follower.to_the_end()
    sid = live.opening["stream_id"]
    await client.mesh.stored(sid, count=3)
    await client.mesh.forget(sid, keep=keep)
    for after in (0, 7):
        told = await (await client.follow(sid, after)).to_the_end()
        assert (told.opening["from"], told.opening["position"]) == ("transcript", 0)
        assert told.ids == [None, None, None]
        assert told.types == ["transcript", "transcript", "done"]
        for label, (_, event) in zip("ab", told.numbered, strict=False):
            said = [e.get("text", "") for _, e in live.numbered if e.get("section") == label]
            assert (event["section"], event["text"]) == (label, "".join(said))
    async with client.http.get(f"/v1/streams/{sid}") as answer:
        snapshot = await answer.json()
    assert (snapshot["from"], snapshot["status"]) == ("transcript", "done")
    again = await client.post(sid, branches=branches)
    assert again.status == 410
    assert len(await client.mesh.calls(sid)) == 2, "one for each branch, and none again"


async def test_an_unknown_stream_is_missing_and_one_nobody_can_tell_of_is_unavailable(
    mesh: Mesh, client: Client
) -> None:
    async def status(sid: str) -> int:
        async with client.http.get(f"/v1/streams/{sid}/events") as answer:
            return answer.status

    unknown, known = new_sid(), await client.finished(sim=SHORT)
    await mesh.stored(known)
    await mesh.forget(known)
    assert await status(unknown) == 404
    with mesh.frozen("postgres"):
        assert await status(unknown) == 503
        assert await status(known) == 503

    async def is_told() -> bool:
        return await status(known) == 200

    await until(is_told)
    assert await status(unknown) == 404
