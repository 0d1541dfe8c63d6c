"""A refused commit is resolved by what the leader's last record proves, and by nothing less."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from nats.aio.client import Server

from shared.bus import Bus, BusError, EventLog, Fenced, WrongSequence
from shared.bus.client import DirectClient
from shared.bus.connection import RECONNECT_WAIT_S
from shared.bus.patience import Refused, patiently
from shared.bus.publisher import PubAck
from shared.ids import new_sid
from shared.subjects import Subjects

SID = new_sid()


class Leader:
    """Plays publisher and connection: what happens at each publish, and the last record then."""

    def __init__(self, *turns: tuple[int | None, bytes, int]) -> None:
        """Each turn: the sequence a publish is acknowledged with (None: refused), the last record's
        payload, and its sequence."""
        self._turns = list(turns)
        self.published = 0

    async def publish(self, *_: Any, **__: Any) -> PubAck:
        self.published += 1
        seq = self._turns[0][0]
        if seq is None:
            raise WrongSequence(10071, "wrong last sequence")
        return PubAck("S", seq)

    async def request(self, *_: Any, **__: Any) -> Any:
        turn = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
        message = {"seq": turn[2], "data": msgspec.json.decode(msgspec.json.encode(turn[1]))}
        data = msgspec.json.encode({"message": message})
        return type("Answer", (), {"data": data})


def log_of(leader: Leader) -> EventLog:
    return EventLog(leader, leader, Subjects())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.bus.log.DEPOSED_AGAIN_S", 0.001)


async def test_a_newer_record_of_somebody_else_fences() -> None:
    leader = Leader((None, b"theirs", 8))
    with pytest.raises(Fenced):
        await log_of(leader).commit(SID, b"mine", expected_seq=7)
    assert leader.published == 1


async def test_a_newer_record_with_these_bytes_is_the_one_whose_ack_was_lost() -> None:
    assert await log_of(Leader((None, b"mine", 8))).commit(SID, b"mine", expected_seq=7) == 8


async def test_a_leader_that_knows_less_than_the_writer_is_asked_again_until_it_is_replaced() -> (
    None
):
    """It was paused, another was elected, and it does not know yet: it can't fence anybody."""
    leader = Leader((None, b"old", 3), (None, b"old", 3), (9, b"", 0))
    assert await log_of(leader).commit(SID, b"mine", expected_seq=8) == 9
    assert leader.published == 3


async def test_a_log_that_stays_behind_the_writer_has_lost_its_end_and_fences_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.bus.log.DEPOSED_S", 0.01)
    with pytest.raises(Fenced):
        await log_of(Leader((None, b"old", 3))).commit(SID, b"mine", expected_seq=8)


async def test_patience_ends_at_once_when_no_means_no() -> None:
    tries: list[int] = []

    async def refuse() -> None:
        tries.append(1)
        raise Refused("not enough storage")

    async def fail() -> None:
        tries.append(1)
        raise BusError("no leader")

    async with asyncio.timeout(1):
        with pytest.raises(Refused):
            await patiently(refuse, 60)
        assert len(tries) == 1
        with pytest.raises(BusError, match="no leader"):
            await patiently(fail, 0.1, first_s=0.01)
    assert len(tries) > 2


def test_a_server_that_was_just_lost_is_tried_last_and_a_pause_follows_each_round() -> None:
    """One that hangs takes connections, and costs two seconds before it is given up again."""
    bus = Bus(DirectClient(), "test")
    bus._server = "one:4222"
    one, two = (Server(urlsplit(f"nats://{host}:4222")) for host in ("one", "two"))  # type: ignore[arg-type]
    assert bus._choose_server([one, two], {}) == (two, 0.0)
    two.reconnects = 1
    assert bus._choose_server([one, two], {}) == (one, 0.0)
    one.reconnects = 1
    assert bus._choose_server([one, two], {}) == (two, RECONNECT_WAIT_S)
