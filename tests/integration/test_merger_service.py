"""The merger on real JetStream: it commits before it acknowledges, and a zombie writes nothing."""

import asyncio

import pytest

from services.merger.service import Merger, build
from shared.bus import CancelMarks, Fenced, Link, WorkItem, WorkQueue
from shared.events import (
    BranchReset,
    BranchStarted,
    Cancelled,
    ContextLoaded,
    Done,
    Failed,
    Record,
    encode_record,
)
from shared.fold import fold
from shared.messages import (
    AskStanding,
    BranchAnswered,
    CancelRequested,
    Transcript,
    msgpack_encoder,
    standing_decoder,
    transcript_decoder,
)
from shared.settings import Settings
from tests.support.meshkit import (
    STOP,
    FakeWorker,
    accepted,
    begun,
    finished_log,
    link_of,
    order_merge,
    records_of,
    records_until,
    running,
    say,
    until,
)


async def transcripts_of(link: Link, count: int) -> list[Transcript]:
    """Take the transcripts that wait, as persistence does."""
    taken: list[Transcript] = []
    queue = WorkQueue(
        link.bus,
        stream=link.subjects.transcripts_stream,
        consumer="test",
        subject=link.subjects.all("persist"),
        slots=8,
        ack_wait_s=5,
        max_deliver=5,
    )

    async def take(item: WorkItem) -> None:
        taken.append(transcript_decoder.decode(item.data))
        item.ack()

    await queue.start(take)
    await until(lambda: len(taken) >= count)
    await queue.drain(1)
    return taken


