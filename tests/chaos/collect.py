"""After the last stream: what the log, the queues, Postgres and the upstream hold."""

import asyncio
import json
import time
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec
import psycopg

from shared.bus import Bus, EventLog, Publisher
from shared.events import decode_record
from shared.subjects import Subjects
from tests.chaos.journals import Call, Logged, Row
from tests.chaos.mesh import Mesh

DRAIN_S = 45.0
POLL_S = 0.1
AT_ONCE = 16

ROWS = """
SELECT id, sid, session_id, role, branch, section, status, content FROM messages ORDER BY id
"""
PIECES = "SELECT count(*) FROM message_pieces"


class Collector:
    """Reads from a mesh that is whole again."""

    def __init__(self, mesh: Mesh) -> None:
        facts = mesh.facts
        self._mesh = mesh
        self._nats_url: str = facts["nats_url"]
        self._postgres_url: str = facts["postgres_url"]
        self._subjects = Subjects(facts["prefix"], facts["event_shards"])

    async def drained(self) -> tuple[dict[str, int], float]:
        """Wait until the work queues are empty; what is left in them, and how long it took."""
        bus = await Bus.connect(self._nats_url, "chaos")
        began = time.monotonic()
        try:
            while True:
                left = await self._backlog(bus)
                took_s = time.monotonic() - began
                if not any(left.values()) or took_s > DRAIN_S:
                    return left, took_s
                await asyncio.sleep(POLL_S)
        finally:
            await bus.close()

    async def _backlog(self, bus: Bus) -> dict[str, int]:
        subjects = self._subjects
        queues = (
            subjects.requests_stream,
            subjects.tasks_stream,
            subjects.merges_stream,
            subjects.transcripts_stream,
        )
        js = bus.jetstream()
        return {name: (await js.stream_info(name)).state.messages for name in queues}

    async def log(self, sids: list[str]) -> dict[str, list[Logged]]:
        """Every record of every stream."""
        bus = await Bus.connect(self._nats_url, "chaos")
        log = EventLog(bus, Publisher(bus), self._subjects)
        turn = asyncio.Semaphore(AT_ONCE)

        async def read(sid: str) -> list[Logged]:
            async with turn:
                entries = await log.read(sid)
                records = [_logged(entry.seq, entry.payload) for entry in entries]
                for earlier, later in pairwise(records):
                    if 0 < earlier.epoch < later.epoch:
                        later.at = await self._committed_at(bus, sid, later.seq)
            return records

        try:
            found = await asyncio.gather(*map(read, sids))
        finally:
            await bus.close()
        return dict(zip(sids, found, strict=True))

    async def _committed_at(self, bus: Bus, sid: str, seq: int) -> float:
        stream = self._subjects.events_stream(self._subjects.shard(sid))
        query = msgspec.json.encode({"seq": seq})
        answer = await bus.request(f"$JS.API.STREAM.MSG.GET.{stream}", query, timeout_s=5.0)
        stored = datetime.fromisoformat(json.loads(answer.data)["message"]["time"])
        return stored.timestamp() - time.time() + time.monotonic()

    async def rows(self) -> tuple[list[Row], int]:
        """All messages that are stored, and how many pieces wait for others."""
        return await asyncio.to_thread(self._rows)

    def _rows(self) -> tuple[list[Row], int]:
        with psycopg.connect(self._postgres_url) as connection:
            rows = [Row(*values) for values in connection.execute(ROWS)]
            counted = connection.execute(PIECES).fetchone()
        return rows, counted[0] if counted else 0

    async def calls(self) -> tuple[list[Call], int]:
        """Every generation the upstream was asked for, and how many it has forgotten."""
        entries, dropped = await self._mesh.calls()
        return [_call(entry) for entry in entries], dropped


def _logged(seq: int, payload: bytes) -> Logged:
    record = decode_record(payload)
    return Logged(
        seq=seq,
        epoch=record.epoch,
        n_first=record.n_first,
        # Through JSON, as a client gets them: None and defaults are left out alike.
        events=[json.loads(msgspec.json.encode(event)) for event in record.events],
        opens=record.accepted is not None,
        finished=record.finished,
    )


def _call(entry: dict[str, Any]) -> Call:
    headers = entry["headers"]
    ended_at = entry["aborted_s"] if entry["aborted"] else entry["finished_s"]
    return Call(
        sid=headers["x-braid-stream"],
        branch=int(headers["x-braid-branch"]),
        attempt=int(headers["x-braid-attempt"]),
        started_at=entry["started_s"],
        ended_at=ended_at,
        ended=entry["ended"],
        tokens_sent=entry["tokens_sent"],
    )
