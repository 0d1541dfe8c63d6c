"""What an answer can use of a request: the question, earlier turns, retrieved passages,
profile facts and tool results. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.simulator.wire import Message

_PASSAGE = re.compile(
    r"^\s*(?:[-*]\s*)?(?:\[(\d{1,3})\][:.)]?"
    r"|(?:passage|document|source|doc)\s*\[?(\d{1,3})\]?\s*[:.)-]"
    r"|<(?:passage|document|source|doc)\b[^>]*?\b(?:id|index|n|number)=[\"']?(\d{1,3})[^>]*>)"
    r"\s*(.*)$",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"</\w+>\s*$")
_QUESTION = re.compile(r"^\s*(?:user\s+)?question\s*:\s*(.+)", re.IGNORECASE | re.MULTILINE)
_FACT = re.compile(
    r"\b(name|role|job|occupation|profession|company|team|department|city|location|country|"
    r"language|timezone|interests|hobby|plan|level|expertise)[\"']?\s*(?:[:=]|\s+is\b)\s*[\"']?"
    r"([^\n,;|\"'}]{1,60})",
    re.IGNORECASE,
)
_ADDRESSEE = re.compile(r"\b(?:talking|speaking) (?:to|with) ((?:[A-Z][\w-]+ ?){1,3})")


@dataclass(frozen=True, slots=True)
class Passage:
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Reading:
    question: str
    earlier: tuple[str, ...] = ()
    """What the user said before, oldest first."""
    passages: tuple[Passage, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    """(key, value) of the user's profile, each key once."""
    tool_results: tuple[ToolResult, ...] = ()
    """Results that the last turn brought; empty when the user spoke last."""


def read(messages: Sequence[Message]) -> Reading:
    passages: dict[int, str] = {}
    facts: dict[str, str] = {}
    said: list[str] = []
    for message in messages:
        if message.role in ("system", "developer"):
            rest = _split_passages(message.text(), passages)
            for key, value in _facts(rest):
                facts.setdefault(key, value)
        elif message.role == "user":
            said.append(_question(_split_passages(message.text(), passages)))
    return Reading(
        question=said[-1] if said else "",
        earlier=tuple(said[:-1]),
        passages=tuple(Passage(number, text) for number, text in sorted(passages.items()) if text),
        facts=tuple(facts.items()),
        tool_results=_tool_results(messages),
    )


def _split_passages(text: str, into: dict[int, str]) -> str:
    """Moves numbered passages of the text into `into` (the first of a number wins); gives back
    what is left. A passage ends at an empty line, at its closing tag or at the next one."""
    rest: list[str] = []
    found: dict[int, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        start = _PASSAGE.match(line)
        if start:
            number = int(start.group(1) or start.group(2) or start.group(3))
            current = found.setdefault(number, [])
            line = start.group(4)  # noqa: PLW2901 - the rest of the line is the passage's first
        elif current and not line.strip():
            current = None
        if current is None:
            rest.append(line)
            continue
        content = _CLOSING.sub("", line).strip()
        if content:
            current.append(content)
        if content != line.strip():
            current = None
    for number, lines in found.items():
        into.setdefault(number, " ".join(lines))
    return "\n".join(rest)


def _question(text: str) -> str:
    marked = _QUESTION.findall(text)
    return " ".join((marked[-1] if marked else text).split())


def _facts(text: str) -> list[tuple[str, str]]:
    found = [(key.lower(), _first_sentence(value)) for key, value in _FACT.findall(text)]
    addressee = _ADDRESSEE.search(text)
    if addressee:
        found.append(("name", addressee.group(1).strip()))
    return [(key, value) for key, value in found if value]


def _first_sentence(value: str) -> str:
    return re.split(r"[.!?](?:\s|$)", value, maxsplit=1)[0].strip()


def _tool_results(messages: Sequence[Message]) -> tuple[ToolResult, ...]:
    if not messages or messages[-1].role != "tool":
        return ()
    names = {
        call.id: call.function.name for message in messages for call in message.tool_calls or ()
    }
    results: list[ToolResult] = []
    for message in reversed(messages):
        if message.role != "tool":
            break
        name = names.get(message.tool_call_id or "", message.name or "tool")
        results.append(ToolResult(name, message.text()))
    return tuple(reversed(results))
