"""One clock for all readers of an edge: keep-alives, write deadlines, and the check for lost tails.

Live records come at most once, and the last one of a stream may be the lost one, with none behind
it to show the gap. So a reader that has heard nothing for a while is compared with the log: one
request for up to 1,024 streams. A timer or task per reader would cost more than the reader.
"""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Protocol

import structlog

from services.edge.reader import Reader
from shared.bus import BusError
from shared.telemetry import Counters

log = structlog.get_logger()


class LogEnds(Protocol):
    """What the check needs of shared.bus.EventLog."""

    async def last_of(self, sids: Collection[str]) -> dict[str, int]: ...


class Connection(Protocol):
    """What is needed of an asyncio.Transport."""

    def is_closing(self) -> bool: ...

    def abort(self) -> None: ...


class Attachment:
    """A reader and the connection its batches are written to."""

    __slots__ = ("connection", "reader", "writing_since")

    def __init__(self, reader: Reader, connection: Connection) -> None:
        self.reader = reader
        self.connection = connection
        self.writing_since: float | None = None
        """When the write that is under way began."""


class Pulse:
    """Holds the attachments of an edge. `run_beats` and `run_checks` are its two tasks."""

    def __init__(
        self, ends: LogEnds, counters: Counters, *, tail_check_s: float, write_deadline_s: float
    ) -> None:
        self._ends = ends
        self._counters = counters
        self._tail_check_s = tail_check_s
        self._write_deadline_s = write_deadline_s
        self._attachments: set[Attachment] = set()
        self._reconnected = asyncio.Event()
        self._closing = False

    def __len__(self) -> int:
        return len(self._attachments)

    def add(self, attachment: Attachment) -> None:
        self._attachments.add(attachment)
        if self._closing:
            attachment.reader.stop()

    def remove(self, attachment: Attachment) -> None:
        self._attachments.discard(attachment)

    def close(self) -> None:
        """End every reader, also those yet to come; their clients go on elsewhere."""
        self._closing = True
        for attachment in self._attachments:
            attachment.reader.stop()

    def on_reconnect(self) -> None:
        """Anything may have been missed: check every reader now."""
        self._reconnected.set()

    async def run_beats(self, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every_s)
            self.beat(loop.time())

    async def run_checks(self, every_s: float) -> None:
        """Apart from the beats: NATS may take long to answer, and keep-alives must not wait."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._reconnected.wait()
            everybody = self._reconnected.is_set()
            self._reconnected.clear()
            try:
                await self.check_tails(loop.time(), everybody=everybody)
            except BusError:
                log.warning("edge.tail_check_failed", readers=len(self._attachments))

    def beat(self, now: float) -> None:
        """Pass the time on; give up on those who left and on those who don't read."""
        for attachment in self._attachments:
            since = attachment.writing_since
            if attachment.connection.is_closing():
                attachment.reader.stop()
            elif since is None:
                attachment.reader.tick(now)
            elif now - since >= self._write_deadline_s:
                self._counters["readers_too_slow"] += 1
                log.info("edge.reader_too_slow", stream_id=attachment.reader.sid)
                attachment.reader.stop()
                attachment.connection.abort()

    async def check_tails(self, now: float, *, everybody: bool = False) -> None:
        """Compare silent readers with the log. Raises BusError."""
        silent: dict[str, list[Reader]] = {}
        for attachment in self._attachments:
            reader = attachment.reader
            if attachment.writing_since is not None:
                continue
            if everybody or reader.silent_s(now) >= self._tail_check_s:
                silent.setdefault(reader.sid, []).append(reader)
        if not silent:
            return
        last = await self._ends.last_of(silent)
        for sid, readers in silent.items():
            for reader in readers:
                reader.checked(now)
                if last.get(sid, 0) > reader.last_seq:
                    self._counters["tails_reread"] += 1
                    reader.reread()
