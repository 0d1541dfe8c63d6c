"""What the worker reads of a provider's answer; everything else in it is skipped undecoded."""

from typing import Any

import msgspec
from msgspec import Struct


class FunctionPart(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolPart(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


class MessagePart(Struct, gc=False):
    """A delta, or the whole message of an answer that is not streamed."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The same under another provider's name for it."""
    refusal: str | None = None
    tool_calls: list[ToolPart] | None = None


class Choice(Struct, gc=False):
    index: int = 0
    delta: MessagePart | None = None
    message: MessagePart | None = None
    finish_reason: str | None = None


class PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class UsagePart(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Answer(Struct, gc=False):
    """One event of a stream, or a whole answer.

    `error` has as many shapes as there are servers; `usage` is read apart, as it must not spoil the
    rest.
    """

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


class ErrorBody(Struct, gc=False):
    """The body of a refusal; some servers leave out the envelope."""

    error: Any = None
    message: Any = None
    detail: Any = None


answer_decoder = msgspec.json.Decoder(Answer)
error_decoder = msgspec.json.Decoder(ErrorBody)
