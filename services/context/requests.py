"""Reading a request from the queue. Pure.

The edge checks what clients send; here stand the checks for whoever publishes requests directly.
"""

from dataclasses import dataclass

import msgspec
from msgspec import Struct

from shared.errors import BraidError
from shared.ids import is_sid, is_token
from shared.messages import StartStream, start_stream_decoder

MAX_USER_ID = 256


class Envelope(Struct, frozen=True):
    """What must be readable of a request, so that its stream can be ended with a reason."""

    sid: str
    user_id: str
    session_id: str
    accepted_seq: int = 0


@dataclass(frozen=True)
class BadRequest(Exception):
    """Never to be delivered again; `envelope` is None when nobody can be told."""

    error: BraidError
    envelope: Envelope | None


_envelope_decoder = msgspec.json.Decoder(Envelope)


def read(payload: bytes, max_branches: int) -> StartStream:
    """Raises BadRequest."""
    try:
        request = start_stream_decoder.decode(payload)
    except msgspec.DecodeError as error:
        # A validation error names the member and the expected type, and never the value.
        raise BadRequest(BraidError("invalid", str(error)), _envelope_of(payload)) from None
    if problem := _problem_of(request, max_branches):
        raise BadRequest(BraidError("invalid", problem), _envelope_of(payload))
    return request


def needs_prompt(request: StartStream) -> bool:
    """Whether any branch leaves it to us to assemble its messages."""
    return any(not branch.messages for branch in request.branches)


def _problem_of(request: StartStream, max_branches: int) -> str | None:
    if not is_sid(request.sid):
        return "`sid` must be 22 base62 characters"
    if not is_token(request.session_id):
        return "`session_id` must be 1 to 64 of A-Z a-z 0-9 _ -"
    if not _is_user_id(request.user_id):
        return f"`user_id` must be 1 to {MAX_USER_ID} printable characters"
    if not 1 <= len(request.branches) <= max_branches:
        return f"`branches` must have 1 to {max_branches} items, not {len(request.branches)}"
    for index, branch in enumerate(request.branches):
        if not branch.model:
            return f"`branches[{index}].model` must not be empty"
        if not branch.messages and not request.message:
            return f"`branches[{index}]` has no `messages`, and there is no `message` either"
    return None


def _is_user_id(value: str) -> bool:
    return 1 <= len(value) <= MAX_USER_ID and value.isprintable()


def _envelope_of(payload: bytes) -> Envelope | None:
    try:
        envelope = _envelope_decoder.decode(payload)
    except msgspec.DecodeError:
        return None
    owned = is_token(envelope.session_id) and _is_user_id(envelope.user_id)
    return envelope if is_sid(envelope.sid) and owned else None
