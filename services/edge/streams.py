"""The handlers of streams: start, follow, look, cancel. Each reads decode, decide, answer."""

from typing import Protocol

import structlog
from aiohttp import web

from services.edge import negotiate
from services.edge.absence import Absence
from services.edge.acceptance import accept
from services.edge.answers import CancelState, Started, json_answer, snapshot, status_of
from services.edge.cancelling import cancel
from services.edge.delivery import deliver
from services.edge.identify import identify
from services.edge.past import Expired, Past
from services.edge.pulse import Pulse
from services.edge.reader import MAX_READ_BYTES, Reader
from services.edge.sse import NativeEvents, Open
from services.edge.start_request import parse_chat_message, parse_start
from shared.bus import BusError, CancelMarks, Link
from shared.errors import BraidError
from shared.events import Accepted, Record, decode_record
from shared.fold import StreamView
from shared.ids import is_sid, new_sid
from shared.messages import StartStream
from shared.settings import Settings
from shared.telemetry import Counters

log = structlog.get_logger()

SID = web.RequestKey("sid", str)
"""The stream a request is about, for its answer's header and for the log."""


class Parse(Protocol):
    def __call__(
        self,
        body: bytes,
        settings: Settings,
        user_id: str,
        *,
        fresh_sid: str,
        idempotency_key: str | None,
    ) -> StartStream: ...


