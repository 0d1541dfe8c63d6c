"""A real edge on a free port, and somebody who plays the merger and the archive behind it."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from services.edge.service import EdgeService, build
from shared.bus import Link, Message
from shared.events import Checkpoint, Event, Record, decode_record, encode_record
from shared.messages import (
    StartStream,
    Transcript,
    TranscriptPart,
    msgpack_encoder,
    read_transcript_decoder,
    start_stream_decoder,
)
from shared.settings import Settings
from tests.support.meshkit import link_of


@dataclass
class Heard:
    """What a reader was sent: events with their ids, comments, and the reconnect delay."""

    events: list[tuple[int | None, dict[str, Any]]] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)
    """The numbered events, byte for byte."""
    comments: list[str] = field(default_factory=list)
    retry_ms: int | None = None

    @property
    def opening(self) -> dict[str, Any]:
        n, event = self.events[0]
        assert n is None
        return event

    @property
    def numbered(self) -> list[tuple[int | None, dict[str, Any]]]:
        return self.events[1:]

    @property
    def ids(self) -> list[int | None]:
        return [n for n, _ in self.numbered]

    @property
    def types(self) -> list[str]:
        return [event["type"] for _, event in self.numbered]

    @property
    def text(self) -> str:
        return "".join(event.get("text", "") for _, event in self.numbered)


class Follower:
    """Reads one SSE answer as strictly as it should be written: LF only, whole blocks."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.heard = Heard()

    async def until(self, *, events: int = 0, comments: int = 0) -> Heard:
        """Read on until there are as many, or raise EOFError at the end of the answer."""
        while len(self.heard.events) < events or len(self.heard.comments) < comments:
            if not await self._block():
                raise EOFError(self.heard)
        return self.heard

    async def to_the_end(self) -> Heard:
        while await self._block():
            pass
        return self.heard

    async def _block(self) -> bool:
        try:
            raw = await self.answer.content.readuntil(b"\n\n")
        except (aiohttp.ClientError, ConnectionError):
            return False
        if not raw:
            return False
        block = raw.decode()
        assert block.endswith("\n\n"), "an event was cut off"
        assert "\r" not in block
        n: int | None = None
        for line in block[:-2].split("\n"):
            if line.startswith(":"):
                self.heard.comments.append(line)
                continue
            name, _, value = line.partition(": ")
            match name:
                case "id":
                    n = int(value)
                case "retry":
                    self.heard.retry_ms = int(value)
                case "data":
                    self.heard.events.append((n, json.loads(value)))
                case _:
                    raise AssertionError(line)
        if n is not None:
            self.heard.blocks.append(raw)
        return True


class MergerPlayer:
    """Commits records for one stream, as its merger would."""

    def __init__(self, link: Link, sid: str, seq: int, n_next: int = 1) -> None:
        self._link = link
        self.sid = sid
        self.seq = seq
        self.n_next = n_next

    @classmethod
    async def of(cls, link: Link, sid: str) -> "MergerPlayer":
        """Goes on where the stream's log stands."""
        last = await link.log.last(sid)
        assert last is not None, "the edge has not accepted this stream"
        return cls(link, sid, last.seq, decode_record(last.payload).n_next)

    async def commit(self, *events: Event, finished: bool = False, epoch: int = 1) -> None:
        record = Record(epoch, self.n_next, events, Checkpoint(()), finished=finished)
        self.seq = await self._link.log.commit(
            self.sid, encode_record(record), expected_seq=self.seq
        )
        self.n_next = record.n_next


class ArchivePlayer:
    """Tells what is stored, as persistence would; nothing, until a test says so."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.turns: dict[str, list[Transcript]] = {}
        self.instead: TranscriptPart | None = None
        """Said to every question."""
        self.part_bytes = 256 * 1024
        self.asked = 0

    async def start(self) -> None:
        bus, subjects = self._link.bus, self._link.subjects
        await bus.subscribe(subjects.all("archive"), self._on_question, queue="persistence")
        await bus.flush()

    def _on_question(self, message: Message) -> None:
        self.asked += 1
        self._link.bus.send(message.reply, msgpack_encoder.encode(self._answer(message.data)))

    def _answer(self, payload: bytes) -> TranscriptPart:
        question = read_transcript_decoder.decode(payload)
        turn = self.turns.get(question.sid)
        if self.instead is not None or turn is None:
            return self.instead or TranscriptPart("unknown")
        if turn[0].user_id != question.user_id:
            return TranscriptPart("foreign")
        whole = msgpack_encoder.encode(turn)
        part = whole[question.offset : question.offset + self.part_bytes]
        return TranscriptPart("found", part, len(whole))


@dataclass
class RunningEdge:
    """The service itself, a client of it, and a connection of our own to the mesh behind it."""

    service: EdgeService
    link: Link
    http: aiohttp.ClientSession
    archive: ArchivePlayer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    async def start(
        self, body: dict[str, Any] | None = None, **headers: str
    ) -> aiohttp.ClientResponse:
        """POST /v1/streams; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(
            "/v1/streams", json=body or {"message": "Why is the sky blue?"}, headers=named
        )

    async def accepted(self, body: dict[str, Any] | None = None) -> MergerPlayer:
        """A stream that was just accepted, and its merger."""
        async with await self.start(body) as answer:
            assert answer.status == 202, await answer.text()
            return await MergerPlayer.of(self.link, (await answer.json())["id"])

    async def queued(self) -> list[StartStream]:
        """The requests that wait for a context service."""
        stream = self.link.subjects.requests_stream
        js = self.link.bus.jetstream()
        state = (await js.stream_info(stream)).state
        waiting = range(state.first_seq, state.first_seq + state.messages)
        return [
            start_stream_decoder.decode((await js.get_msg(stream, seq)).data or b"")
            for seq in waiting
        ]

    async def follow(self, sid: str, after: int | None = None, **headers: str) -> Follower:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        query = {} if after is None else {"after": str(after)}
        answer = await self.http.get(f"/v1/streams/{sid}/events", params=query, headers=named)
        assert answer.status == 200, await answer.text()
        return Follower(answer)


@asynccontextmanager
async def running_edge(
    settings: Settings, *, has_archive: bool = True
) -> AsyncIterator[RunningEdge]:
    service = build(settings)
    await service.start()
    try:
        async with link_of(settings) as link, client_of(service) as http:
            archive = ArchivePlayer(link)
            if has_archive:
                await archive.start()
            yield RunningEdge(service, link, http, archive)
    finally:
        await service.drain()


def client_of(service: EdgeService) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    url = f"http://127.0.0.1:{service.port}"
    return session_of(url, timeout=aiohttp.ClientTimeout(total=20))


@asynccontextmanager
async def session_of(url: str, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that closes every answer at the end, read or not."""
    answers: list[aiohttp.ClientResponse] = []

    async def keep(_session: object, _context: object, end: aiohttp.TraceRequestEndParams) -> None:
        answers.append(end.response)

    tracing = aiohttp.TraceConfig()
    tracing.on_request_end.append(keep)
    async with aiohttp.ClientSession(url, trace_configs=[tracing], **options) as http:
        try:
            yield http
        finally:
            for answer in answers:
                answer.close()
