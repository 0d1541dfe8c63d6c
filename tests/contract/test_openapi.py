"""The OpenAPI document is valid and agrees with the types that the edge really reads and writes."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no stubs
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.edge.openapi import document
from services.edge.routes import ROUTES
from services.edge.sse import NativeEvents, Open
from services.edge.transcript import events_of, snapshot_of
from shared.errors import KINDS
from shared.events import BranchStarted, Delta, Done, Event, Failed, ToolFragment
from shared.messages import BranchAnswered

DOCUMENT = document()


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_the_document_is_valid_openapi() -> None:
    assert not list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors())


def test_the_document_survives_json() -> None:
    assert json.loads(msgspec.json.encode(DOCUMENT)) == DOCUMENT


def test_every_route_of_the_edge_is_in_it() -> None:
    described = {
        (method.upper(), path)
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
    }
    assert described == {(route.method, route.path) for route in ROUTES}


def test_operations_have_names_of_their_own_because_generated_clients_need_them() -> None:
    names = [
        operation["operationId"]
        for operations in DOCUMENT["paths"].values()
        for operation in operations.values()
    ]
    assert len(names) == len(set(names))


def test_every_documented_error_status_is_one_the_error_table_knows() -> None:
    known = {kind.status for kind in KINDS.values()} | {200, 202, 204}
    documented = {answer.status for route in ROUTES for answer in route.answers}
    assert documented <= known


@pytest.mark.parametrize(
    "body",
    [
        {"message": "x"},
        {"message": "x", "temperature": 0.2, "tools": [{}]},
        {"messages": [{"role": "user", "content": "x"}], "id": None},
        {"branches": [{"label": "a", "model": "m", "top_p": 1}], "message": "x"},
        {"message": "x", "timeouts": {"idle_s": 2}, "mid_stream": "continue", "priority": "low"},
    ],
)
def test_what_the_edge_takes_the_document_allows(body: Any) -> None:
    validator("NewStream").validate(body)


@pytest.mark.parametrize(
    "body",
    [
        {"message": 1},
        {"message": ""},
        {"branches": [{"model": 1}]},
        {"branches": []},
        {"priority": "x"},
        {"timeouts": {"x": 1}},
    ],
)
def test_what_the_edge_refuses_the_document_forbids(body: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator("NewStream").validate(body)


@pytest.mark.parametrize(
    "event",
    [
        BranchStarted(branch=0, section="s", model="m"),
        Delta(0, text="x"),
        Delta(0, reasoning="x"),
        Delta(0, tool_call=ToolFragment(0, "c", "n", "{}")),
        Failed(code="internal", message="x"),
        Done(),
    ],
)
def test_every_event_on_the_wire_is_as_documented(event: Event) -> None:
    dialect = NativeEvents()
    dialect.skip(BranchStarted(branch=0, section="s", model="m"))
    data = json.loads(dialect.encode(1, event).partition(b"data: ")[2])
    validator("Event").validate(data)


def test_a_transcript_is_as_documented() -> None:
    common: dict[str, Any] = {"sid": "s", "user_id": "u", "session_id": "s", "content": "x"}
    whole = BranchAnswered(
        **common, created_at=1.0, branch=0, model="m", status="done", section="a"
    )
    first, last = (json.loads(block.partition(b"data: ")[2]) for block in events_of([whole]))
    validator("BranchTranscript").validate(first)
    validator("Done").validate(last)
    snapshot = msgspec.json.decode(msgspec.json.encode(snapshot_of("s", [whole])))
    validator("Snapshot").validate(snapshot)


def test_the_opening_is_as_documented() -> None:
    validator("Open").validate(json.loads(msgspec.json.encode(Open("A" * 22, "s", 0))))
