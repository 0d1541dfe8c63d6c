"""What is refused of a request that somebody publishes directly, and what a request becomes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.context.dispatch import publications, question_of
from services.context.loaders import Loaded
from services.context.requests import BadRequest, read
from shared.errors import BraidError
from shared.ids import SID_LENGTH
from shared.messages import (
    BranchRequest,
    ChatMessage,
    StartStream,
    generate_branch_decoder,
    merge_stream_decoder,
    transcript_decoder,
)
from shared.pieces import room_in, split
from shared.subjects import Subjects

SID = "a" * SID_LENGTH
SUBJECTS = Subjects("braid")


def request(**fields: Any) -> dict[str, Any]:
    whole = {"sid": SID, "user_id": "ann", "session_id": "s1", "message": "why?"}
    return whole | {"branches": [{"model": "m1"}]} | fields


def parsed(**fields: Any) -> StartStream:
    return msgspec.convert(request(**fields), StartStream)


def refusal(value: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(msgspec.json.encode(value), max_branches=2)
    return caught.value


def test_a_sound_request_is_taken_as_it_is() -> None:
    assert read(msgspec.json.encode(request()), max_branches=2) == parsed()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"branches": []}, "branches"),
        ({"branches": [{"model": "m"}] * 3}, "branches"),
        ({"branches": [{"model": ""}]}, "model"),
        ({"message": None}, "messages"),
        ({"message": ""}, "messages"),
        ({"priority": "urgent"}, "priority"),
        ({"session_id": "a.b"}, "session_id"),
        ({"session_id": ">"}, "session_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"sid": "short"}, "sid"),
    ],
)
def test_a_refusal_names_what_is_wrong(fields: dict[str, Any], named: str) -> None:
    assert named in refusal(request(**fields)).error.message


def test_a_refused_request_can_be_answered_when_it_says_whose_it_is() -> None:
    envelope = refusal(request(branches=7, accepted_seq=3)).envelope
    assert envelope is not None
    assert (envelope.sid, envelope.user_id, envelope.accepted_seq) == (SID, "ann", 3)


@pytest.mark.parametrize(
    "value", [7, [], request(sid="short"), request(session_id="*", branches=[])]
)
def test_without_a_sound_envelope_there_is_nobody_to_answer(value: Any) -> None:
    assert refusal(value).envelope is None


def test_repetitions_carry_the_same_ids_so_that_the_queues_drop_them() -> None:
    asked = parsed(branches=[{"model": "m1"}, {"model": "m2"}])
    found = publications(asked, Loaded(), SUBJECTS, max_bytes=10_000)
    assert {(one.subject, one.msg_id) for one in found} == {
        ("braid.task.default.normal", f"{SID}.0"),
        ("braid.task.default.normal", f"{SID}.1"),
        ("braid.merge.0", SID),
        (f"braid.persist.s1.{SID}.q", f"{SID}.q"),
    }


def test_a_branch_with_messages_of_its_own_leaves_the_others_their_prompt() -> None:
    own = [{"role": "user", "content": "mine"}]
    asked = parsed(branches=[{"model": "m1", "messages": own}, {"model": "m2"}])
    loaded = Loaded(profile={"name": "A"}, history=[{"role": "user", "content": "earlier"}])
    tasks = [
        generate_branch_decoder.decode(one.payload)
        for one in publications(asked, loaded, SUBJECTS, max_bytes=10_000)
        if ".task." in one.subject
    ]
    assert tasks[0].messages == own
    assert [m["role"] for m in tasks[1].messages] == ["system", "user", "user"]


def test_the_context_event_says_what_was_used_and_what_was_missing() -> None:
    loaded = Loaded(profile={"name": "A"}, timings_ms={"profile": 1.5}, degraded=["history"])
    [merge] = [
        merge_stream_decoder.decode(one.payload)
        for one in publications(parsed(), loaded, SUBJECTS, max_bytes=10_000)
        if ".merge." in one.subject
    ]
    assert (merge.context.profile, merge.context.history_messages) == (True, 0)
    assert (merge.context.degraded, merge.context.timings_ms) == (["history"], {"profile": 1.5})


def test_a_prompt_that_does_not_fit_into_a_message_is_refused_with_numbers() -> None:
    with pytest.raises(BraidError) as caught:
        publications(parsed(message="x" * 2000), Loaded(), SUBJECTS, max_bytes=1000)
    assert caught.value.code == "payload_too_large"
    assert "1000" in caught.value.message


def test_a_long_question_is_stored_in_pieces() -> None:
    own = [{"role": "user", "content": "short"}]
    asked = parsed(message="x" * 2500, branches=[{"model": "m1", "messages": own}])
    parts = [
        (one.subject.rpartition(".")[2], one.msg_id, transcript_decoder.decode(one.payload))
        for one in publications(asked, Loaded(), SUBJECTS, max_bytes=1000)
        if ".persist." in one.subject
    ]
    assert [part for part, _, _ in parts] == ["q-0", "q-1", "q-2"]
    assert [ident for _, ident, _ in parts] == [f"{SID}.q-0", f"{SID}.q-1", f"{SID}.q-2"]
    assert [(t.piece, t.pieces) for _, _, t in parts] == [(0, 3), (1, 3), (2, 3)]
    assert "".join(t.content for _, _, t in parts) == "x" * 2500


def test_what_the_user_said_is_the_last_user_message_without_its_pictures() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url"}, {"type": "text", "text": "!"}]
    messages: list[ChatMessage] = [
        {"role": "user", "content": "earlier"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "prefix"},
    ]
    branch = BranchRequest(model="m1", messages=messages)
    asked = msgspec.structs.replace(parsed(message=None), branches=[branch])
    assert question_of(asked) == "look\n!"


def test_a_conversation_without_a_user_has_no_question_to_store() -> None:
    branch = {"model": "m1", "messages": [{"role": "system", "content": "go"}]}
    asked = parsed(message=None, branches=[branch])
    found = publications(asked, Loaded(), SUBJECTS, max_bytes=10_000)
    assert not [one for one in found if ".persist." in one.subject]


@given(st.text(), st.integers(4, 50))
def test_pieces_join_to_the_text_and_none_is_too_long(text: str, max_bytes: int) -> None:
    pieces = split(text, max_bytes)
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= max_bytes for piece in pieces)


def test_room_is_left_in_a_message_whatever_the_server_allows() -> None:
    assert room_in(1024 * 1024) == 1024 * 1024 - 64 * 1024
    assert room_in(64 * 1024) == 32 * 1024
