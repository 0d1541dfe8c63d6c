"""Reading one stored message from a stream's leader, which never lags behind its replicas."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from shared.bus.connection import Bus, BusError
from shared.bus.patience import ELECTION_S, patiently

TRY_S = 2.0
"""A question may go to a node that was just killed, and is then never answered."""
NO_MESSAGE = 10037


class Stored(Struct, frozen=True):
    """A message as its stream keeps it."""

    seq: int
    payload: bytes


class _StoredMessage(Struct):
    seq: int = 0
    data: str = ""


class _ApiError(Struct):
    err_code: int = 0
    description: str = ""


class _Reply(Struct):
    message: _StoredMessage | None = None
    error: _ApiError | None = None


_decoder = msgspec.json.Decoder(_Reply)


async def leader_get(
    bus: Bus, stream: str, query: Mapping[str, Any], *, patience_s: float = ELECTION_S
) -> Stored | None:
    """The message a query such as `{"last_by_subj": …}` names; None when there is none.

    Waits for a leader. Raises BusError when none answers within `patience_s`.
    """
    subject, body = f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode(query)

    async def ask() -> Stored | None:
        answer = await bus.request(subject, body, timeout_s=TRY_S)
        try:
            reply = _decoder.decode(answer.data)
        except msgspec.DecodeError as error:
            raise BusError(f"{stream} can't be read: its answer makes no sense") from error
        if reply.error is not None:
            if reply.error.err_code == NO_MESSAGE:
                return None
            raise BusError(f"{stream} can't be read: {reply.error.description}")
        if reply.message is None:
            raise BusError(f"{stream} can't be read: an empty answer")
        return Stored(reply.message.seq, base64.b64decode(reply.message.data))

    return await patiently(ask, patience_s)
