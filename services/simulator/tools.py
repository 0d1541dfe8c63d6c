"""When an answer is a tool call, and with which arguments. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from services.simulator.prose import excerpt, seed_of
from services.simulator.reading import Reading
from services.simulator.schema import example
from services.simulator.wire import ChatRequest, NamedTool, Tool

_GENERIC_WORDS = """
    get set fetch find list search lookup look up query call run do make create read the a for of
    by tool function
"""
_GENERIC = frozenset(_GENERIC_WORDS.split())
_ASKS = re.compile(r"\b(?:tool|tools|function|functions)\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PLACE = re.compile(
    r"\b(?:in|at|for|of|to|from|about|on) ((?:[A-Z][\w'-]+)(?: [A-Z][\w'-]+)*)|\"([^\"]+)\""
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str


def tool_calls(request: ChatRequest, reading: Reading, seed: int) -> tuple[ToolCall, ...]:
    """The calls this answer makes; empty when it is prose.

    A tool's result is always answered in prose, even under `tool_choice: required`, so that a
    client's tool loop ends.
    """
    return tuple(
        ToolCall(
            id=f"call_{seed_of(seed, at, tool.function.name, reading.question):016x}",
            name=tool.function.name,
            arguments=_arguments(tool, reading.question),
        )
        for at, tool in enumerate(_wanted(request, reading))
    )


def _wanted(request: ChatRequest, reading: Reading) -> Sequence[Tool]:
    tools = request.tools or []
    choice = request.tool_choice
    if not tools or choice == "none" or reading.tool_results:
        return ()
    if isinstance(choice, NamedTool):
        return [tool for tool in tools if tool.function.name == choice.function.name][:1]
    asked = [tool for tool in tools if _mentions(reading.question, tool.function.name)]
    if not asked and (choice == "required" or _ASKS.search(reading.question)):
        asked = [tools[0]]
    return asked[:1] if request.parallel_tool_calls is False else asked


def _mentions(question: str, name: str) -> bool:
    """`get_weather` is asked for by its name or by the words that tell it apart ("weather")."""
    asked = question.lower()
    if name.lower() in asked:
        return True
    spread = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.lower() for word in re.split(r"[\W_]+", spread) if word]
    telling = [word for word in words if word not in _GENERIC]
    heard = set(re.findall(r"\w+", asked))
    return bool(telling) and heard.issuperset(telling)


def _arguments(tool: Tool, question: str) -> str:
    """A conforming object, with what can be found in the question: a place or quoted name for
    free strings, a number for unbounded numbers."""
    schema = tool.function.parameters or {}
    found = _PLACE.search(question)
    named = (found.group(1) or found.group(2)) if found else excerpt(question, 8)
    arguments = example({"type": "object", **schema}, named)
    number = _NUMBER.search(question)
    if number and isinstance(arguments, dict):
        _use_number(arguments, schema, number.group())
    return msgspec.json.encode(arguments).decode()


def _use_number(arguments: dict[str, Any], schema: dict[str, Any], number: str) -> None:
    bounds = {"enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
              "multipleOf"}  # fmt: skip
    for name, kind in (schema.get("properties") or {}).items():
        if name not in arguments or not isinstance(kind, dict) or bounds & kind.keys():
            continue
        if kind.get("type") == "number":
            arguments[name] = float(number)
        elif kind.get("type") == "integer":
            arguments[name] = round(float(number))
        else:
            continue
        return
