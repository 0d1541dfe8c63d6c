"""A start is idempotent from its first record on, for as long as the log is kept."""

import asyncio

import pytest
from msgspec.structs import replace

from shared.errors import BraidError
from shared.events import Checkpoint, Record, encode_record
from shared.ids import new_sid
from shared.intake import fingerprint, open_log
from shared.messages import BranchRequest, StartStream
from shared.settings import Settings
from tests.support.meshkit import link_of, records_of


def request(**changes: object) -> StartStream:
    start = StartStream(
        sid=new_sid(),
        user_id="local",
        session_id="s",
        branches=[BranchRequest(model="m", params={"b": 1, "a": 2})],
        message="hi",
    )
    return replace(start, **changes)


async def test_of_many_simultaneous_starts_one_is_new_and_all_agree(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as one, link_of(bus_settings) as two:
        start = request()
        opened = await asyncio.gather(*(open_log(link.log, start) for link in (one, two) * 5))
        assert sum(is_new for _, is_new in opened) == 1
        assert len({(each.accepted_seq, each.accepted_at) for each, _ in opened}) == 1
        assert len(await records_of(one, start.sid)) == 1


async def test_another_body_under_the_same_id_is_a_conflict(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        start = request()
        await open_log(link.log, start)
        with pytest.raises(BraidError) as refusal:
            await open_log(link.log, replace(start, message="something else"))
        assert refusal.value.code == "conflict"


async def test_another_user_s_stream_does_not_exist(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        start = request()
        await open_log(link.log, start)
        with pytest.raises(BraidError) as refusal:
            await open_log(link.log, replace(start, user_id="somebody"))
        assert refusal.value.code == "not_found"


async def test_a_stream_whose_beginning_has_expired_is_gone(bus_settings: Settings) -> None:
    async with link_of(bus_settings) as link:
        start, _ = await open_log(link.log, request())
        claim = encode_record(Record(1, 1, (), Checkpoint(())))
        await link.log.commit(start.sid, claim, expected_seq=start.accepted_seq)
        stream = link.subjects.events_stream(link.subjects.shard(start.sid))
        await link.bus.jetstream().delete_msg(stream, start.accepted_seq)
        with pytest.raises(BraidError) as refusal:
            await open_log(link.log, start)
        assert refusal.value.code == "gone"


def test_the_fingerprint_ignores_the_order_of_parameters_and_what_acceptance_adds() -> None:
    start = request()
    shuffled = replace(start, branches=[BranchRequest(model="m", params={"a": 2, "b": 1})])
    accepted = replace(start, accepted_seq=7, accepted_at=1.0)
    assert fingerprint(start) == fingerprint(shuffled) == fingerprint(accepted)
    assert fingerprint(start) != fingerprint(replace(start, use_rag=False))
