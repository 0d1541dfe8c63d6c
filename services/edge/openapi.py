"""The OpenAPI 3.1 document, made from the table of routes and the types of the bodies. Pure."""

from typing import Any, Final

import msgspec

from services.edge.answers import ErrorBody
from services.edge.routes import EVENTS, JSON, ROUTES, Answer, Parameter, Route
from services.edge.sse import BranchTranscript, Open
from services.edge.start_request import NewBranch, NewChatMessage, NewStream
from shared.events import Event

TITLE: Final = "Braidstream"
VERSION: Final = "0.1.0"
REF: Final = "#/components/schemas/{name}"

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Stream-Id": {
        "description": "The stream's id.",
        "schema": {"type": "string"},
    },
    "Location": {
        "description": "The stream.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which to send the same request again.",
        "schema": {"type": "integer", "minimum": 1},
    },
}


def document() -> dict[str, Any]:
    """The whole document, JSON-ready."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "Streams of model output: started once, logged, resumable by anyone "
            "who may read them. Any other path answers 404 and any other method 405, with the "
            "same error body.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def schemas() -> dict[str, Any]:
    """JSON schemas of every body and of every event, by name."""
    bodies = {route.body for route in ROUTES if route.body is not None}
    answers = {answer.body for route in ROUTES for answer in route.answers if answer.body}
    others = {ErrorBody, NewBranch, Open, BranchTranscript}
    named = sorted(bodies | answers | others, key=lambda kind: kind.__name__)
    found, components = msgspec.json.schema_components([*named, Event], ref_template=REF)
    components["Event"] = {
        "description": "The JSON of one numbered event of a stream.",
        **found[-1],
    }
    for kind in (NewStream, NewBranch, NewChatMessage):
        components[kind.__name__]["additionalProperties"] = True
    components["NewStream"]["properties"]["branches"] = {
        "anyOf": [
            {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": REF.format(name="NewBranch")},
            },
            {"type": "null"},
        ],
        "default": None,
    }
    # What the log says once, when a branch starts, every delta repeats for its reader.
    components["Delta"]["properties"] |= {
        "section": {"type": "string"},
        "model": {"type": "string"},
    }
    return components


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "responses": {str(answer.status): _response(answer) for answer in route.answers},
    }
    if route.parameters:
        operation["parameters"] = [_parameter(parameter) for parameter in route.parameters]
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": {"$ref": REF.format(name=route.body.__name__)}}},
        }
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _response(answer: Answer) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        response["headers"] = {name: HEADERS[name] for name in answer.headers}
    if answer.body is not None:
        response["content"] = {JSON: {"schema": {"$ref": REF.format(name=answer.body.__name__)}}}
    elif answer.media == EVENTS:
        response["content"] = {
            EVENTS: {
                "schema": {"type": "string"},
                "x-event-schema": {"$ref": REF.format(name="Event")},
            }
        }
    elif answer.status == 200:
        response["content"] = {JSON: {"schema": {"type": "object"}}}
    return response
