"""Streams past retention: their numbers are gone, and what is stored of them is told as a whole."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import structlog
from aiohttp import web

from services.edge.answers import CancelState, Snapshot, status_of
from services.edge.archive import Archive
from services.edge.delivery import deliver_whole
from services.edge.sse import Open
from services.edge.transcript import answers_in, events_of, snapshot_of, terminal_of
from shared.bus import Link
from shared.errors import BraidError
from shared.events import decode_record
from shared.messages import Transcript
from shared.telemetry import Counters

log = structlog.get_logger()


class Expired(Exception):
    """The log doesn't say whose the stream is: it has no records of it, or not the first."""

    def __init__(self, *, has_log: bool) -> None:
        super().__init__("the log has not got this stream's beginning")
        self.has_log = has_log


class Past:
    """Every method raises BraidError for what it refuses, and BusError when nobody can tell."""

    def __init__(
        self, link: Link, archive: Archive, counters: Counters, *, write_deadline_s: float
    ) -> None:
        self._link = link
        self._archive = archive
        self._counters = counters
        self._write_deadline_s = write_deadline_s

    async def events(
        self, request: web.Request, sid: str, user_id: str, expired: Expired
    ) -> web.StreamResponse:
        """The transcript as one replay, from whatever position it was asked for."""
        async with self._turn(sid, user_id, expired) as turn:
            self._counters["transcripts_replayed"] += 1
            log.info("edge.transcript_replayed", stream_id=sid)
            answers = answers_in(turn)
            opening = Open(sid, answers[0].session_id, 0, "transcript")
            return await deliver_whole(
                request,
                opening,
                events_of(answers),
                self._counters,
                write_deadline_s=self._write_deadline_s,
            )

    async def snapshot(self, sid: str, user_id: str, expired: Expired) -> Snapshot:
        async with self._turn(sid, user_id, expired) as turn:
            return snapshot_of(sid, turn)

    async def cancel(self, sid: str, user_id: str, expired: Expired) -> CancelState:
        """There is nothing left to cancel: how it had ended."""
        async with self._turn(sid, user_id, expired) as turn:
            return CancelState(sid, status_of(terminal_of(answers_in(turn))))

    async def require_unused(self, sid: str, user_id: str) -> None:
        """Raises BraidError for an id that a stream past retention has: `gone` for this user's,
        `not_found` for another's.

        The stream's request is not stored, so nobody can say whether this one is the same.
        """
        first = await self._link.log.first(sid)
        if first is not None and decode_record(first.payload).accepted is not None:
            return  # whoever opens the log will see whose it is
        was_used = await self._archive.was_used(sid, user_id)
        # Another start with this id may have been quicker since.
        if was_used and first is None and await self._link.log.first(sid) is None:
            raise _used()

    async def refuse(self, sid: str, user_id: str, expired: Expired) -> NoReturn:
        """A start that was to resume this stream: raises BraidError `gone` or `not_found`."""
        async with self._turn(sid, user_id, expired):
            raise _used()

    @asynccontextmanager
    async def _turn(
        self, sid: str, user_id: str, expired: Expired
    ) -> AsyncIterator[list[Transcript]]:
        """The stored turn, which has an answer."""
        async with self._archive.opened(sid, user_id) as turn:
            if answers_in(turn):
                yield turn
            elif expired.has_log:
                raise BraidError(
                    "gone", "the beginning of this stream is past retention, and it is not stored"
                )
            else:
                raise BraidError("not_found", "there is no such stream")


def _used() -> BraidError:
    return BraidError(
        "gone",
        "this id belongs to a stream that is past retention: follow it for its transcript, or "
        "choose another id to start a new one",
        param="id",
    )
