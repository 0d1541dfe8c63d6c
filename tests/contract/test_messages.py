"""Bytes that an earlier release wrote: they must be readable for ever."""

from hypothesis import given
from hypothesis import strategies as st

from shared.events import (
    Accepted,
    BranchDone,
    BranchPhase,
    BranchState,
    Checkpoint,
    Delta,
    Done,
    Record,
    ToolFragment,
    Usage,
    decode_record,
    encode_record,
)
from shared.messages import (
    Ack,
    BranchEnd,
    Chunk,
    ReadTranscript,
    TranscriptPart,
    acks_decoder,
    attempt_number,
    chunk_decoder,
    msgpack_encoder,
    read_transcript_decoder,
    start_stream_decoder,
    transcript_decoder,
    transcript_part_decoder,
)

FIRST_RECORD = bytes.fromhex(
    "960001909290cb000000000000000094a56c6f63616ca473657373a26162cb3ff8000000000000c2"
)


def test_the_first_record_of_a_log_reads_as_it_was_written() -> None:
    record = decode_record(FIRST_RECORD)
    assert (record.epoch, record.n_first, record.events) == (0, 1, ())
    assert record.accepted == Accepted("local", "sess", "ab", 1.5)
    assert not record.finished


def test_a_record_of_fewer_fields_than_today_reads_with_the_defaults() -> None:
    """A release that knew neither `accepted` nor `finished`."""
    old = msgpack_encoder.encode((3, 7, [{"type": "delta", "branch": 0, "text": "hi"}], [[]]))
    record = decode_record(old)
    assert record.events == (Delta(0, "hi"),)
    assert record.accepted is None
    assert record.finished is False


def test_an_event_with_a_member_this_release_does_not_know_is_read_all_the_same() -> None:
    event = {"type": "done", "mood": "new"}
    assert decode_record(msgpack_encoder.encode((1, 1, [event], [[]]))).events == (Done(),)


def test_a_record_of_every_kind_of_content_survives_the_round_trip() -> None:
    usage = Usage(1, 2, 3, "upstream", cached_tokens=1)
    events = (
        Delta(0, reasoning="r"),
        Delta(1, tool_call=ToolFragment(0, "id", "name", "{}")),
        BranchDone(branch=0, model="m", finish_reason="stop", usage=usage, ttft_ms=1.5),
        Done(),
    )
    state = BranchState(1000, 4, BranchPhase.DONE, 5, 6, True, 1, usage)
    record = Record(2, 9, events, Checkpoint((state,), 12.5), finished=True)
    assert decode_record(encode_record(record)) == record
    assert record.n_next == 13


def test_chunks_and_acks_read_as_they_were_written() -> None:
    chunk = Chunk(0, 0, 1, (Delta(0, "a"),), BranchEnd("stop"))
    assert chunk_decoder.decode(msgpack_encoder.encode(chunk)) == chunk
    assert chunk_decoder.decode(msgpack_encoder.encode((0, 1, 2))) == Chunk(0, 1, 2)
    acks = [Ack("sid", 0, 1, 2, "closed")]
    assert acks_decoder.decode(msgpack_encoder.encode(acks)) == acks


def test_a_request_an_internal_service_writes_by_hand_is_understood() -> None:
    body = b'{"sid":"s","user_id":"u","session_id":"x","branches":[{"model":"m"}],"message":"hi"}'
    request = start_stream_decoder.decode(body)
    assert request.branches[0].model == "m"
    assert request.priority == "normal"


def test_a_transcript_says_itself_which_kind_it_is() -> None:
    body = {
        "type": "question",
        "sid": "s",
        "user_id": "u",
        "session_id": "x",
        "content": "hi",
        "created_at": 1.0,
    }
    assert type(transcript_decoder.decode(msgpack_encoder.encode(body))).__name__ == "QuestionAsked"


def test_a_question_for_a_transcript_and_its_answer_read_as_they_were_written() -> None:
    asked = bytes.fromhex("93a173a17505")
    assert msgpack_encoder.encode(ReadTranscript("s", "u", 5)) == asked
    assert read_transcript_decoder.decode(asked) == ReadTranscript("s", "u", 5)
    told = bytes.fromhex("93a5666f756e64c4019003")
    assert msgpack_encoder.encode(TranscriptPart("found", b"\x90", 3)) == told
    assert transcript_part_decoder.decode(told) == TranscriptPart("found", b"\x90", 3)


@given(st.integers(1, 500), st.integers(0, 999), st.integers(1, 500), st.integers(0, 999))
def test_a_later_delivery_always_has_the_higher_attempt_and_none_are_shared(
    d1: int, t1: int, d2: int, t2: int
) -> None:
    first, second = attempt_number(d1, t1), attempt_number(d2, t2)
    assert ((d1, t1) < (d2, t2)) == (first < second)
    assert ((d1, t1) == (d2, t2)) == (first == second)
