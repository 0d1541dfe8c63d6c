"""A reader's events are the log's, each once and in order, whatever the tail loses or repeats."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.cursor import Cursor, Gap
from services.edge.reader import MAX_BATCH_BYTES, LogExpired, Reader
from services.edge.sse import KEEP_ALIVE
from shared.bus import BusError, LogEntry
from shared.events import Checkpoint, Delta, Done, Event, Record, encode_record

SID = "A" * 22


class Numbers:
    """A dialect that shows nothing but which events were encoded."""

    def skip(self, event: Event) -> None:
        pass

    def encode(self, n: int, event: Event) -> bytes:
        return b"%d " % n


class Texts(Numbers):
    def encode(self, n: int, event: Event) -> bytes:
        return event.text.encode() if isinstance(event, Delta) else b""


class Interest:
    def __init__(self, log: "FakeLog") -> None:
        self._log = log

    async def close(self) -> None:
        self._log.handler = None


class FakeLog:
    """A log in memory: records are committed to it, and it delivers them as it is told to."""

    def __init__(self, batch: int = 3) -> None:
        self.entries: list[LogEntry] = []
        self.handler: Callable[[LogEntry], None] | None = None
        self.batch = batch
        self.reads = 0
        self.failing_reads = 0
        self.visible: int | None = None
        """What a lagging replica has, in records; None is all."""
        self._n_next = 1

    def commit(self, *events: Event, finished: bool = False) -> LogEntry:
        record = Record(1, self._n_next, events, Checkpoint(()), finished=finished)
        self._n_next = record.n_next
        entry = LogEntry(7 + 3 * len(self.entries), encode_record(record))
        self.entries.append(entry)
        return entry

    def deliver(self, entry: LogEntry) -> None:
        if self.handler is not None:
            self.handler(entry)

    async def tail(self, sid: str, handler: Callable[[LogEntry], None]) -> Interest:
        self.handler = handler
        return Interest(self)

    async def read_some(
        self, sid: str, *, after_seq: int = 0, max_bytes: int | None = None
    ) -> tuple[list[LogEntry], bool]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.failing_reads:
            self.failing_reads -= 1
            raise BusError("away")
        found = [entry for entry in self.entries[: self.visible] if entry.seq > after_seq]
        return found[: self.batch], len(found) > self.batch


def reader_of(
    log: FakeLog, after: int = 0, dialect: Numbers | None = None, buffer_bytes: int = 1 << 20
) -> Reader:
    return Reader(log, SID, after, dialect or Numbers(), buffer_bytes=buffer_bytes, heartbeat_s=10)


class Collected:
    """A reader that runs in the background, and what it has yielded."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.batches: list[bytes] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for batch in self.reader.batches():
            self.batches.append(batch)

    @property
    def numbers(self) -> list[int]:
        told = b"".join(batch for batch in self.batches if batch != KEEP_ALIVE)
        return [int(n) for n in told.split()]

    async def settle(self) -> None:
        """Let the reader do all it can do for now."""
        for _ in range(30):
            await asyncio.sleep(0)


async def started(reader: Reader) -> Collected:
    await reader.open()
    return Collected(reader)


def delta() -> Delta:
    return Delta(0, text="x")


# The cursor: records as data ----------------------------------------------------------------------


def record(n_first: int, count: int, *, finished: bool = False) -> Record:
    return Record(1, n_first, tuple(delta() for _ in range(count)), Checkpoint(()), None, finished)


def test_a_record_that_follows_is_taken() -> None:
    cursor = Cursor()
    assert cursor.take(5, record(1, 2))[0] == 1
    assert (cursor.next_n, cursor.last_seq) == (3, 5)


def test_a_record_seen_before_changes_nothing() -> None:
    cursor = Cursor()
    cursor.take(5, record(1, 2))
    assert cursor.take(5, record(1, 2))[1] == ()
    assert (cursor.next_n, cursor.last_seq) == (3, 5)


