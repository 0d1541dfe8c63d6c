"""From a request to an answer, complete before its first byte is sent. Pure.

An answer is a row of spans (reasoning, content, tool calls), each a row of tokens. How they
travel (pacing, chunks, faults) is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from services.simulator import prose
from services.simulator.knobs import Script
from services.simulator.reading import Reading, read
from services.simulator.schema import example
from services.simulator.tokens import count, tokenize
from services.simulator.tools import ToolCall, tool_calls
from services.simulator.wire import ChatRequest

Kind = Literal["reasoning_content", "content", "tool"]
Finish = Literal["stop", "length", "tool_calls"]

_PER_MESSAGE = 3  # tokens around each message, as OpenAI counts a prompt


@dataclass(frozen=True, slots=True)
class Span:
    kind: Kind
    tokens: tuple[str, ...]
    tool: ToolCall | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    spans: tuple[Span, ...]
    finish: Finish

    def text(self, kind: Kind) -> str:
        return "".join(span.text for span in self.spans if span.kind == kind)

    @property
    def tools(self) -> tuple[Span, ...]:
        return tuple(span for span in self.spans if span.kind == "tool")

    def size(self, kind: Kind | None = None) -> int:
        """Tokens of one kind, or of all."""
        return sum(len(span.tokens) for span in self.spans if kind in (None, span.kind))


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, for marker mode: every token says from which attempt it came."""

    stream: str = "-"
    branch: str = "-"
    attempt: str = "-"

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Origin:
        return cls(
            *(headers.get(f"x-braid-{name}", "-") for name in ("stream", "branch", "attempt"))
        )

    def tokens(self, first: int, size: int) -> tuple[str, ...]:
        mark = f"{self.stream}|{self.branch}|{self.attempt}|"
        return tuple(f"{mark}{index} " for index in range(first, first + size))


def answers(request: ChatRequest, script: Script, model: str, origin: Origin) -> list[Answer]:
    """One answer for each of the `n` choices."""
    choices = range(request.n or 1)
    thought = _reasoning_size(script, model)
    if script.marker:
        spans = (
            Span("reasoning_content", origin.tokens(0, thought)),
            Span("content", origin.tokens(thought, script.tokens)),
        )
        return [_limited(Answer(spans, "stop"), request.limit) for _ in choices]
    reading = read(request.messages)
    seeds = [prose.seed_of(reading, script.seed, model, choice) for choice in choices]
    return [_answer(request, reading, script, seed, thought) for seed in seeds]


def _answer(
    request: ChatRequest, reading: Reading, script: Script, seed: int, thought: int
) -> Answer:
    spans = [Span("reasoning_content", prose.reasoning_tokens(reading, seed, thought))]
    finish: Finish = "stop"
    calls = tool_calls(request, reading, seed)
    if calls:
        spans.extend(Span("tool", tuple(tokenize(call.arguments)), call) for call in calls)
        finish = "tool_calls"
    else:
        spans.append(Span("content", _content(request, reading, script, seed)))
    return _limited(Answer(tuple(spans), finish), request.limit)


def _reasoning_size(script: Script, model: str) -> int:
    if script.reasoning_tokens is not None:
        return script.reasoning_tokens
    if "reason" not in model or script.marker:
        return 0
    return max(8, script.tokens // 4)


def _content(request: ChatRequest, reading: Reading, script: Script, seed: int) -> tuple[str, ...]:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        tokens = prose.answer_tokens(reading, seed, script.tokens, script.exact)
        return _stopped(tokens, request.stops)
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        value: Any = example(wanted.json_schema.schema, prose.excerpt(reading.question, 12))
    else:
        said = prose.answer_tokens(reading, seed, script.tokens, script.exact)
        value = {
            "question": reading.question,
            "answer": "".join(said),
            "sources": [passage.number for passage in reading.passages],
        }
    return _stopped(tuple(tokenize(msgspec.json.encode(value).decode())), request.stops)


def _stopped(tokens: tuple[str, ...], stops: tuple[str, ...]) -> tuple[str, ...]:
    """The tokens before the first stop sequence, which itself is not sent."""
    if not stops:
        return tokens
    text = "".join(tokens)
    ends = [at for at in map(text.find, stops) if at >= 0]
    if not ends:
        return tokens
    left = min(ends)
    kept: list[str] = []
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return tuple(kept)


def _limited(answer: Answer, limit: int | None) -> Answer:
    """Cut to the first `limit` tokens, reasoning included, with the reason `length`."""
    if limit is None or answer.size() <= limit:
        return answer
    spans: list[Span] = []
    left = limit
    for span in answer.spans:
        if left <= 0:
            break
        spans.append(replace(span, tokens=span.tokens[:left]))
        left -= len(span.tokens)
    return Answer(tuple(spans), "length")


def usage(request: ChatRequest, given: list[Answer]) -> dict[str, Any]:
    """OpenAI's usage object; the prompt counts once, the completion for every choice."""
    prompt = 3 + sum(
        _PER_MESSAGE + count(message.text()) + (count(message.name) if message.name else 0)
        for message in request.messages
    )
    completion = sum(answer.size() for answer in given)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(answer.size("reasoning_content") for answer in given),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
