"""What the events of a provider's stream mean: deltas, an end, usage, or a failure. Pure.

| event                                  | meaning                                              |
|----------------------------------------|------------------------------------------------------|
| role only, empty delta, other choice   | nothing, and no first token                          |
| content, refusal                       | text                                                 |
| reasoning_content, reasoning           | reasoning                                            |
| tool_calls                             | tool fragments, by index                             |
| finish_reason                          | the branch is finished; the first one counts         |
| content or a reason after that         | ignored, counted                                     |
| usage, wherever                        | the newest counts                                    |
| `error`                                | failure by its kind; what came before is kept        |
| not JSON, not UTF-8, other types       | `upstream_malformed`; what came before is kept       |
| `[DONE]`                               | nothing more is read                                 |

| the stream ends                        | the branch is                                        |
|----------------------------------------|------------------------------------------------------|
| after a finish reason, [DONE] or not   | finished                                             |
| after content, no reason, [DONE]       | truncated; `stop` if the provider's end is relaxed   |
| after content, no reason, no [DONE]    | truncated                                            |
| with neither content nor reason        | `upstream_malformed`, so that it is tried again      |
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from services.worker.failures import Failure, from_stream_error
from services.worker.wire import Answer, MessagePart, ToolPart, UsagePart, answer_decoder
from shared.events import Delta, ToolFragment, Usage
from shared.fold import join_tool_fragments
from shared.messages import ChatMessage

MAX_CHUNK_TEXT_BYTES: Final = 64 * 1024
CHARS_PER_TOKEN: Final = 4
"""Of English text, on average; what an estimate of tokens rests on."""

_decode = answer_decoder.decode
_DONE: Final = b"[DONE]"


class Interpreter:
    """One attempt's answer. Feed it events with `read`, take the deltas with `take`."""

    def __init__(
        self, branch: int, *, relaxed_end: bool = False, secrets: Sequence[str] = ()
    ) -> None:
        self._branch = branch
        self._relaxed_end = relaxed_end
        self._secrets = secrets
        self._deltas: list[Delta] = []
        self._kind = ""
        """Of the pieces at hand: `text`, `reasoning`, or neither."""
        self._pieces: list[str] = []
        self._pending_chars = 0
        self._done = False
        self.finish_reason: str | None = None
        self.failure: Failure | None = None
        self.usage: Usage | None = None
        self.tokens = 0
        """Events that said something."""
        self.chars = 0
        self.reasoning_chars = 0
        self.used_tools = False
        self.ignored = 0
        """Events after the end that would have changed it."""

    @property
    def pending(self) -> bool:
        """There is something to take."""
        return self._pending_chars > 0 or bool(self._deltas)

    @property
    def over(self) -> bool:
        """Nothing that could follow matters."""
        return self._done or self.failure is not None

    def read(self, payload: bytes) -> None:
        """One event's data."""
        if self.over:
            return
        if payload == _DONE:
            self._done = True
            return
        try:
            answer = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if payload.strip() == _DONE:
                self._done = True
            else:
                self.fail(Failure("upstream_malformed", "the provider sent an unreadable event"))
            return
        self._read(answer)

    def read_whole(self, body: bytes) -> None:
        """The body of an answer that is not streamed, as the one event of a stream."""
        self.read(body)
        self._done = True

    def fail(self, failure: Failure) -> None:
        """The first failure counts; one after the end of the answer doesn't."""
        if self.failure is None and self.finish_reason is None:
            self.failure = failure
        self._done = True

    def take(self) -> list[tuple[Delta, ...]]:
        """What was said since the last time, joined, in batches that fit a chunk."""
        self._close()
        deltas = tuple(self._deltas)
        chars = self._pending_chars
        self._deltas.clear()
        self._pending_chars = 0
        if not deltas:
            return []
        if chars * 4 <= MAX_CHUNK_TEXT_BYTES:
            return [deltas]
        return list(_batches(deltas))

    def conclude(self) -> str | Failure | None:
        """How the attempt ended: a finish reason, None for a truncation, or a failure."""
        if self.failure is not None:
            return self.failure
        if self.finish_reason is not None:
            return self.finish_reason
        if not self.tokens:
            return Failure("upstream_malformed", "the provider's answer was empty")
        if self._done and self._relaxed_end:
            return "stop"
        return None

    def count_usage(self, messages: Sequence[ChatMessage]) -> Usage:
        """The provider's numbers, or an estimate by characters that says so."""
        if self.usage is not None:
            return self.usage
        prompt = _estimate(sum(map(_chars_of, messages)))
        completion = _estimate(self.chars)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            source="estimate",
            reasoning_tokens=_estimate(self.reasoning_chars),
        )

    def _read(self, answer: Answer) -> None:
        if answer.error:
            self.fail(from_stream_error(answer.error, self._secrets))
            return
        if answer.usage:
            self.usage = _usage_of(answer.usage) or self.usage
        for choice in answer.choices or ():
            if choice.index != 0:
                self.ignored += 1
                continue
            part = choice.delta or choice.message
            if self.finish_reason is not None:
                if choice.finish_reason or (part is not None and _says_something(part)):
                    self.ignored += 1
                continue
            if part is not None:
                self._read_part(part)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason

    def _read_part(self, part: MessagePart) -> None:
        text = part.content
        reasoning = part.reasoning_content or part.reasoning
        if text and not reasoning and part.tool_calls is None:  # nearly every event
            self.tokens += 1
            self._say("text", text)
            return
        if not _says_something(part):
            return
        self.tokens += 1
        if reasoning:
            self.reasoning_chars += len(reasoning)
            self._say("reasoning", reasoning)
        if text or part.refusal:
            self._say("text", text or part.refusal or "")
        for position, call in enumerate(part.tool_calls or ()):
            self._call(position, call)

    def _say(self, kind: str, piece: str) -> None:
        if kind != self._kind:
            self._close()
            self._kind = kind
        self._pieces.append(piece)
        self._pending_chars += len(piece)
        self.chars += len(piece)

    def _call(self, position: int, call: ToolPart) -> None:
        self._close()
        self.used_tools = True
        function = call.function
        fragment = ToolFragment(
            index=position if call.index is None else call.index,
            id=call.id or "",
            name=(function.name if function else None) or "",
            arguments=(function.arguments if function else None) or "",
        )
        self.chars += len(fragment.arguments)
        self._pending_chars += len(fragment.arguments)
        last = self._deltas[-1].tool_call if self._deltas else None
        if last is not None and last.index == fragment.index and not fragment.id:
            self._deltas[-1] = Delta(self._branch, tool_call=join_tool_fragments(last, fragment))
        else:
            self._deltas.append(Delta(self._branch, tool_call=fragment))

    def _close(self) -> None:
        """Make one delta of the pieces at hand."""
        if self._pieces:
            text = self._pieces[0] if len(self._pieces) == 1 else "".join(self._pieces)
            self._pieces.clear()
            self._deltas.append(
                Delta(self._branch, text)
                if self._kind == "text"
                else Delta(self._branch, reasoning=text)
            )
        self._kind = ""


