"""The bytes of chat completions. Pure.

A chunk differs from the next only in its delta, so everything around it is encoded once per
request; a token costs one small JSON encode and one join.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from services.simulator.answer import Answer, Kind
from services.simulator.tools import ToolCall

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"
FINGERPRINT = "fp_simulator"

_encode = msgspec.json.encode


class Piece(Struct, frozen=True, gc=False):
    """One delta of a choice: the index of its first token, how many tokens it carries, bytes."""

    first: int
    tokens: int
    data: bytes


class ChunkWriter:
    """Encodes one stream's events. `created` is in Unix seconds."""

    def __init__(self, id: str, created: int, model: str, include_usage: bool) -> None:
        head = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        self._head = b"data: " + _encode(head)[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._after_delta = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def _before_delta(self, choice: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,"delta":' % choice

    def delta(self, choice: int, delta: bytes) -> bytes:
        """An event with a delta given as JSON bytes, which are not checked."""
        return self._before_delta(choice) + delta + self._after_delta

    def role(self, choice: int, answer: Answer) -> bytes:
        content = None if answer.tools else ""
        return self.delta(
            choice, _encode({"role": "assistant", "content": content, "refusal": None})
        )

    def text(self, choice: int, text: str) -> bytes:
        return self.delta(choice, b'{"content":' + _encode(text) + b"}")

    def finish(self, choice: int, reason: str) -> bytes:
        return (
            self._before_delta(choice)
            + b'{},"logprobs":null,"finish_reason":"%s"}]' % reason.encode()
            + self._tail
        )

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b',"choices":[],"usage":' + _encode(usage) + b"}\n\n"

    def broken_json(self, choice: int) -> bytes:
        return self._before_delta(choice) + b'{"content": "unfinish\n\n'

    def broken_utf8(self, choice: int) -> bytes:
        return self.delta(choice, b'{"content":" \xff\xfe\xc3("}')

    def pieces(
        self, choice: int, answer: Answer, per_chunk: int, edge: int | None = None
    ) -> Iterator[Piece]:
        """The answer's deltas in order. No piece reaches over a span's end or over the token
        `edge`, so that what was sent before a fault is exact."""
        first = 0
        tool = -1
        for span in answer.spans:
            if span.tool is not None:
                tool += 1
                yield Piece(first, 0, self.delta(choice, _opening(tool, span.tool)))
            before, after = self._around(choice, span.kind, tool)
            at, size, base = 0, len(span.tokens), first
            while at < size:
                end = min(at + per_chunk, size)
                if edge is not None and at < edge - base < end:
                    end = edge - base
                text = span.tokens[at] if end - at == 1 else "".join(span.tokens[at:end])
                yield Piece(base + at, end - at, before + _encode(text) + after)
                at = end
            first += size

    def _around(self, choice: int, kind: Kind, tool: int) -> tuple[bytes, bytes]:
        """The bytes before and after a token's JSON string."""
        if kind == "tool":
            return (
                self._before_delta(choice)
                + b'{"tool_calls":[{"index":%d,"function":{"arguments":' % tool,
                b"}}]}" + self._after_delta,
            )
        return (
            self._before_delta(choice) + b'{"%s":' % kind.encode(),
            b"}" + self._after_delta,
        )


def _opening(index: int, call: ToolCall) -> bytes:
    function = {"name": call.name, "arguments": ""}
    opened = {"index": index, "id": call.id, "type": "function", "function": function}
    return _encode({"tool_calls": [opened]})


def completion(
    id: str, created: int, model: str, given: Iterable[Answer], usage: dict[str, Any] | None
) -> bytes:
    """The body of an answer that is not streamed; without usage when that is None."""
    body: dict[str, Any] = {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(index, answer) for index, answer in enumerate(given)],
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if usage is not None:
        body["usage"] = usage
    return _encode(body)


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.tools else answer.text("content"),
        "refusal": None,
    }
    reasoning = answer.text("reasoning_content")
    if reasoning:
        message["reasoning_content"] = reasoning
    if answer.tools:
        message["tool_calls"] = [
            {
                "id": span.tool.id,
                "type": "function",
                "function": {"name": span.tool.name, "arguments": span.text},
            }
            for span in answer.tools
            if span.tool is not None
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish}
