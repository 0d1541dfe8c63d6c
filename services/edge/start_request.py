"""From the body of a start request to a StartStream. Pure.

Every refusal names the member and says what to change; it never repeats what was sent.
"""

import hashlib
import re
from typing import Annotated, Any, Final, NoReturn, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from shared.errors import BraidError
from shared.ids import ALPHABET, SID_LENGTH, is_sid, is_token
from shared.messages import (
    BranchRequest,
    ChatMessage,
    MidStream,
    OnDisconnect,
    Priority,
    StartStream,
    Timeouts,
)
from shared.settings import Settings

MAX_DEPTH: Final = 64
MAX_TIMEOUT_S: Final = 86_400
RESERVED_PARAMS: Final = {
    "stream": "it is not needed: the Accept header says whether the answer is a stream",
    "stream_options": "it is not needed: usage always comes with branch.done",
    "n": "send `branches` to generate several answers",
    "extra_body": "send the parameters themselves, as members",
    "extra_headers": "headers for the provider are the operator's",
    "extra_query": "send the parameters themselves, as members",
    "timeout": "send `timeouts`",
    "api_key": "providers and their keys are the operator's",
    "base_url": "providers and their keys are the operator's",
}
"""Names that mean something to a provider's client, so they can't be model parameters."""

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,256}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WHERE = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>.*)`$", re.DOTALL)

_CHOICES = {
    "mid_stream": get_args(MidStream),
    "on_disconnect": get_args(OnDisconnect),
    "priority": get_args(Priority),
}

T = TypeVar("T")
Sid = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9A-Za-z]{22}$"})]
SessionId = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9A-Za-z_-]{1,64}$"})]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(min_length=1)]
Messages = Annotated[list[ChatMessage], Meta(min_length=1)]


class NewBranch(Struct, frozen=True, kw_only=True):
    """One of several generations; members not listed are parameters for its model."""

    label: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    model: Name | None = None
    messages: Messages | None = None
    fallbacks: list[Name] | None = None


class NewStream(Struct, frozen=True, kw_only=True):
    """A start request: `message`, or `messages`, or branches that all have messages.

    Members not listed are parameters for every branch's model.
    """

    id: Sid | None = None
    session_id: SessionId | None = None
    model: Name | None = None
    message: Text | None = None
    messages: Messages | None = None
    branches: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    fallbacks: list[Name] | None = None
    use_rag: bool = True
    mid_stream: MidStream | None = None
    on_disconnect: OnDisconnect | None = None
    priority: Priority = "normal"
    timeouts: Timeouts = Timeouts()
    profile: dict[str, Any] | None = None
    history: list[ChatMessage] | None = None


class NewChatMessage(Struct, frozen=True, kw_only=True):
    """The short form of a start request; other members are ignored."""

    message: Text
    session_id: SessionId | None = None
    use_rag: bool = True
    model: Name | None = None
    id: Sid | None = None


_STREAM_MEMBERS = frozenset(NewStream.__struct_fields__)
_BRANCH_MEMBERS = frozenset(NewBranch.__struct_fields__)


def parse_start(
    body: bytes,
    settings: Settings,
    user_id: str,
    *,
    fresh_sid: str,
    idempotency_key: str | None = None,
) -> StartStream:
    """The request in `body`; its stream is `fresh_sid` unless the client names one.

    Raises BraidError `bad_request` for what is not a JSON object, and `invalid` for a member that
    can't be used.
    """
    members = _decode_object(body)
    asked = _convert({k: v for k, v in members.items() if k in _STREAM_MEMBERS}, NewStream)
    params = _params(members, _STREAM_MEMBERS, "")
    _check_messages(asked.messages, "messages")
    _check_messages(asked.history, "history")
    _check_timeouts(asked.timeouts)
    if asked.message is not None and asked.messages is not None:
        _refuse("message", "`message` and `messages` exclude each other: send one of them")
    branches = _branches(asked, params, settings)
    if asked.message is None and not all(branch.messages for branch in branches):
        _refuse("messages", "`messages` or `message` is missing: say what is to be answered")
    sid = _sid(asked.id, user_id, idempotency_key, fresh_sid)
    return StartStream(
        sid=sid,
        user_id=user_id,
        session_id=_session_id(asked.session_id, sid),
        branches=branches,
        message=asked.message,
        use_rag=asked.use_rag,
        profile=asked.profile,
        history=asked.history,
        mid_stream=asked.mid_stream,
        on_disconnect=asked.on_disconnect,
        priority=asked.priority,
        timeouts=asked.timeouts,
    )


def parse_chat_message(
    body: bytes,
    settings: Settings,
    user_id: str,
    *,
    fresh_sid: str,
    idempotency_key: str | None = None,
) -> StartStream:
    """The short form: one message, one answer. Raises as `parse_start` does."""
    asked = _convert(_decode_object(body), NewChatMessage)
    sid = _sid(asked.id, user_id, idempotency_key, fresh_sid)
    return StartStream(
        sid=sid,
        user_id=user_id,
        session_id=_session_id(asked.session_id, sid),
        branches=[BranchRequest(model=asked.model or settings.default_model)],
        message=asked.message,
        use_rag=asked.use_rag,
    )


def sid_of_key(user_id: str, key: str) -> str:
    """The stream id that an idempotency key of a user stands for: SHA-256 in base62."""
    number = int.from_bytes(hashlib.sha256(f"{user_id}\0{key}".encode()).digest())
    digits = []
    for _ in range(SID_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(digits)


def _refuse(param: str, message: str) -> NoReturn:
    raise BraidError("invalid", message, param=param)


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        value = None
        deep = True
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise BraidError("bad_request", f"the body can't be read as JSON: {reason}") from None
    else:
        deep = _is_deeper_than(value, MAX_DEPTH)
    if deep:
        raise BraidError(
            "bad_request", f"the body nests deeper than {MAX_DEPTH} levels: flatten it"
        )
    if not isinstance(value, dict):
        raise BraidError("bad_request", "the body must be a JSON object")
    return value


def _is_deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True


def _convert(members: dict[str, Any], kind: type[T], at: str = "") -> T:
    try:
        return msgspec.convert(members, kind)
    except msgspec.ValidationError as error:
        found = _WHERE.match(str(error))
        what, path = (found["what"], found["path"]) if found else (str(error), "")
        if named := re.search(r"(missing required|unknown) field `(.+)`", what):
            path = f"{path}.{named[2]}".lstrip(".")
            what = "is required" if named[1] == "missing required" else "is not known here"
        elif what.startswith("Invalid enum value"):
            what = "must be one of " + ", ".join(_CHOICES[path])
        else:
            what = "is not right: " + what[:1].lower() + what[1:]
        param = f"{at}{path}"
        raise BraidError("invalid", f"`{param}` {what}", param=param) from None


def _params(members: dict[str, Any], known: frozenset[str], at: str) -> dict[str, Any]:
    params = {key: value for key, value in members.items() if key not in known}
    for name, advice in RESERVED_PARAMS.items():
        if name in params:
            _refuse(at + name, f"`{at}{name}` can't be a model parameter: {advice}")
    return params


def _branches(asked: NewStream, params: dict[str, Any], settings: Settings) -> list[BranchRequest]:
    """One branch for each that was asked for; what is said above holds for all that don't say."""
    given = asked.branches or [{}]
    if len(given) > settings.max_branches:
        _refuse("branches", f"more than {settings.max_branches} branches: send fewer")
    branches = []
    labels = set()
    for index, members in enumerate(given):
        at = f"branches[{index}]." if asked.branches else ""
        own = _convert({k: v for k, v in members.items() if k in _BRANCH_MEMBERS}, NewBranch, at)
        _check_messages(own.messages, f"{at}messages")
        if own.label is not None:
            if _CONTROL.search(own.label):
                _refuse(f"{at}label", f"`{at}label` holds control characters: leave them out")
            if own.label in labels:
                _refuse(f"{at}label", f"`{at}label` was given to an earlier branch: choose another")
            labels.add(own.label)
        branches.append(
            BranchRequest(
                label=own.label,
                model=own.model or asked.model or settings.default_model,
                messages=own.messages or asked.messages or [],
                params={**params, **_params(members, _BRANCH_MEMBERS, at)},
                fallbacks=(own.fallbacks if own.fallbacks is not None else asked.fallbacks) or [],
            )
        )
    return branches


def _check_messages(messages: list[ChatMessage] | None, at: str) -> None:
    for index, message in enumerate(messages or []):
        role = message.get("role")
        if not isinstance(role, str) or not role:
            _refuse(f"{at}[{index}].role", f"`{at}[{index}].role` must be a string such as user")


def _check_timeouts(timeouts: Timeouts) -> None:
    for name, value in msgspec.structs.asdict(timeouts).items():
        if value is not None and not 0 < value <= MAX_TIMEOUT_S:
            at = f"timeouts.{name}"
            _refuse(at, f"`{at}` must be more than 0 and at most {MAX_TIMEOUT_S} seconds")


def _sid(given: str | None, user_id: str, idempotency_key: str | None, fresh_sid: str) -> str:
    """A member is more deliberate than a header that some library may add: the id wins."""
    if given is not None:
        if not is_sid(given):
            _refuse("id", f"`id` must be {SID_LENGTH} characters of 0-9 A-Z a-z")
        return given
    if idempotency_key is None:
        return fresh_sid
    if not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise BraidError(
            "bad_request",
            "`Idempotency-Key` must be 1 to 256 printable ASCII characters",
            param="Idempotency-Key",
        )
    return sid_of_key(user_id, idempotency_key)


def _session_id(given: str | None, sid: str) -> str:
    if given is None:
        return sid
    if not is_token(given):
        _refuse("session_id", "`session_id` must be 1 to 64 characters of 0-9 A-Z a-z _ -")
    return given
