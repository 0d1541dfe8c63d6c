"""One clock for all readers: it finds lost tails, and frees what clients have left behind."""

from collections.abc import Collection

import pytest

from services.edge.pulse import Attachment, Pulse
from services.edge.reader import Reader
from shared.bus import BusError
from shared.telemetry import Counters
from tests.unit.test_edge_reader import Collected, FakeLog, delta, reader_of, started


class Ends:
    """Answers what the logs' last sequences are, and remembers who was asked for."""

    def __init__(self, **last: int) -> None:
        self.last = last
        self.asked: list[set[str]] = []
        self.away = False

    async def last_of(self, sids: Collection[str]) -> dict[str, int]:
        self.asked.append(set(sids))
        if self.away:
            raise BusError("away")
        return self.last


class Connection:
    def __init__(self) -> None:
        self.closing = False
        self.aborted = False

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


def pulse_of(ends: Ends) -> tuple[Pulse, Counters]:
    counters = Counters()
    return Pulse(ends, counters, tail_check_s=2, write_deadline_s=30), counters


def now_of(reader: Reader) -> float:
    return -reader.silent_s(0)


async def test_the_last_record_may_be_the_lost_one_so_silence_is_checked() -> None:
    log = FakeLog()
    collected = await started(reader_of(log))
    await collected.settle()
    entry = log.commit(delta())  # and the tail does not carry it
    ends = Ends(**{collected.reader.sid: entry.seq})
    pulse, counters = pulse_of(ends)
    pulse.add(Attachment(collected.reader, Connection()))
    now = now_of(collected.reader)
    await pulse.check_tails(now + 1.9)
    assert ends.asked == []
    await pulse.check_tails(now + 2)
    await collected.settle()
    assert collected.numbers == [1]
    assert counters["tails_reread"] == 1
    await end(collected)


async def test_many_readers_of_many_silent_streams_are_one_question() -> None:
    pulse, _ = pulse_of(ends := Ends())
    readers = [reader_of(FakeLog()) for _ in range(4)]
    readers[0].sid = "B" * 22
    for reader in readers:
        pulse.add(Attachment(reader, Connection()))
    await pulse.check_tails(now_of(readers[0]) + 3)
    assert ends.asked == [{"A" * 22, "B" * 22}]


async def test_a_stream_that_was_just_checked_is_left_alone() -> None:
    pulse, _ = pulse_of(ends := Ends())
    reader = reader_of(FakeLog())
    pulse.add(Attachment(reader, Connection()))
    now = now_of(reader)
    await pulse.check_tails(now + 3)
    await pulse.check_tails(now + 4)
    assert len(ends.asked) == 1
    await pulse.check_tails(now + 4, everybody=True)
    assert len(ends.asked) == 2, "after a reconnect nobody is left out"


async def test_a_check_without_an_answer_is_made_again() -> None:
    pulse, _ = pulse_of(ends := Ends())
    ends.away = True
    reader = reader_of(FakeLog())
    pulse.add(Attachment(reader, Connection()))
    now = now_of(reader)
    with pytest.raises(BusError):
        await pulse.check_tails(now + 3)
    ends.away = False
    await pulse.check_tails(now + 3.25)
    assert len(ends.asked) == 2


async def test_a_client_that_takes_nothing_is_cut_off_at_the_write_deadline() -> None:
    pulse, counters = pulse_of(Ends())
    slow = Attachment(reader_of(FakeLog()), Connection())
    pulse.add(slow)
    slow.writing_since = 100.0
    pulse.beat(129.9)
    assert not slow.connection.aborted  # type: ignore[attr-defined]  # the fake's
    pulse.beat(130.0)
    assert slow.connection.aborted  # type: ignore[attr-defined]  # the fake's
    assert counters["readers_too_slow"] == 1


async def test_a_client_that_has_left_frees_its_reader_though_nothing_is_written() -> None:
    pulse, _ = pulse_of(Ends())
    collected = await started(reader_of(FakeLog()))
    connection = Connection()
    pulse.add(Attachment(collected.reader, connection))
    connection.closing = True
    pulse.beat(0)
    await collected.task


async def test_a_draining_edge_ends_the_readers_it_has_and_those_that_come_late() -> None:
    pulse, _ = pulse_of(Ends())
    early, late = await started(reader_of(FakeLog())), await started(reader_of(FakeLog()))
    pulse.add(Attachment(early.reader, Connection()))
    pulse.close()
    pulse.add(Attachment(late.reader, Connection()))
    await early.task
    await late.task


async def end(collected: Collected) -> None:
    collected.reader.stop()
    await collected.task