def test_an_owners_claim_has_no_events_but_is_a_place_in_the_log() -> None:
    cursor = Cursor()
    assert cursor.take(9, record(1, 0)) == (1, ())
    assert (cursor.next_n, cursor.last_seq) == (1, 9)


def test_a_record_after_a_gap_moves_nothing_because_what_is_missing_must_come_first() -> None:
    cursor = Cursor()
    with pytest.raises(Gap):
        cursor.take(9, record(2, 1, finished=True))
    assert (cursor.next_n, cursor.last_seq, cursor.finished) == (1, 0, False)


def test_an_owners_claim_after_a_lost_record_shows_the_loss() -> None:
    cursor = Cursor()
    with pytest.raises(Gap):
        cursor.take(9, record(3, 0))


# By example ---------------------------------------------------------------------------------------


async def test_a_finished_stream_is_replayed_and_ends() -> None:
    log = FakeLog()
    for _ in range(8):
        log.commit(delta())
    log.commit(Done(), finished=True)
    collected = await started(reader_of(log))
    await collected.task
    assert collected.numbers == list(range(1, 10))


async def test_a_position_inside_a_record_is_honoured() -> None:
    log = FakeLog()
    log.commit(delta(), delta(), delta())
    log.commit(Done(), finished=True)
    collected = await started(reader_of(log, after=2))
    await collected.task
    assert collected.numbers == [3, 4]


async def test_what_is_committed_while_the_log_is_read_is_neither_lost_nor_told_twice() -> None:
    log = FakeLog(batch=1)
    log.commit(delta())
    log.commit(delta())
    reader = reader_of(log)
    collected = await started(reader)
    while not log.reads:
        await asyncio.sleep(0)
    for entry in [log.commit(delta()), log.commit(Done(), finished=True)]:
        log.deliver(entry)
    await collected.task
    assert collected.numbers == [1, 2, 3, 4]


async def test_a_lost_record_is_read_from_the_log_as_soon_as_the_next_one_comes() -> None:
    log = FakeLog()
    collected = await started(reader_of(log))
    await collected.settle()
    log.commit(delta())
    log.deliver(log.commit(delta()))
    await collected.settle()
    assert collected.numbers == [1, 2]
    collected.reader.stop()
    await collected.task


async def test_a_lagging_replica_is_asked_again_at_the_next_tick_and_not_in_a_busy_loop() -> None:
    log = FakeLog()
    collected = await started(reader_of(log))
    await collected.settle()
    log.visible = 0
    log.commit(delta())
    for _ in range(5):
        log.deliver(log.commit(delta()))
        await collected.settle()
    assert collected.numbers == []
    assert log.reads <= 3
    log.visible = None
    collected.reader.tick(0)
    await collected.settle()
    assert collected.numbers == [1, 2, 3, 4, 5, 6]
    collected.reader.stop()
    await collected.task


async def test_a_reader_outlives_nats_being_away() -> None:
    log = FakeLog()
    log.commit(delta())
    log.failing_reads = 2
    collected = await started(reader_of(log))
    await collected.settle()
    assert log.reads == 1, "it waits for a tick between tries"
    for _ in range(2):
        collected.reader.tick(0)
        await collected.settle()
    assert collected.numbers == [1]
    collected.reader.stop()
    await collected.task


async def test_a_log_that_has_lost_what_comes_next_is_said_so_and_not_waited_for() -> None:
    log = FakeLog()
    log.commit(delta())
    log.commit(delta())
    del log.entries[0]
    collected = await started(reader_of(log))
    for _ in range(5):
        await collected.settle()
        collected.reader.tick(0)
    with pytest.raises(LogExpired):
        await collected.task


async def test_a_slow_client_costs_a_bounded_buffer_and_still_gets_everything() -> None:
    log = FakeLog(batch=50)
    reader = reader_of(log, buffer_bytes=2048)
    await reader.open()
    batches = reader.batches()
    log.commit(delta())
    numbers = [int(n) for n in (await anext(batches)).split()]  # and now the client reads no more
    for _ in range(200):
        log.deliver(log.commit(delta()))
        assert len(reader._buffer) <= 2048 // 200
    log.deliver(log.commit(Done(), finished=True))
    async for batch in batches:
        numbers += [int(n) for n in batch.split()]
    assert numbers == list(range(1, 203))
    assert reader.rereads