class StreamHandlers:
    """Every handler raises BraidError for what it refuses, and BusError when NATS is away."""

    def __init__(
        self,
        settings: Settings,
        link: Link,
        *,
        marks: CancelMarks,
        past: Past,
        pulse: Pulse,
        absence: Absence,
        counters: Counters,
    ) -> None:
        self._settings = settings
        self._link = link
        self._marks = marks
        self._past = past
        self._pulse = pulse
        self._absence = absence
        self._counters = counters

    # Start ------------------------------------------------------------------------------------

    async def start(self, request: web.Request) -> web.StreamResponse:
        asked = await self._decode(request, parse_start)
        if negotiate.wants_events(request.headers.get("Accept")):
            return await self._start_events(request, asked)
        accepted, _ = await accept(self._link, asked, self._counters)
        url = f"/v1/streams/{accepted.sid}"
        body = Started(accepted.sid, accepted.session_id, f"{url}/events")
        return json_answer(body, 202, {"Location": url})

    async def start_chat(self, request: web.Request) -> web.StreamResponse:
        asked = await self._decode(request, parse_chat_message)
        return await self._start_events(request, asked)

    async def _decode(self, request: web.Request, parse: Parse) -> StartStream:
        negotiate.require_json(request.headers.get("Content-Type"))
        body = await request.read()
        fresh_sid = new_sid()
        asked = parse(
            body,
            self._settings,
            identify(request),
            fresh_sid=fresh_sid,
            idempotency_key=request.headers.get("Idempotency-Key"),
        )
        request[SID] = asked.sid
        if asked.sid != fresh_sid:
            await self._past.require_unused(asked.sid, asked.user_id)
        return asked

    async def _start_events(self, request: web.Request, asked: StartStream) -> web.StreamResponse:
        """With a Last-Event-ID it only resumes: a client lost the answer and sends all again."""
        after = negotiate.position(request.headers.get("Last-Event-ID"), None)
        reader = self._reader(asked.sid, after)
        await reader.open()
        try:
            if after:
                await self._require_owned(asked.sid, asked.user_id)
                await self._require_reached(asked.sid, after)
            accepted, _ = await accept(self._link, asked, self._counters)
        except Expired as expired:
            await reader.close()
            await self._past.refuse(asked.sid, asked.user_id, expired)
        except BaseException:
            await reader.close()
            raise
        return await self._deliver(
            request, reader, accepted.session_id, after, accepted.on_disconnect
        )

    # Follow -----------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        sid = self._sid(request)
        after = negotiate.position(request.headers.get("Last-Event-ID"), request.query.get("after"))
        reader = self._reader(sid, after)
        await reader.open()
        try:
            accepted = await self._require_owned(sid, identify(request))
            last = await self._require_reached(sid, after)
        except Expired as expired:
            await reader.close()
            return await self._past.events(request, sid, identify(request), expired)
        except BaseException:
            await reader.close()
            raise
        if last is not None and last.finished and after == last.n_next - 1:
            # An EventSource would come back for ever for a stream it has had to its end.
            await reader.close()
            return web.Response(status=204)
        return await self._deliver(
            request, reader, accepted.session_id, after, accepted.on_disconnect
        )

    # Look -------------------------------------------------------------------------------------

    async def show(self, request: web.Request) -> web.StreamResponse:
        sid = self._sid(request)
        try:
            await self._require_owned(sid, identify(request))
        except Expired as expired:
            return json_answer(await self._past.snapshot(sid, identify(request), expired))
        view = StreamView()
        seq, more = 0, True
        while more:
            entries, more = await self._link.log.read_some(
                sid, after_seq=seq, max_bytes=MAX_READ_BYTES
            )
            for entry in entries:
                view.apply(decode_record(entry.payload))
                seq = entry.seq
        if view.accepted is None:
            raise BusError("a replica lags behind the leader, or the log expired just now")
        return json_answer(snapshot(sid, view))

    # Cancel -----------------------------------------------------------------------------------

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        sid = self._sid(request)
        try:
            await self._require_owned(sid, identify(request))
        except Expired as expired:
            return json_answer(await self._past.cancel(sid, identify(request), expired))
        terminal = await cancel(self._link, self._marks, sid, "client")
        if terminal is not None:
            return json_answer(CancelState(sid, status_of(terminal)))
        self._counters["streams_cancelled"] += 1
        log.info("edge.cancel_marked", stream_id=sid)
        return json_answer(CancelState(sid, "cancelling"), 202)

    # What they share --------------------------------------------------------------------------

    def _reader(self, sid: str, after: int) -> Reader:
        return Reader(
            self._link.log,
            sid,
            after,
            NativeEvents(),
            buffer_bytes=self._settings.reader_buffer_bytes,
            heartbeat_s=self._settings.heartbeat_s,
        )

    async def _deliver(
        self,
        request: web.Request,
        reader: Reader,
        session_id: str,
        after: int,
        on_disconnect: str | None,
    ) -> web.StreamResponse:
        opening = Open(reader.sid, session_id, after)
        if (on_disconnect or self._settings.on_disconnect) != "cancel":
            return await deliver(request, reader, opening, self._pulse, self._counters)
        self._absence.arrived(reader.sid)
        try:
            return await deliver(request, reader, opening, self._pulse, self._counters)
        finally:
            self._absence.left(reader.sid, ended=reader.finished)

    def _sid(self, request: web.Request) -> str:
        sid = request.match_info["id"]
        if not is_sid(sid):
            raise BraidError("not_found", "there is no such stream")
        request[SID] = sid
        return sid

    async def _require_owned(self, sid: str, user_id: str) -> Accepted:
        """Raises Expired, or BraidError `not_found` for another user's stream."""
        first = await self._link.log.first(sid)
        accepted = decode_record(first.payload).accepted if first is not None else None
        if accepted is None:
            raise Expired(has_log=first is not None)
        if accepted.user_id != user_id:
            raise BraidError("not_found", "there is no such stream")
        return accepted

    async def _require_reached(self, sid: str, after: int) -> Record | None:
        """The last record; None when nobody needs to know it. Raises BraidError."""
        if after == 0:
            return None
        last = await self._last(sid)
        negotiate.require_reached(after, last.n_next - 1 if last is not None else 0)
        return last

    async def _last(self, sid: str) -> Record | None:
        entry = await self._link.log.last(sid)
        return decode_record(entry.payload) if entry is not None else None
