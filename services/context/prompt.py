"""Prompt assembly. Pure: what is known of the user and the conversation becomes chat messages.

In the order in which a model reads them:

1. one `system` message: the instructions, then the profile, one fact a line;
2. the history, oldest first;
3. the user's message.

The budget is spent in the order of importance: message, instructions, profile, then history from
the newest message back. What does not fit is left out whole; history stops at the first message
that does not fit, and never starts in the middle of a turn, with an answer. A message alone may
exceed the budget: it is sent as it is, and the model decides.

A branch that brings its own `messages` is not assembled at all: they are sent untouched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shared.messages import ChatMessage

BUDGET_TOKENS = 16_000
"""Of everything this module puts together; models with a window of 32,000 and less keep half."""
CHARS_PER_TOKEN = 4
"""OpenAI's rule of thumb for English; other languages need more tokens, hence the reserve."""
TOKENS_PER_MESSAGE = 4
"""Role and separators."""


def assemble(
    message: str,
    *,
    instructions: str = "",
    profile: Mapping[str, Any] | None = None,
    history: Sequence[ChatMessage] = (),
    budget_tokens: int = BUDGET_TOKENS,
) -> list[ChatMessage]:
    """The messages of one generation; at most `budget_tokens`, unless the message alone is more."""
    asked: ChatMessage = {"role": "user", "content": message}
    left = budget_tokens - tokens_of(asked)
    system = _system(instructions, profile, left)
    left -= sum(map(tokens_of, system))
    return [*system, *_newest_that_fit(history, left), asked]


def tokens_of(message: ChatMessage) -> int:
    """An estimate from the characters; never 0."""
    content = message.get("content")
    chars = len(content) if isinstance(content, str) else len(msgspec.json.encode(content))
    if calls := message.get("tool_calls"):
        chars += len(msgspec.json.encode(calls))
    return TOKENS_PER_MESSAGE + -(-chars // CHARS_PER_TOKEN)


def _system(instructions: str, profile: Mapping[str, Any] | None, left: int) -> list[ChatMessage]:
    parts: list[str] = []
    for part in (instructions, _describe(profile or {})):
        candidate = {"role": "system", "content": "\n\n".join([*parts, part])}
        if part and tokens_of(candidate) <= left:
            parts.append(part)
    return [{"role": "system", "content": "\n\n".join(parts)}] if parts else []


def _describe(profile: Mapping[str, Any]) -> str:
    """`key: value` lines; values that are not plain stand there as JSON."""
    facts = [
        f"{key}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for key, value in profile.items()
        if value not in (None, "", [], {})
    ]
    return "\n".join(["What is known about the user:", *facts]) if facts else ""


def _newest_that_fit(history: Sequence[ChatMessage], left: int) -> list[ChatMessage]:
    start = len(history)
    while start > 0 and tokens_of(history[start - 1]) <= left:
        start -= 1
        left -= tokens_of(history[start])
    if start > 0:
        while start < len(history) and history[start].get("role") != "user":
            start += 1
    return list(history[start:])
