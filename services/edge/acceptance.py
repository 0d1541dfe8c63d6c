"""Accepting a start request: its log first, then its place in the queue.

A crash between the two leaves a log that nobody writes to; the next request with the same id finds
it with nothing but its first record and queues the work again. The queue drops repetitions.
"""

import structlog

from shared.bus import Link, PublishRefused
from shared.errors import BraidError
from shared.intake import open_log
from shared.messages import StartStream, json_encoder
from shared.telemetry import Counters

log = structlog.get_logger()

KIND = "chat"
PATIENCE_S = 15.0
"""Longer than a NATS cluster takes to elect a new leader for the queue."""
RETRY_AFTER_S = 1.0
ENVELOPE_BYTES = 4 * 1024
"""Room in a NATS message for its headers and for what acceptance adds to the request."""


def require_fit(request: StartStream, max_payload: int) -> None:
    """Raises BraidError `payload_too_large` when a queue message can't hold the request.

    Messages given once for all branches are repeated in each, so a small body can become large.
    """
    if len(json_encoder.encode(request)) + ENVELOPE_BYTES > max_payload:
        raise BraidError(
            "payload_too_large",
            "the request, with its messages once for every branch, is larger than "
            f"{max_payload - ENVELOPE_BYTES} bytes: shorten the messages or send fewer branches",
        )


async def accept(link: Link, request: StartStream, counters: Counters) -> tuple[StartStream, bool]:
    """Open the stream's log and queue its work, or attach to the stream that is there.

    Returns the request as accepted, and whether the stream is new. Raises BraidError: `conflict`,
    `not_found` and `gone` as shared.intake has it, `overloaded` when the queue is full,
    `payload_too_large`; BusError when NATS doesn't answer, and it may be accepted all the same.
    """
    require_fit(request, link.bus.max_payload)
    try:
        accepted, is_new = await open_log(link.log, request)
        if is_new or await _is_unused(link, accepted):
            await link.publisher.publish(
                link.subjects.request(KIND),
                json_encoder.encode(accepted),
                msg_id=accepted.sid,
                patience_s=PATIENCE_S,
            )
    except PublishRefused as refused:
        counters["streams_shed"] += 1
        log.warning("edge.shed", stream_id=request.sid, code=refused.code)
        raise BraidError(
            "overloaded",
            "the queue takes no more work right now: send the same request again, with the same id",
            retry_after_s=RETRY_AFTER_S,
        ) from None
    counters["streams_accepted" if is_new else "streams_attached"] += 1
    return accepted, is_new


async def _is_unused(link: Link, accepted: StartStream) -> bool:
    last = await link.log.last(accepted.sid)
    return last is not None and last.seq == accepted.accepted_seq