def _batches(deltas: Sequence[Delta]) -> Iterator[tuple[Delta, ...]]:
    batch: list[Delta] = []
    size = 0
    for piece in (piece for delta in deltas for piece in _pieces(delta)):
        piece_bytes = _bytes_of(_text_of(piece))
        if batch and size + piece_bytes > MAX_CHUNK_TEXT_BYTES:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(piece)
        size += piece_bytes
    if batch:
        yield tuple(batch)


def _pieces(delta: Delta) -> Iterator[Delta]:
    """The delta, cut so that no piece is too long for a chunk."""
    text = _text_of(delta)
    step = MAX_CHUNK_TEXT_BYTES if text.isascii() else MAX_CHUNK_TEXT_BYTES // 4
    if len(text) <= step:
        yield delta
        return
    for start in range(0, len(text), step):
        cut = text[start : start + step]
        if delta.tool_call is not None:
            call = delta.tool_call
            first = start == 0
            fragment = ToolFragment(
                call.index, call.id if first else "", call.name if first else "", cut
            )
            yield Delta(delta.branch, tool_call=fragment)
        elif delta.reasoning:
            yield Delta(delta.branch, reasoning=cut)
        else:
            yield Delta(delta.branch, cut)


def _text_of(delta: Delta) -> str:
    return delta.text or delta.reasoning or (delta.tool_call.arguments if delta.tool_call else "")


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text) * 4


def _says_something(part: MessagePart) -> bool:
    return bool(
        part.content or part.reasoning_content or part.reasoning or part.refusal or part.tool_calls
    )


def _usage_of(said: Any) -> Usage | None:
    try:
        part = msgspec.convert(said, UsagePart, strict=False)
    except msgspec.ValidationError:
        return None
    prompt, completion = part.prompt_tokens or 0, part.completion_tokens or 0
    prompt_details, details = part.prompt_tokens_details, part.completion_tokens_details
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=part.total_tokens or prompt + completion,
        source="upstream",
        reasoning_tokens=(details.reasoning_tokens if details else None) or 0,
        cached_tokens=(prompt_details.cached_tokens if prompt_details else None) or 0,
    )


def _estimate(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def _chars_of(message: ChatMessage) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return sum(len(text) for text in texts if isinstance(text, str))
    return 0
