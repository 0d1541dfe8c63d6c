"""Requests are checked as OpenAI checks them, and schemas get a value that conforms."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.errors import ApiError
from services.simulator.schema import example
from services.simulator.wire import chat_request, embedding_request

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look"}}


def refusal(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        chat_request(msgspec.json.encode({"model": "m", "messages": [USER], **body}))
    assert refused.value.status == 400
    assert refused.value.kind == "invalid_request_error"
    return refused.value


def test_parameters_of_other_providers_are_let_through() -> None:
    body = {"model": "m", "messages": [USER], "top_k": 5, "repetition_penalty": 1.1}
    assert chat_request(msgspec.json.encode(body)).messages[0].text() == "Hi"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"model": "\xff"}'])
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="could not parse"):
        chat_request(body)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"model": ""}, "model", "empty"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "Missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "robot"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "string"),
        ({"max_tokens": "ten"}, "max_tokens", "int"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"temperature": 3}, "temperature", "2"),
        ({"n": 0}, "n", "1"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "keep one"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream'"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"tool_choice": "required"}, "tool_choice", "add tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "go"}}},
            "tool_choice",
            "look",
        ),
        ({"response_format": {"type": "json_object"}}, "messages", "json"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "Missing",
        ),
        (
            {"messages": [USER, {"role": "tool", "tool_call_id": "c9", "content": "x"}]},
            "messages[1].tool_call_id",
            "preceding",
        ),
        ({"sim": 5}, "sim", "object"),
    ],
)
def test_a_refusal_names_the_parameter_and_says_what_to_change(
    body: dict[str, Any], param: str, says: str
) -> None:
    error = refusal(**body)
    assert error.param == param
    assert says in error.message


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(ApiError, match="Missing required parameter: 'messages'"):
        chat_request(b'{"model": "m"}')


@pytest.mark.parametrize(
    ("given_input", "texts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2, 3], ["1 2 3"]),
        ([[1, 2], [3]], ["1 2", "3"]),
    ],
)
def test_embedding_input_comes_in_four_shapes(given_input: object, texts: list[str]) -> None:
    body = msgspec.json.encode({"model": "m", "input": given_input})
    assert embedding_request(body).texts() == texts


@pytest.mark.parametrize("given_input", ["", [], ["a", ""], ["a"] * 2049])
def test_embedding_input_must_hold_text_and_not_too_much(given_input: object) -> None:
    with pytest.raises(ApiError) as refused:
        embedding_request(msgspec.json.encode({"model": "m", "input": given_input}))
    assert refused.value.param == "input"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 5}, 5),
        ({"enum": ["a", "b"]}, "a"),
        ({"type": "boolean"}, True),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "integer", "minimum": 7}, 7),
        ({"type": "integer", "exclusiveMinimum": 7}, 8),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "integer", "minimum": 10, "multipleOf": 4}, 12),
        ({"type": "string", "format": "date"}, "2025-01-31"),
        ({"type": "string", "maxLength": 3}, "abo"),
        ({"type": "string", "minLength": 8}, "about ab"),
        ({"type": "string", "pattern": "^[A-Z]{3}$"}, "ABC"),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, 1),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 2]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, []),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]},
            {"a": 1, "b": 2},
        ),
        (
            {"$defs": {"x": {"const": 3}}, "properties": {"x": {"$ref": "#/$defs/x"}}},
            {"x": 3},
        ),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]},
            {"b": 2},
        ),
    ],
)
def test_an_example_conforms_to_its_schema(schema: dict[str, Any], value: object) -> None:
    assert example(schema, "about") == value


def test_a_recursive_schema_ends_where_it_may() -> None:
    tree: dict[str, Any] = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
            "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["name", "children", "parent"],
    }
    assert set(example(tree)) == {"name", "children", "parent"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#"},
        {"$ref": "#/$defs/nowhere"},
    ],
)
def test_a_schema_that_cannot_be_met_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="Invalid schema"):
        example(schema)


@given(st.integers(-1000, 1000), st.integers(0, 1000), st.booleans(), st.booleans())
def test_numbers_stay_within_their_bounds(low: int, room: int, open_low: bool, whole: bool) -> None:
    high = low + room + 1
    bounds = {("exclusiveMinimum" if open_low else "minimum"): low, "maximum": high}
    value = example({"type": "integer" if whole else "number", **bounds})
    assert low + open_low * math.ulp(low) <= value <= high
    assert isinstance(value, int) or not whole


@given(st.integers(0, 50), st.integers(0, 50))
def test_strings_keep_their_length_bounds(least: int, more: int) -> None:
    schema = {"type": "string", "minLength": least, "maxLength": least + more}
    assert least <= len(example(schema, "some text")) <= least + more


def test_items_of_one_array_differ() -> None:
    made = example({"type": "array", "items": {"type": "string"}, "minItems": 3})
    assert len(set(made)) == 3
    assert all(re.search("value", item) for item in made)
