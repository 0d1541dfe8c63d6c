"""Writing events to a connection: a reader's, until its terminal or until somebody leaves; or all
there are.
"""

import asyncio
import random
from collections.abc import Iterable

import structlog
from aiohttp import ClientConnectionError, web

from services.edge.pulse import Attachment, Pulse
from services.edge.reader import LogExpired, Reader
from services.edge.sse import RETRY_MAX_MS, RETRY_MIN_MS, Open, open_event
from shared.telemetry import Counters

log = structlog.get_logger()

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


async def deliver(
    request: web.Request, reader: Reader, opening: Open, pulse: Pulse, counters: Counters
) -> web.StreamResponse:
    """Answer with the events of an open reader, and close it.

    The response ends cleanly after the terminal and when the edge drains. What goes wrong after
    the first byte can't become a status any more: the connection is cut, so that no client takes
    a part for the whole.
    """
    sid = reader.sid
    response = _response(sid)
    transport = request.transport
    if transport is None:  # left before the first byte
        await reader.close()
        return response
    loop = asyncio.get_running_loop()
    attachment = Attachment(reader, transport)
    pulse.add(attachment)
    counters["readers_opened"] += 1
    batches = reader.batches()
    try:
        await response.prepare(request)
        await response.write(open_event(opening, _retry_ms()))
        async for batch in batches:
            attachment.writing_since = loop.time()
            await response.write(batch)
            attachment.writing_since = None
        await response.write_eof()
    except (ConnectionError, ClientConnectionError):
        log.debug("edge.reader_left", stream_id=sid)
    except LogExpired:
        log.warning("edge.log_expired", stream_id=sid)
        transport.abort()
    except Exception:
        log.exception("edge.delivery_failed", stream_id=sid)
        counters["readers_failed"] += 1
        transport.abort()
    finally:
        pulse.remove(attachment)
        counters["readers_closed"] += 1
        counters["rereads"] += reader.rereads
        await batches.aclose()
        await reader.close()
    return response


async def deliver_whole(
    request: web.Request,
    opening: Open,
    events: Iterable[bytes],
    counters: Counters,
    *,
    write_deadline_s: float,
) -> web.StreamResponse:
    """Answer with events that are all there. A client that takes one too slowly is cut off."""
    response = _response(opening.stream_id)
    transport = request.transport
    try:
        await response.prepare(request)
        await response.write(open_event(opening, _retry_ms()))
        for event in events:
            async with asyncio.timeout(write_deadline_s):
                await response.write(event)
        await response.write_eof()
    except (ConnectionError, ClientConnectionError):
        log.debug("edge.reader_left", stream_id=opening.stream_id)
    except TimeoutError:
        counters["readers_too_slow"] += 1
        log.info("edge.reader_too_slow", stream_id=opening.stream_id)
        if transport is not None:
            transport.abort()
    return response


def _response(sid: str) -> web.StreamResponse:
    return web.StreamResponse(headers={**HEADERS, "X-Stream-Id": sid})


def _retry_ms() -> int:
    return random.randint(RETRY_MIN_MS, RETRY_MAX_MS)  # noqa: S311  # jitter, not a secret
