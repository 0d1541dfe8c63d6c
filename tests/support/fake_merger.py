"""A merger that keeps what it is sent: it accepts chunks in order, as the real one, and acks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.bus import Link, Message
from shared.fold import BranchView
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
from tests.support.meshkit import until


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
        self.worker = ""

    def text(self, branch: int = 0) -> str:
        return self._view(branch).text

    def reasoning(self, branch: int = 0) -> str:
        return self._view(branch).reasoning

    def view(self, branch: int = 0) -> BranchView:
        return self._view(branch)

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

    def _view(self, branch: int) -> BranchView:
        """What the newest attempt said; a continuation adds to what it continues."""
        view = BranchView(branch)
        for chunk in self.accepted.get(branch, ()):
            if chunk.k == 0 and chunk.seam != "continue":
                view.reset()
            for delta in chunk.deltas:
                view.add(delta)
        return view


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
