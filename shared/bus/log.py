"""The event log of streams: fenced single-writer commits, batch replay, live tail.

A stream's records are the messages of one subject. Every write expects the subject's last
sequence, so of two writers that saw the same last record only one can ever succeed.
Batch direct get is ADR-31 of the NATS architecture notes; nats-py has no call for it.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.bus.connection import Bus, BusError, Message, Subscription, status_of
from shared.bus.leader import leader_get
from shared.bus.patience import ELECTION_S, patiently
from shared.bus.publisher import Publisher, WrongSequence
from shared.subjects import Subjects

READ_BATCH = 512
SILENCE_S = 2.0
"""Pause within a batch after which it is asked for again: its server may have died."""
DEPOSED_S = 5.0
"""How long a leader may take to notice that there is a newer one."""
DEPOSED_AGAIN_S = 0.2
MAX_MULTI_LAST = 1024
"""Most subjects whose last message the server returns for one request."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A committed record's bytes and its sequence in the JetStream stream."""

    seq: int
    payload: bytes


class StreamExists(Exception):
    """A stream with this id was accepted before."""


class Fenced(Exception):
    """Somebody else has written to the stream; `last` is its last record."""

    def __init__(self, last: LogEntry | None) -> None:
        super().__init__("another owner writes this stream")
        self.last = last


