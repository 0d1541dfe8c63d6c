"""What OpenAI clients send, decoded and checked.

Unknown top-level parameters are accepted and ignored, as a gateway may pass on anything;
parameters that are known must be right. Every refusal says what to change.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from services.simulator.errors import ApiError, bad_request


class Part(Struct, frozen=True):
    type: str
    text: str | None = None


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str = ""


class PastToolCall(Struct, frozen=True):
    id: str
    function: FunctionCall


class Message(Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class Function(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True):
    name: str


class NamedTool(Struct, frozen=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(Struct, frozen=True):
    name: str
    schema: dict[str, Any] = {}
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


Positive = Annotated[int, Meta(ge=1)]


class ChatRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    sim: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens that may be generated; None: no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    sim: dict[str, Any] | None = None

    def texts(self) -> list[str]:
        """One text per vector; an array of token numbers counts as one text."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and all(isinstance(item, int) for item in self.input):
            return [" ".join(map(str, self.input))]
        return [
            " ".join(map(str, item)) if isinstance(item, list) else str(item) for item in self.input
        ]


Request = TypeVar("Request", ChatRequest, EmbeddingRequest)

_chat = msgspec.json.Decoder(ChatRequest)
_embedding = msgspec.json.Decoder(EmbeddingRequest)
_PATH = re.compile(r" - at `\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `(\w+)`")


def chat_request(body: bytes) -> ChatRequest:
    """Raises ApiError (400) when the body is not a chat request OpenAI would take."""
    request = _decoded(_chat, body)
    _check_model(request.model)
    _check_messages(request.messages)
    _check_options(request)
    return request


def embedding_request(body: bytes) -> EmbeddingRequest:
    """Raises ApiError (400) when the body is not an embeddings request OpenAI would take."""
    request = _decoded(_embedding, body)
    _check_model(request.model)
    texts = request.texts()
    if not 1 <= len(texts) <= 2048:
        raise bad_request("'input' must hold between 1 and 2048 texts.", "input")
    if any(not text for text in texts):
        raise bad_request("'input' must not hold an empty text: leave it out.", "input")
    return request


def _decoded(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_request(
            "We could not parse the JSON body of your request. (HINT: send one JSON object "
            "encoded as UTF-8, with Content-Type: application/json.)"
        ) from None


def _refusal(problem: str) -> ApiError:
    """msgspec's complaint, said in terms of the parameter that has to change."""
    missing = _MISSING.search(problem)
    path = _PATH.search(problem)
    where = path.group(1) if path else ""
    if missing:
        name = f"{where}.{missing.group(1)}".strip(".")
        return bad_request(f"Missing required parameter: '{name}'. Add it to the request.", name)
    what = _PATH.sub("", problem)
    if not where:
        return bad_request(f"Invalid request body: {what}.")
    return bad_request(f"Invalid value for '{where}': {what[:1].lower()}{what[1:]}.", where)


def _check_model(model: str) -> None:
    if not model:
        raise bad_request("You must provide a model parameter: 'model' is empty.", "model")


def _check_messages(messages: list[Message]) -> None:
    if not messages:
        raise bad_request("'messages' is empty: send at least one message.", "messages")
    called: set[str] = set()
    for at, message in enumerate(messages):
        if message.role == "assistant":
            called.update(call.id for call in message.tool_calls or ())
        elif message.role == "tool":
            if message.tool_call_id not in called:
                raise bad_request(
                    "messages with role 'tool' must be a response to a preceding message with "
                    f"'tool_calls': set 'messages[{at}].tool_call_id' to the id of such a call.",
                    f"messages[{at}].tool_call_id",
                )
        elif message.content is None and message.role != "function":
            raise bad_request(
                f"Invalid value for 'messages[{at}].content': a {message.role} message needs a "
                "string or an array of parts.",
                f"messages[{at}].content",
            )


def _check_options(request: ChatRequest) -> None:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise bad_request(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported: "
            "keep one of them.",
            "max_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled: set "
            "'stream' to true or leave it out.",
            "stream_options",
        )
    if isinstance(request.stop, list) and len(request.stop) > 4:
        raise bad_request("'stop' may hold at most 4 sequences: send fewer.", "stop")
    names = [tool.function.name for tool in request.tools or ()]
    if request.tool_choice not in (None, "none") and not names:
        raise bad_request(
            "'tool_choice' is only allowed when 'tools' are specified: add tools.", "tool_choice"
        )
    if isinstance(request.tool_choice, NamedTool):
        wanted = request.tool_choice.function.name
        if wanted not in names:
            raise bad_request(
                f"Tool choice '{wanted}' not found in 'tools': choose one of {names}.",
                "tool_choice",
            )
    _check_format(request)


def _check_format(request: ChatRequest) -> None:
    wanted = request.response_format
    if wanted is None:
        return
    if wanted.type == "json_schema" and wanted.json_schema is None:
        raise bad_request(
            "Missing required parameter: 'response_format.json_schema'. Add it to the request.",
            "response_format.json_schema",
        )
    if wanted.type == "json_object" and not any(
        "json" in message.text().lower() for message in request.messages
    ):
        raise bad_request(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of "
            "type 'json_object': name it in a message.",
            "messages",
        )
