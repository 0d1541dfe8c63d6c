"""A start request is understood, or refused with the member to change; nothing in between."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.start_request import (
    MAX_DEPTH,
    RESERVED_PARAMS,
    parse_chat_message,
    parse_start,
    sid_of_key,
)
from shared.errors import BraidError
from shared.ids import is_sid
from shared.messages import StartStream, json_encoder, start_stream_decoder
from shared.settings import Settings

SETTINGS = Settings(default_model="house-model", max_branches=3)
SID = "A" * 22
FRESH = "F" * 22


def parse(body: Any, key: str | None = None, user_id: str = "local") -> StartStream:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_start(raw, SETTINGS, user_id, fresh_sid=FRESH, idempotency_key=key)


def refusal(body: Any, key: str | None = None) -> BraidError:
    with pytest.raises(BraidError) as caught:
        parse(body, key)
    return caught.value


def test_one_message_is_a_whole_request() -> None:
    request = parse({"message": "Why?"})
    assert request.sid == FRESH
    assert request.session_id == request.sid, "a repetition without a session must be identical"
    assert request.message == "Why?"
    assert request.use_rag
    [branch] = request.branches
    assert (branch.model, branch.messages, branch.params) == ("house-model", [], {})


def test_members_the_edge_does_not_know_are_the_models_parameters() -> None:
    request = parse(
        {"message": "Why?", "model": "m", "temperature": 0.5, "max_tokens": 9, "top_k": [1, None]}
    )
    assert request.branches[0].params == {"temperature": 0.5, "max_tokens": 9, "top_k": [1, None]}


def test_what_is_said_once_holds_for_every_branch_that_does_not_say_otherwise() -> None:
    top = [{"role": "user", "content": "Why?"}]
    own = [{"role": "user", "content": "How?"}]
    request = parse(
        {
            "messages": top,
            "temperature": 0.5,
            "fallbacks": ["spare"],
            "branches": [
                {"label": "a", "model": "x"},
                {"label": "b", "messages": own, "temperature": 1, "seed": 7, "fallbacks": []},
            ],
        }
    )
    first, second = request.branches
    assert (first.label, first.model, first.messages) == ("a", "x", top)
    assert (first.params, first.fallbacks) == ({"temperature": 0.5}, ["spare"])
    assert (second.label, second.model, second.messages) == ("b", "house-model", own)
    assert (second.params, second.fallbacks) == ({"temperature": 1, "seed": 7}, [])


def test_branches_that_all_have_messages_need_none_above_them() -> None:
    request = parse({"branches": [{"messages": [{"role": "user", "content": "Why?"}]}]})
    assert request.message is None
    assert request.branches[0].messages


def test_everything_a_request_may_say_arrives() -> None:
    request = parse(
        {
            "id": SID,
            "session_id": "our-session_1",
            "message": "Why?",
            "use_rag": False,
            "mid_stream": "fail",
            "on_disconnect": "cancel",
            "priority": "high",
            "timeouts": {"total_s": 30, "idle_s": 1.5},
            "profile": {"name": "Ada"},
            "history": [{"role": "user", "content": "Before"}],
        }
    )
    assert (request.sid, request.session_id) == (SID, "our-session_1")
    assert (request.use_rag, request.mid_stream, request.on_disconnect) == (False, "fail", "cancel")
    assert request.priority == "high"
    assert (request.timeouts.total_s, request.timeouts.idle_s) == (30, 1.5)
    assert request.profile == {"name": "Ada"}
    assert request.history == [{"role": "user", "content": "Before"}]


MESSAGE = {"role": "user", "content": "secret prompt"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"message": ""}, "message"),
        ({"message": 5}, "message"),
        ({"message": "x", "messages": [MESSAGE]}, "message"),
        ({"messages": []}, "messages"),
        ({"messages": ["secret prompt"]}, "messages[0]"),
        ({"messages": [{"content": "secret prompt"}]}, "messages[0].role"),
        ({"messages": [MESSAGE, {"role": ""}]}, "messages[1].role"),
        ({"message": "x", "history": [{}]}, "history[0].role"),
        ({"message": "x", "id": "short"}, "id"),
        ({"message": "x", "id": SID[:-1] + "-"}, "id"),
        ({"message": "x", "session_id": "a.b"}, "session_id"),
        ({"message": "x", "session_id": ""}, "session_id"),
        ({"message": "x", "session_id": "a" * 65}, "session_id"),
        ({"message": "x", "session_id": ">"}, "session_id"),
        ({"message": "x", "model": ""}, "model"),
        ({"message": "x", "model": None, "fallbacks": [1]}, "fallbacks[0]"),
        ({"message": "x", "use_rag": "yes"}, "use_rag"),
        ({"message": "x", "priority": "secret prompt"}, "priority"),
        ({"message": "x", "mid_stream": "maybe"}, "mid_stream"),
        ({"message": "x", "on_disconnect": "x"}, "on_disconnect"),
        ({"message": "x", "timeouts": {"total_s": 0}}, "timeouts.total_s"),
        ({"message": "x", "timeouts": {"total_s": 10**9}}, "timeouts.total_s"),
        ({"message": "x", "timeouts": {"total": 3}}, "timeouts.total"),
        ({"message": "x", "timeouts": {"idle_s": "secret prompt"}}, "timeouts.idle_s"),
        ({"message": "x", "profile": []}, "profile"),
        ({"message": "x", "branches": []}, "branches"),
        ({"message": "x", "branches": [1]}, "branches[0]"),
        ({"message": "x", "branches": [{}] * 4}, "branches"),
        ({"message": "x", "branches": [{}, {"model": 1}]}, "branches[1].model"),
        ({"message": "x", "branches": [{"label": "a\nb"}]}, "branches[0].label"),
        ({"message": "x", "branches": [{"label": "a"}, {"label": "a"}]}, "branches[1].label"),
        ({"message": "x", "branches": [{"messages": [{}]}]}, "branches[0].messages[0].role"),
        ({"branches": [{"messages": [MESSAGE]}, {}]}, "messages"),
        ({"message": "x", "branches": [{"stream": True}]}, "branches[0].stream"),
        *(({"message": "x", name: 1}, name) for name in RESERVED_PARAMS),
    ],
)
def test_a_refusal_names_the_member_and_never_repeats_what_was_sent(body: Any, param: str) -> None:
    error = refusal(body)
    assert (error.code, error.status, error.param) == ("invalid", 422, param)
    assert param in error.message
    assert "secret prompt" not in error.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON"),
        (b'{"message": "x"', "JSON"),
        (b'{"message": x}', "byte 12"),
        (b'{"message": "\xff"}', "UTF-8"),
        (b'{"message": "\\ud800"}', "JSON"),
        (b'{"message": NaN}', "JSON"),
        (b"[]", "object"),
        (b'"message"', "object"),
        (b"null", "object"),
        (b"[" * 100_000, "levels"),
        (b'{"message":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "levels"),
    ],
)
def test_what_is_not_a_json_object_is_a_bad_request(body: bytes, said: str) -> None:
    error = refusal(body)
    assert (error.code, error.status) == ("bad_request", 400)
    assert said in error.message


def test_nesting_below_the_limit_is_nobodys_business() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 3):
        deep = [deep]
    assert parse({"message": "x", "tools": deep}).branches[0].params == {"tools": deep}


def test_an_idempotency_key_always_means_the_same_stream_of_its_user() -> None:
    first, again = parse({"message": "x"}, "key-1"), parse({"message": "x"}, "key-1")
    assert first == again
    assert is_sid(first.sid)
    other = parse({"message": "x"}, "key-1", user_id="somebody-else")
    assert other.sid != first.sid


def test_an_idempotency_key_keeps_its_meaning_in_every_release() -> None:
    assert sid_of_key("local", "key-1") == "n5SHXBatj2Qrw9XkgO2IjH"


def test_an_id_in_the_body_wins_over_a_key_that_a_library_may_have_added() -> None:
    assert parse({"message": "x", "id": SID}, "key-1").sid == SID


@pytest.mark.parametrize("key", ["", "a" * 257, "naïve", "a\tb"])
def test_an_idempotency_key_that_is_no_header_text_is_refused(key: str) -> None:
    error = refusal({"message": "x"}, key)
    assert (error.code, error.param) == ("bad_request", "Idempotency-Key")


def test_the_short_form_takes_a_message_and_ignores_what_it_does_not_know() -> None:
    body = b'{"message": "Why?", "session_id": "s-1", "use_rag": false, "user": "x", "n": 2}'
    request = parse_chat_message(body, SETTINGS, "local", fresh_sid=FRESH)
    assert (request.message, request.session_id, request.use_rag) == ("Why?", "s-1", False)
    assert request.branches[0].model == "house-model"
    assert request.branches[0].params == {}


def test_the_short_form_needs_its_message() -> None:
    with pytest.raises(BraidError) as caught:
        parse_chat_message(b'{"session_id": "s"}', SETTINGS, "local", fresh_sid=FRESH)
    assert (caught.value.code, caught.value.param) == ("invalid", "message")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
members = st.sampled_from(
    ["id", "session_id", "model", "message", "messages", "branches", "timeouts", "profile", "seed"]
)
likely = st.fixed_dictionaries({"message": st.text(min_size=1)})


@given(
    st.dictionaries(members | st.text(max_size=6), json_values, max_size=6)
    | st.builds(lambda a, b: {**a, **b}, st.dictionaries(st.text(), json_values), likely)
)
def test_any_object_is_either_refused_or_can_be_sent_on_unchanged(body: dict[str, Any]) -> None:
    """What is accepted is hashed, queued and read by other services: it must survive the wire."""
    try:
        request = parse(body)
    except BraidError:
        return
    sent = json_encoder.encode(request)
    assert msgspec.to_builtins(start_stream_decoder.decode(sent)) == msgspec.to_builtins(request)


@given(st.binary(max_size=64))
def test_any_bytes_are_either_refused_or_a_request(body: bytes) -> None:
    assert status_of(body) in {202, 400, 422}


def status_of(body: bytes) -> int:
    try:
        parse(body)
    except BraidError as error:
        return error.status
    return 202
