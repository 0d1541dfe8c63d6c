"""What a client is promised while pieces of the mesh are killed, frozen or told to stop."""

import asyncio
import re
import signal
import statistics
import time
from typing import Any

from tests.e2e.conftest import ACK_WAIT_S
from tests.support.edge import Follower
from tests.support.mesh import Client, Mesh, client_at, events_in

LONG: dict[str, Any] = {"tokens": 150, "gap_s": 0.01, "ttft_s": 0.0, "marker": True}
SHORT: dict[str, Any] = {"tokens": 20, "gap_s": 0.0, "ttft_s": 0.0, "marker": True}
TOKEN = re.compile(r"(?P<sid>\w+)\|(?P<branch>\d+)\|(?P<attempt>\d+)\|(?P<index>\d+) ")
TAKE_OVER_S = ACK_WAIT_S + 3.0
STORED_S = 30.0
N = 12


def require_whole(text: str, tokens: int) -> int:
    """One attempt's text, from its first token to its last; returns which attempt's."""
    found = list(TOKEN.finditer(text))
    assert "".join(match[0] for match in found) == text
    assert [int(match["index"]) for match in found] == list(range(tokens))
    [attempt] = {int(match["attempt"]) for match in found}
    return attempt


async def timed(client: Client, **body: Any) -> tuple[str, float]:
    """A stream read to its `done`; its id, and the seconds to its first token."""
    began = time.monotonic()
    follower = await client.start(**body)
    ttft_s = 0.0
    while not ttft_s:
        heard = await follower.until(events=len(follower.heard.events) + 1)
        if heard.types and heard.types[-1] == "delta":
            ttft_s = time.monotonic() - began
    heard = await follower.to_the_end()
    assert heard.types[-1] == "done"
    require_whole(heard.text, body["sim"]["tokens"])
    return heard.opening["stream_id"], ttft_s


# Postgres and Redis -------------------------------------------------------------------------------


async def test_streams_do_not_feel_that_postgres_is_away_and_all_is_stored_when_it_is_back(
    client: Client,
) -> None:
    usual_s = [(await timed(client, sim=SHORT))[1] for _ in range(N)]
    with client.mesh.frozen("postgres"):
        # Three questions of each context find out, and pay its budget for it; then nobody asks.
        first = [await timed(client, sim=SHORT) for _ in range(3 * client.mesh.copies)]
        assert max(ttft_s for _, ttft_s in first) < 1.0
        others = [await timed(client, sim=SHORT) for _ in range(N)]
    sids = [sid for sid, _ in (*first, *others)]
    felt_s = statistics.median(ttft_s for _, ttft_s in others)
    assert felt_s < statistics.median(usual_s) + 0.05
    rows = await client.mesh.stored(*sids, count=2 * len(sids), patience_s=STORED_S)
    assert len({row["id"] for row in rows}) == len(rows) == 2 * len(sids)
    for sid in sids:
        [answer] = [row for row in rows if row["sid"] == sid and row["role"] == "assistant"]
        replay = events_in(await client.whole(sid))
        assert answer["content"] == "".join(event.get("text", "") for event in replay)


async def test_transcripts_outlive_a_killed_postgres_and_a_killed_persistence(
    client: Client,
) -> None:
    followers = [await client.start(sim=LONG) for _ in range(4)]
    for follower in followers:
        await follower.until(events=10)
    client.mesh.kill("postgres", "persistence-1", "persistence-2")
    for follower in followers:
        heard = await follower.to_the_end()
        assert heard.types[-1] == "done"
        rows = await client.mesh.stored(heard.opening["stream_id"])
        assert [row["role"] for row in rows] == ["user", "assistant"]
        assert rows[1]["content"] == heard.text


async def test_nobody_sees_that_redis_was_killed(client: Client) -> None:
    running = await client.start(sim=LONG)
    await running.until(events=10)
    client.mesh.kill("redis")
    for _ in range(3):
        _, ttft_s = await timed(client, sim=SHORT)
        assert ttft_s < 1.0
    assert (await running.to_the_end()).types[-1] == "done"
    require_whole(running.heard.text, LONG["tokens"])


# The services -------------------------------------------------------------------------------------


