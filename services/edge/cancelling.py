"""Cancelling a stream: a durable mark first, then a word to its owner."""

from shared.bus import CancelMarks, Link
from shared.events import TERMINALS, Terminal, decode_record
from shared.messages import CancelRequested, msgpack_encoder


async def cancel(link: Link, marks: CancelMarks, sid: str, reason: str) -> Terminal | None:
    """Mark the stream for cancellation, or return the terminal that it has already.

    Once it returns None the stream will end, whatever dies; repeating it is harmless. Raises
    BusError when the mark may not have been stored.
    """
    last = await link.log.last(sid)
    if last is not None:
        record = decode_record(last.payload)
        if record.finished and isinstance(record.events[-1], TERMINALS):
            return record.events[-1]
    await marks.set(sid, reason)
    # An owner would find the mark anyway; this saves it the time until it looks.
    link.bus.send(link.subjects.control(sid), msgpack_encoder.encode(CancelRequested(sid=sid)))
    return None