async def test_chunks_become_numbered_records_a_terminal_and_a_transcript(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link, running(build(bus_settings)):
        item, worker = await begun(link)
        await worker.deliver(say(0, "Hello "), say(1, "world", end=STOP))
        records = await finished_log(link, item.sid)
        events = [event for record in records for event in record.events]
        assert isinstance(events[0], ContextLoaded)
        assert isinstance(events[1], BranchStarted)
        assert isinstance(events[-1], Done)
        assert [record.n_first for record in records][:2] == [1, 1]
        assert fold(records).branches[0].text == "Hello world"
        assert worker.acks[-1].state == "closed"
        (answer,) = await transcripts_of(link, 1)
        assert isinstance(answer, BranchAnswered)
        assert (answer.content, answer.status, answer.finish_reason) == (
            "Hello world",
            "done",
            "stop",
        )


async def test_a_chunk_is_acknowledged_only_when_it_is_in_the_log(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link, running(build(bus_settings)):
        item, worker = await begun(link)
        for k in range(20):
            await worker.deliver(say(k, f"{k} "))
            committed = fold(await records_of(link, item.sid)).branches[0].text
            assert committed.startswith("".join(f"{i} " for i in range(k + 1)))


async def test_another_merger_goes_on_from_the_checkpoint_and_the_zombie_is_fenced(
    bus_settings: Settings,
) -> None:
    impatient = bus_settings.model_copy(update={"ack_wait_s": 1.0})
    first = Merger(impatient)
    async with link_of(impatient) as link:
        await first.start()
        item, worker = await begun(link)
        await worker.deliver(say(0, "one "))
        # A usurper claims the log: for the first owner this is what waking up as a zombie is like.
        last = await link.log.last(item.sid)
        assert last is not None
        usurped = (await records_of(link, item.sid))[-1]
        claim = Record(usurped.epoch + 1, usurped.n_next, (), usurped.checkpoint)
        await link.log.commit(item.sid, encode_record(claim), expected_seq=last.seq)
        worker.send(say(1, "two "))
        await until(lambda: first.stats().get("fenced", 0) == 1)
        texts = fold(await records_of(link, item.sid)).branches[0].text
        assert texts == "one "
        # Nobody works on it now, so JetStream hands it out again, and it ends as it should.
        await worker.deliver(say(1, "two "), say(2, "three", end=STOP))
        records = await finished_log(link, item.sid)
        assert fold(records).branches[0].text == "one two three"
        assert [record.epoch for record in records] == sorted(r.epoch for r in records)
        assert records[-1].epoch == claim.epoch + 1
        await first.drain()


async def test_a_merger_that_is_told_to_stop_hands_its_streams_over(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        first, second = Merger(bus_settings), Merger(bus_settings)
        await first.start()
        item, worker = await begun(link)
        await worker.deliver(say(0, "one "))
        await second.start()
        await first.drain()
        await worker.deliver(say(1, "two", end=STOP))
        records = await finished_log(link, item.sid)
        assert fold(records).branches[0].text == "one two"
        assert second.stats()["takeovers"] == 1
        await second.drain()


async def test_a_cancel_mark_set_before_anybody_owned_the_stream_ends_it(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link, running(build(bus_settings)):
        item = await accepted(link, ["m"])
        await CancelMarks(link.bus, link.subjects).set(item.sid, "user")
        await order_merge(link, item)
        records = await finished_log(link, item.sid)
        assert records[-1].events[-1] == Cancelled(reason="user")


async def test_cancelling_keeps_what_was_said_and_tells_the_worker_to_stop(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link, running(build(bus_settings)):
        item, worker = await begun(link)
        await worker.deliver(say(0, "half an ans"))
        await CancelMarks(link.bus, link.subjects).set(item.sid, "user")
        poke = msgpack_encoder.encode(CancelRequested(sid=item.sid))
        link.bus.send(link.subjects.control(item.sid), poke)
        records = await finished_log(link, item.sid)
        view = fold(records)
        assert view.branches[0].text == "half an ans"
        assert view.branches[0].status == "cancelled"
        await until(lambda: worker.acks[-1].state == "closed")
        (answer,) = await transcripts_of(link, 1)
        assert (answer.content, getattr(answer, "status", "")) == ("half an ans", "cancelled")


async def test_a_stream_that_nobody_works_on_ends_with_an_error_when_its_time_is_up(
    bus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.merger.owner.GRACE_S", 0.2)
    hasty = bus_settings.model_copy(update={"total_timeout_s": 0.2, "first_token_timeout_s": 0.2})
    async with link_of(hasty) as link, running(build(hasty)):
        item = await accepted(link, ["m"])
        await order_merge(link, item)
        records = await finished_log(link, item.sid)
        terminal = records[-1].events[-1]
        assert isinstance(terminal, Failed)
        assert terminal.code == "expired"


async def test_a_new_worker_learns_where_the_branch_stands_and_the_old_one_is_fenced(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as link, running(build(bus_settings)):
        item = await accepted(link, ["m"])
        old, new = FakeWorker(link, item.sid), FakeWorker(link, item.sid)
        await old.start()
        await new.start()
        await order_merge(link, item)
        await old.deliver(say(0, "lost "))
        question = msgpack_encoder.encode(AskStanding(sid=item.sid, branch=0, attempt=1000))
        answer = await link.bus.request(link.subjects.control(item.sid), question)
        standing = standing_decoder.decode(answer.data)
        assert (standing.k, standing.final, standing.text) == (0, False, "lost ")
        late = msgpack_encoder.encode(AskStanding(sid=item.sid, branch=0, attempt=1))
        answer = await link.bus.request(link.subjects.control(item.sid), late)
        assert standing_decoder.decode(answer.data).attempt == 1000
        old.send(say(1, "zombie"))
        await until(lambda: any(ack.state == "fenced" for ack in old.acks))
        await new.deliver(say(0, "found", attempt=1000, seam="restart", end=STOP))
        records = await finished_log(link, item.sid)
        assert any(isinstance(e, BranchReset) for r in records for e in r.events)
        assert fold(records).branches[0].text == "found"


async def test_a_restarted_merger_finds_an_ended_stream_and_still_hands_over_its_transcript(
    bus_settings: Settings,
) -> None:
    """The crash between the terminal and the transcript."""
    async with link_of(bus_settings) as link:
        item = await accepted(link, ["m"])
        failure = Failed(code="internal", message="over")
        last = await link.log.last(item.sid)
        assert last is not None
        end = Record(1, 1, (failure,), (await records_of(link, item.sid))[0].checkpoint)
        finished = Record(end.epoch, end.n_first, end.events, end.checkpoint, finished=True)
        await link.log.commit(item.sid, encode_record(finished), expected_seq=last.seq)
        await order_merge(link, item)
        async with running(build(bus_settings)):
            (answer,) = await transcripts_of(link, 1)
        assert getattr(answer, "status", "") in {"waiting", "failed"}
        assert len(await records_of(link, item.sid)) == 2


async def test_two_writers_that_saw_the_same_record_never_both_succeed(
    bus_settings: Settings,
) -> None:
    async with link_of(bus_settings) as one, link_of(bus_settings) as two:
        item = await accepted(one, ["m"])
        first = (await records_of(one, item.sid))[0]
        payloads = [encode_record(Record(1, 1, (), first.checkpoint, finished=f)) for f in (0, 1)]  # type: ignore[arg-type]
        outcomes = await asyncio.gather(
            one.log.commit(item.sid, payloads[0], expected_seq=item.accepted_seq),
            two.log.commit(item.sid, payloads[1], expected_seq=item.accepted_seq),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Fenced) for outcome in outcomes) == 1


async def test_the_answer_of_a_lost_ack_is_found_in_the_log(bus_settings: Settings) -> None:
    """A repeated commit of identical bytes succeeds with the sequence of the first."""
    async with link_of(bus_settings) as link:
        item = await accepted(link, ["m"])
        first = (await records_of(link, item.sid))[0]
        payload = encode_record(Record(1, 1, (), first.checkpoint))
        seqs = [
            await link.log.commit(item.sid, payload, expected_seq=item.accepted_seq)
            for _ in range(3)
        ]
        assert len(set(seqs)) == 1
        assert len(await records_until(link, item.sid, lambda r: len(r) == 2)) == 2


async def test_an_item_that_was_handed_out_too_often_ends_its_stream_with_an_error(
    bus_settings: Settings,
) -> None:
    """Whatever kills its owners, a reader does not wait for ever."""
    strict = bus_settings.model_copy(update={"max_deliver": 1})
    async with link_of(strict) as link:
        item = await accepted(link, ["m"])
        await order_merge(link, item)
        deliveries: list[int] = []

        async def give_back(work: WorkItem) -> None:
            deliveries.append(work.delivery)
            work.nak()
            await asyncio.Event().wait()

        queue = WorkQueue(
            link.bus,
            stream=link.subjects.merges_stream,
            consumer="merger",
            subject=link.subjects.all("merge"),
            slots=1,
            ack_wait_s=strict.ack_wait_s,
            max_deliver=strict.max_deliver,
        )
        await queue.start(give_back)
        await until(lambda: deliveries == [1])
        await queue.drain(0)
        async with running(build(strict)):
            records = await finished_log(link, item.sid)
            terminal = records[-1].events[-1]
            assert isinstance(terminal, Failed)
            assert (terminal.code, terminal.retryable) == ("attempts_exhausted", True)
            (answer,) = await transcripts_of(link, 1)
            assert getattr(answer, "status", "") == "failed"
