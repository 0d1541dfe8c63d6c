"""Playing the neighbours of a worker: upstreams, and a merger that keeps what it is sent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from services.simulator.service import Simulator, SimulatorConfig
from services.worker.service import Worker, build
from shared.bus import Link, Message
from shared.fold import BranchView
from shared.ids import new_sid
from shared.messages import (
    Ack,
    AckState,
    AskStanding,
    BranchEnd,
    Chunk,
    GenerateBranch,
    Hello,
    Standing,
    StreamClosed,
    chunk_decoder,
    control_decoder,
    msgpack_encoder,
)
from shared.settings import Settings
from tests.support.meshkit import running, until

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeMerger:
    """Owns one stream. A test sets `silent` or `state` to have it behave otherwise."""

    def __init__(self, link: Link, sid: str) -> None:
        self._link = link
        self._sid = sid
        self.received: list[Chunk] = []
        """Every chunk that arrived, repetitions too."""
        self.accepted: dict[int, list[Chunk]] = {}
        """By branch, the chunks of every attempt in order."""
        self.asked: list[AskStanding] = []
        self.silent = False
        self.lose = 0
        """Chunks still to be lost on the way."""
        self.state: AckState | None = None
        """What to answer instead of what is true."""
        self.standing: Standing | None = None
        self.fenced: set[int] = set()
        """Attempts that are refused."""
        self.worker = ""

    def text(self, branch: int = 0) -> str:
        return self.view(branch).text

    def view(self, branch: int = 0) -> BranchView:
        """What the newest attempt said; a continuation adds to what it continues."""
        view = BranchView(branch)
        for chunk in self.accepted.get(branch, ()):
            if chunk.k == 0 and chunk.seam not in {"continue", "fail"}:
                view.reset()
            for delta in chunk.deltas:
                view.add(delta)
        return view

    def end(self, branch: int = 0) -> BranchEnd:
        end = self.accepted[branch][-1].end
        assert end is not None
        return end

    def ended(self, branch: int = 0) -> bool:
        chunks = self.accepted.get(branch)
        return bool(chunks) and chunks is not None and chunks[-1].end is not None

    def attempts(self, branch: int = 0) -> list[tuple[int, str]]:
        """Every attempt that said something, with its seam."""
        return [(each.attempt, each.seam) for each in self.accepted[branch] if each.k == 0]

    async def until_ended(self, branch: int = 0) -> BranchEnd:
        await until(lambda: self.ended(branch))
        return self.end(branch)

    def say_hello(self) -> None:
        self._tell(Hello(sid=self._sid, epoch=1))

    def say_closed(self) -> None:
        self._tell(StreamClosed(sid=self._sid))

    def acknowledge(self, branch: int = 0, state: AckState = "open") -> None:
        last = self.accepted[branch][-1]
        self._ack(branch, last.attempt, last.k, state)

    def on_chunk(self, message: Message) -> None:
        chunk = chunk_decoder.decode(message.data)
        if self.lose:
            self.lose -= 1
            return
        self.received.append(chunk)
        self.worker = message.reply
        if chunk.attempt in self.fenced:
            self._ack(chunk.branch, chunk.attempt, -1, "fenced")
            return
        taken = self.accepted.setdefault(chunk.branch, [])
        last = taken[-1] if taken else None
        same = last is not None and chunk.attempt == last.attempt
        if chunk.k == (last.k + 1 if last is not None and same else 0) and (
            last is None or chunk.attempt >= last.attempt
        ):
            taken.append(chunk)
            last = chunk
        if not self.silent:
            k = last.k if last is not None and last.attempt == chunk.attempt else -1
            final = last is not None and last.end is not None
            self._ack(chunk.branch, chunk.attempt, k, self.state or ("closed" if final else "open"))

    def on_control(self, message: Message) -> None:
        control = control_decoder.decode(message.data)
        if isinstance(control, AskStanding):
            self.asked.append(control)
            if self.standing is not None:
                self._link.bus.send(message.reply, msgpack_encoder.encode(self.standing))

    def _ack(self, branch: int, attempt: int, k: int, state: AckState) -> None:
        ack = Ack(self._sid, branch, attempt, k, state)
        self._link.bus.send(self.worker, msgpack_encoder.encode([ack]))

    def _tell(self, control: Hello | StreamClosed) -> None:
        self._link.bus.send(self._link.subjects.control(self._sid), msgpack_encoder.encode(control))


@asynccontextmanager
async def merging(link: Link, sid: str) -> AsyncIterator[FakeMerger]:
    merger = FakeMerger(link, sid)
    chunks = await link.bus.subscribe(link.subjects.chunks(sid), merger.on_chunk)
    control = await link.bus.subscribe(link.subjects.control(sid), merger.on_control)
    await link.bus.flush()
    try:
        yield merger
    finally:
        await chunks.close()
        await control.close()


@asynccontextmanager
async def simulating() -> AsyncIterator[Simulator]:
    """An upstream that answers at once."""
    async with Simulator(SimulatorConfig(ttft_s=0, gap_s=0, models=())) as simulator:
        yield simulator


@asynccontextmanager
async def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], *middlewares: Any
) -> AsyncIterator[str]:
    """An upstream of the test's own; yields its base URL."""
    app = web.Application(middlewares=middlewares)
    app.add_routes([web.post("/v1/chat/completions", handler)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def working(settings: Settings, **given: Any) -> AsyncIterator[Worker]:
    """A worker in this process, with these settings changed."""
    service = build(settings.model_copy(update=given))
    assert isinstance(service, Worker)
    async with running(service):
        yield service


def a_task(model: str = "sim-echo", **given: Any) -> GenerateBranch:
    question = [{"role": "user", "content": "What does the merger do?"}]
    return GenerateBranch(sid=new_sid(), branch=0, model=model, messages=question, **given)


async def run(link: Link, task: GenerateBranch) -> FakeMerger:
    """Have a branch generated to its end, and its task settled."""
    async with merging(link, task.sid) as merger:
        await order_branch(link, task)
        await merger.until_ended(task.branch)
        await settled(link)
    return merger


async def settled(link: Link) -> None:
    """Wait until no task is left."""
    async with asyncio.timeout(5):
        while await tasks_left(link):
            await asyncio.sleep(0.01)


async def order_branch(link: Link, task: GenerateBranch) -> None:
    """Queue a branch, as context does."""
    await link.publisher.publish(
        link.subjects.task("default", "normal"),
        msgpack_encoder.encode(task),
        msg_id=f"{task.sid}.{task.branch}",
    )


async def tasks_left(link: Link) -> int:
    """Tasks that are not settled."""
    info = await link.bus.jetstream().stream_info(link.subjects.tasks_stream)
    return info.state.messages


def talkative(
    tokens: int = 10, *, task: dict[str, Any] | None = None, **sim: Any
) -> GenerateBranch:
    """A task whose answer names its stream, branch, attempt and index in every token."""
    return a_task(params={"sim": {"marker": True, "tokens": tokens, **sim}}, **(task or {}))


def endless() -> GenerateBranch:
    return talkative(1_000_000, gap_s=0.01)


def said(task: GenerateBranch, attempt: int, tokens: int = 10) -> str:
    """What the answer to a talkative task says."""
    return "".join(f"{task.sid}|0|{attempt}|{index} " for index in range(tokens))