async def test_events_that_are_ready_are_joined_but_a_batch_stays_small() -> None:
    log = FakeLog(batch=500)
    for _ in range(20):
        log.commit(Delta(0, text="y" * 10_000))
    log.commit(Delta(0, text="z" * 3 * MAX_BATCH_BYTES))
    log.commit(Done(), finished=True)
    collected = await started(reader_of(log, dialect=Texts()))
    await collected.task
    assert [len(batch) for batch in collected.batches] == [
        *(60_000, 60_000, 60_000, 20_000),
        3 * MAX_BATCH_BYTES,
    ]


async def test_a_keep_alive_comes_when_nothing_else_did_and_only_then() -> None:
    log = FakeLog()
    reader = reader_of(log)
    collected = await started(reader)
    await collected.settle()
    now = asyncio.get_running_loop().time()
    reader.tick(now + 9)
    await collected.settle()
    assert collected.batches == []
    reader.tick(now + 11)
    await collected.settle()
    assert collected.batches == [KEEP_ALIVE], "also before the first event"
    log.deliver(log.commit(delta()))
    await collected.settle()
    reader.tick(now + 20)
    reader.tick(now + 29)
    await collected.settle()
    assert collected.batches == [KEEP_ALIVE, b"1 "]
    reader.tick(now + 31)
    await collected.settle()
    assert collected.batches[2:] == [KEEP_ALIVE]
    reader.stop()
    await collected.task


async def test_a_closed_reader_hears_nothing_more() -> None:
    log = FakeLog()
    collected = await started(reader_of(log))
    await collected.settle()
    collected.reader.stop()
    await collected.task
    await collected.reader.close()
    assert log.handler is None


# By property --------------------------------------------------------------------------------------

COMMITS = ["commit", "commit two", "claim"]
TAIL = ["deliver", "deliver", "lose", "repeat"]
LOG = ["lag", "catch up", "fail"]
TIME = ["run", "tick", "check"]
steps = st.lists(st.sampled_from([*COMMITS, *TAIL, *LOG, *TIME]), max_size=60)


@given(steps=steps, after=st.integers(0, 6), buffer_bytes=st.sampled_from([600, 1 << 20]))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_on_the_way_the_client_gets_the_logs_events_once_and_in_order(
    steps: list[str], after: int, buffer_bytes: int
) -> None:
    asyncio.run(_live_through(steps, after, buffer_bytes))


async def _live_through(steps: list[str], after: int, buffer_bytes: int) -> None:
    log = FakeLog(batch=2)
    for _ in range(after):
        log.commit(delta())
    undelivered: list[LogEntry] = []
    reader = reader_of(log, after, buffer_bytes=buffer_bytes)
    collected = await started(reader)
    for step in steps:
        match step:
            case "commit":
                undelivered.append(log.commit(delta()))
            case "commit two":
                undelivered.append(log.commit(delta(), delta()))
            case "claim":
                undelivered.append(log.commit())
            case "deliver" if undelivered:
                log.deliver(undelivered.pop(0))
            case "lose" if undelivered:
                undelivered.pop(0)
            case "repeat" if log.entries:
                log.deliver(log.entries[-1])
            case "tick":
                reader.tick(0)
            case "run":
                await collected.settle()
            case "check":
                reader.reread()
            case "lag":
                log.visible = len(log.entries)
            case "catch up":
                log.visible = None
            case "fail":
                log.failing_reads = 1
            case _:
                pass
        assert collected.numbers == list(range(after + 1, after + 1 + len(collected.numbers)))
    log.visible, log.failing_reads = None, 0
    log.commit(Done(), finished=True)  # and the tail never carries it
    reader.reread()
    while not collected.task.done():
        reader.tick(0)
        await asyncio.sleep(0)
    await collected.task
    assert collected.numbers == list(range(after + 1, log._n_next))