class EventLog:
    """Reads and writes stream logs. Every method raises BusError when NATS doesn't answer."""

    def __init__(self, bus: Bus, publisher: Publisher, subjects: Subjects) -> None:
        self._bus = bus
        self._publisher = publisher
        self._subjects = subjects

    async def accept(self, sid: str, payload: bytes, *, patience_s: float = ELECTION_S) -> int:
        """Write the first record and return its sequence.

        Raises StreamExists when there is one already, unless it holds these very bytes.
        """
        try:
            return await self.commit(sid, payload, expected_seq=0, patience_s=patience_s)
        except Fenced as error:
            raise StreamExists(sid) from error

    async def commit(
        self, sid: str, payload: bytes, *, expected_seq: int, patience_s: float = 60.0
    ) -> int:
        """Append a record after `expected_seq` and return its sequence.

        A lost ack is repaired by sending the identical bytes again. A refusal is resolved by the
        leader's last record: if it is this one, the write had succeeded. Raises Fenced otherwise.
        """
        clock = asyncio.get_running_loop().time
        subject = self._subjects.events(sid)
        doubt_until: float | None = None
        while True:
            try:
                ack = await self._publisher.publish(
                    subject, payload, expected_seq=expected_seq, patience_s=patience_s
                )
            except WrongSequence:
                last = await self.last(sid)
            else:
                return ack.seq
            if last is not None and last.seq > expected_seq:
                if last.payload == payload:
                    return last.seq
                raise Fenced(last)
            # Nothing is newer than what this writer knows. A leader that was paused and replaced
            # answers like this until it notices; so does one whose last record has expired.
            if doubt_until is None:
                doubt_until = clock() + DEPOSED_S
            elif clock() > doubt_until:
                raise Fenced(last)
            await asyncio.sleep(DEPOSED_AGAIN_S)

    async def last(self, sid: str) -> LogEntry | None:
        """The last record, read from the leader; None for a stream that has no log."""
        return await self._leader_get(sid, {"last_by_subj": self._subjects.events(sid)})

    async def first(self, sid: str) -> LogEntry | None:
        """The oldest record that is still kept, read from the leader."""
        return await self._leader_get(sid, {"seq": 1, "next_by_subj": self._subjects.events(sid)})

    async def read(self, sid: str, *, after_seq: int = 0, through_seq: int = 0) -> list[LogEntry]:
        """All records after a sequence, in order. A lagging replica may not have the newest yet.

        Whoever has to see a record names it as `through_seq`, and waits until it is there.
        """
        entries: list[LogEntry] = []

        async def read_on() -> list[LogEntry]:
            more = True
            while more:
                seen = entries[-1].seq if entries else after_seq
                batch, more = await self.read_some(sid, after_seq=seen)
                entries.extend(batch)
            if (entries[-1].seq if entries else after_seq) < through_seq:
                raise BusError("the log can't be read: this replica lags behind")
            return entries

        return await patiently(read_on, ELECTION_S if through_seq else 0.0)

    async def read_some(
        self, sid: str, *, after_seq: int = 0, max_bytes: int | None = None
    ) -> tuple[list[LogEntry], bool]:
        """The next records after a sequence, and whether there are more.

        Stops at 512 records, or with the record that reaches `max_bytes`.
        """
        query: dict[str, Any] = {
            "seq": after_seq + 1,
            "batch": READ_BATCH,
            "next_by_subj": self._subjects.events(sid),
        }
        if max_bytes is not None:
            query["max_bytes"] = max_bytes
        found, pending = await self._direct_get(self._subjects.shard(sid), query)
        return [entry for _, entry in found], pending > 0 and bool(found)

    async def last_of(self, sids: Collection[str]) -> dict[str, int]:
        """The last sequence of each of many streams, up to 1,024 in one request.

        Streams without a log are left out. A lagging replica may answer with an earlier sequence.
        """
        asked: dict[int, dict[str, str]] = {}
        for sid in sids:
            asked.setdefault(self._subjects.shard(sid), {})[self._subjects.events(sid)] = sid
        answers = await asyncio.gather(
            *(self._last_in_shard(shard, by_subject) for shard, by_subject in asked.items())
        )
        return {sid: seq for answer in answers for sid, seq in answer.items()}

    async def _last_in_shard(self, shard: int, by_subject: dict[str, str]) -> dict[str, int]:
        last: dict[str, int] = {}
        while by_subject:
            some = list(by_subject)[:MAX_MULTI_LAST]
            found, pending = await self._direct_get(shard, {"multi_last": some})
            for subject, entry in found:
                last[by_subject.pop(subject)] = entry.seq
            if pending == 0 or not found:  # the rest of these have no log
                for subject in some:
                    by_subject.pop(subject, None)
        return last

    async def tail(self, sid: str, handler: Callable[[LogEntry], None]) -> Subscription:
        """Call `handler` for every record committed from now on; at most once: check for gaps."""

        def on_message(message: Message) -> None:
            headers = message.headers or {}
            handler(LogEntry(int(headers["Nats-Sequence"]), message.data))

        return await self._bus.subscribe(self._subjects.live(sid), on_message)

    async def _leader_get(self, sid: str, query: dict[str, Any]) -> LogEntry | None:
        stream = self._subjects.events_stream(self._subjects.shard(sid))
        stored = await leader_get(self._bus, stream, query)
        return None if stored is None else LogEntry(stored.seq, stored.payload)

    async def _direct_get(
        self, shard: int, query: dict[str, Any]
    ) -> tuple[list[tuple[str, LogEntry]], int]:
        """One batch direct get: entries with their subjects, and how many are left behind them."""
        return await patiently(lambda: self._direct_get_once(shard, query), ELECTION_S)

    async def _direct_get_once(
        self, shard: int, query: dict[str, Any]
    ) -> tuple[list[tuple[str, LogEntry]], int]:
        found: list[tuple[str, LogEntry]] = []
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        silence = asyncio.timeout(SILENCE_S)

        def on_message(message: Message) -> None:
            headers = message.headers or {}
            status = status_of(headers)
            if done.done():
                return
            silence.reschedule(loop.time() + SILENCE_S)
            if not status:
                entry = LogEntry(int(headers["Nats-Sequence"]), message.data)
                found.append((headers["Nats-Subject"], entry))
            elif status == "204":
                done.set_result(int(headers.get("Nats-Num-Pending", "0")))
            elif status == "404":
                done.set_result(0)
            else:
                done.set_exception(BusError(f"the log can't be read: status {status}"))

        inbox = self._bus.inbox()
        subscription = await self._bus.subscribe(inbox, on_message)
        stream = self._subjects.events_stream(shard)
        self._bus.send(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(query), inbox)
        try:
            async with silence:
                return found, await done
        except TimeoutError as error:
            raise BusError("the log can't be read: no answer in time") from error
        finally:
            await subscription.close()
