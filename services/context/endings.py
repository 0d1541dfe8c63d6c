"""Ending a stream that will not be generated, so that no reader waits for ever."""

import hashlib

import structlog

from services.context.requests import Envelope
from shared.bus import BusError, EventLog, Fenced, StreamExists
from shared.errors import BraidError
from shared.events import Accepted, Checkpoint, Failed, Record, decode_record, encode_record

log = structlog.get_logger()

MAX_RACES = 50
"""Lost races with a living owner, each a round trip, before the queue delivers the item again."""


async def fail_stream(event_log: EventLog, sid: str, error: BraidError) -> bool:
    """Commit an error terminal; False when the stream has its terminal, or no log.

    Fences whoever owns the stream. Raises BusError.
    """
    failed = Failed(code=error.code, message=error.message, retryable=error.retryable)
    for _ in range(MAX_RACES):
        last = await event_log.last(sid)
        if last is None:
            return False
        record = decode_record(last.payload)
        if record.finished:
            return False
        ending = Record(
            record.epoch + 1, record.n_next, (failed,), record.checkpoint, finished=True
        )
        try:
            await event_log.commit(sid, encode_record(ending), expected_seq=last.seq)
        except Fenced:
            continue
        log.info("stream.failed", stream_id=sid, code=error.code)
        return True
    raise BusError("the stream's owner is always faster")


async def refuse_stream(
    event_log: EventLog, envelope: Envelope, payload: bytes, error: BraidError
) -> bool:
    """End the stream of a request that can't be served; False when it is not this request's.

    Raises BusError. May be repeated.
    """
    if await _is_ours(event_log, envelope, payload):
        return await fail_stream(event_log, envelope.sid, error)
    return False


async def _is_ours(event_log: EventLog, envelope: Envelope, payload: bytes) -> bool:
    if envelope.accepted_seq:
        first = await event_log.first(envelope.sid)
        if first is None or first.seq != envelope.accepted_seq:
            return False
        accepted = decode_record(first.payload).accepted
        return accepted is not None and accepted.user_id == envelope.user_id
    # The same bytes each time: a repetition finds its own record, another's stream is left alone.
    accepted = Accepted(
        envelope.user_id, envelope.session_id, hashlib.sha256(payload).hexdigest(), 0.0
    )
    try:
        await event_log.accept(
            envelope.sid, encode_record(Record(0, 1, (), Checkpoint(()), accepted))
        )
    except StreamExists:
        return False
    return True
