"""The edge before a real NATS: what a client sees is what was committed, whatever happens."""

from shared.events import (
    BranchDone,
    BranchStarted,
    ContextLoaded,
    Delta,
    Done,
)
from shared.settings import Settings
from tests.support.edge import Follower, MergerPlayer, running_edge

SSE = "text/event-stream"


async def test_a_start_is_answered_with_open_before_anything_has_happened(
    bus_settings: Settings,
) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.start(Accept=SSE)
        assert answer.status == 200
        heard = await Follower(answer).until(events=1)
        assert heard.opening == {
            "type": "open",
            "stream_id": answer.headers["X-Stream-Id"],
            "session_id": answer.headers["X-Stream-Id"],
            "position": 0,
        }
        assert heard.retry_ms is not None
        assert 1000 <= heard.retry_ms <= 3000
        answer.close()


async def test_a_started_stream_is_followed_to_its_terminal(bus_settings: Settings) -> None:
    async with running_edge(bus_settings) as edge:
        answer = await edge.start(Accept=SSE)
        follower = Follower(answer)
        await follower.until(events=1)
        merger = await MergerPlayer.of(edge.link, answer.headers["X-Stream-Id"])
        await merger.commit(ContextLoaded(), BranchStarted(branch=0, model="m"))
        await merger.commit(Delta(0, text="Hello, "))
        await merger.commit(Delta(0, text="wörld\n"))
        await merger.commit(BranchDone(branch=0, finish_reason="stop"), Done(), finished=True)
        heard = await follower.to_the_end()
        assert heard.ids == [1, 2, 3, 4, 5, 6]
        assert heard.types == ["context", "branch.start", "delta", "delta", "branch.done", "done"]
        assert heard.text == "Hello, wörld\n"
        assert all(e["model"] == "m" for _, e in heard.numbered if "branch" in e)