async def test_a_stream_goes_on_with_the_next_number_when_its_merger_is_killed(
    client: Client,
) -> None:
    follower = await client.start(sim=LONG)
    await follower.until(events=30)
    killed_at = client.mesh.kill(await client.mesh.busy("merger", "owned_streams"))
    heard, gap_s = await longest_gap(follower, killed_at)
    assert gap_s <= TAKE_OVER_S
    assert heard.ids == list(range(1, len(heard.ids) + 1))
    assert heard.types[-1] == "done"
    assert require_whole(heard.text, LONG["tokens"]) == 0, "the worker has lost nothing"
    assert len(await client.mesh.calls(heard.opening["stream_id"])) == 1
    [_, answer] = await client.mesh.stored(heard.opening["stream_id"])
    assert answer["content"] == heard.text


async def test_a_killed_worker_leaves_a_seam_of_the_kind_that_was_asked_for(
    client: Client,
) -> None:
    policies = ("restart", "fail", "continue")
    followers = [await client.start(sim=LONG, mid_stream=policy) for policy in policies]
    for follower in followers:
        await follower.until(events=30)
    killed_at = client.mesh.kill("worker-1", "worker-2")
    ends = await asyncio.gather(*(longest_gap(follower, killed_at) for follower in followers))
    assert max(gap_s for _, gap_s in ends) <= TAKE_OVER_S
    (restarted, _), (failed, _), (continued, _) = ends

    [at] = [index for index, kind in enumerate(restarted.types) if kind == "branch.reset"]
    before = "".join(event.get("text", "") for _, event in restarted.numbered[:at])
    after = "".join(event.get("text", "") for _, event in restarted.numbered[at:])
    assert restarted.numbered[at][1]["discarded_chars"] == len(before) > 0
    assert require_whole(after, LONG["tokens"]) >= 1000
    assert restarted.types[-1] == "done"

    [error] = [event for _, event in failed.numbered if event["type"] == "branch.error"]
    assert error["code"] == "attempts_exhausted"
    assert failed.types[-1] == "error"
    assert failed.text

    [at] = [index for index, kind in enumerate(continued.types) if kind == "branch.continued"]
    kept = "".join(event.get("text", "") for _, event in continued.numbered[:at])
    assert continued.numbered[at][1]["kept_chars"] == len(kept) > 0
    # The simulator begins anew, so the seam is as visible in the text as in the events.
    assert require_whole(continued.text.removeprefix(kept), LONG["tokens"]) >= 1000
    _, call = await client.mesh.calls(continued.opening["stream_id"])
    assert call["body"]["messages"][-1] == {"role": "assistant", "content": kept}

    for heard, said in ((restarted, after), (failed, failed.text), (continued, continued.text)):
        [_, answer] = await client.mesh.stored(heard.opening["stream_id"])
        assert answer["content"] == said


async def test_a_request_outlives_every_context_that_was_killed_before_dispatching_it(
    client: Client,
) -> None:
    with client.mesh.frozen("context-1", "context-2"):
        follower = await client.start(sim=SHORT)
        sid = (await follower.until(events=1)).opening["stream_id"]
        killed_at = client.mesh.kill("context-1", "context-2")
    heard, gap_s = await longest_gap(follower, killed_at)
    assert gap_s <= TAKE_OVER_S
    assert heard.types[-1] == "done"
    require_whole(heard.text, SHORT["tokens"])
    assert len(await client.mesh.calls(sid)) == 1


async def test_an_edge_that_is_told_to_stop_lets_its_readers_go_on_at_the_other(
    mesh: Mesh,
) -> None:
    async with client_at(mesh, "edge-1") as here, client_at(mesh, "edge-2") as there:
        follower = await here.start(sim=LONG)
        sid = (await follower.until(events=30)).opening["stream_id"]
        mesh.process("edge-1").send_signal(signal.SIGTERM)
        first = (await follower.to_the_end()).blocks
        assert follower.answer.content.exception() is None, "the answer ended cleanly"
        assert events_in(first)[-1]["type"] == "delta"
        second = await there.whole(sid, len(first))
        assert events_in(second)[-1]["type"] == "done"
        assert first + second == await there.whole(sid)


async def longest_gap(follower: Follower, since: float) -> tuple[Any, float]:
    """Read to the end; all that was heard, and the longest silence after a moment."""
    longest_s, last = 0.0, since
    try:
        while True:
            await follower.until(events=len(follower.heard.events) + 1)
            now = time.monotonic()
            longest_s, last = max(longest_s, now - last), now
    except EOFError:
        return follower.heard, longest_s
