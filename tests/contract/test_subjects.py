"""The subject map as literals: changing one is changing a protocol."""

import pytest

from shared.ids import is_sid, is_token, new_sid, shard_of
from shared.subjects import Subjects

SID = "0123456789ABCDEFGHIJKL"


def test_every_subject_and_stream_name_is_what_operators_were_told() -> None:
    s = Subjects()
    assert s.requests_stream == "BRAID_REQUESTS"
    assert s.tasks_stream == "BRAID_TASKS"
    assert s.merges_stream == "BRAID_MERGES"
    assert s.transcripts_stream == "BRAID_TRANSCRIPTS"
    assert s.events_stream(0) == "BRAID_EVENTS_0"
    assert s.cancel_bucket == "braid_cancel"
    assert s.cancel_stream == "KV_braid_cancel"
    assert s.cancel_mark(SID) == f"$KV.braid_cancel.{SID}"
    assert s.request("chat") == "braid.request.chat"
    assert s.task("default", "high") == "braid.task.default.high"
    assert s.merge(SID) == "braid.merge.0"
    assert s.persist("sess", SID, "a0") == f"braid.persist.sess.{SID}.a0"
    assert s.persist_session("sess") == "braid.persist.sess.>"
    assert s.persist_stream(SID) == f"braid.persist.*.{SID}.>"
    assert s.holders("BRAID_TASKS", "worker") == "braid.holders.BRAID_TASKS.worker"
    assert s.events(SID) == f"braid.events.0.{SID}"
    assert s.live(SID) == f"braid.live.0.{SID}"
    assert s.chunks(SID) == f"braid.chunks.{SID}"
    assert s.acks("worker-1") == "braid.acks.worker-1"
    assert s.control(SID) == f"braid.control.{SID}"
    assert s.readers(SID) == f"braid.readers.{SID}"
    assert s.archive(SID) == f"braid.archive.{SID}"
    assert s.telemetry("edge") == "braid.telemetry.edge"
    assert s.all("task") == "braid.task.>"
    assert (s.shard_events(3), s.shard_live(3)) == ("braid.events.3.>", "braid.live.3.>")


def test_another_prefix_is_another_mesh() -> None:
    s = Subjects("t7", 4)
    assert s.requests_stream == "T7_REQUESTS"
    assert s.events(SID) == f"t7.events.{shard_of(SID, 4)}.{SID}"


def test_the_shard_of_a_stream_is_the_same_in_every_release() -> None:
    assert [shard_of(SID, n) for n in (1, 6, 12)] == [0, 0, 6]
    assert shard_of("zzzzzzzzzzzzzzzzzzzzzz", 12) == 1


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", ">", "a\r\nb", "ü", "x" * 65])
def test_a_token_that_would_change_the_subject_is_refused(bad: str) -> None:
    s = Subjects()
    assert not is_token(bad)
    for build in (
        lambda: s.request(bad),
        lambda: s.task(bad, "low"),
        lambda: s.persist(bad, SID, "q"),
        lambda: s.acks(bad),
        lambda: s.events(bad),
        lambda: s.control(bad),
        lambda: Subjects(bad),
    ):
        with pytest.raises(ValueError, match=r"subject|22 base62|prefix"):
            build()


def test_ids_are_22_base62_characters_and_never_repeat() -> None:
    ids = {new_sid() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_sid(sid) for sid in ids)
    assert not is_sid(SID + "x")
    assert not is_sid(SID[:-1] + "-")
