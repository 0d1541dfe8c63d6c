"""Accepting a stream: the first record of its log, which makes a start idempotent.

The edge opens the log before it queues a request, and context does so for requests that internal
services publish themselves. Whoever opens it first decides; the fingerprint tells an honest
repetition from another request with the same id.
"""

import hashlib
import time

import msgspec

from shared.bus import EventLog, StreamExists
from shared.errors import BraidError
from shared.events import Accepted, Checkpoint, Record, decode_record, encode_record
from shared.messages import StartStream


def fingerprint(request: StartStream) -> str:
    """SHA-256 of what was asked, without what differs from try to try."""
    asked = msgspec.structs.replace(request, accepted_seq=0, accepted_at=0.0)
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()


async def open_log(log: EventLog, request: StartStream) -> tuple[StartStream, bool]:
    """Open the stream's log, or find it opened by the same request.

    Returns the request with `accepted_seq` and `accepted_at`, and whether the stream is new. Raises
    BraidError `conflict` for another request of the same user with this id, `not_found` for another
    user's stream, `gone` for one whose beginning is past retention; BusError when NATS is away.
    """
    accepted = Accepted(
        user_id=request.user_id,
        session_id=request.session_id,
        fingerprint=fingerprint(request),
        accepted_at=time.time(),
        on_disconnect=request.on_disconnect or "",
    )
    record = Record(0, 1, (), Checkpoint(()), accepted)
    try:
        seq = await log.accept(request.sid, encode_record(record))
    except StreamExists:
        first = await log.first(request.sid)
        earlier = decode_record(first.payload).accepted if first is not None else None
        if first is None or earlier is None:
            raise BraidError(
                "gone", "this stream id was used before and its log has expired: choose another id"
            ) from None
        if earlier.user_id != request.user_id:
            raise BraidError("not_found", "there is no such stream") from None
        if earlier.fingerprint != accepted.fingerprint:
            raise BraidError(
                "conflict",
                "this id belongs to a stream with another request body: choose another id, or "
                "send the first body again to attach to it",
                param="id",
            ) from None
        return _with(request, first.seq, earlier.accepted_at), False
    return _with(request, seq, accepted.accepted_at), True


def _with(request: StartStream, seq: int, accepted_at: float) -> StartStream:
    return msgspec.structs.replace(request, accepted_seq=seq, accepted_at=accepted_at)
